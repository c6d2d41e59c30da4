//! The files' text: which keys there are, what each may hold, and how several files become one.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hull_protocol::vmm::CpuTemplate;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::{FreeMemory, JailChoice, LogLevel, Resize, Vhost};
use crate::record::annotation;

/// Longer is no configuration.
const FILE_MAX: u64 = 1 << 20;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file says something that cannot be right.
    #[error("{path}: {source}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// An environment variable says something that cannot be right.
    #[error("{variable} is {value:?}, not {wanted}")]
    Variable {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// A default is larger than the most.
    #[error(
        "vm.{what} is {value}, more than vm.{what}_max, which is {most}: raise the one or lower the other"
    )]
    Default {
        /// The key.
        what: &'static str,
        /// Its value.
        value: u64,
        /// The bound's value.
        most: u64,
    },
}

/// Whether there need be a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// Defaults will do.
    Allowed,
    /// Somebody named it.
    Error,
}

/// A whole number between two others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounded<T, const LEAST: u64, const MOST: u64>(T);

impl<T: Copy, const LEAST: u64, const MOST: u64> Bounded<T, LEAST, MOST> {
    pub fn get(self) -> T {
        self.0
    }
}

impl<'de, T: TryFrom<u64>, const LEAST: u64, const MOST: u64> Deserialize<'de> for Bounded<T, LEAST, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = i64::deserialize(deserializer)?;
        u64::try_from(value)
            .ok()
            .filter(|value| (LEAST..=MOST).contains(value))
            .and_then(|value| T::try_from(value).ok())
            .map(Self)
            .ok_or_else(|| D::Error::custom(format!("{value} is not a number from {LEAST} to {MOST}")))
    }
}

/// Every key there is; what is absent is for the next file, or the default.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keys {
    pub vm: Vm,
    pub disk: Disk,
    pub network: Network,
    pub monitor: Monitor,
    pub annotations: Annotations,
    pub debug: Debug,
    pub log: Log,
    pub trace: Trace,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vm {
    pub vcpus: Option<Bounded<u8, 1, 32>>,
    pub vcpus_max: Option<Bounded<u8, 1, 32>>,
    pub cpu: Option<CpuTemplate>,
    pub memory_mib: Option<Bounded<u32, 64, { 1 << 20 }>>,
    pub memory_mib_max: Option<Bounded<u32, 64, { 1 << 20 }>>,
    pub overhead_mib: Option<Bounded<u32, 32, 4096>>,
    pub free_memory: Option<FreeMemory>,
    pub resize: Option<Resize>,
    pub boot_timeout_seconds: Option<Bounded<u32, 1, 86400>>,
    #[serde(deserialize_with = "absolute")]
    pub kernel: Option<PathBuf>,
    #[serde(deserialize_with = "absolute")]
    pub initramfs: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Disk {
    pub mib_per_second: Option<Bounded<u32, 1, { 1 << 20 }>>,
    pub operations_per_second: Option<Bounded<u32, 1, 100_000_000>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    pub mib_per_second: Option<Bounded<u32, 1, { 1 << 20 }>>,
    pub packets_per_second: Option<Bounded<u32, 1, 100_000_000>>,
    pub vhost: Option<Vhost>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Monitor {
    #[serde(deserialize_with = "absolute")]
    pub path: Option<PathBuf>,
    #[serde(deserialize_with = "absolute")]
    pub broker_path: Option<PathBuf>,
    pub jail: Option<JailChoice>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Annotations {
    #[serde(deserialize_with = "known_annotations")]
    pub allow: Option<BTreeSet<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Debug {
    pub console: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    pub level: Option<LogLevel>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Trace {
    #[serde(deserialize_with = "absolute")]
    pub file: Option<PathBuf>,
}

fn absolute<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    if path.is_absolute() {
        Ok(Some(path))
    } else {
        Err(D::Error::custom(format!("{path:?} is no absolute path")))
    }
}

fn known_annotations<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BTreeSet<String>>, D::Error> {
    let names = BTreeSet::<String>::deserialize(deserializer)?;
    match names.iter().find(|name| !annotation::FOR_PODS.contains(&name.as_str())) {
        Some(name) => Err(D::Error::custom(format!(
            "{name:?} is no annotation that a pod may carry: there are {}",
            annotation::FOR_PODS.join(", ")
        ))),
        None => Ok(Some(names)),
    }
}

impl Keys {
    /// What `over` says goes before what we say.
    fn overlaid_by(self, over: Self) -> Self {
        Self {
            vm: Vm {
                vcpus: over.vm.vcpus.or(self.vm.vcpus),
                vcpus_max: over.vm.vcpus_max.or(self.vm.vcpus_max),
                cpu: over.vm.cpu.or(self.vm.cpu),
                memory_mib: over.vm.memory_mib.or(self.vm.memory_mib),
                memory_mib_max: over.vm.memory_mib_max.or(self.vm.memory_mib_max),
                overhead_mib: over.vm.overhead_mib.or(self.vm.overhead_mib),
                free_memory: over.vm.free_memory.or(self.vm.free_memory),
                resize: over.vm.resize.or(self.vm.resize),
                boot_timeout_seconds: over.vm.boot_timeout_seconds.or(self.vm.boot_timeout_seconds),
                kernel: over.vm.kernel.or(self.vm.kernel),
                initramfs: over.vm.initramfs.or(self.vm.initramfs),
            },
            disk: Disk {
                mib_per_second: over.disk.mib_per_second.or(self.disk.mib_per_second),
                operations_per_second: over.disk.operations_per_second.or(self.disk.operations_per_second),
            },
            network: Network {
                mib_per_second: over.network.mib_per_second.or(self.network.mib_per_second),
                packets_per_second: over.network.packets_per_second.or(self.network.packets_per_second),
                vhost: over.network.vhost.or(self.network.vhost),
            },
            monitor: Monitor {
                path: over.monitor.path.or(self.monitor.path),
                broker_path: over.monitor.broker_path.or(self.monitor.broker_path),
                jail: over.monitor.jail.or(self.monitor.jail),
            },
            annotations: Annotations { allow: over.annotations.allow.or(self.annotations.allow) },
            debug: Debug { console: over.debug.console.or(self.debug.console) },
            log: Log { level: over.log.level.or(self.log.level) },
            trace: Trace { file: over.trace.file.or(self.trace.file) },
        }
    }
}

/// Reads a file, and over it the drop-ins: `config.d/*.toml` in the same folder.
pub fn read(path: &Path, absence: Absence) -> Result<Keys, ConfigError> {
    let mut keys = match text(path) {
        Ok(text) => parse(path, &text)?,
        Err(source) if source.kind() == io::ErrorKind::NotFound && absence == Absence::Allowed => {
            Keys::default()
        }
        Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
    };
    let folder = path.parent().unwrap_or(Path::new("/")).join("config.d");
    for path in drop_ins(&folder).map_err(|source| ConfigError::Read { path: folder.clone(), source })? {
        let text = text(&path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        keys = keys.overlaid_by(parse(&path, &text)?);
    }
    Ok(keys)
}

fn parse(path: &Path, text: &str) -> Result<Keys, ConfigError> {
    toml::from_str(text)
        .map_err(|source| ConfigError::Malformed { path: path.to_owned(), source: Box::new(source) })
}

fn text(path: &Path) -> io::Result<String> {
    let length = fs::metadata(path)?.len();
    if length > FILE_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("{length} bytes are no configuration"),
        ));
    }
    fs::read_to_string(path)
}

fn drop_ins(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    Ok(paths)
}
