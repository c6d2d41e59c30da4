//! The pod's cgroup on the host: the monitor and the file broker are in it, so that what a VM takes is counted, and bounded,
//! where the engine counts and bounds its pods.
//!
//! Hull makes the cgroup that `linux.cgroupsPath` names, and removes it. It sets no limit there: those of containers hold in the
//! guest, that of a pod is on the cgroup above, set by who made it. A host whose cgroups cannot be written is no reason to
//! have no pod.
//!
//! | module | what it is for |
//! |---|---|
//! | [`path`] | where the cgroup is, in the forms that engines write |
//! | [`hierarchy`] | which of the host's cgroup file systems count |
//! | [`oom`] | whether the host's OOM killer was in it |

mod hierarchy;
mod oom;
mod path;
#[cfg(test)]
mod tests;

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use hierarchy::{Hierarchy, Kind};
pub use oom::OomKills;
pub use path::{CgroupPath, CgroupPathError};

/// What those who move by themselves write to.
const PROCESSES: &str = "cgroup.procs";
/// The mark of a cgroup above a pod's that was made for want of it: whoever leaves it last removes it.
const MADE_BY_HULL: &std::ffi::CStr = c"trusted.hull";
/// How often a cgroup is made anew that another pod's end has taken the parent of.
const ATTEMPTS: usize = 8;
/// How long processes that were killed may stay in a cgroup.
const REMOVAL_DEADLINE: Duration = Duration::from_secs(1);
/// How often one looks.
const REMOVAL_PAUSE: Duration = Duration::from_millis(10);

/// What is enough to remove a pod's cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupRecord {
    /// Where it is below each of the roots.
    path: PathBuf,
    /// Where the hierarchies are mounted.
    roots: Vec<PathBuf>,
}

/// The cgroup of a pod, made.
#[derive(Debug)]
pub struct Cgroup {
    /// One in each hierarchy.
    directories: Vec<PathBuf>,
    /// Kills there, where a hierarchy counts them.
    oom_kills: Option<OomKills>,
}

/// What is to be made.
#[derive(Debug)]
pub struct CgroupPlan {
    path: CgroupPath,
    hierarchies: Vec<Hierarchy>,
}

impl CgroupPlan {
    /// A cgroup in the hierarchies that this process sees.
    pub fn new(path: CgroupPath) -> io::Result<Self> {
        let hierarchies = hierarchy::parse(&fs::read_to_string("/proc/self/mountinfo")?);
        if hierarchies.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no cgroup file system is mounted"));
        }
        Ok(Self { path, hierarchies })
    }

    /// What will have to be removed.
    pub fn record(&self) -> CgroupRecord {
        let roots = self.hierarchies.iter().map(|hierarchy| hierarchy.root.clone()).collect();
        CgroupRecord { path: self.path.as_path().to_owned(), roots }
    }

    /// Makes it, in as many hierarchies as let it be made: an error is that of the first that does not.
    pub fn make(&self) -> (Cgroup, io::Result<()>) {
        let mut directories = Vec::new();
        let mut oom_kills = None;
        let mut first = Ok(());
        for hierarchy in &self.hierarchies {
            match make(hierarchy, self.path.as_path()) {
                Ok(directory) => {
                    oom_kills = oom_kills.or_else(|| OomKills::of(hierarchy.kind, &directory));
                    directories.push(directory);
                }
                Err(error) => {
                    first = first.and(Err(about(&hierarchy.root.join(self.path.as_path()), &error)));
                }
            }
        }
        (Cgroup { directories, oom_kills }, first)
    }
}

impl Cgroup {
    /// Kills there, to be asked about when something has died.
    pub fn oom_kills(&self) -> Option<OomKills> {
        self.oom_kills.clone()
    }

    /// Moves a process into it, with all its threads.
    pub fn admit(&self, pid: u32) -> io::Result<()> {
        let mut first = Ok(());
        for directory in &self.directories {
            let moved = write(&directory.join(PROCESSES), &pid.to_string());
            first = first.and(moved.map_err(|error| about(directory, &error)));
        }
        first
    }
}

