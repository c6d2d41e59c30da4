//! `create` and `run`: from a bundle to an init before its start gate, which this command leaves behind.
//!
//! The container's tree is put together in a mount namespace of this command's own, which ends with it: nothing is
//! mounted outside of the container.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::arguments::{Afterwards, Attention, Creation, Running};
use super::bundle::{Bundle, Joined, Kind, Volume};
use super::store::{self, Record, Store};
use super::{OciError, control, foreground, hooks};
use crate::cgroup::{Cgroup, CgroupParent, Writer};
use crate::container::{Registry, resolve_namespaces};
use crate::environment::Environment;
use crate::launch::{self, ChildStdio, Launched};
use crate::reap::Children;
use crate::rootfs::{Disks, Rootfs};
use crate::spec::Console;
use crate::sys::mount::{self, Depth, MountAttr};
use crate::sys::{path, process, socket};

/// `CGROUP2_SUPER_MAGIC`.
const CGROUP2: i64 = 0x6367_7270;

/// A container before its start.
struct Created {
    init: Launched,
    children: Children,
}

pub async fn create(store: &Store, options: &Creation) -> Result<(), OciError> {
    make(store, options).await.map(drop)
}

/// Creates, starts, and unless it is detached waits for the end and deletes. The exit code is the container's.
pub async fn run(store: &Store, options: &Creation) -> Result<u8, OciError> {
    let created = make(store, options).await?;
    let pidfd = created.init.pidfd.clone();
    if options.attention == Attention::Foreground {
        foreground::forward(&pidfd)?;
    }
    if let Err(error) = control::start(store, &options.id).await {
        created.init.abort(&created.children).await;
        control::delete(store, &options.id, Running::Killed).await?;
        return Err(error);
    }
    if options.attention == Attention::Detached {
        return Ok(0);
    }
    let code = foreground::wait(&created.children, created.init.pid, &pidfd).await?;
    if options.afterwards == Afterwards::Delete {
        control::delete(store, &options.id, Running::Killed).await?;
    }
    Ok(code)
}

async fn make(store: &Store, options: &Creation) -> Result<Created, OciError> {
    let directory = store.reserve(&options.id)?;
    let created = make_in(&directory, options).await;
    if created.is_err()
        && let Err(error) = store::forget(&directory)
    {
        log::error!("undoing the creation: {error}");
    }
    created
}

async fn make_in(directory: &Path, options: &Creation) -> Result<Created, OciError> {
    let bundle = Bundle::read(&options.bundle, &options.id)?;
    check_console(bundle.spec.process.console, options.console_socket.as_deref())?;
    let hierarchy = hierarchy()?;
    let path = hierarchy.join(&bundle.cgroup);
    let parent = CgroupParent::prepare(&hierarchy, path.parent().unwrap_or(&hierarchy))?;
    let name = bundle.cgroup.file_name().and_then(|name| name.to_str()).unwrap_or(&options.id);
    let cgroup = parent.create(name)?;

    let workshop = Workshop::new(directory)?;
    let created = assemble(&workshop, &bundle, parent, &cgroup, &path, options).await;
    drop(workshop);
    match created {
        Ok((created, record)) => {
            let kept = async {
                // The bundle's hooks run when everything exists and nothing of the container's own has run.
                let state = store::Stored { directory: directory.to_owned(), record: record.clone() }.state();
                hooks::run("prestart", &bundle.hooks.prestart, &state).await?;
                hooks::run("createRuntime", &bundle.hooks.create_runtime, &state).await?;
                store::keep(directory, &record, &bundle.config, bundle.filter.as_ref())?;
                write_pid(options.pid_file.as_deref(), record.pid)
            };
            if let Err(error) = kept.await {
                created.init.abort(&created.children).await;
                remove(&cgroup).await;
                return Err(error);
            }
            Ok(created)
        }
        Err(error) => {
            remove(&cgroup).await;
            Err(error)
        }
    }
}

async fn remove(cgroup: &Cgroup) {
    if let Err(error) = cgroup.remove().await {
        log::error!("undoing the creation: {error}");
    }
}

