//! The monitor's control API: what the shim asks of `hull-vmm` and what it is told.
//!
//! One `SOCK_SEQPACKET` socketpair, inherited by the monitor as [`CONTROL_FD`]; one JSON message a packet; the file
//! descriptors that a message speaks of travel with it (`SCM_RIGHTS`) in the order its documentation gives. The shim
//! opens everything, the monitor opens no path. Requests are answered one by one and in order; events come between.
//! When the shim's end closes, the monitor ends the VM and itself.

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

mod channel;
mod config;
mod ending;
mod stats;
#[cfg(test)]
mod tests;

pub use channel::{Channel, ChannelError, Received};
pub use config::{
    CpuTemplate, DiskAccess, DiskConfig, DiskDiscard, DiskExtent, FsCache, FsConfig, JailConfig, JailNetwork,
    MachineConfig, NetworkBackend, NetworkConfig, NetworkLimits, PmemConfig, PortConnection, RateLimits,
    TokenBucket, Unplug, VsockConfig,
};
pub use ending::ExitReason;
pub use stats::{BalloonStats, DeviceStats, GuestMemoryStats, HotplugStats, STATS_VERSION, VmStats};

/// The version of this API. The monitor refuses another in [`Request::Hello`].
pub const VERSION: u32 = 1;

/// Where the monitor finds its end of the socketpair.
pub const CONTROL_FD: RawFd = 3;

/// The longest message, in bytes.
pub const MESSAGE_MAX: usize = 64 * 1024;

/// The most file descriptors with one message (the kernel's `SCM_MAX_FD`).
pub const FDS_MAX: usize = 253;

/// The exit status of the monitor, and of the file broker, after a system call that its filter denies; its last line on
/// standard error names the call. There is no [`Message::Exited`] then.
pub const DENIED_STATUS: i32 = 6;

/// What the shim asks. Everything up to [`Request::Boot`] describes the VM; nothing of it runs before. Disks, networks and
/// the file system that are added to a running VM are answered with [`Message::Plugged`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", content = "with", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The first message.
    Hello {
        /// [`VERSION`] as the shim knows it.
        version: u32,
    },
    /// The second message, once: the monitor gives up what it has before it takes anything that a guest can influence.
    /// When that fails only [`Request::Stop`] is left.
    Jail(JailConfig),
    /// The machine. Descriptors: `/dev/kvm`, the kernel (an ELF `vmlinux`), the initramfs, the console log.
    Machine(MachineConfig),
    /// A virtio-blk disk. Descriptors: one for each extent.
    AddDisk(DiskConfig),
    /// The virtio-vsock device. Descriptors: the listening unix socket for connections from the host, then one
    /// port channel for each of [`VsockConfig::guest_to_host_ports`].
    AddVsock(VsockConfig),
    /// A virtio-net interface. Descriptors: its tap, made with `IFF_TAP`, `IFF_NO_PI` and `IFF_VNET_HDR`; and with
    /// [`NetworkBackend::Vhost`] `/dev/vhost-net`, opened for this interface.
    AddNetwork(NetworkConfig),
    /// The virtio-fs device, of which a VM has one at a time. Descriptor: a `SOCK_SEQPACKET` socket whose other end serves
    /// as [file broker](crate::fs). What it shows comes and goes by the broker's [control](crate::fs::Control), also while
    /// the VM runs: the monitor has no part in it.
    AddFs(FsConfig),
    /// A virtio-rng device fed by `getrandom(2)`.
    AddEntropy,
    /// A virtio-pmem device: a file in the guest's physical memory, behind its RAM. After [`Request::Machine`].
    /// Descriptors: the file.
    AddPmem(PmemConfig),
    /// A virtio-mem device: memory that can be added while the VM runs. After [`Request::Machine`]. Nothing of it is
    /// there, or costs anything, until [`Request::SetHotplugMemory`].
    AddHotplugMemory {
        /// The most that can be added, a multiple of 128.
        mib: u32,
    },
    /// Address space for a virtio-mem device that comes later, by [`Request::PlugHotplugMemory`]: until then a guest has
    /// nothing to look for. Instead of [`Request::AddHotplugMemory`].
    ReserveHotplugMemory {
        /// The most that can be added, a multiple of 128.
        mib: u32,
    },
    /// While the VM runs: the device whose address space is reserved. Answered with [`Message::Plugged`].
    PlugHotplugMemory,
    /// While the VM runs: asks the guest to have so much memory besides what it has booted with. Answered at once; the
    /// guest does it in its own time, and gives back what it can do without.
    SetHotplugMemory {
        /// Not more than the device has.
        mib: u32,
    },
    /// A virtio-balloon device. Memory that lies free in the guest goes back to the host from then on; the balloon itself
    /// is empty until [`Request::SetBalloon`].
    AddBalloon,
    /// While the VM runs: asks the guest to give up so much memory, or to take back what is more. Answered at once; the
    /// guest does it in its own time, as far as it can.
    SetBalloon {
        /// The size of the balloon, less than the VM's memory.
        mib: u32,
    },
    /// Builds the VM and lets its vCPUs run. When that fails the description is used up: only [`Request::Stop`] is left.
    Boot,
    /// Takes a device away from the running VM. Its descriptors are closed and its name is free when this is answered.
    Unplug {
        /// The device's label as in [`VmStats`]: "blk-" and a disk's serial number, "net-" and a network's name,
        /// "fs-" and a file system's tag.
        name: String,
        /// Whether it must be free.
        how: Unplug,
    },
    /// Stops all vCPUs and devices, between two instructions of the guest and with nothing in flight. A host that does not
    /// finish an operation within seconds is a reason to refuse; the VM then goes on.
    Pause,
    /// Lets a paused VM go on.
    Resume,
    /// Counters since the start.
    Stats,
    /// Ends the VM at once, without asking the guest.
    Stop,
}

