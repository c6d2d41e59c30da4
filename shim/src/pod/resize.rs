//! A running VM of another size: memory is plugged and unplugged (virtio-mem), processors are started and stopped by the guest.
//!
//! The device for memory gets into the VM when it is first wanted, so that a boot does not pay for it. What a VM has booted
//! with stays.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use hull_protocol::vmm::{HotplugStats, Request};

use super::{AgentError, Monitor, MonitorError, Vm};
use crate::config::{Resize, VmDefaults};
use crate::spec::VmShape;

/// What memory is plugged in multiples of, in MiB.
const BLOCK_MIB: u32 = 2;
/// What the address space for it is a multiple of, in MiB.
const REGION_MIB: u32 = 128;
/// A guest has the tables for memory that is plugged in what it has booted with: more than so many times that, it could not
/// take.
const TIMES_MAX: u32 = 16;
/// A VM has twice the processors that it begins with, or this many: each costs the host a thread.
const VCPUS_AT_LEAST: u8 = 4;
/// What a guest does with memory.
const PLUGGED: &str = "plugged";
const UNPLUGGED: &str = "unplugged";
/// How long a guest may take to plug or to unplug.
const DEADLINE: Duration = Duration::from_secs(30);
/// How often it is looked at meanwhile.
const PAUSE: Duration = Duration::from_millis(20);

/// Why a VM has not the size that it should have.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// The guest does not do it, or only in part.
    #[error("the guest {did} only {done} of {wanted} MiB of memory within {} s", DEADLINE.as_secs())]
    Partly {
        /// plugged, unplugged.
        did: &'static str,
        /// How far it came, in MiB.
        done: u64,
        /// What it was asked for, in MiB.
        wanted: u64,
    },
    /// The monitor.
    #[error("the VM's memory cannot be changed: {0}")]
    Monitor(#[from] MonitorError),
    /// The agent.
    #[error("the guest does not change its size: {0}")]
    Agent(#[from] AgentError),
    /// The monitor does not know the device.
    #[error("the monitor tells nothing of memory that can be plugged")]
    Untold,
}

/// What the host has.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Processors that run.
    pub cpus: u8,
    /// Memory in MiB; 0 where address space counts as if it were used (`vm.overcommit_memory` 2).
    pub memory_mib: u32,
}

impl Host {
    /// This one.
    pub fn this() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let kib = read("/proc/meminfo")
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        let counts_all = read("/proc/sys/vm/overcommit_memory").trim() == "2";
        let mib = if counts_all { 0 } else { kib.unwrap_or_default() / 1024 };
        // SAFETY: sysconf takes a number.
        let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
        Self {
            cpus: u8::try_from(cpus).unwrap_or(u8::MAX),
            memory_mib: u32::try_from(mib).unwrap_or(u32::MAX),
        }
    }
}

/// How large a VM that begins with `size` can become. The host is asked only where it may.
pub fn room(size: VmShape, bounds: &VmDefaults, host: impl FnOnce() -> Host) -> VmShape {
    if bounds.resize == Resize::Refuse {
        return size;
    }
    let host = host();
    let vcpus = size.vcpus.saturating_mul(2).max(VCPUS_AT_LEAST).min(bounds.vcpus_max).min(host.cpus);
    let most = bounds.memory_mib_max.min(host.memory_mib).min(size.memory_mib.saturating_mul(TIMES_MAX));
    let further = most.saturating_sub(size.memory_mib) / REGION_MIB * REGION_MIB;
    VmShape { vcpus: vcpus.max(size.vcpus), memory_mib: size.memory_mib + further }
}

/// What of a VM's size can change.
#[derive(Debug)]
pub struct Size {
    /// What it began with.
    began: VmShape,
    /// What it can become.
    room: VmShape,
    now: std::sync::Mutex<VmShape>,
    /// Whether the device for memory is there.
    device: tokio::sync::Mutex<Device>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Device {
    /// Not there.
    Reserved,
    /// In this slot, and no driver has it yet.
    Plugged(u8),
    /// The driver has it.
    Bound,
}

impl Size {
    /// That of a VM that has booted.
    pub fn new(began: VmShape, room: VmShape) -> Self {
        let device = tokio::sync::Mutex::new(Device::Reserved);
        Self { began, room, now: std::sync::Mutex::new(began), device }
    }

    /// What it began with.
    pub fn began(&self) -> VmShape {
        self.began
    }

    /// What it can become.
    pub fn room(&self) -> VmShape {
        self.room
    }

    /// What it is.
    pub fn now(&self) -> VmShape {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, now: VmShape) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }
}

