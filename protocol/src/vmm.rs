//! The monitor's control API: what the shim asks of `hull-vmm` and what it is told.
//!
//! One `SOCK_SEQPACKET` socketpair, inherited by the monitor as [`CONTROL_FD`]; one JSON message a packet; the file
//! descriptors that a message speaks of travel with it (`SCM_RIGHTS`) in the order its documentation gives. The shim
//! opens everything, the monitor opens no path. Requests are answered one by one and in order; events come between.
//! When the shim's end closes, the monitor ends the VM and itself.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

mod channel;

pub use channel::{Channel, ChannelError, Received};

/// The version of this API. The monitor refuses another in [`Request::Hello`].
pub const VERSION: u32 = 1;

/// Where the monitor finds its end of the socketpair.
pub const CONTROL_FD: RawFd = 3;

/// The longest message, in bytes.
pub const MESSAGE_MAX: usize = 64 * 1024;

/// The most file descriptors with one message (the kernel's `SCM_MAX_FD`).
pub const FDS_MAX: usize = 253;

/// The monitor's exit status after a system call that its filter denies; its last line on standard error names the
/// call. There is no [`Message::Exited`] then.
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
    /// A virtio-net interface. Descriptors: its tap, made with `IFF_TAP`, `IFF_NO_PI` and `IFF_VNET_HDR`.
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

/// What the monitor gives up for good. System call filters come in any case, when the VM starts to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "level", rename_all = "snake_case", deny_unknown_fields)]
pub enum JailConfig {
    /// Everything: an own user and group, no capabilities, an empty read-only root, fresh namespaces. The monitor must
    /// have been started with root's privileges; what it cannot do is an error.
    Full {
        /// The user to become, not 0. No other process should have it.
        uid: u32,
        /// The group to become, not 0.
        gid: u32,
        /// Which network it sees.
        network: JailNetwork,
    },
    /// What a process can give up without privileges. User, namespaces and root stay those of whoever started it.
    Unprivileged,
}

/// The network of a jailed monitor. It opens no sockets to it; a tap's descriptor may belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JailNetwork {
    /// A new network namespace with nothing in it.
    Empty,
    /// The namespace that the monitor was started in, which was made for the pod.
    Inherited,
}

/// What a device's driver has to say to its being taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unplug {
    /// A driver in the guest that still holds it is a reason to refuse.
    Released,
    /// Nothing: what the driver has in flight is finished, and what it does afterwards reaches nobody.
    Forced,
}

/// The machine apart from its devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Number of vCPUs, 1 to 32.
    pub vcpus: u8,
    /// Guest memory in MiB, at least 32.
    pub memory_mib: u32,
    /// Words appended to the kernel's command line. The monitor writes those for its devices itself.
    pub kernel_args: String,
    /// The most bytes that are written to the console log; what comes after is counted and dropped.
    pub console_limit_bytes: u64,
}

/// A disk made of consecutive pieces of files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// The serial number the guest sees, 1 to 20 bytes of printable ASCII; unique in the VM.
    pub serial: String,
    /// Whether the guest may write. Read-write needs descriptors opened for writing.
    pub access: DiskAccess,
    /// The pieces in order. Descriptor `i` of the message belongs to extent `i`.
    pub extents: Vec<DiskExtent>,
    /// Whether the guest may give blocks back.
    #[serde(default)]
    pub discard: DiskDiscard,
    /// How fast the guest may go.
    #[serde(default)]
    pub limits: RateLimits,
}

/// A file as memory, shared with all who map it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PmemConfig {
    /// 1 to 20 letters, digits, dots, dashes and underscores; unique among the VM's files.
    pub name: String,
    /// How much of the file the guest sees, in bytes; a multiple of 512. Zeroes follow up to a multiple of 2 MiB, which
    /// the length must be if the guest may write.
    pub length: u64,
    /// Whether the guest may write. Writes to what is read-only go nowhere.
    pub access: DiskAccess,
}

/// What becomes of blocks that the guest of a writable disk does not need any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskDiscard {
    /// They go back to the host, as holes in the file.
    #[default]
    On,
    /// They stay: the guest is not offered to discard.
    Off,
}

/// Limits of one device. What is absent is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimits {
    /// Of payload, a token a byte.
    pub bandwidth: Option<TokenBucket>,
    /// Of requests or packets, a token each.
    pub operations: Option<TokenBucket>,
}

/// A bucket that is full at first and filled at a constant rate. Who finds too little in it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// The most it holds, in tokens.
    pub size: NonZeroU64,
    /// How long it takes to fill from empty, in milliseconds.
    pub refill_ms: NonZeroU32,
    /// Tokens on top that are there once and are used first.
    #[serde(default)]
    pub one_time_burst: u64,
}

/// Who may write to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskAccess {
    /// Nobody: writes are refused by the device, and by the host when the descriptor is read-only.
    ReadOnly,
    /// The guest.
    ReadWrite,
}

