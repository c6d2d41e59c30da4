//! File systems of a test's own. Needs root.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Something that is mounted as long as this lives.
pub struct Mounted(PathBuf);

impl Mounted {
    /// A file system in memory, of this size and this number of files.
    pub fn tiny(at: &Path, bytes: u32, files: u32) -> Self {
        let options = format!("size={bytes},nr_inodes={files}");
        fs::create_dir_all(at).unwrap();
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        Self(at.to_owned())
    }

    /// A folder in a second place.
    pub fn again(folder: &Path, at: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        fs::create_dir_all(at).unwrap();
        mount(Some(folder), at, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        Self(at.to_owned())
    }

    /// Lets nothing be written from now on.
    pub fn protect(&self) {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(None::<&str>, &self.0, None::<&str>, flags, None::<&str>).unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = umount2(&self.0, MntFlags::MNT_DETACH);
        assert!(unmounted.is_ok() || std::thread::panicking());
    }
}