async fn assemble(
    workshop: &Workshop,
    bundle: &Bundle,
    parent: CgroupParent,
    cgroup: &Cgroup,
    cgroup_path: &Path,
    options: &Creation,
) -> Result<(Created, Record), OciError> {
    let environment =
        Environment::prepare(&workshop.place, parent, Disks::Directories(workshop.place.clone()))?;
    cgroup.apply(&bundle.spec.limits, Writer::Caller).await?;
    cgroup.limit_devices(&bundle.spec.device_rules)?;
    let root = Rootfs::existing(&workshop.place, workshop.root(&bundle.rootfs)?);
    workshop.volumes(&bundle.volumes)?;
    let stdio = inherited_streams()?;
    let children = environment.children.clone();
    let mut joined = resolve_namespaces(&environment, &Registry::default(), &bundle.spec).await?;
    if let Some((uid, gid)) = joined.user.as_ref().and_then(|user| user.mappings.root())
        && bundle.spec.delegates_cgroup()
    {
        cgroup.delegate(uid, gid)?;
    }
    for Joined { kind, namespace } in &bundle.joined {
        let enter = |flag| {
            process::join_namespaces(namespace.as_fd(), flag).map_err(OciError::system("enter a namespace"))
        };
        match kind {
            Kind::Network => enter(libc::CLONE_NEWNET)?,
            Kind::Ipc => enter(libc::CLONE_NEWIPC)?,
            Kind::Uts => enter(libc::CLONE_NEWUTS)?,
            Kind::Pid => {
                let copy = namespace.try_clone().map_err(OciError::system("enter a namespace"))?;
                joined.pid = Some(Arc::new(copy));
            }
        }
    }
    let mut init = launch::init(&environment, &options.id, &bundle.spec, &joined, &root, cgroup, &stdio)?;
    let ready = async {
        let terminal = init.ready(&environment).await?;
        hand_over(terminal.as_ref(), options.console_socket.as_deref())?;
        let started = store::start_time(init.pid)
            .ok_or_else(|| OciError::State("the init process has ended".to_owned()))?;
        Ok(Record {
            id: options.id.clone(),
            bundle: bundle.path.clone(),
            rootfs: bundle.rootfs.clone(),
            cgroup: cgroup_path.to_owned(),
            created: store::timestamp(),
            annotations: bundle.annotations.clone(),
            pid: init.pid,
            started,
            gate: init.gate(),
        })
    };
    match ready.await {
        Ok(record) => Ok((Created { init, children }, record)),
        Err(error) => {
            init.abort(&children).await;
            Err(error)
        }
    }
}

/// Where the tree is put together: a tmpfs in a mount namespace of our own.
struct Workshop {
    place: PathBuf,
}

impl Workshop {
    fn new(directory: &Path) -> Result<Self, OciError> {
        process::unshare(libc::CLONE_NEWNS).map_err(OciError::system("make a mount namespace"))?;
        mount::mount(c"none", c"/", None, libc::MS_REC | libc::MS_PRIVATE)
            .map_err(OciError::system("make the mount namespace private"))?;
        let place = directory.join(store::WORKSHOP);
        std::fs::create_dir(&place).map_err(OciError::file("make", &place))?;
        mount::mount(c"tmpfs", &c_path(&place), Some(c"tmpfs"), libc::MS_NOSUID)
            .map_err(OciError::file("mount a tmpfs on", &place))?;
        Ok(Self { place })
    }

    /// Puts a copy of a mount tree somewhere below.
    fn copy(source: &Path, target: &Path, depth: Depth) -> Result<(), OciError> {
        let copied = || {
            let source = path::open(&c_path(source), libc::O_PATH)?;
            let copy = mount::clone_tree(source.as_fd(), depth)?;
            let private = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
            mount::set_attributes(copy.as_fd(), depth, &private)?;
            let target = path::open(&c_path(target), libc::O_PATH)?;
            mount::attach(copy.as_fd(), target.as_fd())
        };
        copied().map_err(OciError::file("bind", source))
    }