/// Reserves the address space for the memory that may come, while the VM is being described.
pub async fn reserve(monitor: &Monitor, size: VmShape, room: VmShape) -> Result<(), MonitorError> {
    match room.memory_mib - size.memory_mib {
        0 => Ok(()),
        mib => monitor.request(Request::ReserveHotplugMemory { mib }, Vec::new()).await,
    }
}

impl Vm {
    /// How large it is.
    pub fn size(&self) -> &Size {
        &self.size
    }

    /// Gives it another size, between what it began with and its room. What cannot be had is undone, as far as the guest lets it.
    pub async fn resize(&self, to: VmShape) -> Result<(), ResizeError> {
        let size = self.size();
        let before = size.now();
        if to.memory_mib != before.memory_mib {
            let further = |shape: VmShape| shape.memory_mib - size.began.memory_mib;
            self.have_device().await?;
            let did = if to.memory_mib > before.memory_mib { PLUGGED } else { UNPLUGGED };
            if let Err(error) = self.plug_memory(further(to), did).await {
                if let Err(kept) = self.undo_memory(further(before), did).await {
                    log::error!("the VM has not the memory of before: {kept}");
                }
                return Err(error);
            }
            size.set(VmShape { memory_mib: to.memory_mib, ..before });
        }
        if to.vcpus != before.vcpus {
            self.agent.online_cpus(to.vcpus).await?;
            size.set(to);
        }
        log::info!("the VM has {to} now");
        Ok(())
    }

    /// Puts the device for memory into the VM, once.
    async fn have_device(&self) -> Result<(), ResizeError> {
        let mut device = self.size().device.lock().await;
        if *device == Device::Reserved {
            let slot = self.monitor().plug(Request::PlugHotplugMemory, Vec::new()).await?;
            *device = Device::Plugged(slot);
        }
        if let Device::Plugged(slot) = *device {
            self.agent.bind_slot(slot).await?;
            *device = Device::Bound;
        }
        Ok(())
    }

    /// What it has got is taken away again in its own time. What it has given back it gets again before anybody counts on it.
    async fn undo_memory(&self, mib: u32, did: &'static str) -> Result<(), ResizeError> {
        if did == UNPLUGGED {
            return self.plug_memory(mib, PLUGGED).await;
        }
        Ok(self.monitor().request(Request::SetHotplugMemory { mib }, Vec::new()).await?)
    }

    async fn plug_memory(&self, mib: u32, did: &'static str) -> Result<(), ResizeError> {
        let before = self.plugged().await?;
        self.monitor().request(Request::SetHotplugMemory { mib }, Vec::new()).await?;
        let wanted = u64::from(mib.next_multiple_of(BLOCK_MIB)) << 20;
        let begun = Instant::now();
        loop {
            let now = self.plugged().await?;
            if now == wanted {
                return Ok(());
            }
            if begun.elapsed() > DEADLINE {
                let done = now.abs_diff(before) >> 20;
                return Err(ResizeError::Partly { did, done, wanted: wanted.abs_diff(before) >> 20 });
            }
            // The guest tells the monitor, and nobody tells us.
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn plugged(&self) -> Result<u64, ResizeError> {
        let stats: Option<HotplugStats> = self.monitor().stats().await?.hotplug;
        Ok(stats.ok_or(ResizeError::Untold)?.plugged_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_has_room_within_the_bounds_of_administrator_host_and_guest() {
        let size = |vcpus, memory_mib| VmShape { vcpus, memory_mib };
        let host = Host { cpus: 8, memory_mib: 8000 };
        let bounds = VmDefaults { resize: Resize::Allow, ..VmDefaults::default() };
        assert_eq!(room(size(1, 512), &bounds, || host), size(4, 512 + 7424));
        assert_eq!(room(size(3, 192), &bounds, || host), size(6, 192 + 2816), "sixteen times");
        assert_eq!(room(size(8, 8000), &bounds, || host), size(8, 8000));
        // Larger than the host: it has what was asked for, and no more.
        assert_eq!(room(size(16, 9000), &bounds, || host), size(16, 9000));
        let small = Host { cpus: 1, memory_mib: 0 };
        assert_eq!(room(size(1, 512), &bounds, || small), size(1, 512));
        let bounds = VmDefaults { vcpus_max: 2, memory_mib_max: 1000, ..bounds };
        assert_eq!(room(size(1, 512), &bounds, || host), size(2, 512 + 384));
        assert_eq!(
            room(size(1, 512), &VmDefaults::default(), || unreachable!()),
            size(1, 512),
            "unless it is allowed"
        );
        let this = Host::this();
        assert!(this.cpus >= 1, "{this:?}");
    }
}