/// A piece of a file, in whole sectors of 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskExtent {
    /// Where the piece starts in its file, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
}

/// A network interface of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// 1 to 20 letters, digits, dots, dashes and underscores; unique in the VM.
    pub name: String,
    /// The guest's address: that of a single interface, not of a group.
    pub mac: [u8; 6],
    /// The largest packet in bytes, at least 68.
    pub mtu: u16,
}

/// The vsock device. Host to guest: a connection to the listening socket sends `CONNECT <port>\n` and reads
/// `OK <host port>\n` (Firecracker's hybrid protocol). Guest to host: see [`PortChannel`](Request::AddVsock).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id, at least 3.
    pub guest_cid: u32,
    /// The host ports that the guest may connect to. For each the message carries a *port channel*, a
    /// `SOCK_SEQPACKET` unix socket: for every connection the guest opens to the port, the monitor sends one packet,
    /// [`PortConnection`] as JSON, with one descriptor, a connected stream socket whose other end is the guest.
    /// A port whose channel is closed refuses connections.
    pub guest_to_host_ports: Vec<u32>,
}

/// The virtio-fs device: one mount, in which the file broker shows a folder for each of its exports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FsConfig {
    /// What the guest mounts it by, 1 to 36 bytes without NUL.
    pub tag: String,
    /// What the guest may keep in mind.
    pub cache: FsCache,
}

/// How long the guest may believe what it has seen of files that the host may change as well. Writes reach the host
/// before they return in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FsCache {
    /// Not at all: every look-up, `stat` and read asks the host.
    None,
    /// Names and attributes for a second; data until the file is opened again or seen to have changed.
    Auto,
    /// As if the host changed nothing.
    Always,
}

/// Announces a connection from the guest on a port channel. One descriptor: the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortConnection {
    /// The host port that the guest connected to.
    pub port: u32,
    /// The guest's own port.
    pub guest_port: u32,
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

/// Every way in which a VM ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest shut down in good order.
    Shutdown,
    /// [`Request::Stop`], or the shim's end of the socket closed.
    Stopped,
    /// The guest asked for a reset without a word.
    GuestReset,
    /// The guest kernel panicked.
    GuestPanic {
        /// The kernel's own words, cut to 256 bytes; untrusted.
        message: String,
    },
    /// A vCPU had a triple fault (`KVM_EXIT_SHUTDOWN`).
    TripleFault {
        /// Which vCPU.
        vcpu: u8,
    },
    /// KVM could not run a vCPU (`KVM_EXIT_FAIL_ENTRY`, `KVM_EXIT_INTERNAL_ERROR`, an unexpected exit, `KVM_RUN` failed).
    VcpuError {
        /// Which vCPU.
        vcpu: u8,
        /// What KVM said.
        detail: String,
    },
    /// The monitor itself could not go on.
    MonitorError {
        /// What happened.
        detail: String,
    },
}

impl std::fmt::Display for ExitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shutdown => f.write_str("the guest shut down"),
            Self::Stopped => f.write_str("the VM was stopped"),
            Self::GuestReset => f.write_str("the guest reset itself"),
            Self::GuestPanic { message } => write!(f, "the guest kernel panicked: {message}"),
            Self::TripleFault { vcpu } => write!(f, "vCPU {vcpu} had a triple fault"),
            Self::VcpuError { vcpu, detail } => write!(f, "vCPU {vcpu} failed: {detail}"),
            Self::MonitorError { detail } => write!(f, "the monitor failed: {detail}"),
        }
    }
}

/// Counters of a running VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStats {
    /// Exits of all vCPUs as KVM counts them (`KVM_GET_STATS_FD`, "exits"); 0 where KVM cannot say.
    pub vm_exits: u64,
    /// Exits that reached the monitor, by kind.
    pub exits: BTreeMap<String, u64>,
    /// Queue notifications by device.
    pub notifications: BTreeMap<String, u64>,
    /// Interrupts raised by device.
    pub interrupts: BTreeMap<String, u64>,
    /// Requests by device that failed because the host did: an I/O error, a full disk.
    #[serde(default)]
    pub host_errors: BTreeMap<String, u64>,
    /// The memory that can be added, if there is any.
    #[serde(default)]
    pub hotplug: Option<HotplugStats>,
    /// The balloon, if there is one.
    #[serde(default)]
    pub balloon: Option<Box<BalloonStats>>,
    /// Bytes the guest wrote to its console.
    pub console_bytes: u64,
    /// Microseconds from the monitor's `main` to the end of its set-up, the first entry into the guest.
    pub start_to_first_entry_us: u64,
}

/// Memory that is added and taken away while the VM runs, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotplugStats {
    /// The most that can be there.
    pub most_bytes: u64,
    /// How much the guest was asked to have.
    pub requested_bytes: u64,
    /// How much it has.
    pub plugged_bytes: u64,
}

