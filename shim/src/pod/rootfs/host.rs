//! A root file system that the host's kernel puts together: overlay and bind mounts, made where nobody else sees them.
//!
//! They are made in a mount namespace of one thread, and kept as a copy of the tree that hangs on a descriptor
//! (`open_tree(2)`). When the last process that holds it ends, however it ends, the mounts are gone: there is nothing to
//! unmount, and nothing that could be left behind.

mod layers;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::types::mount::Mount;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MsFlags, mount as sys_mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::chdir;
use tokio::sync::oneshot;

use super::RootfsError;

/// How long mounting may take: what is mounted may be far away.
const DEADLINE: Duration = Duration::from_secs(60);
/// What mount(2) takes of options: a page less its NUL.
const DATA_MAX: usize = 4095;
const OPEN_TREE_CLONE: libc::c_uint = 1;
const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC.cast_unsigned();
const AT_RECURSIVE: libc::c_uint = 0x8000;

/// Options that are flags of mount(2), and what each sets or clears.
const FLAGS: [(&str, MsFlags, bool); 14] = [
    ("ro", MsFlags::MS_RDONLY, true),
    ("rw", MsFlags::MS_RDONLY, false),
    ("nosuid", MsFlags::MS_NOSUID, true),
    ("suid", MsFlags::MS_NOSUID, false),
    ("nodev", MsFlags::MS_NODEV, true),
    ("dev", MsFlags::MS_NODEV, false),
    ("noexec", MsFlags::MS_NOEXEC, true),
    ("exec", MsFlags::MS_NOEXEC, false),
    ("noatime", MsFlags::MS_NOATIME, true),
    ("relatime", MsFlags::MS_RELATIME, true),
    ("nodiratime", MsFlags::MS_NODIRATIME, true),
    ("sync", MsFlags::MS_SYNCHRONOUS, true),
    ("dirsync", MsFlags::MS_DIRSYNC, true),
    ("rprivate", MsFlags::empty(), true),
];

/// A mount that the host makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostMount {
    kind: Kind,
    flags: MsFlags,
    /// Where in the root file system; empty for the root itself.
    target: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// Its options in their order.
    Overlay(Vec<String>),
    /// Of this source, with `MS_REC` or without.
    Bind(PathBuf, MsFlags),
    /// An overlay of file systems in files, the uppermost first, each of these pieces; with these options besides.
    Layers(Vec<Vec<PathBuf>>, Vec<String>),
}

impl HostMount {
    /// Reads a mount of type `overlay` or `bind`.
    pub fn parse(mount: &Mount) -> Result<Self, RootfsError> {
        let (mut flags, mut rest) = (MsFlags::empty(), Vec::new());
        for option in &mount.options {
            match FLAGS.iter().find(|(name, ..)| name == option) {
                Some((_, flag, true)) => flags |= *flag,
                Some((_, flag, false)) => flags -= *flag,
                None => rest.push(option.clone()),
            }
        }
        let refused = |kind, option: &String| RootfsError::Option { kind, option: option.clone() };
        let kind = if mount.type_ == "overlay" {
            // What a mount manager should have replaced or done.
            if let Some(option) = rest.iter().find(|option| option.starts_with("X-") || option.contains("{{"))
            {
                return Err(refused("overlay", option));
            }
            Kind::Overlay(rest)
        } else {
            let mut depth = MsFlags::empty();
            for option in &rest {
                match option.as_str() {
                    "bind" => {}
                    "rbind" => depth = MsFlags::MS_REC,
                    _ => return Err(refused("bind", option)),
                }
            }
            Kind::Bind(PathBuf::from(&mount.source), depth)
        };
        Ok(Self { kind, flags, target: PathBuf::from(mount.target.trim_start_matches('/')) })
    }

    /// An overlay of erofs file systems, the uppermost first, each in the files that make it up.
    pub fn of_layers(layers: Vec<Vec<PathBuf>>, options: Vec<String>) -> Self {
        Self { kind: Kind::Layers(layers, options), flags: MsFlags::empty(), target: PathBuf::new() }
    }

