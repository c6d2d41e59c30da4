//! The administrator's choices: `/etc/hull/config.toml`, then `/etc/hull/config.d/*.toml` in the order of their names.
//!
//! Owns the keys, their bounds and their defaults. Every default is good, so that there need be no file; a key that is
//! unknown or out of bounds is an error that names file, line and what would be right. Read once, when a shim starts.
//! What a developer or a test sets by environment variable goes before the files.

mod file;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use file::ConfigError;
use file::{Bounded, Keys};
use hull_protocol::vmm::{CpuTemplate, NetworkLimits, RateLimits, TokenBucket};

/// Environment variable that names another file than [`FILE`].
pub const CONFIG_VARIABLE: &str = "HULL_CONFIG";
/// Environment variable that names the monitor's executable.
pub const VMM_VARIABLE: &str = "HULL_VMM";
/// Environment variable that names the file broker's executable.
pub const BROKER_VARIABLE: &str = "HULL_FSD";
/// Environment variable that names the guest kernel.
pub const KERNEL_VARIABLE: &str = "HULL_KERNEL";
/// Environment variable that names the initramfs.
pub const INITRAMFS_VARIABLE: &str = "HULL_INITRAMFS";
/// Environment variable: `full` or `unprivileged`.
pub const JAIL_VARIABLE: &str = "HULL_JAIL";
/// Environment variable: how long the guest may take to boot, in seconds.
pub const BOOT_TIMEOUT_VARIABLE: &str = "HULL_BOOT_TIMEOUT_SECS";
/// Where the configuration lies.
pub const FILE: &str = "/etc/hull/config.toml";

/// What an administrator may choose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The VMs.
    pub vm: VmDefaults,
    /// What each pod's devices may do, without bounds by default.
    pub limits: DeviceLimits,
    /// Who moves the frames of its interfaces.
    pub vhost: Vhost,
    /// What a VM is made from.
    pub artifacts: ArtifactPaths,
    /// Which jail monitors close around themselves; by default what the shim's own privileges allow.
    pub jail: Option<JailChoice>,
    /// Hull's annotations that a pod's own specification may carry, empty by default.
    pub allowed_annotations: BTreeSet<String>,
    /// Whether pods have a debug console.
    pub debug_console: DebugConsole,
    /// How much is logged.
    pub log: LogLevel,
    /// The file that spans are appended to.
    pub trace_file: Option<PathBuf>,
}

/// How fast devices are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceLimits {
    /// Each disk.
    pub disk: RateLimits,
    /// Each network interface, each way.
    pub network: NetworkLimits,
}

/// The size of VMs, and what their processors look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmDefaults {
    /// vCPUs of a pod without a CPU limit, 1 to 32.
    pub vcpus: u8,
    /// The most vCPUs that a pod gets, 1 to 32.
    pub vcpus_max: u8,
    /// What they look like.
    pub cpu: CpuTemplate,
    /// Memory of a pod without a memory limit, in MiB.
    pub memory_mib: u32,
    /// The most memory that a pod gets, in MiB.
    pub memory_mib_max: u32,
    /// What is added to a pod's memory limit for the guest itself, in MiB.
    pub overhead_mib: u32,
    /// What becomes of memory that the guest does not use any more.
    pub free_memory: FreeMemory,
    /// Whether a VM may become larger than it began.
    pub resize: Resize,
    /// How long a guest may take until its agent speaks.
    pub boot_timeout: Duration,
}

impl Default for VmDefaults {
    fn default() -> Self {
        Self {
            vcpus: 1,
            vcpus_max: 32,
            cpu: CpuTemplate::Host,
            memory_mib: 512,
            memory_mib_max: 1 << 20,
            overhead_mib: 128,
            free_memory: FreeMemory::Keep,
            resize: Resize::Refuse,
            boot_timeout: Duration::from_secs(120),
        }
    }
}

/// What becomes of memory that a guest has freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FreeMemory {
    /// The guest has it until the pod ends.
    Keep,
    /// The host has it back, until the guest touches it again: a balloon with free page reporting.
    Return,
}

/// What becomes of limits that a VM has not the size for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resize {
    /// They are refused.
    Refuse,
    /// The VM grows, within its room: which a hostile guest may take by itself.
    Allow,
}

/// Whether the host's kernel may move the frames of a pod's interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vhost {
    /// The monitor does it.
    #[default]
    Never,
    /// The kernel does it where it can, by vhost-net: then it reads what a guest writes into its rings.
    Allow,
}

/// Files that are looked for around the shim's executable unless they are named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArtifactPaths {
    /// The monitor's executable.
    pub vmm: Option<Named>,
    /// The file broker's executable.
    pub broker: Option<Named>,
    /// The guest kernel.
    pub kernel: Option<Named>,
    /// The initramfs with the agent.
    pub initramfs: Option<Named>,
}

/// A path, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The path.
    pub path: PathBuf,
    /// The environment variable or the key.
    pub by: &'static str,
}

/// The two jails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JailChoice {
    /// Own user, namespaces, root, and all that needs no privilege.
    Full,
    /// What needs no privilege: filters, limits, Landlock.
    Unprivileged,
}

/// Whether the host's administrator may ask about a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DebugConsole {
    /// Nobody may: the guest has no way to be asked.
    #[default]
    Off,
    /// `hull debug`.
    On,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What went wrong.
    Warn,
    /// What matters to an administrator.
    #[default]
    Info,
    /// What matters to a developer, too.
    Debug,
}

