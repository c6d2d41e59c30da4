//! A container's root file system in the agent's mount namespace: read-only lower layers from a disk, and over them, if asked
//! for, a writable one on tmpfs or on a disk; or a whole one, a disk or a folder that the host shares.
//!
//! Owns the directory `<run>/<id>` and what is mounted in it. The container sees a copy in its own mount namespace.

mod layers;

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hull_protocol::agent::api::agent as api;
use hull_protocol::agent::{FILE_SIZE_MAX, FILES_MAX, is_valid_id};

use crate::helper::{self, HelperError, Work};
use crate::launch::UserNamespace;
use crate::reap::Children;
use crate::sys::mount::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY};
use crate::volumes::Volumes;
use layers::Lower;

/// The longest serial number that virtio-blk has (virtio 1.3 §5.2.6).
const SERIAL_MAX: usize = 20;

/// Why there is no root file system.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// The request does not say what the lower layer is.
    #[error("rootfs: no lower layer is given")]
    NoLower,
    /// A layer of a kind that this agent does not know.
    #[error("rootfs: a kind of layer that this agent does not know")]
    UnknownKind,
    /// Not a serial number that a disk can have.
    #[error("rootfs: {0:?} is not the serial number of a disk")]
    Serial(String),
    /// The VM has no such disk.
    #[error("rootfs: no disk has the serial number {0:?}")]
    NoDisk(String),
    /// Not the name of a folder that the host shares.
    #[error("rootfs: {0:?} is not the name of a shared folder")]
    Folder(String),
    /// Lengths of layers that no disk can have.
    #[error("rootfs: the lengths of the layers cannot be right")]
    Layers,
    /// A whole root file system takes no layer above it.
    #[error("rootfs: only an erofs disk takes an upper layer")]
    Upper,
    /// A tmpfs without a size would be half of the guest's memory.
    #[error("rootfs: the tmpfs for the upper layer needs a size")]
    NoSize,
    /// Too many files, too long ones, or a name that is none.
    #[error("rootfs: the files that come with the request cannot be right: {0}")]
    Files(String),
    /// A mount or its directory could not be made or removed.
    #[error("rootfs: {0}")]
    Work(#[from] HelperError),
}

/// Where disks are.
#[derive(Clone, Debug)]
pub enum Disks {
    /// virtio-blk devices, found by the serial number in sysfs.
    Virtio,
    /// Directories of this name, mounted as they are: for an agent that does not run in a VM.
    Directories(PathBuf),
}

impl Disks {
    /// Major and minor number of disk `serial`.
    pub fn number(&self, serial: &str) -> Result<(u32, u32), RootfsError> {
        let missing = || RootfsError::NoDisk(serial.to_owned());
        let device = self.find(serial)?;
        let name = device.file_name().ok_or_else(missing)?;
        let text = std::fs::read_to_string(Path::new("/sys/block").join(name).join("dev"));
        let text = text.map_err(|_| missing())?;
        let (major, minor) = text.trim_end().split_once(':').ok_or_else(missing)?;
        Ok((major.parse().map_err(|_| missing())?, minor.parse().map_err(|_| missing())?))
    }

    /// What to mount for disk `serial`.
    fn find(&self, serial: &str) -> Result<PathBuf, RootfsError> {
        let fits = !serial.is_empty()
            && serial.len() <= SERIAL_MAX
            && serial.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !fits {
            return Err(RootfsError::Serial(serial.to_owned()));
        }
        let missing = || RootfsError::NoDisk(serial.to_owned());
        match self {
            Self::Directories(directory) => {
                Some(directory.join(serial)).filter(|path| path.is_dir()).ok_or_else(missing)
            }
            Self::Virtio => {
                let entries = std::fs::read_dir("/sys/block").map_err(|_| missing())?;
                entries
                    .filter_map(Result::ok)
                    .find(|entry| {
                        std::fs::read_to_string(entry.path().join("serial"))
                            .is_ok_and(|found| found.trim_end() == serial)
                    })
                    .map(|entry| Path::new("/dev").join(entry.file_name()))
                    .ok_or_else(missing)
            }
        }
    }
}

