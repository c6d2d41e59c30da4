//! What is counted while a VM runs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The version of [`VmStats`]: it grows when a figure goes or changes its meaning, not when one is added.
pub const STATS_VERSION: u32 = 2;

/// Counters of a running VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStats {
    /// [`STATS_VERSION`] as the monitor knows it.
    pub version: u32,
    /// The memory that the VM has booted with, in bytes.
    pub ram_bytes: u64,
    /// Exits of all vCPUs as KVM counts them (`KVM_GET_STATS_FD`, "exits"); 0 where KVM cannot say.
    pub vm_exits: u64,
    /// Interrupts that KVM injected into all vCPUs, those of their own timers among them ("irq_injections"); 0 where it
    /// cannot say.
    #[serde(default)]
    pub interrupts: u64,
    /// Exits that reached the monitor, by kind.
    pub exits: BTreeMap<String, u64>,
    /// What the devices count, by their labels: a kind and a name, "blk-rootfs", or a kind alone, "rng".
    pub devices: BTreeMap<String, DeviceStats>,
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

/// Counters of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceStats {
    /// Queue notifications that were handled; several by the driver may have become one.
    pub notifications: u64,
    /// Interrupts raised.
    pub interrupts: u64,
    /// Payload moved to the guest, in bytes.
    pub bytes_to_guest: u64,
    /// Payload moved from the guest, in bytes.
    pub bytes_from_guest: u64,
    /// Requests that failed because the host did: an I/O error, a full disk.
    pub host_errors: u64,
    /// How often the device was stopped because its driver broke a rule, or the host failed.
    pub failures: u64,
    /// Accesses to registers that made no sense and were ignored.
    pub ignored_accesses: u64,
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
