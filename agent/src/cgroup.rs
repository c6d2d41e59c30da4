//! One container's cgroup (kernel: admin-guide/cgroup-v2): made, limited, watched, killed and removed here and nowhere else.
//!
//! The agent reads and writes these files through descriptors it opened itself; a container cannot redirect them.

mod below;
mod devices;
mod events;
mod kills;
mod stats;

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;

use crate::helper::{self, HelperError, Work};
use crate::reap::Children;
use crate::spec::{DeviceRules, Limits, Missing, Setting};
use crate::sys;

pub use kills::Kills;
pub use stats::{Stats, pressure};

/// How long the kernel may take to empty a killed cgroup, or to freeze one.
const SETTLE_DEADLINE: Duration = Duration::from_secs(10);
/// How often all processes are looked for, so that one forked meanwhile gets the signal too.
const SIGNAL_PASSES: usize = 5;
/// No control file of ours is longer.
const FILE_MAX: u64 = 1 << 20;

/// Why something could not be done to a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A call failed.
    #[error("cgroup: {what} {file}: {}", source.desc())]
    File {
        /// `read`, `write`, `open`, `make` or `remove`.
        what: &'static str,
        /// Which file.
        file: String,
        /// Why.
        source: Errno,
    },
    /// The guest's kernel has no such control.
    #[error("cgroup: this guest cannot limit {0}: its kernel has no such control")]
    Missing(String),
    /// A value that the kernel refused.
    #[error("cgroup: the kernel refuses {value:?} for {file}: {}", source.desc())]
    Refused {
        /// Which file.
        file: String,
        /// What was written.
        value: String,
        /// Why.
        source: Errno,
    },
    /// The new memory limit is less than what is in use, so setting it would kill.
    #[error("cgroup: the memory limit {limit} is below what the container uses, {usage} bytes")]
    BelowUsage {
        /// The limit asked for.
        limit: u64,
        /// Bytes in use.
        usage: u64,
    },
    /// A path that leads out of the container's cgroup.
    #[error("{0:?} is not a sub cgroup path")]
    Outside(String),
    /// A path that leads nowhere.
    #[error("the container has no cgroup {0:?} below its own")]
    NotBelow(String),
    /// It did not settle in time.
    #[error("cgroup: still not {0} after {deadline} s", deadline = SETTLE_DEADLINE.as_secs())]
    Unsettled(&'static str),
    /// The kernel does not take the device filter.
    #[error("cgroup: cannot limit the use of devices: {}", .0.desc())]
    Devices(Errno),
    /// A process could not be sent a signal.
    #[error("cannot send a signal: {}", .0.desc())]
    Signal(Errno),
    /// The child that should set a limit failed.
    #[error("cgroup: {0}")]
    Helper(#[source] HelperError),
    /// Waiting for a change failed.
    #[error("cgroup: cannot watch cgroup.events: {0}")]
    Watch(#[source] io::Error),
}

/// Who writes limits.
#[derive(Clone, Copy, Debug)]
pub enum Writer<'a> {
    /// The caller: nothing is in the cgroup yet, so the kernel has nothing to do.
    Caller,
    /// A child. The kernel takes memory away from processes to get below a limit, and whoever writes it waits for that.
    Helper(&'a Children),
}

/// The cgroup below which every container has one.
#[derive(Debug)]
pub struct CgroupParent {
    path: PathBuf,
}

impl CgroupParent {
    /// Makes `path` and lets its children use every controller that its own parents offer.
    ///
    /// `root` is an ancestor of `path` that exists; nothing above it is touched.
    pub fn prepare(root: &Path, path: &Path) -> Result<Self, CgroupError> {
        let below = path.strip_prefix(root).unwrap_or(path);
        let mut current = root.to_owned();
        enable_controllers(&current)?;
        for part in below.components() {
            current.push(part);
            make_directory(&current)?;
            enable_controllers(&current)?;
        }
        Ok(Self { path: current })
    }

    /// One that exists, as it is.
    pub fn existing(path: PathBuf) -> Self {
        Self { path }
    }

    /// Limits what all containers take together, while there is none.
    pub fn limit_memory(&self, bytes: u64) -> Result<(), CgroupError> {
        self.as_cgroup()?.write("memory.max", &bytes.to_string())
    }

    /// Changes that limit.
    pub async fn change_memory_limit(&self, bytes: u64, children: &Children) -> Result<(), CgroupError> {
        self.as_cgroup()?.write_by(Writer::Helper(children), "memory.max", &bytes.to_string()).await
    }

    /// What all containers take together of the memory, and may take: 0 for no limit.
    pub fn memory(&self) -> Result<(u64, u64), CgroupError> {
        let cgroup = self.as_cgroup()?;
        let number = |file| cgroup.read(file).map(|text| text.trim().parse().unwrap_or_default());
        Ok((number("memory.current")?, number("memory.max")?))
    }

    /// What the OOM killer does to containers from now on.
    pub fn watch_kills(&self) -> Result<Kills, CgroupError> {
        Kills::watch(self.path.clone())
    }

    fn as_cgroup(&self) -> Result<Cgroup, CgroupError> {
        Cgroup::find(self.path.clone())
    }

    /// A new, empty cgroup.
    pub fn create(&self, id: &str) -> Result<Cgroup, CgroupError> {
        let path = self.path.join(id);
        std::fs::create_dir(&path).map_err(|source| CgroupError::File {
            what: "make",
            file: path.display().to_string(),
            source: errno(&source),
        })?;
        Cgroup::find(path)
    }
}

fn make_directory(path: &Path) -> Result<(), CgroupError> {
    match std::fs::create_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(CgroupError::File { what: "make", file: path.display().to_string(), source: errno(&source) })
        }
        _ => Ok(()),
    }
}

