//! What a shim leaves on disk for others: the records in a bundle and the names of the annotations in its config.
//!
//! Owns the file names, their JSON shapes and how they are written (atomically). Decides nothing.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use crate::cgroup::CgroupRecord;
pub use crate::network::NetworkRecord;

/// Names of the annotations in `config.json` that the shim reads.
pub mod annotation {
    /// Guest memory in MiB, a decimal number.
    pub const MEMORY_MIB: &str = "dev.hull.vm.memory-mib";
    /// Number of vCPUs, a decimal number.
    pub const VCPUS: &str = "dev.hull.vm.vcpus";
    /// Who ends the pod, one of [`Lifecycle`](super::Lifecycle)'s words.
    pub const LIFECYCLE: &str = "dev.hull.lifecycle";
    /// Which device nodes the container's /dev has beside those of its specification: [`DEVICES_OF_GUEST`].
    pub const DEVICES: &str = "dev.hull.devices";
    /// One for each device of its VM.
    pub const DEVICES_OF_GUEST: &str = "guest";
    /// What the names of all of them begin with.
    pub const PREFIX: &str = "dev.hull.";
    /// Those that a pod's own specification may carry where the administrator allows it.
    pub const FOR_PODS: &[&str] = &[MEMORY_MIB, VCPUS];
    /// containerd's CRI plugin says by it that a container was asked for through Kubernetes: the other annotations may then
    /// be a user's.
    pub const CRI_CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
}

/// File in the bundle: how the container's init process ended, an [`ExitRecord`].
pub const EXIT_FILE: &str = "exit.json";
/// File in the bundle: the processes behind the container, a [`ShimRecord`].
pub const SHIM_FILE: &str = "shim.json";
/// File in the bundle: the address of the task service, as `start` prints it.
pub const ADDRESS_FILE: &str = "address";
/// File in the bundle: what the guest wrote to its console, bounded by the monitor.
pub const CONSOLE_FILE: &str = "console.log";
/// File in the bundle: the shim's own log where there is no `log` fifo.
pub const SHIM_LOG_FILE: &str = "shim.log";

/// Who ends a pod whose container has exited: the value of [`annotation::LIFECYCLE`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lifecycle {
    /// A client calls Delete and Shutdown, as containerd does.
    #[default]
    Managed,
    /// The shim itself, once the exit is on disk; the bundle stays.
    Keep,
    /// The shim itself; the bundle goes too.
    Remove,
}

impl Lifecycle {
    /// The annotation's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Managed => "managed",
            Self::Keep => "keep",
            Self::Remove => "remove",
        }
    }
}

impl std::str::FromStr for Lifecycle {
    type Err = UnknownLifecycle;

    fn from_str(word: &str) -> Result<Self, UnknownLifecycle> {
        [Self::Managed, Self::Keep, Self::Remove]
            .into_iter()
            .find(|lifecycle| lifecycle.as_str() == word)
            .ok_or_else(|| UnknownLifecycle(word.to_owned()))
    }
}

/// A word that is no [`Lifecycle`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of managed, keep, remove")]
pub struct UnknownLifecycle(pub String);

/// How a container ended: [`EXIT_FILE`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The exit code, or 128 + n for an end by signal n; 137 when the VM died.
    pub exit_code: u32,
    /// When, RFC 3339 in UTC.
    pub exited_at: String,
    /// Whether the guest's OOM killer was at work in the container, or the host's ended its VM.
    pub oom_killed: bool,
    /// Why, where it was not the process itself that ended: one sentence, else empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// The processes behind a container: [`SHIM_FILE`]. Enough to end and clean up everything without the shim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimRecord {
    /// Process id of the shim.
    pub shim_pid: u32,
    /// When the shim started, in clock ticks since the host's boot (`proc(5)`, field 22): with the pid it names one
    /// process for ever.
    pub shim_start_ticks: u64,
    /// Process id of the monitor, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm_pid: Option<u32>,
    /// When the monitor started, in clock ticks since the host's boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm_start_ticks: Option<u64>,
    /// The container's process id as the task service reports it, once it is created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_pid: Option<u32>,
    /// The pod's sandbox, where that is another container: the processes are the pod's and not this container's to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// When the container was started, RFC 3339 in UTC; absent before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// What the shim has changed in the pod's network namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkRecord>,
    /// The pod's cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<CgroupRecord>,
    /// The unix sockets that belong to the pod.
    #[serde(default)]
    pub sockets: Vec<PathBuf>,
    /// What it took to boot the VM, where the monitor could say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootRecord>,
}

