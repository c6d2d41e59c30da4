//! What is remembered of a container between commands, and the state that the kernel says it is in.
//!
//! Everything is below `<root>/<id>`, which only root can read. What a workload can write is never read.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use hull_protocol::agent::is_valid_id;
use serde::{Deserialize, Serialize};

use super::OciError;
use crate::cgroup::Cgroup;
use crate::spec::{ContainerSpec, SeccompFilter, Statements};
use crate::sys::process;

/// The version of the specification that `state` names.
pub const OCI_VERSION: &str = "1.2.0";

const RECORD: &str = "state.json";
const CONFIG: &str = "config.json";
const FILTER: &str = "seccomp";
/// Exists until the container is started.
const GATE: &str = "gate";
/// Where `create` puts the container's tree together; empty for everybody else.
pub const WORKSHOP: &str = "workshop";

/// The containers below one `--root`.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
}

/// What does not change in a container's life.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    pub cgroup: PathBuf,
    pub created: String,
    pub annotations: BTreeMap<String, String>,
    /// The init's pid in the pid namespace of whoever created it.
    pub pid: libc::pid_t,
    /// When it started, in the kernel's ticks: tells it from a later process of the same number.
    pub started: u64,
    /// The descriptor of its start gate, in the init itself.
    pub gate: i32,
}

/// The states of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Created,
    Running,
    Paused,
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// A container that was found.
#[derive(Debug)]
pub struct Stored {
    pub directory: PathBuf,
    pub record: Record,
}

impl Store {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Makes the directory of a new container.
    pub fn reserve(&self, id: &str) -> Result<PathBuf, OciError> {
        if !is_valid_id(id) {
            return Err(OciError::Id(id.to_owned()));
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.root)
            .map_err(OciError::file("make", &self.root))?;
        let directory = self.root.join(id);
        match std::fs::DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(OciError::Exists),
            made => made.map(|()| directory.clone()).map_err(OciError::file("make", &directory)),
        }
    }

    pub fn find(&self, id: &str) -> Result<Stored, OciError> {
        if !is_valid_id(id) {
            return Err(OciError::NotFound);
        }
        let directory = self.root.join(id);
        let file = directory.join(RECORD);
        let text = match std::fs::read(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(OciError::NotFound),
            read => read.map_err(OciError::file("read", &file))?,
        };
        let record = serde_json::from_slice(&text)
            .map_err(|error| OciError::Bundle { path: file, reason: error.to_string() })?;
        Ok(Stored { directory, record })
    }

    /// All of them, by id.
    pub fn all(&self) -> Result<Vec<Stored>, OciError> {
        let entries = match std::fs::read_dir(&self.root) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(OciError::file("read", &self.root))?,
        };
        let mut names: Vec<_> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort_unstable();
        // One that is being made or deleted has no record.
        Ok(names.iter().filter_map(|name| self.find(name).ok()).collect())
    }
}

/// Keeps what later commands need. The record comes last: what has none does not exist.
pub fn keep(
    directory: &Path,
    record: &Record,
    config: &[u8],
    filter: Option<&(Vec<u8>, u32)>,
) -> Result<(), OciError> {
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.join(name);
        std::fs::write(&path, bytes).map_err(OciError::file("write", &path))
    };
    write(CONFIG, config)?;
    if let Some((program, flags)) = filter {
        write(FILTER, &[&flags.to_le_bytes(), program.as_slice()].concat())?;
    }
    write(GATE, b"")?;
    let json = serde_json::to_vec(record)
        .map_err(|error| OciError::system("write the state")(std::io::Error::other(error)))?;
    write(RECORD, &json)
}

impl Stored {
    /// The saved config.json.
    pub fn config(&self) -> Result<Vec<u8>, OciError> {
        let path = self.directory.join(CONFIG);
        std::fs::read(&path).map_err(OciError::file("read", &path))
    }

