//! The pod's volumes: one file system that the host shares, mounted once, with a folder or a file for each of them.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use hull_protocol::agent::VOLUMES_TAG;
use tokio::sync::OnceCell;

use crate::helper::{self, HelperError, Work};
use crate::reap::Children;
use crate::rootfs::Disks;
use crate::sys::mount::ATTR_NODEV;

/// Where volumes are, and whether they are there yet.
#[derive(Debug)]
pub struct Volumes {
    directory: CString,
    /// The directory to bind, for an agent that does not run in a VM.
    outside: Option<CString>,
    mounted: OnceCell<()>,
}

impl Volumes {
    /// Volumes that will be mounted on `directory`, which exists.
    pub fn new(directory: &Path, disks: &Disks) -> Self {
        let outside = match disks {
            Disks::Virtio => None,
            Disks::Directories(path) => Some(c_path(&path.join(VOLUMES_TAG))),
        };
        Self { directory: c_path(directory), outside, mounted: OnceCell::new() }
    }

    /// Where they are mounted.
    pub fn directory(&self) -> &CStr {
        &self.directory
    }

    /// Where one of them is; `None` if that is no name of one.
    pub fn folder(&self, name: &str) -> Option<CString> {
        let is_name = !matches!(name, "" | "." | "..") && !name.contains(['/', '\0']);
        let path = || Path::new(std::ffi::OsStr::from_bytes(self.directory.to_bytes())).join(name);
        is_name.then(|| c_path(&path()))
    }

    /// Mounts them, once; after a failure again.
    pub async fn mount(&self, children: &Children) -> Result<(), HelperError> {
        self.mounted.get_or_try_init(|| async { helper::run(children, &[self.work()]).await }).await.copied()
    }

    fn work(&self) -> Work {
        let (target, attributes) = (self.directory.clone(), ATTR_NODEV);
        match &self.outside {
            Some(source) => Work::Bind { source: source.clone(), target, attributes },
            None => Work::Mount {
                kind: c"virtiofs".to_owned(),
                options: vec![(c"source".to_owned(), CString::new(VOLUMES_TAG).ok())],
                attributes,
                target,
            },
        }
    }
}

/// A path of the agent's own making: without NUL bytes.
fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}