/// A root file system, mounted or about to be.
#[derive(Debug)]
pub struct Rootfs {
    base: PathBuf,
    root: CString,
    files: CString,
}

impl Rootfs {
    /// The place of container `id`; nothing is made yet.
    pub fn new(run: &Path, id: &str) -> Self {
        let base = run.join(id);
        let root = c_path(&base.join("rootfs"));
        let files = c_path(&base.join("files"));
        Self { base, root, files }
    }

    /// One that is mounted at `root` already, by others. No file comes with it: there is nothing at `place`.
    pub fn existing(place: &Path, root: CString) -> Self {
        Self { base: place.to_owned(), root, files: c_path(&place.join("files")) }
    }

    /// The mount point.
    pub fn root(&self) -> &CStr {
        &self.root
    }

    /// The directory of the files that came with the request.
    pub fn files(&self) -> &CStr {
        &self.files
    }

    /// Mounts what `request` says. After an error, [`Rootfs::remove`] undoes what was done.
    pub async fn mount(
        &self,
        disks: &Disks,
        volumes: &Volumes,
        children: &Children,
        request: &api::Rootfs,
        user: Option<&Arc<UserNamespace>>,
    ) -> Result<(), RootfsError> {
        if let Some(api::rootfs::Lower::Shared(_)) = &request.lower {
            volumes.mount(children).await?;
        }
        let mut work = self.plan(disks, volumes, request, user)?;
        work.extend(self.write(&request.files, user)?);
        Ok(helper::run(children, &work).await?)
    }

    /// Files on a small file system of their own: what the container makes of them is not the agent's memory.
    fn write(
        &self,
        files: &[api::File],
        user: Option<&Arc<UserNamespace>>,
    ) -> Result<Vec<Work>, RootfsError> {
        if files.is_empty() {
            return Ok(Vec::new());
        }
        if files.len() > FILES_MAX {
            return Err(RootfsError::Files(format!("{} of them, {FILES_MAX} are the most", files.len())));
        }
        let wrong = files.iter().find(|file| !is_valid_id(&file.name) || file.content.len() > FILE_SIZE_MAX);
        if let Some(file) = wrong {
            return Err(RootfsError::Files(format!("{:?}, {} bytes", file.name, file.content.len())));
        }
        let options = [(c"source", c"files"), (c"size", c"2m"), (c"nr_inodes", c"32"), (c"mode", c"755")];
        let mut work = vec![
            Work::MakeDirectory { path: self.files.clone(), mode: 0o755 },
            Work::Mount {
                kind: c"tmpfs".to_owned(),
                options: options.map(|(key, value)| (key.to_owned(), Some(value.to_owned()))).into(),
                attributes: ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC,
                target: self.files.clone(),
                user: user.cloned(),
            },
        ];
        work.extend(files.iter().map(|file| Work::WriteFile {
            path: c_path(&self.base.join("files").join(&file.name)),
            content: file.content.clone(),
        }));
        Ok(work)
    }