impl CgroupRecord {
    /// It, in each hierarchy.
    pub fn directories(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.roots.iter().map(|root| root.join(&self.path))
    }

    /// Removes the cgroup, and those above it that Hull has made and nobody else uses. Its processes must have ended, or be
    /// about to; that it is not there is as good.
    pub async fn remove(&self) -> io::Result<()> {
        if self.path.components().any(|part| !matches!(part, Component::Normal(_))) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the record names no cgroup"));
        }
        let deadline = Instant::now() + REMOVAL_DEADLINE;
        let mut first = Ok(());
        for root in &self.roots {
            let directory = root.join(&self.path);
            let removed = remove(root, &directory, deadline).await;
            first = first.and(removed.map_err(|error| about(&directory, &error)));
        }
        first
    }
}

fn make(hierarchy: &Hierarchy, path: &Path) -> io::Result<PathBuf> {
    let mut attempt = 1;
    loop {
        match try_make(hierarchy, path) {
            // The end of another pod has taken a parent away.
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => attempt += 1,
            result => return result,
        }
    }
}

fn try_make(hierarchy: &Hierarchy, path: &Path) -> io::Result<PathBuf> {
    let mut at = hierarchy.root.clone();
    let mut parts = path.components().peekable();
    while let Some(part) = parts.next() {
        if hierarchy.kind == Kind::Unified {
            pass_on_controllers(&at);
        }
        at.push(part);
        match fs::create_dir(&at) {
            Ok(()) if parts.peek().is_some() => mark(&at),
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    if hierarchy.kind == Kind::Unified {
        // Monitor and broker are one VM: half of it is of no use.
        if let Err(error) = write(&at.join("memory.oom.group"), "1") {
            log::debug!("{}: memory.oom.group: {error}", at.display());
        }
    }
    Ok(at)
}

/// Has the cgroups below this one counted by the controllers that count pods. Where processes are in it that cannot be; then
/// what is above counts.
fn pass_on_controllers(directory: &Path) {
    let words = |name| fs::read_to_string(directory.join(name)).unwrap_or_default();
    let (there, passed_on) = (words("cgroup.controllers"), words("cgroup.subtree_control"));
    let has = |list: &str, name: &str| list.split_whitespace().any(|word| word == name);
    for name in hierarchy::UNIFIED_CONTROLLERS {
        if !has(&there, name) || has(&passed_on, name) {
            continue;
        }
        if let Err(error) = write(&directory.join("cgroup.subtree_control"), &format!("+{name}")) {
            log::debug!("{}: the controller {name} is not passed on: {error}", directory.display());
        }
    }
}

async fn remove(root: &Path, directory: &Path, deadline: Instant) -> io::Result<()> {
    loop {
        match fs::remove_dir(directory) {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            // Nothing tells when the last process of a cgroup of version 1 is gone.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                tokio::time::sleep(REMOVAL_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
    for above in directory.ancestors().skip(1).take_while(|above| *above != root) {
        // The first that is another's, or still in use, ends it.
        if !is_marked(above) || fs::remove_dir(above).is_err() {
            break;
        }
    }
    Ok(())
}

/// Not to be had without privileges: the cgroup then stays, as those of other runtimes do.
fn mark(directory: &Path) {
    let Ok(path) = CString::new(directory.as_os_str().as_bytes()) else { return };
    // SAFETY: both strings end with a zero; no byte of the value is read, as there is none.
    let result = unsafe { libc::setxattr(path.as_ptr(), MADE_BY_HULL.as_ptr(), std::ptr::null(), 0, 0) };
    if result != 0 {
        log::debug!("{} will stay: {}", directory.display(), io::Error::last_os_error());
    }
}

fn is_marked(directory: &Path) -> bool {
    let Ok(path) = CString::new(directory.as_os_str().as_bytes()) else { return false };
    // SAFETY: both strings end with a zero; nothing is written to a buffer of no bytes.
    unsafe { libc::getxattr(path.as_ptr(), MADE_BY_HULL.as_ptr(), std::ptr::null_mut(), 0) >= 0 }
}

/// Writes to a file of the kernel's, which is there or is not.
fn write(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

fn about(directory: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", directory.display()))
}