/// Memory that went back to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonStats {
    /// How large the balloon is to be.
    pub target_mib: u32,
    /// How large it is, by the guest's own word.
    pub actual_mib: u32,
    /// Bytes given back by inflating the balloon, since the start.
    pub ballooned_bytes: u64,
    /// Bytes given back because the guest reported them as free, since the start.
    pub reported_bytes: u64,
    /// Bytes that the guest named without having them, or that the host did not take.
    pub refused_bytes: u64,
    /// What the guest says about its memory; untrusted, and as of the last time that anybody asked.
    pub guest: GuestMemoryStats,
}

/// A guest's own figures. What it did not say is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMemoryStats {
    /// Not used for anything.
    pub free_bytes: Option<u64>,
    /// All of it.
    pub total_bytes: Option<u64>,
    /// What a new program could have without swapping.
    pub available_bytes: Option<u64>,
    /// Of files, and easily freed.
    pub cache_bytes: Option<u64>,
    /// Page faults that needed I/O.
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    pub minor_faults: Option<u64>,
    /// Read from swap.
    pub swapped_in_bytes: Option<u64>,
    /// Written to swap.
    pub swapped_out_bytes: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<T: Serialize + for<'de> Deserialize<'de> + PartialEq + std::fmt::Debug>(value: &T) {
        let json = serde_json::to_string(value).unwrap();
        assert_eq!(&serde_json::from_str::<T>(&json).unwrap(), value, "{json}");
    }

    #[test]
    fn messages_survive_json() {
        round_trip(&Request::Hello { version: VERSION });
        let network = JailNetwork::Inherited;
        round_trip(&Request::Jail(JailConfig::Full { uid: 5, gid: 6, network }));
        round_trip(&Request::Jail(JailConfig::Unprivileged));
        round_trip(&Request::Machine(MachineConfig {
            vcpus: 2,
            memory_mib: 512,
            kernel_args: "quiet".into(),
            console_limit_bytes: 1 << 20,
        }));
        round_trip(&Request::AddDisk(DiskConfig {
            serial: "rootfs".into(),
            access: DiskAccess::ReadOnly,
            extents: vec![DiskExtent { offset: 0, length: 4096 }],
            discard: DiskDiscard::Off,
            limits: RateLimits {
                bandwidth: None,
                operations: Some(TokenBucket {
                    size: NonZeroU64::MAX,
                    refill_ms: NonZeroU32::MIN,
                    one_time_burst: 7,
                }),
            },
        }));
        round_trip(&Request::AddPmem(PmemConfig {
            name: "layers".into(),
            length: 4096,
            access: DiskAccess::ReadOnly,
        }));
        round_trip(&Request::AddNetwork(NetworkConfig {
            name: "eth0".into(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
        }));
        round_trip(&Request::AddVsock(VsockConfig { guest_cid: 3, guest_to_host_ports: vec![1024] }));
        round_trip(&Request::AddFs(FsConfig { tag: "volumes".into(), cache: FsCache::Auto }));
        for request in [Request::AddHotplugMemory { mib: 128 }, Request::SetHotplugMemory { mib: 7 }] {
            round_trip(&request);
        }
        round_trip(&Request::Unplug { name: "blk-a".into(), how: Unplug::Released });
        round_trip(&Message::Plugged { slot: 31 });
        for request in
            [Request::AddEntropy, Request::AddBalloon, Request::SetBalloon { mib: 7 }, Request::Boot]
        {
            round_trip(&request);
        }
        for request in [Request::Pause, Request::Resume, Request::Stats, Request::Stop] {
            round_trip(&request);
        }
        round_trip(&Message::Exited(ExitReason::GuestPanic { message: "VFS: no root".into() }));
        round_trip(&Message::Failed(Failure { code: FailureCode::Kvm, message: "no".into() }));
        round_trip(&Message::Stats(VmStats {
            hotplug: Some(HotplugStats::default()),
            balloon: Some(Box::default()),
            ..VmStats::default()
        }));
    }

    #[test]
    fn what_a_disk_leaves_out_is_not_limited() {
        let disk: DiskConfig =
            serde_json::from_str(r#"{"serial":"a","access":"read_write","extents":[]}"#).unwrap();
        assert_eq!((disk.discard, disk.limits), (DiskDiscard::On, RateLimits::default()));
        for bucket in [r#"{"size":0,"refill_ms":1}"#, r#"{"size":1,"refill_ms":0}"#, r#"{"size":1}"#] {
            assert!(serde_json::from_str::<TokenBucket>(bucket).is_err(), "{bucket}");
        }
    }

    #[test]
    fn unknown_fields_are_refused() {
        assert!(serde_json::from_str::<Request>(r#"{"request":"boot","fast":true}"#).is_err());
        assert!(
            serde_json::from_str::<Request>(r#"{"request":"hello","with":{"version":1},"x":1}"#).is_err()
        );
        assert!(
            serde_json::from_str::<Request>(r#"{"request":"add_vsock","with":{"guest_cid":3}}"#).is_err()
        );
    }
}
