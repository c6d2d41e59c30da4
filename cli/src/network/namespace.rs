//! A network namespace by a name below /run/netns, where `ip netns` shows it too.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

const FOLDER: &str = "/run/netns";

/// The place of a container's namespace.
pub fn path(id: &str) -> PathBuf {
    Path::new(FOLDER).join(format!("hull-{id}"))
}

/// Makes a namespace and mounts it there. Nothing is left when that fails.
pub fn make(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(FOLDER)?;
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let place = path.to_owned();
    // A thread of its own: this process stays in its namespace.
    let made = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(Some("/proc/thread-self/ns/net"), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>)
    });
    match made.join() {
        Ok(Ok(())) => Ok(()),
        failed => {
            // The first error is the one to report.
            let _ = fs::remove_file(path);
            Err(failed.map_or_else(
                |_| io::ErrorKind::Other.into(),
                |made| made.map_or_else(Into::into, |()| io::ErrorKind::Other.into()),
            ))
        }
    }
}

/// Whether a namespace is mounted there.
pub fn exists(path: &Path) -> bool {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    File::open(path)
        .ok()
        .and_then(|file| nix::sys::statfs::fstatfs(&file).ok())
        .is_some_and(|found| found.filesystem_type().0 == NSFS_MAGIC)
}

/// Takes the name away. The namespace goes when nobody is in it any more. One that is gone is no error.
pub fn remove(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