/// What it took to boot a VM, from the start of its monitor to the agent's first word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRecord {
    /// Microseconds from the monitor's `main` to the guest's first instruction.
    pub first_entry_us: u64,
    /// Microseconds from the start of the monitor's process to the agent's connection.
    pub agent_ready_us: u64,
    /// VM exits until then, as KVM counts them.
    pub vm_exits: u64,
    /// Those of them that reached the monitor.
    pub monitor_exits: u64,
    /// Those of them that were accesses to registers of devices.
    #[serde(default)]
    pub mmio_exits: u64,
    /// Interrupts injected until then, as KVM counts them.
    #[serde(default)]
    pub interrupts: u64,
    /// Interrupts that devices raised; several may have become one of those.
    #[serde(default)]
    pub device_interrupts: u64,
    /// Queue notifications, which reach the monitor without stopping a vCPU.
    #[serde(default)]
    pub notifications: u64,
}

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file could not be opened, read, written or renamed.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The record's file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file is not the record it should be.
    #[error("{path} is damaged: {source}", path = path.display())]
    Malformed {
        /// The record's file.
        path: PathBuf,
        /// Where the JSON goes wrong.
        source: serde_json::Error,
    },
}

/// A kind of record with its own file in a bundle.
pub trait Record: Serialize + DeserializeOwned {
    /// The file's name.
    const FILE: &'static str;

    /// Reads the record of a bundle; `None` where there is none.
    fn read(bundle: &Path) -> Result<Option<Self>, RecordError> {
        let path = bundle.join(Self::FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RecordError::Io { path, source }),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|source| RecordError::Malformed { path, source })
    }

    /// Replaces the record of a bundle: a reader sees the old one or the new one, whole, even after a crash.
    fn write(&self, bundle: &Path) -> Result<(), RecordError> {
        let path = bundle.join(Self::FILE);
        let mut bytes = serde_json::to_vec(self)
            .map_err(|source| RecordError::Malformed { path: path.clone(), source })?;
        bytes.push(b'\n');
        write_atomically(&path, &bytes).map_err(|source| RecordError::Io { path, source })
    }
}

impl Record for ExitRecord {
    const FILE: &'static str = EXIT_FILE;
}

impl Record for ShimRecord {
    const FILE: &'static str = SHIM_FILE;
}

/// Writes `bytes` to a neighbour of `path`, makes them durable, and renames it into place.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_data()
    });
    written.and_then(|()| fs::rename(&temporary, path)).inspect_err(|_| {
        // The first error is the one to report; a leftover `.new` is overwritten by the next attempt.
        let _ = fs::remove_file(&temporary);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_file() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(ExitRecord::read(bundle.path()).unwrap(), None);
        let record = ExitRecord {
            exit_code: 137,
            exited_at: "2026-01-02T03:04:05.678Z".into(),
            oom_killed: true,
            reason: String::new(),
        };
        record.write(bundle.path()).unwrap();
        assert_eq!(ExitRecord::read(bundle.path()).unwrap(), Some(record));
        assert_eq!(fs::read_dir(bundle.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_damaged_record_names_its_file() {
        let bundle = tempfile::tempdir().unwrap();
        fs::write(bundle.path().join(EXIT_FILE), "{").unwrap();
        let error = ExitRecord::read(bundle.path()).unwrap_err().to_string();
        assert!(error.contains("exit.json") && error.contains("damaged"), "{error}");
    }

    #[test]
    fn a_record_that_cannot_be_written_leaves_nothing() {
        let bundle = tempfile::tempdir().unwrap();
        fs::create_dir(bundle.path().join(SHIM_FILE)).unwrap();
        assert!(ShimRecord::default().write(bundle.path()).is_err());
        assert_eq!(fs::read_dir(bundle.path()).unwrap().count(), 1);
    }

    #[test]
    fn lifecycles_are_words() {
        for lifecycle in [Lifecycle::Managed, Lifecycle::Keep, Lifecycle::Remove] {
            assert_eq!(lifecycle.as_str().parse(), Ok(lifecycle));
        }
        assert!("Keep".parse::<Lifecycle>().is_err());
    }
}
