//! The containers of this host as they are on disk: one bundle directory each.
//!
//! ```text
//! <state>/containers/           locked (flock(2) on the folder) while a bundle and its name come or go
//! <state>/containers/<id>/      the bundle: config.json, container.json, lock, io/, and what the shim writes
//! <state>/tmp/<id>/             a bundle that is not complete yet, or not gone yet
//! ```
//! There is no daemon: every command reads this anew. A bundle appears and disappears by one `rename(2)`. Its name is in its
//! record and nowhere else, so a bundle that the shim removes takes its name with it. Its `lock` is held by the process that
//! starts the container until it runs, and by one that repairs what a dead shim left.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

mod id;
mod names;
mod record;
mod status;
#[cfg(test)]
mod tests;

pub use id::{ContainerId, random_hex};
pub use names::{Name, random_name};
pub use record::ContainerRecord;
pub use status::{Status, observe};

use hull_shim::record::{Record, RecordError};

/// Times that a random name is tried before a number is put behind it, and then again.
const NAME_ATTEMPTS: u32 = 32;

/// Why a container cannot be found, made or removed.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A folder or file cannot be used.
    #[error("cannot {what} {path}{hint}", path = path.display(), hint = hint(source))]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The name is taken.
    #[error("the name {name:?} is in use by container {id}: remove that container, or choose another name")]
    NameInUse {
        /// The name.
        name: String,
        /// Twelve digits of the container's id.
        id: String,
    },
    /// All attempts to find a free name failed.
    #[error("no free name was found in {NAME_ATTEMPTS} attempts: use --name")]
    NoFreeName,
    /// Not a name.
    #[error(
        "{0:?} is not a container name: use letters, digits, '_', '.', '-', at least two, a letter or digit first"
    )]
    BadName(String),
    /// No such container.
    #[error("no such container: {0}")]
    NotFound(String),
    /// A prefix of several ids.
    #[error("{0:?} is the beginning of several container ids: write more of it")]
    Ambiguous(String),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            " (run hull as root, or choose other folders with --state-dir and --data-dir)"
        }
        _ => "",
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io { what, path, source }
}

/// All containers.
#[derive(Debug, Clone)]
pub struct State {
    root: PathBuf,
}

/// One container on disk.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its id.
    pub id: ContainerId,
    /// Its bundle.
    pub bundle: PathBuf,
    /// What `run` wrote about it.
    pub record: ContainerRecord,
}

/// Says that the process that holds it is starting, or repairing, a container. Released when dropped.
#[derive(Debug)]
pub struct BundleLock {
    _file: Flock<File>,
}

