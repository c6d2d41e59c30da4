//! Where a pod's sockets are. Nothing else lives outside the bundle.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Environment variable that names the state root.
pub const STATE_VARIABLE: &str = "HULL_STATE_DIR";
/// The state root without it.
pub const STATE_DEFAULT: &str = "/run/hull";

/// `sockaddr_un.sun_path` without its NUL, less one as containerd counts.
const SOCKET_PATH_MAX: usize = 106;

/// The folder of the sockets in the state root.
const FOLDER: &str = "s";
/// Length of the part of the sockets' names that is the pod's: hexadecimal digits.
const NAME_LENGTH: usize = 32;

/// Why the socket's place cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// Longer than a unix socket's address can be.
    #[error("the socket path {path} is longer than {SOCKET_PATH_MAX} bytes: set {STATE_VARIABLE} to a shorter directory", path = .0.display())]
    TooLong(PathBuf),
    /// The directory cannot be made or inspected.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Somebody else could put sockets there.
    #[error("{path} belongs to another user", path = .0.display())]
    ForeignDirectory(PathBuf),
}

/// The sockets of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSockets {
    /// The task service.
    pub task: PathBuf,
    /// The monitor's vsock listener, for the standard streams.
    pub streams: PathBuf,
    /// Serializes `start` of one pod.
    pub lock: PathBuf,
}

/// The state root: [`STATE_VARIABLE`], else [`STATE_DEFAULT`].
pub fn state_root() -> PathBuf {
    std::env::var_os(STATE_VARIABLE)
        .filter(|value| !value.is_empty())
        .map_or_else(|| PathBuf::from(STATE_DEFAULT), PathBuf::from)
}

/// The task sockets of all pods below a state root. None where there has been no pod.
pub fn pod_sockets(root: &Path) -> io::Result<Vec<PathBuf>> {
    let folder = match fs::read_dir(root.join(FOLDER)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut sockets = Vec::new();
    for entry in folder {
        let entry = entry?;
        // The others have an ending.
        if entry.file_name().len() == NAME_LENGTH && entry.file_type()?.is_socket() {
            sockets.push(entry.path());
        }
    }
    Ok(sockets)
}

impl PodSockets {
    /// The sockets of the pod that `callback_address`, namespace and id name together.
    pub fn new(root: &Path, callback_address: &str, namespace: &str, id: &str) -> Result<Self, PathError> {
        let mut hash = Sha256::new();
        for part in [callback_address, namespace, id] {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        let name: String =
            hash.finalize().iter().take(NAME_LENGTH / 2).map(|byte| format!("{byte:02x}")).collect();
        let path = |ending: &str| {
            let path = root.join(FOLDER).join(format!("{name}{ending}"));
            if path.as_os_str().len() > SOCKET_PATH_MAX { Err(PathError::TooLong(path)) } else { Ok(path) }
        };
        Ok(Self { task: path("")?, streams: path(".v")?, lock: path(".lock")? })
    }

    /// The address of the task service, as `start` prints it.
    pub fn address(&self) -> String {
        format!("unix://{}", self.task.display())
    }

    /// Makes the directory of the sockets, for nobody else to enter.
    pub fn create_directory(&self) -> Result<(), PathError> {
        let folder = self.task.parent().unwrap_or(Path::new("/"));
        let failed = |source| PathError::Io { path: folder.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let metadata = fs::symlink_metadata(folder).map_err(failed)?;
        if !metadata.is_dir() || metadata.uid() != nix::unistd::geteuid().as_raw() {
            return Err(PathError::ForeignDirectory(folder.to_owned()));
        }
        if metadata.mode() & 0o777 != 0o700 {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        }
        Ok(())
    }

    /// Removes the sockets. The lock goes with them: whoever holds it finds out by [`start`](crate::bootstrap).
    pub fn remove(&self) -> io::Result<()> {
        let task = crate::undo::remove_file(&self.task);
        let streams = crate::undo::remove_file(&self.streams);
        task.and(streams).and(crate::undo::remove_file(&self.lock))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_do_not_share_sockets() {
        let root = Path::new("/run/hull");
        let a = PodSockets::new(root, "x", "ns", "id").unwrap();
        assert_eq!(a, PodSockets::new(root, "x", "ns", "id").unwrap());
        for (callback, namespace, id) in [("y", "ns", "id"), ("x", "n", "sid"), ("x", "nsi", "d")] {
            assert_ne!(a, PodSockets::new(root, callback, namespace, id).unwrap());
        }
    }

    #[test]
    fn a_long_root_is_an_error_that_names_the_variable() {
        let error = PodSockets::new(Path::new(&format!("/{}", "r".repeat(90))), "", "", "").unwrap_err();
        assert!(error.to_string().contains(STATE_VARIABLE));
    }

    #[test]
    fn the_directory_is_private() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("s")).unwrap();
        fs::set_permissions(root.path().join("s"), fs::Permissions::from_mode(0o777)).unwrap();
        PodSockets::new(root.path(), "", "", "x").unwrap().create_directory().unwrap();
        assert_eq!(fs::metadata(root.path().join("s")).unwrap().mode() & 0o777, 0o700);
    }
}