    /// Mounts it in the root file system on `folder`. The calling thread's working directory may change.
    fn make(&self, folder: &Path) -> Result<(), RootfsError> {
        let none = None::<&str>;
        let place = self.place(folder)?;
        match &self.kind {
            Kind::Overlay(options) => {
                let (directory, data) = fitting(options)?;
                if let Some(directory) = directory {
                    chdir(&directory).map_err(failed(|| format!("enter {}", directory.display())))?;
                }
                sys_mount(Some("overlay"), &place.path, Some("overlay"), self.flags, Some(data.as_str()))
                    .map_err(failed(|| format!("overlay with {data}")))
            }
            Kind::Layers(layers, options) => layers::mount(layers, options, &place.path),
            Kind::Bind(source, depth) => {
                let what = || format!("bind {}", source.display());
                sys_mount(Some(source), &place.path, none, MsFlags::MS_BIND | *depth, none)
                    .map_err(failed(what))?;
                // A bind mount takes flags only once it is there, and then by its own root.
                if self.flags.is_empty() {
                    return Ok(());
                }
                let place = self.place(folder)?;
                let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | self.flags;
                sys_mount(none, &place.path, none, again, none).map_err(failed(what))
            }
        }
    }

    /// Where it goes. Inside the root file system names are the image's: they must not lead out of it.
    fn place(&self, folder: &Path) -> Result<Place, RootfsError> {
        if self.target.as_os_str().is_empty() {
            return Ok(Place { path: folder.to_owned(), _found: None });
        }
        let what = || format!("find {} in it", self.target.display());
        let root = open(folder, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed(what))?;
        let how =
            OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        let found = openat2(&root, &self.target, how).map_err(failed(what))?;
        Ok(Place { path: PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd())), _found: Some(found) })
    }
}

/// A mount point.
struct Place {
    path: PathBuf,
    /// What the path names.
    _found: Option<OwnedFd>,
}

fn failed(what: impl FnOnce() -> String) -> impl FnOnce(nix::Error) -> RootfsError {
    move |errno| RootfsError::Mount { what: what(), source: errno.into() }
}

/// The options as one text that mount(2) takes: where they are too long, with the layers' names relative to the folder that
/// they have in common, which is then to be the working directory.
fn fitting(options: &[String]) -> Result<(Option<PathBuf>, String), RootfsError> {
    let data = options.join(",");
    if data.len() <= DATA_MAX {
        return Ok((None, data));
    }
    let too_long = RootfsError::Shape("the image has more layers than an overlay mount can name");
    let Some((index, layers)) = options
        .iter()
        .enumerate()
        .find_map(|(index, option)| Some((index, option.strip_prefix("lowerdir=")?)))
    else {
        return Err(too_long);
    };
    let layers: Vec<&Path> = layers.split(':').map(Path::new).collect();
    let mut common = layers.first().and_then(|layer| layer.parent()).unwrap_or(Path::new("/"));
    while !layers.iter().all(|layer| layer.starts_with(common)) {
        common = common.parent().unwrap_or(Path::new("/"));
    }
    let relative: Vec<String> = layers
        .iter()
        .map(|layer| layer.strip_prefix(common).unwrap_or(layer).display().to_string())
        .collect();
    let mut options = options.to_vec();
    options[index] = format!("lowerdir={}", relative.join(":"));
    let data = options.join(",");
    // An empty name would be the folder itself.
    if data.len() > DATA_MAX || relative.iter().any(String::is_empty) || !common.is_absolute() {
        return Err(too_long);
    }
    Ok((Some(common.to_owned()), data))
}

/// Makes the mounts on `folder`, for nobody else to see. Returns the root of what came to be.
pub async fn mount(folder: &Path, mounts: &[HostMount]) -> Result<OwnedFd, RootfsError> {
    let (folder, mounts) = (folder.to_owned(), mounts.to_vec());
    let (answer, answered) = oneshot::channel();
    let lost = |source| RootfsError::Mount { what: "the thread for it".to_owned(), source };
    std::thread::Builder::new()
        .name("mount".to_owned())
        .spawn(move || {
            // Nobody may wait any more: then the mounts go with the descriptor.
            let _ = answer.send(mount_apart(&folder, &mounts));
        })
        .map_err(lost)?;
    match tokio::time::timeout(DEADLINE, answered).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(lost(io::ErrorKind::Interrupted.into())),
        Err(_elapsed) => Err(lost(io::ErrorKind::TimedOut.into())),
    }
}