impl State {
    /// Opens the state below `root`, making the folders.
    pub fn open(root: &Path) -> Result<Self, StateError> {
        let root = std::path::absolute(root).map_err(io_error("use", root))?;
        for folder in ["containers", "tmp"].map(|name| root.join(name)) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder)
                .map_err(io_error("create", &folder))?;
        }
        Ok(Self { root })
    }

    /// Where a container's bundle is, or would be.
    pub fn bundle(&self, id: &ContainerId) -> PathBuf {
        self.root.join("containers").join(id.as_str())
    }

    fn temporary(&self, id: &ContainerId) -> PathBuf {
        self.root.join("tmp").join(id.as_str())
    }

    fn folder(&self) -> PathBuf {
        self.root.join("containers")
    }

    fn lock(&self) -> Result<Flock<File>, StateError> {
        let folder = self.folder();
        File::open(&folder)
            .and_then(|file| lock(file, FlockArg::LockExclusive))
            .map_err(io_error("lock", &folder))
    }

    /// Makes a bundle that holds `config`, under the name `name` or a random one. `record.name` is filled in.
    pub fn create(
        &self,
        mut record: ContainerRecord,
        name: Option<&Name>,
        config: &[u8],
    ) -> Result<(Container, BundleLock), StateError> {
        let id = record.id.clone();
        let draft = self.temporary(&id);
        DirBuilder::new().mode(0o700).create(&draft).map_err(io_error("create", &draft))?;
        let made = (|| {
            let lock_path = draft.join("lock");
            write_new(&lock_path, b"").map_err(io_error("create", &lock_path))?;
            let held =
                lock_file(&lock_path, FlockArg::LockExclusive).map_err(io_error("lock", &lock_path))?;
            let config_path = draft.join("config.json");
            write_new(&config_path, config).map_err(io_error("write", &config_path))?;
            let rootfs = draft.join("rootfs");
            fs::create_dir(&rootfs).map_err(io_error("create", &rootfs))?;

            let _state = self.lock()?;
            record.name = self.free_name(name)?;
            record.write(&draft)?;
            let bundle = self.bundle(&id);
            fs::rename(&draft, &bundle).map_err(io_error("create", &bundle))?;
            Ok((bundle, BundleLock { _file: held }))
        })();
        match made {
            Ok((bundle, lock)) => Ok((Container { id, bundle, record }, lock)),
            Err(error) => {
                // The error that matters is the first one.
                let _ = fs::remove_dir_all(&draft);
                Err(error)
            }
        }
    }

    /// The caller holds the lock.
    fn free_name(&self, wanted: Option<&Name>) -> Result<String, StateError> {
        let taken: HashMap<String, ContainerId> =
            self.containers()?.into_iter().map(|container| (container.record.name, container.id)).collect();
        if let Some(name) = wanted {
            return match taken.get(name.as_str()) {
                None => Ok(name.as_str().to_owned()),
                Some(id) => {
                    Err(StateError::NameInUse { name: name.as_str().to_owned(), id: id.short().to_owned() })
                }
            };
        }
        (0..NAME_ATTEMPTS)
            .map(random_name)
            .find(|name| !taken.contains_key(name))
            .ok_or(StateError::NoFreeName)
    }

    /// All containers, newest first. One that disappears meanwhile, or whose record is damaged, is left out.
    pub fn containers(&self) -> Result<Vec<Container>, StateError> {
        let folder = self.folder();
        let mut containers = Vec::new();
        for entry in fs::read_dir(&folder).map_err(io_error("read", &folder))? {
            let entry = entry.map_err(io_error("read", &folder))?;
            let Some(id) = entry.file_name().to_str().and_then(ContainerId::parse) else { continue };
            match self.load(&id) {
                Ok(container) => containers.push(container),
                Err(StateError::NotFound(_)) => {}
                Err(error) => crate::error::say(&crate::error::describe(&error)),
            }
        }
        containers.sort_by(|a, b| b.record.created.cmp(&a.record.created).then_with(|| a.id.cmp(&b.id)));
        Ok(containers)
    }

    fn load(&self, id: &ContainerId) -> Result<Container, StateError> {
        let bundle = self.bundle(id);
        let record =
            ContainerRecord::read(&bundle)?.ok_or_else(|| StateError::NotFound(id.as_str().to_owned()))?;
        Ok(Container { id: id.clone(), bundle, record })
    }

    /// Finds a container by its name, its id, or a prefix of its id that no other has.
    pub fn find(&self, key: &str) -> Result<Container, StateError> {
        let missing = || StateError::NotFound(key.to_owned());
        if let Some(id) = ContainerId::parse(key) {
            return self
                .load(&id)
                .map_err(|error| if matches!(error, StateError::NotFound(_)) { missing() } else { error });
        }
        let name = key.strip_prefix('/').unwrap_or(key);
        if let Some(container) =
            self.containers()?.into_iter().find(|container| container.record.name == name)
        {
            return Ok(container);
        }
        if key.is_empty() || !key.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(missing());
        }
        let folder = self.folder();
        let mut found = None;
        for entry in fs::read_dir(&folder).map_err(io_error("read", &folder))?.flatten() {
            let Some(id) = entry.file_name().to_str().and_then(ContainerId::parse) else { continue };
            if id.as_str().starts_with(key) && found.replace(id).is_some() {
                return Err(StateError::Ambiguous(key.to_owned()));
            }
        }
        self.load(&found.ok_or_else(missing)?)
    }

    /// Removes a container that does not run, and its name. One that is gone already is no error.
    pub fn remove(&self, container: &Container) -> Result<(), StateError> {
        let grave = self.temporary(&container.id);
        {
            let _state = self.lock()?;
            match fs::rename(&container.bundle, &grave) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("remove", &container.bundle)(error));
                }
                _ => {}
            }
        }
        match fs::remove_dir_all(&grave) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &grave)(error)),
            _ => Ok(()),
        }
    }
}

impl Container {
    /// The name of the bundle's folder for fifos.
    pub const IO: &str = "io";
    /// What a detached or kept container wrote to its stdout.
    pub const STDOUT_LOG: &str = "stdout.log";
    /// What a detached or kept container wrote to its stderr.
    pub const STDERR_LOG: &str = "stderr.log";

    /// Gives its network back, if it still has one. A failure is said, and stops nothing.
    pub fn release_network(&self) {
        if let Err(error) = crate::network::release(&self.bundle) {
            crate::error::say(&crate::error::describe(&error));
        }
    }

    /// Blocks while somebody starts or repairs the container.
    pub fn wait_for_lock(&self) -> Result<(), StateError> {
        let path = self.bundle.join("lock");
        match lock_file(&path, FlockArg::LockExclusive) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io_error("lock", &path)(error)),
        }
    }

    /// Takes the bundle's lock if nobody has it. Never makes the file: the bundle may be on its way out.
    pub fn try_lock(&self) -> Result<Option<BundleLock>, StateError> {
        let path = self.bundle.join("lock");
        match lock_file(&path, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Some(BundleLock { _file: file })),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(StateError::NotFound(self.record.name.clone()))
            }
            Err(error) => Err(io_error("lock", &path)(error)),
        }
    }
}

fn lock_file(path: &Path, how: FlockArg) -> io::Result<Flock<File>> {
    lock(OpenOptions::new().read(true).write(true).open(path)?, how)
}

fn lock(mut file: File, how: FlockArg) -> io::Result<Flock<File>> {
    loop {
        match Flock::lock(file, how) {
            Ok(locked) => return Ok(locked),
            Err((again, Errno::EINTR)) => file = again,
            Err((_, errno)) => return Err(errno.into()),
        }
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut file, bytes)
}