impl Request {
    /// What is asked for, in one word.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "Hello",
            Self::Jail(_) => "Jail",
            Self::Machine(_) => "Machine",
            Self::AddDisk(_) => "AddDisk",
            Self::AddVsock(_) => "AddVsock",
            Self::AddNetwork(_) => "AddNetwork",
            Self::AddFs(_) => "AddFs",
            Self::AddEntropy => "AddEntropy",
            Self::AddPmem(_) => "AddPmem",
            Self::AddHotplugMemory { .. } => "AddHotplugMemory",
            Self::ReserveHotplugMemory { .. } => "ReserveHotplugMemory",
            Self::PlugHotplugMemory => "PlugHotplugMemory",
            Self::SetHotplugMemory { .. } => "SetHotplugMemory",
            Self::AddBalloon => "AddBalloon",
            Self::SetBalloon { .. } => "SetBalloon",
            Self::Boot => "Boot",
            Self::Unplug { .. } => "Unplug",
            Self::Pause => "Pause",
            Self::Resume => "Resume",
            Self::Stats => "Stats",
            Self::Stop => "Stop",
        }
    }
}

/// What the monitor says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", content = "with", rename_all = "snake_case", deny_unknown_fields)]
pub enum Message {
    /// The last request succeeded.
    Done,
    /// The device was added to the running VM, for a driver that looks for it: `virtio-mmio.SLOT` is its name on the
    /// guest's platform bus.
    Plugged {
        /// The number of its slot, from 0.
        slot: u8,
    },
    /// The answer to [`Request::Stats`].
    Stats(VmStats),
    /// The last request failed; except for [`Request::Boot`], it changed nothing.
    Failed(Failure),
    /// The VM has ended. The last message; the monitor exits after it.
    Exited(ExitReason),
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind of failure it was.
    pub code: FailureCode,
    /// One sentence for a person: what was tried and what happened.
    pub message: String,
}

/// The kinds of failure that a caller may want to tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// The message itself was wrong: a version, a value out of range, missing descriptors.
    InvalidRequest,
    /// The monitor cannot give up what it must.
    Jail,
    /// Not now: twice the same device, a description after the boot, a device in use, a paused VM.
    WrongState,
    /// There is no such device.
    NotFound,
    /// `/dev/kvm` cannot do what is needed.
    Kvm,
    /// The kernel or the initramfs cannot be loaded.
    Kernel,
    /// The host lacks memory or another resource.
    Resources,
}