    fn root(&self, rootfs: &Path) -> Result<CString, OciError> {
        let root = self.place.join("rootfs");
        std::fs::create_dir(&root).map_err(OciError::file("make", &root))?;
        Self::copy(rootfs, &root, Depth::Recursive)?;
        Ok(c_path(&root))
    }

    fn volumes(&self, volumes: &[Volume]) -> Result<(), OciError> {
        for (number, volume) in volumes.iter().enumerate() {
            let target = self.place.join("volumes").join(number.to_string());
            let source = &volume.source;
            let is_directory = std::fs::metadata(source).map_err(OciError::file("bind", source))?.is_dir();
            let made = if is_directory {
                std::fs::create_dir(&target)
            } else {
                std::fs::File::create_new(&target).map(drop)
            };
            made.map_err(OciError::file("make", &target))?;
            let depth = if volume.recursive { Depth::Recursive } else { Depth::One };
            Self::copy(source, &target, depth)?;
        }
        Ok(())
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        // The container has its copy. What is mounted here must be gone before the directory is removed.
        if let Err(error) = mount::unmount(&c_path(&self.place), libc::MNT_DETACH) {
            log::error!("cannot unmount {}: {error}", self.place.display());
        }
    }
}

/// A path without NUL bytes: all come from here or were opened before.
fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}

/// Where the cgroup v2 hierarchy is mounted.
pub fn hierarchy() -> Result<PathBuf, OciError> {
    for place in [c"/sys/fs/cgroup", c"/sys/fs/cgroup/unified"] {
        let found = path::open(place, libc::O_PATH | libc::O_DIRECTORY)
            .and_then(|directory| path::filesystem_magic(directory.as_fd()));
        if found == Ok(CGROUP2) {
            return Ok(PathBuf::from(place.to_string_lossy().into_owned()));
        }
    }
    Err(OciError::NoCgroups)
}

/// This command's own standard streams, for the process.
pub fn inherited_streams() -> Result<ChildStdio, OciError> {
    let copy = |stream: &dyn Fn() -> std::io::Result<OwnedFd>| {
        stream().map(Arc::new).map_err(OciError::system("pass the standard streams on"))
    };
    Ok([
        copy(&|| std::io::stdin().as_fd().try_clone_to_owned())?,
        copy(&|| std::io::stdout().as_fd().try_clone_to_owned())?,
        copy(&|| std::io::stderr().as_fd().try_clone_to_owned())?,
    ])
}

/// A terminal needs somebody who takes its master.
pub fn check_console(console: Console, socket: Option<&Path>) -> Result<(), OciError> {
    match (console, socket) {
        (Console::Pipes, None) | (Console::Terminal(_), Some(_)) => Ok(()),
        (Console::Terminal(_), None) => {
            Err(OciError::Usage("cannot allocate a terminal without --console-socket".to_owned()))
        }
        (Console::Pipes, Some(_)) => {
            Err(OciError::Usage("--console-socket is given, but the process has no terminal".to_owned()))
        }
    }
}

/// Sends the terminal's master to whoever listens on `socket`.
pub fn hand_over(master: Option<&OwnedFd>, socket: Option<&Path>) -> Result<(), OciError> {
    let (Some(master), Some(path)) = (master, socket) else { return Ok(()) };
    let stream = UnixStream::connect(path).map_err(OciError::file("connect to", path))?;
    socket::send(stream.as_fd(), b"/dev/ptmx", Some(master.as_fd())).map_err(OciError::file("write to", path))
}

/// Complete or not there, for whoever waits for it.
pub fn write_pid(file: Option<&Path>, pid: libc::pid_t) -> Result<(), OciError> {
    let Some(file) = file else { return Ok(()) };
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let fresh = file.with_file_name(format!(".{name}"));
    std::fs::write(&fresh, pid.to_string()).map_err(OciError::file("write", &fresh))?;
    std::fs::rename(&fresh, file).map_err(OciError::file("write", file))
}