    /// The lower layer is shown to belong to the ids of `user`. What is in the upper belongs to the guest's ids for them: an overlay
    /// makes its own files there, as the guest's root.
    fn plan(
        &self,
        disks: &Disks,
        volumes: &Volumes,
        request: &api::Rootfs,
        user: Option<&Arc<UserNamespace>>,
    ) -> Result<Vec<Work>, RootfsError> {
        let [upper, root] = ["upper", "rootfs"].map(|name| c_path(&self.base.join(name)));
        let directory = |path: &CString| Work::MakeDirectory { path: path.clone(), mode: 0o755 };
        let mut work = vec![directory(&c_path(&self.base)), directory(&root)];
        let whole = |mount| if request.upper.is_none() { Ok(mount) } else { Err(RootfsError::Upper) };
        let disk = match &request.lower {
            Some(api::rootfs::Lower::Erofs(disk)) => disk,
            Some(api::rootfs::Lower::Shared(folder)) => {
                let source = volumes.folder(&folder.name);
                let source = source.ok_or_else(|| RootfsError::Folder(folder.name.clone()))?;
                work.push(whole(Work::Bind { source, target: root, attributes: 0, user: user.cloned() })?);
                return Ok(work);
            }
            Some(api::rootfs::Lower::Disk(disk)) => {
                let attributes = if disk.read_only { ATTR_RDONLY } else { 0 };
                let device = disks.find(&disk.serial)?;
                work.push(whole(mount_disk(disks, "ext4", &device, &root, attributes, user))?);
                return Ok(work);
            }
            Some(_) => return Err(RootfsError::UnknownKind),
            None => return Err(RootfsError::NoLower),
        };
        let below = Lower::of(disks, disk, self.base.join("lower"))?;
        let Some(upper_request) = &request.upper else {
            work.extend(below.alone(root, user));
            return Ok(work);
        };
        work.push(directory(&upper));
        work.extend(below.mount(user));
        work.push(match upper_request {
            api::rootfs::Upper::Tmpfs(tmpfs) if tmpfs.size_bytes == 0 => return Err(RootfsError::NoSize),
            api::rootfs::Upper::Tmpfs(tmpfs) => Work::Mount {
                kind: c"tmpfs".to_owned(),
                options: vec![
                    (c"source".to_owned(), Some(c"upper".to_owned())),
                    (c"size".to_owned(), CString::new(tmpfs.size_bytes.to_string()).ok()),
                    (c"mode".to_owned(), Some(c"700".to_owned())),
                ],
                attributes: 0,
                user: None,
                target: upper.clone(),
            },
            api::rootfs::Upper::Ext4(disk) => {
                mount_disk(disks, "ext4", &disks.find(&disk.serial)?, &upper, 0, None)
            }
            _ => return Err(RootfsError::UnknownKind),
        });
        let [data, scratch] = ["upper/upper", "upper/work"].map(|name| c_path(&self.base.join(name)));
        work.extend([directory(&data), directory(&scratch)]);
        // The root directory's owner and mode are those of the upper layer's.
        work.push(Work::CopyAttributes { from: below.top(), to: data.clone() });
        let own = vec![(c"upperdir".to_owned(), Some(data)), (c"workdir".to_owned(), Some(scratch))];
        work.extend(below.overlay(own, root));
        Ok(work)
    }

    /// Unmounts and removes everything, flushing disks. Can be repeated, and called after a `mount` that failed.
    pub async fn remove(&self, children: &Children) -> Result<(), RootfsError> {
        let names = ["files", "rootfs", "upper", "lower"].map(|name| c_path(&self.base.join(name)));
        let [files, root, upper, lower] = names.clone();
        let mut work: Vec<Work> = [files, root, upper].map(|path| Work::Unmount { path }).into();
        // It may have layers in it still.
        work.push(Work::Detach { path: lower });
        work.extend(names.into_iter().map(|path| Work::RemoveDirectory { path }));
        work.push(Work::RemoveDirectory { path: c_path(&self.base) });
        Ok(helper::run(children, &work).await?)
    }
}

fn mount_disk(
    disks: &Disks,
    kind: &str,
    disk: &Path,
    target: &CStr,
    attributes: u64,
    user: Option<&Arc<UserNamespace>>,
) -> Work {
    let (source, user) = (c_path(disk), user.cloned());
    match disks {
        Disks::Directories(_) => Work::Bind { source, target: target.to_owned(), attributes, user },
        Disks::Virtio => {
            let mut options = vec![(c"source".to_owned(), Some(source))];
            if attributes & ATTR_RDONLY != 0 {
                options.push((c"ro".to_owned(), None));
            }
            Work::Mount {
                kind: CString::new(kind).unwrap_or_default(),
                options,
                attributes,
                user,
                target: target.to_owned(),
            }
        }
    }
}

/// A path made of the agent's own directory and checked ids: without NUL bytes.
fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}
