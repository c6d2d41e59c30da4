//! What a VM is made of, and what its monitor gives up.

use std::num::{NonZeroU32, NonZeroU64};

use serde::{Deserialize, Serialize};

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
    /// How many of them the guest starts when it boots, at least one; all where it is not said. The others cost next to
    /// nothing, and are started at any time by the guest itself (the agent's `OnlineCpus`).
    #[serde(default)]
    pub online_vcpus: Option<u8>,
    /// What they look like to the guest.
    #[serde(default)]
    pub cpu: CpuTemplate,
    /// Guest memory in MiB, at least 32.
    pub memory_mib: u32,
    /// Words appended to the kernel's command line. The monitor writes those for its devices itself.
    pub kernel_args: String,
    /// The most bytes that are written to the console log; what comes after is counted and dropped.
    pub console_limit_bytes: u64,
}

/// What a guest's processors look like. Nested virtualisation and performance counters are shown by none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CpuTemplate {
    /// Like the host's: a guest that was saved goes on only on a host of the same kind.
    #[default]
    Host,
    /// Level 2 of x86-64: hosts from about 2009 on. A host that lacks a part is an error of the boot.
    V2,
    /// Level 3 of x86-64 (AVX2), with AES and random numbers: hosts from about 2015 on.
    V3,
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
    /// How fast frames may go.
    #[serde(default)]
    pub limits: NetworkLimits,
    /// Who moves the frames.
    #[serde(default)]
    pub backend: NetworkBackend,
}

/// Who moves frames between an interface's rings, in guest memory, and its tap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkBackend {
    /// The monitor.
    #[default]
    Userspace,
    /// The host's kernel, by vhost-net: what the guest writes into its rings is read by the kernel itself. It knows no limits,
    /// and counts neither bytes nor notifications nor interrupts.
    Vhost,
}

/// Limits of a network interface, for each way its own. Bandwidth counts a frame's bytes from its Ethernet header on,
/// operations count frames; one that is to be cut into segments is one frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkLimits {
    /// From the network. What is held up waits in the tap's queue; what that has no room for is lost.
    pub to_guest: RateLimits,
    /// To the network. What is held up waits in the guest.
    pub from_guest: RateLimits,
}

/// The vsock device. Host to guest: a connection to the listening socket sends `CONNECT <port>\n` and reads
/// `OK <host port>\n` (Firecracker's hybrid protocol). Guest to host: see [`Request::AddVsock`](super::Request::AddVsock).
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