impl Config {
    /// Reads the files, those that [`CONFIG_VARIABLE`] or [`FILE`] names and the drop-ins beside them, and the environment.
    pub fn load() -> Result<Self, ConfigError> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let config = match variable(CONFIG_VARIABLE) {
            Some(path) => Self::read(Path::new(&path), file::Absence::Error)?,
            None => Self::read(Path::new(FILE), file::Absence::Allowed)?,
        };
        config.overridden_by(variable)
    }

    fn overridden_by(
        mut self,
        variable: impl Fn(&'static str) -> Option<OsString>,
    ) -> Result<Self, ConfigError> {
        let text = |name| variable(name).map(|value| value.to_string_lossy().into_owned());
        let refused = |variable, value, wanted| ConfigError::Variable { variable, value, wanted };
        for (name, place) in [
            (VMM_VARIABLE, &mut self.artifacts.vmm),
            (BROKER_VARIABLE, &mut self.artifacts.broker),
            (KERNEL_VARIABLE, &mut self.artifacts.kernel),
            (INITRAMFS_VARIABLE, &mut self.artifacts.initramfs),
        ] {
            if let Some(path) = variable(name) {
                *place = Some(Named { path: path.into(), by: name });
            }
        }
        if let Some(value) = text(JAIL_VARIABLE) {
            self.jail = match value.as_str() {
                "full" => Some(JailChoice::Full),
                "unprivileged" => Some(JailChoice::Unprivileged),
                _ => return Err(refused(JAIL_VARIABLE, value, "full or unprivileged")),
            };
        }
        if let Some(value) = text(BOOT_TIMEOUT_VARIABLE) {
            self.vm.boot_timeout = match value.parse() {
                Ok(seconds @ 1..=86_400) => Duration::from_secs(seconds),
                _ => {
                    return Err(refused(BOOT_TIMEOUT_VARIABLE, value, "a number of seconds from 1 to 86400"));
                }
            };
        }
        Ok(self)
    }

    fn read(path: &Path, absence: file::Absence) -> Result<Self, ConfigError> {
        Self::resolve(file::read(path, absence)?)
    }

    fn resolve(keys: Keys) -> Result<Self, ConfigError> {
        let Keys { vm, disk, network, monitor, annotations, debug, log, trace } = keys;
        let named = |by, path: Option<PathBuf>| path.map(|path| Named { path, by });
        let defaults = VmDefaults::default();
        let vm_size = VmDefaults {
            vcpus: vm.vcpus.map_or(defaults.vcpus, Bounded::get),
            vcpus_max: vm.vcpus_max.map_or(defaults.vcpus_max, Bounded::get),
            cpu: vm.cpu.unwrap_or(defaults.cpu),
            memory_mib: vm.memory_mib.map_or(defaults.memory_mib, Bounded::get),
            memory_mib_max: vm.memory_mib_max.map_or(defaults.memory_mib_max, Bounded::get),
            overhead_mib: vm.overhead_mib.map_or(defaults.overhead_mib, Bounded::get),
            free_memory: vm.free_memory.unwrap_or(defaults.free_memory),
            resize: vm.resize.unwrap_or(defaults.resize),
            boot_timeout: vm
                .boot_timeout_seconds
                .map_or(defaults.boot_timeout, |seconds| Duration::from_secs(seconds.get().into())),
        };
        let within = |what, value: u64, most: u64| {
            if value <= most { Ok(()) } else { Err(ConfigError::Default { what, value, most }) }
        };
        within("vcpus", vm_size.vcpus.into(), vm_size.vcpus_max.into())?;
        within("memory_mib", vm_size.memory_mib.into(), vm_size.memory_mib_max.into())?;
        Ok(Self {
            vm: vm_size,
            limits: DeviceLimits {
                disk: rates(disk.mib_per_second, disk.operations_per_second),
                network: NetworkLimits {
                    to_guest: rates(network.mib_per_second, network.packets_per_second),
                    from_guest: rates(network.mib_per_second, network.packets_per_second),
                },
            },
            vhost: network.vhost.unwrap_or_default(),
            artifacts: ArtifactPaths {
                vmm: named("monitor.path in the configuration", monitor.path),
                broker: named("monitor.broker_path in the configuration", monitor.broker_path),
                kernel: named("vm.kernel in the configuration", vm.kernel),
                initramfs: named("vm.initramfs in the configuration", vm.initramfs),
            },
            jail: monitor.jail,
            allowed_annotations: annotations.allow.unwrap_or_default(),
            debug_console: if debug.console == Some(true) { DebugConsole::On } else { DebugConsole::Off },
            log: log.level.unwrap_or_default(),
            trace_file: trace.file,
        })
    }
}

/// A second's worth may go at once.
fn rates<const MOST_MIB: u64, const MOST: u64>(
    mib: Option<Bounded<u32, 1, MOST_MIB>>,
    operations: Option<Bounded<u32, 1, MOST>>,
) -> RateLimits {
    let bucket = |tokens: u64| {
        let refill_ms = NonZeroU32::new(1000)?;
        Some(TokenBucket { size: NonZeroU64::new(tokens)?, refill_ms, one_time_burst: 0 })
    };
    RateLimits {
        bandwidth: mib.and_then(|mib| bucket(u64::from(mib.get()) << 20)),
        operations: operations.and_then(|operations| bucket(operations.get().into())),
    }
}

#[cfg(test)]
mod tests;