/// On a thread that ends with this.
fn mount_apart(folder: &Path, mounts: &[HostMount]) -> Result<OwnedFd, RootfsError> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed(|| "a mount namespace".to_owned()))?;
    // The host's mounts stay the host's, and what it unmounts goes here too.
    sys_mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .map_err(failed(|| "a mount namespace".to_owned()))?;
    for mount in mounts {
        mount.make(folder)?;
    }
    copy_of(folder)
}

/// A copy of the mounts at and below `folder`, which belongs to no mount namespace.
pub fn copy_of(folder: &Path) -> Result<OwnedFd, RootfsError> {
    let failed = |source| RootfsError::Open { path: folder.to_owned(), source };
    let path = CString::new(folder.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?;
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE;
    // SAFETY: the path ends with a NUL and outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(failed(io::Error::last_os_error())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(options: &[String]) -> HostMount {
        HostMount::parse(&Mount { type_: "overlay".into(), options: options.to_vec(), ..Mount::default() })
            .unwrap()
    }

    /// What a descriptor of a folder shows.
    fn look(root: &OwnedFd, name: &str) -> io::Result<String> {
        std::fs::read_to_string(format!("/proc/self/fd/{}/{name}", root.as_raw_fd()))
    }

    #[test]
    fn many_layers_are_named_from_where_they_are() {
        let layer =
            |n: usize| format!("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/{n}/fs");
        let layers = |count| (1..=count).map(layer).collect::<Vec<_>>().join(":");
        let few = ["index=off".to_owned(), format!("lowerdir={}", layers(3))];
        assert_eq!(fitting(&few).unwrap(), (None, few.join(",")));
        let many = ["upperdir=/u".to_owned(), format!("lowerdir={}", layers(128))];
        let (directory, data) = fitting(&many).unwrap();
        assert_eq!(directory.unwrap(), Path::new(&layer(1)).parent().unwrap().parent().unwrap());
        assert!(data.starts_with("upperdir=/u,lowerdir=1/fs:2/fs:") && data.ends_with(":128/fs"));
        assert!(fitting(&[format!("lowerdir={}", layers(2000))]).is_err());
        assert!(fitting(&["x".repeat(5000)]).is_err());
    }

    #[tokio::test]
    async fn layers_and_mounts_inside_are_seen_by_the_descriptor_alone() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        // An overlay does not stand on every file system; on this one it does.
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        for name in ["a/in", "b", "upper", "work", "root", "other"] {
            std::fs::create_dir_all(path(name)).unwrap();
        }
        std::fs::write(path("a/file"), "a").unwrap();
        std::fs::write(path("b/file"), "b").unwrap();
        std::fs::write(path("other/file"), "other").unwrap();
        // A link of the image's must not lead the mount out.
        std::os::unix::fs::symlink("/in", folder.path().join("a/link")).unwrap();
        let layers = overlay(&[
            format!("lowerdir={}:{}", path("b"), path("a")),
            format!("upperdir={}", path("upper")),
            format!("workdir={}", path("work")),
        ]);
        let bind = Mount {
            type_: "bind".into(),
            source: path("other"),
            target: "/link".into(),
            options: vec!["rbind".into(), "ro".into()],
            ..Mount::default()
        };
        let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounts = [layers, HostMount::parse(&bind).unwrap()];
        let root = mount(&folder.path().join("root"), &mounts).await.unwrap();
        assert_eq!(look(&root, "file").unwrap(), "b");
        assert_eq!(look(&root, "in/file").unwrap(), "other");
        let new = format!("/proc/self/fd/{}/new", root.as_raw_fd());
        std::fs::write(&new, "new").unwrap();
        assert_eq!(std::fs::read_to_string(path("upper/new")).unwrap(), "new");
        let new = format!("/proc/self/fd/{}/in/new", root.as_raw_fd());
        assert_eq!(std::fs::write(new, "").unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
        assert_eq!(std::fs::read_dir(path("root")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_mount_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let options = [format!("lowerdir={}/no-such-layer", folder.path().display())];
        let error = mount(folder.path(), &[overlay(&options)]).await.unwrap_err().to_string();
        assert!(error.contains("cannot mount the root file system"), "{error}");
        assert!(copy_of(&folder.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