/// Each controller by itself, so that one which cannot be shared does not cost the others.
fn enable_controllers(path: &Path) -> Result<(), CgroupError> {
    let file = path.join("cgroup.controllers");
    let controllers = std::fs::read_to_string(&file).map_err(|source| CgroupError::File {
        what: "read",
        file: file.display().to_string(),
        source: errno(&source),
    })?;
    for controller in controllers.split_whitespace() {
        if let Err(error) = std::fs::write(path.join("cgroup.subtree_control"), format!("+{controller}")) {
            log::warn!("cgroup controller {controller} is not available to containers: {error}");
        }
    }
    Ok(())
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// What takes an update back: what each file said before, in the order in which they were written.
#[derive(Debug, Default)]
pub struct Undo(Vec<Setting>);

/// A container's cgroup. It must be removed with [`Cgroup::remove`]; dropping it only closes the descriptor.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: OwnedFd,
}

impl Cgroup {
    /// One that exists.
    pub fn find(path: PathBuf) -> Result<Self, CgroupError> {
        let error = |source| CgroupError::File { what: "open", file: path.display().to_string(), source };
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| error(Errno::EINVAL))?;
        let directory = sys::path::open(&name, libc::O_DIRECTORY | libc::O_RDONLY).map_err(error)?;
        Ok(Self { path, directory })
    }

    /// For clone3(2) with `CLONE_INTO_CGROUP`.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    fn open(&self, file: &str, flags: libc::c_int) -> nix::Result<OwnedFd> {
        let name = CString::new(file).map_err(|_| Errno::EINVAL)?;
        sys::path::open_at(self.directory(), &name, flags)
    }

    fn read_from(directory: BorrowedFd<'_>, file: &str) -> Result<String, CgroupError> {
        let error = |source| CgroupError::File { what: "read", file: file.to_owned(), source };
        let name = CString::new(file).map_err(|_| error(Errno::EINVAL))?;
        let fd = sys::path::open_at(directory, &name, libc::O_RDONLY).map_err(error)?;
        // Longer than most: read at once.
        let mut text = String::with_capacity(512);
        File::from(fd).take(FILE_MAX).read_to_string(&mut text).map_err(|source| error(errno(&source)))?;
        Ok(text)
    }

    fn read(&self, file: &str) -> Result<String, CgroupError> {
        Self::read_from(self.directory(), file)
    }

    fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        let fd = self.open(file, libc::O_WRONLY).map_err(|source| match source {
            Errno::ENOENT => CgroupError::Missing(file.to_owned()),
            source => CgroupError::File { what: "open", file: file.to_owned(), source },
        })?;
        sys::path::write_control(fd.as_fd(), value.as_bytes()).map_err(|source| CgroupError::Refused {
            file: file.to_owned(),
            value: value.to_owned(),
            source,
        })
    }

    /// Writes every setting, or on an error none of them. Returns what takes them back.
    pub async fn apply(&self, limits: &Limits, writer: Writer<'_>) -> Result<Undo, CgroupError> {
        self.check_usage(limits)?;
        let mut undo = Undo::default();
        for setting in &limits.settings {
            let before = self.read(&setting.file).unwrap_or_default();
            match self.write_by(writer, &setting.file, &setting.value).await {
                Ok(()) => undo.0.push(Setting { value: setting.undo(&before), ..setting.clone() }),
                Err(CgroupError::Missing(_)) if setting.missing == Missing::Harmless => {}
                Err(error) => {
                    if let Err(kept) = self.take_back(undo, writer).await {
                        log::error!("a limit stays after a failed update: {kept}");
                    }
                    return Err(error);
                }
            }
        }
        Ok(undo)
    }

    /// Writes what was there before, last first: all that can be, and the first error.
    pub async fn take_back(&self, undo: Undo, writer: Writer<'_>) -> Result<(), CgroupError> {
        let mut result = Ok(());
        for setting in undo.0.iter().rev() {
            let written = self.write_by(writer, &setting.file, &setting.value).await;
            result = result.and(written);
        }
        result
    }

    async fn write_by(&self, writer: Writer<'_>, file: &str, value: &str) -> Result<(), CgroupError> {
        let Writer::Helper(children) = writer else { return self.write(file, value) };
        let refused =
            |source| CgroupError::Refused { file: file.to_owned(), value: value.to_owned(), source };
        let path = CString::new(self.path.join(file).as_os_str().as_bytes());
        let (Ok(path), Ok(text)) = (path, CString::new(value)) else { return Err(refused(Errno::EINVAL)) };
        let work = [Work::WriteControl { path, text }];
        match tokio::time::timeout(SETTLE_DEADLINE, helper::run(children, &work)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(HelperError::Failed { source: Errno::ENOENT, .. })) => {
                Err(CgroupError::Missing(file.to_owned()))
            }
            Ok(Err(HelperError::Failed { source, .. })) => Err(refused(source)),
            Ok(Err(error)) => Err(CgroupError::Helper(error)),
            Err(_elapsed) => Err(CgroupError::Unsettled("limited")),
        }
    }

    /// Limits which devices its processes may use, for ever.
    pub fn limit_devices(&self, rules: &DeviceRules) -> Result<(), CgroupError> {
        sys::bpf::load_device_program(&devices::program(rules))
            .and_then(|program| sys::bpf::attach_device_program(self.directory(), program.as_fd()))
            .map_err(|source| match source {
                Errno::ENOSYS => CgroupError::Missing("the use of devices".to_owned()),
                source => CgroupError::Devices(source),
            })
    }

    /// Lets this user and group make cgroups below this one and move processes among them (kernel: cgroup-v2, "Delegation"). Its
    /// limits stay out of their reach.
    pub fn delegate(&self, uid: u32, gid: u32) -> Result<(), CgroupError> {
        for name in [c"", c"cgroup.procs", c"cgroup.threads", c"cgroup.subtree_control"] {
            sys::path::change_owner(self.directory(), name, uid, Some(gid)).map_err(|source| {
                CgroupError::File { what: "delegate", file: name.to_string_lossy().into_owned(), source }
            })?;
        }
        Ok(())
    }

    /// The kernel would reclaim, then kill, to get below a new limit.
    fn check_usage(&self, limits: &Limits) -> Result<(), CgroupError> {
        let limit = limits.settings.iter().find(|setting| setting.file == "memory.max");
        let Some(limit) = limit.and_then(|setting| setting.value.parse::<u64>().ok()) else { return Ok(()) };
        let usage =
            self.read("memory.current").ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
        if usage > limit { Err(CgroupError::BelowUsage { limit, usage }) } else { Ok(()) }
    }

    /// Pids of all processes, here and in cgroups that the container made below.
    pub fn pids(&self) -> Result<Vec<libc::pid_t>, CgroupError> {
        /// Deeper trees than a kernel lets a container make by default are cut off.
        const DEPTH_MAX: usize = 64;
        let mut pids = Vec::new();
        let mut pending = vec![(self.path.clone(), 0)];
        while let Some((path, depth)) = pending.pop() {
            let file = path.join("cgroup.procs");
            match std::fs::read_to_string(&file) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<libc::pid_t>().ok())),
                // A child cgroup can vanish, or be threaded and have no list of processes.
                Err(_) if depth > 0 => {}
                Err(source) => {
                    return Err(CgroupError::File {
                        what: "read",
                        file: file.display().to_string(),
                        source: errno(&source),
                    });
                }
            }
            if depth < DEPTH_MAX {
                pending.extend(child_directories(&path).into_iter().map(|child| (child, depth + 1)));
            }
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// SIGKILL for every process, in one step that no fork escapes.
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.write("cgroup.kill", "1")
    }

    /// Sends every process a signal, and `init` last: the others would be killed by its end before they get the signal.
    pub fn signal_all(&self, signal: i32, init: libc::pid_t) -> Result<(), CgroupError> {
        if signal == libc::SIGKILL {
            return self.kill();
        }
        let mut signalled = HashSet::new();
        for _ in 0..SIGNAL_PASSES {
            let mut new: Vec<_> = self.pids()?.into_iter().filter(|pid| !signalled.contains(pid)).collect();
            new.sort_by_key(|pid| *pid == init);
            if new.is_empty() {
                break;
            }
            for pid in new {
                signalled.insert(pid);
                let Ok(pidfd) = sys::process::open_pidfd(pid) else { continue };
                // The number may have passed to another process since the list was read.
                if !self.pids()?.contains(&pid) {
                    continue;
                }
                match sys::process::send_signal(pidfd.as_fd(), signal) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(error) => return Err(CgroupError::Signal(error)),
                }
            }
        }
        Ok(())
    }

    /// Stops every process and returns when all are stopped.
    pub async fn freeze(&self) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", "1")?;
        let frozen = self.wait_event("frozen", "1", "frozen").await;
        if frozen.is_err() {
            self.write("cgroup.freeze", "0")?;
        }
        frozen
    }

    /// Lets every process run again.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", "0")
    }

    /// How often the kernel's OOM killer took a process of this container. 0 where memory is not controlled.
    pub fn oom_kills(&self) -> u64 {
        self.read("memory.events").map_or(0, |text| stats::field(&text, "oom_kill"))
    }

    /// Resource use at this moment.
    pub fn stats(&self) -> Stats {
        stats::read(|file| self.read(file).unwrap_or_default(), &self.huge_page_sizes())
    }

    /// Of huge pages, from the names of the files that limit them.
    fn huge_page_sizes(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(&self.path) else { return Vec::new() };
        let size = |entry: std::fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            let size = name.strip_prefix("hugetlb.")?.strip_suffix(".max")?;
            (!size.contains('.')).then(|| size.to_owned())
        };
        entries.filter_map(Result::ok).filter_map(size).collect()
    }

    /// Kills what is left, waits until nothing is, and removes the cgroup and those below. Can be repeated.
    pub async fn remove(&self) -> Result<(), CgroupError> {
        if self.is_populated() {
            match self.kill() {
                Ok(()) => {}
                // Removed before.
                Err(CgroupError::Missing(_)) => return Ok(()),
                Err(error) => return Err(error),
            }
            self.wait_event("populated", "0", "empty").await?;
        }
        remove_tree(&self.path).map_err(|source| CgroupError::File {
            what: "remove",
            file: self.path.display().to_string(),
            source: errno(&source),
        })
    }

    /// Whether there may be a process, here or below.
    fn is_populated(&self) -> bool {
        self.read("cgroup.events").map_or(true, |text| stats::field(&text, "populated") != 0)
    }

    async fn wait_event(&self, key: &str, value: &str, goal: &'static str) -> Result<(), CgroupError> {
        let fd = self
            .open("cgroup.events", libc::O_RDONLY | libc::O_NONBLOCK)
            .map_err(|source| CgroupError::File { what: "open", file: "cgroup.events".to_owned(), source })?;
        let watched = tokio::time::timeout(SETTLE_DEADLINE, events::wait(fd, key, value)).await;
        match watched {
            Ok(result) => result.map_err(CgroupError::Watch),
            Err(_) => Err(CgroupError::Unsettled(goal)),
        }
    }
}

fn child_directories(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn remove_tree(path: &Path) -> io::Result<()> {
    let remove = || match std::fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    };
    match remove() {
        // There are some below.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
        result => return result,
    }
    for child in child_directories(path) {
        remove_tree(&child)?;
    }
    remove()
}
