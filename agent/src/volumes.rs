//! What the pod's containers share: its volumes, one file system of the host's with a folder or a file for each of them; and
//! tmpfs by name. All of it is mounted once, when it is first needed.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use hull_protocol::agent::VOLUMES_TAG;
use tokio::sync::OnceCell;

use crate::helper::{self, HelperError, Work};
use crate::reap::Children;
use crate::rootfs::Disks;
use crate::spec;
use crate::sys::mount::{ATTR_NODEV, ATTR_NOSUID};

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
            Some(source) => Work::Bind { source: source.clone(), target, attributes, user: None },
            None => Work::Mount {
                kind: c"virtiofs".to_owned(),
                options: vec![(c"source".to_owned(), CString::new(VOLUMES_TAG).ok())],
                attributes,
                user: None,
                target,
            },
        }
    }
}

/// The most tmpfs that a pod shares.
const SHARED_MAX: usize = 256;

/// Where the tmpfs that containers share are, and which of them are there.
#[derive(Debug)]
pub struct SharedTmpfs {
    path: PathBuf,
    directory: CString,
    mounted: Mutex<HashMap<CString, Arc<OnceCell<()>>>>,
}

impl SharedTmpfs {
    /// Each will be mounted on a directory below `path`, which exists.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), directory: c_path(path), mounted: Mutex::default() }
    }

    /// Below which they are, by their names.
    pub fn directory(&self) -> &CStr {
        &self.directory
    }

    /// Mounts one, once; after a failure again.
    pub async fn mount(&self, children: &Children, tmpfs: &spec::SharedTmpfs) -> Result<(), HelperError> {
        let cell = {
            let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
            if mounted.len() >= SHARED_MAX && !mounted.contains_key(&tmpfs.name) {
                let what = format!("share another tmpfs, {:?}, beside {SHARED_MAX}", tmpfs.name);
                return Err(HelperError::Failed { what, source: nix::errno::Errno::ENOSPC });
            }
            mounted.entry(tmpfs.name.clone()).or_default().clone()
        };
        let target = c_path(&self.path.join(tmpfs.name.to_string_lossy().as_ref()));
        let mut options = tmpfs.options.clone();
        options.push((c"source".to_owned(), Some(tmpfs.name.clone())));
        let work = [
            Work::MakeDirectory { path: target.clone(), mode: 0o755 },
            Work::Mount {
                kind: c"tmpfs".to_owned(),
                options,
                attributes: ATTR_NODEV | ATTR_NOSUID,
                user: None,
                target,
            },
        ];
        cell.get_or_try_init(|| helper::run(children, &work)).await.copied()
    }
}

/// A path of the agent's own making: without NUL bytes.
fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}
