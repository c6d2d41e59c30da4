//! A container's root file system in the agent's mount namespace: a read-only lower layer from a disk, and over it, if asked
//! for, a writable one on tmpfs or on a disk.
//!
//! Owns the directory `<run>/<id>` and what is mounted in it. The container sees a copy in its own mount namespace.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hull_protocol::agent::api::agent as api;

use crate::helper::{self, HelperError, Work};
use crate::launch::UserNamespace;
use crate::reap::Children;
use crate::sys::mount::ATTR_RDONLY;

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
    /// A tmpfs without a size would be half of the guest's memory.
    #[error("rootfs: the tmpfs for the upper layer needs a size")]
    NoSize,
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
}

impl Rootfs {
    /// The place of container `id`; nothing is made yet.
    pub fn new(run: &Path, id: &str) -> Self {
        let base = run.join(id);
        let root = c_path(&base.join("rootfs"));
        Self { base, root }
    }

    /// The mount point.
    pub fn root(&self) -> &CStr {
        &self.root
    }

    /// Mounts what `request` says. After an error, [`Rootfs::remove`] undoes what was done.
    pub async fn mount(
        &self,
        disks: &Disks,
        children: &Children,
        request: &api::Rootfs,
        user: Option<&Arc<UserNamespace>>,
    ) -> Result<(), RootfsError> {
        let work = self.plan(disks, request, user)?;
        Ok(helper::run(children, &work).await?)
    }

    /// The lower layer is shown to belong to the ids of `user`. What is in the upper belongs to the guest's ids for them: an overlay
    /// makes its own files there, as the guest's root.
    fn plan(
        &self,
        disks: &Disks,
        request: &api::Rootfs,
        user: Option<&Arc<UserNamespace>>,
    ) -> Result<Vec<Work>, RootfsError> {
        let [lower, upper, root] = ["lower", "upper", "rootfs"].map(|name| c_path(&self.base.join(name)));
        let directory = |path: &CString| Work::MakeDirectory { path: path.clone(), mode: 0o755 };
        let disk = match &request.lower {
            Some(api::rootfs::Lower::Erofs(disk)) => disks.find(&disk.serial)?,
            Some(_) => return Err(RootfsError::UnknownKind),
            None => return Err(RootfsError::NoLower),
        };
        let mut work = vec![directory(&c_path(&self.base)), directory(&root)];
        let Some(upper_request) = &request.upper else {
            work.push(mount_disk(disks, "erofs", &disk, &root, ATTR_RDONLY, user));
            return Ok(work);
        };
        work.extend([directory(&lower), directory(&upper)]);
        work.push(mount_disk(disks, "erofs", &disk, &lower, ATTR_RDONLY, user));
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
        let [data, scratch] = ["upper/data", "upper/work"].map(|name| c_path(&self.base.join(name)));
        work.extend([directory(&data), directory(&scratch)]);
        // The root directory's owner and mode are those of the upper layer's.
        work.push(Work::CopyAttributes { from: lower.clone(), to: data.clone() });
        work.push(Work::Mount {
            kind: c"overlay".to_owned(),
            options: vec![
                (c"source".to_owned(), Some(c"overlay".to_owned())),
                (c"lowerdir".to_owned(), Some(lower)),
                (c"upperdir".to_owned(), Some(data)),
                (c"workdir".to_owned(), Some(scratch)),
            ],
            attributes: 0,
            user: None,
            target: root,
        });
        Ok(work)
    }

    /// Unmounts and removes everything, flushing disks. Can be repeated, and called after a `mount` that failed.
    pub async fn remove(&self, children: &Children) -> Result<(), RootfsError> {
        let names = ["rootfs", "upper", "lower"].map(|name| c_path(&self.base.join(name)));
        let mut work: Vec<Work> = names.iter().map(|path| Work::Unmount { path: path.clone() }).collect();
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