    /// The container's specification, from what was saved when it was created.
    pub fn spec(&self, config: &[u8]) -> Result<ContainerSpec, OciError> {
        let path = self.directory.join(FILTER);
        let filter = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            read => Some(read.map_err(OciError::file("read", &path))?),
        };
        let filter = match filter.as_deref().and_then(<[u8]>::split_first_chunk::<4>) {
            Some((flags, program)) => Some(SeccompFilter::from_bytes(program, u32::from_le_bytes(*flags))?),
            None => None,
        };
        Ok(ContainerSpec::from_json(config, filter, &Statements::default())?.0)
    }

    pub fn cgroup(&self) -> Result<Cgroup, OciError> {
        Ok(Cgroup::find(self.record.cgroup.clone())?)
    }

    /// The init's pidfd, unless it has ended.
    pub fn init(&self) -> Option<OwnedFd> {
        let pidfd = process::open_pidfd(self.record.pid).ok()?;
        // Looked at after the process is pinned: the number cannot pass to another one any more.
        self.is_alive().then_some(pidfd)
    }

    fn is_alive(&self) -> bool {
        process_stat(self.record.pid)
            .is_some_and(|stat| stat.started == self.record.started && !matches!(stat.state, 'Z' | 'X'))
    }

    pub fn status(&self) -> Status {
        if !self.is_alive() {
            return Status::Stopped;
        }
        if self.directory.join(GATE).exists() {
            return Status::Created;
        }
        let frozen = std::fs::read_to_string(self.record.cgroup.join("cgroup.freeze"));
        if frozen.is_ok_and(|text| text.trim() == "1") { Status::Paused } else { Status::Running }
    }

    /// Takes the right to open the start gate, which exists once.
    pub fn claim_gate(&self) -> bool {
        std::fs::remove_file(self.directory.join(GATE)).is_ok()
    }

    /// Forgets the container.
    pub fn forget(&self) -> Result<(), OciError> {
        forget(&self.directory)
    }

    /// The state as the specification wants it told; `pid` is 0 when there is no process.
    pub fn state(&self) -> serde_json::Value {
        let (status, record) = (self.status(), &self.record);
        serde_json::json!({
            "ociVersion": OCI_VERSION,
            "id": record.id,
            "pid": if status == Status::Stopped { 0 } else { record.pid },
            "status": status,
            "bundle": record.bundle,
            "rootfs": record.rootfs,
            "created": record.created,
            "annotations": record.annotations,
            "owner": "",
        })
    }
}

/// Removes a container's directory: each file by its name, never a tree, for something could be mounted in it.
pub fn forget(directory: &Path) -> Result<(), OciError> {
    for name in [RECORD, CONFIG, FILTER, GATE] {
        let file = directory.join(name);
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.map_err(OciError::file("remove", &file))?,
        }
    }
    for directory in [&directory.join(WORKSHOP), directory] {
        match std::fs::remove_dir(directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.map_err(OciError::file("remove", directory))?,
        }
    }
    Ok(())
}

struct Stat {
    state: char,
    started: u64,
}

/// When a process started, in ticks.
pub fn start_time(pid: libc::pid_t) -> Option<u64> {
    process_stat(pid).map(|stat| stat.started)
}

fn process_stat(pid: libc::pid_t) -> Option<Stat> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// proc(5): the name is in parentheses, and can contain any character, so fields count from the last one.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some(Stat { state, started: fields.nth(18)?.parse().ok()? })
}

/// Now, as RFC 3339 in UTC.
pub fn timestamp() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    rfc3339(now.as_secs(), now.subsec_nanos())
}

fn rfc3339(seconds: u64, nanos: u32) -> String {
    // Days since 0000-03-01, in eras of 400 years that all have the same number of days.
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + carry;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00.000000007Z"),
            (951_782_400, "2000-02-29T00:00:00.000000007Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000007Z"),
            (4_102_444_800, "2100-01-01T00:00:00.000000007Z"),
        ] {
            assert_eq!(rfc3339(seconds, 7), date);
        }
    }

    #[test]
    fn a_process_cannot_lie_about_its_state_by_its_name() {
        let line = "7 (a) Z 1 (b) R 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.state, stat.started), ('R', 4242));
        assert!(parse_stat("7 (x").is_none());
    }
}
