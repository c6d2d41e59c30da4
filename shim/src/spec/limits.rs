//! What bounds a container, as far as the size of its VM depends on it; and what an update makes of it.

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::Spec;
use super::shape::{MEMORY_MIB_MAX, MEMORY_MIB_MIN, VCPUS_MAX, VmShape, annotation};
use crate::config::VmDefaults;
use crate::size;

const POD_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const POD_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const POD_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
/// The kernel's, in microseconds.
const PERIOD_DEFAULT: u64 = 100_000;

/// Limits; what is absent is not bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    memory_bytes: Option<u64>,
    cpu_quota: Option<u64>,
    cpu_period: Option<u64>,
}

impl Limits {
    /// Those of a container.
    pub fn of_container(spec: &Spec) -> Self {
        let resources = spec.linux.as_ref().and_then(|linux| linux.resources().as_ref());
        resources.map_or_else(Self::default, |resources| Self::default().updated(resources))
    }

    /// Those of a pod, as its sandbox's annotations say.
    pub(super) fn of_pod(spec: &Spec) -> Self {
        // What is no positive number bounds nothing: -1 and 0 are written for that.
        let number = |name| annotation(spec, name)?.parse::<u64>().ok().filter(|&value| value > 0);
        Self {
            memory_bytes: number(POD_MEMORY),
            cpu_quota: number(POD_QUOTA),
            cpu_period: number(POD_PERIOD),
        }
    }

    /// Those of numbers; what is not positive bounds nothing.
    pub(super) fn of_numbers(memory_bytes: i64, cpu_quota: i64, cpu_period: i64) -> Self {
        let positive = |number| u64::try_from(number).ok().filter(|&number| number > 0);
        Self {
            memory_bytes: positive(memory_bytes),
            cpu_quota: positive(cpu_quota),
            cpu_period: positive(cpu_period),
        }
    }

    /// The same after an update: what that does not name, or names as 0, stays; what is negative bounds no more.
    pub fn updated(self, update: &LinuxResources) -> Self {
        let changed = |before: Option<u64>, to: Option<i64>| match to {
            None | Some(0) => before,
            Some(to) => u64::try_from(to).ok(),
        };
        let cpu = update.cpu().as_ref();
        Self {
            memory_bytes: changed(self.memory_bytes, update.memory().as_ref().and_then(LinuxMemory::limit)),
            cpu_quota: changed(self.cpu_quota, cpu.and_then(LinuxCpu::quota)),
            cpu_period: cpu.and_then(LinuxCpu::period).filter(|&period| period > 0).or(self.cpu_period),
        }
    }

    /// The memory of a VM for it, in MiB.
    pub(super) fn memory_mib(self, defaults: &VmDefaults) -> u32 {
        self.memory_bytes.map_or(defaults.memory_mib, |bytes| vm_memory_mib(bytes, defaults))
    }

    /// The vCPUs of a VM for it.
    pub(super) fn vcpus(self) -> Option<u8> {
        self.milli_cpus().map(vcpus)
    }

    fn milli_cpus(self) -> Option<u64> {
        let period = self.cpu_period.unwrap_or(PERIOD_DEFAULT);
        Some(self.cpu_quota?.saturating_mul(1000).div_ceil(period))
    }
}

fn vm_memory_mib(bytes: u64, defaults: &VmDefaults) -> u32 {
    let mib = size::memory_mib(bytes, defaults.overhead_mib);
    u32::try_from(mib).unwrap_or(MEMORY_MIB_MAX).clamp(MEMORY_MIB_MIN, MEMORY_MIB_MAX)
}

fn vcpus(milli_cpus: u64) -> u8 {
    u8::try_from(milli_cpus.div_ceil(1000)).unwrap_or(VCPUS_MAX).clamp(1, VCPUS_MAX)
}

/// The VM that is needed where a container's limits change from `before` to `after` beside those of `others` in it: at least
/// `size`, as limits that are lowered, or that are not raised, need none that is larger.
pub fn needed(
    size: VmShape,
    (before, after): (Limits, Limits),
    others: &[Limits],
    defaults: &VmDefaults,
) -> VmShape {
    // What had no limit could take what the VM has: only a limit of its own that the VM has not is news.
    let sum = |of: fn(Limits) -> Option<u64>| {
        let (before, after) = (of(before), of(after)?);
        match before {
            None => Some(after),
            Some(before) if after <= before => None,
            Some(_) => Some(others.iter().filter_map(|other| of(*other)).fold(after, u64::saturating_add)),
        }
    };
    let memory = sum(|limits| limits.memory_bytes).map(|bytes| vm_memory_mib(bytes, defaults));
    let cpus = sum(Limits::milli_cpus).map(vcpus);
    VmShape {
        vcpus: cpus.map_or(size.vcpus, |cpus| cpus.max(size.vcpus)),
        memory_mib: memory.map_or(size.memory_mib, |memory| memory.max(size.memory_mib)),
    }
}

/// The VM that is enough for these limits, and not smaller than `least`.
pub fn enough(least: VmShape, own: Limits, others: &[Limits], defaults: &VmDefaults) -> VmShape {
    let sum = |of: fn(Limits) -> Option<u64>| {
        let limits = others.iter().chain([&own]).filter_map(|limits| of(*limits));
        limits.fold(0, u64::saturating_add)
    };
    VmShape {
        vcpus: vcpus(sum(Limits::milli_cpus)).max(least.vcpus),
        memory_mib: vm_memory_mib(sum(|limits| limits.memory_bytes), defaults).max(least.memory_mib),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(memory_mib: i64, quota: i64) -> Limits {
        let update = serde_json::json!({
            "memory": {"limit": memory_mib << 20},
            "cpu": {"quota": quota, "period": 100_000},
        });
        Limits::default().updated(&serde_json::from_value(update).unwrap())
    }

    #[test]
    fn an_update_changes_what_it_names() {
        let update = |json: &str| serde_json::from_str::<LinuxResources>(json).unwrap();
        let before = limits(64, 150_000);
        assert_eq!(before.updated(&update("{}")), before);
        assert_eq!(before.updated(&update(r#"{"memory":{"limit":0},"cpu":{"quota":0,"period":0}}"#)), before);
        let freed = before.updated(&update(r#"{"memory":{"limit":-1},"cpu":{"quota":-1}}"#));
        assert_eq!((freed.memory_bytes, freed.cpu_quota), (None, None));
        let other = before.updated(&update(r#"{"cpu":{"period":50000}}"#));
        assert_eq!((before.vcpus(), other.vcpus()), (Some(2), Some(3)));
    }

    #[test]
    fn what_no_limit_needs_is_not_kept() {
        let least = VmShape { vcpus: 1, memory_mib: 512 };
        let of = |own, others: &[Limits]| enough(least, own, others, &VmDefaults::default());
        assert_eq!(of(limits(600, 150_000), &[limits(100, 60_000)]), VmShape { vcpus: 3, memory_mib: 850 });
        assert_eq!(of(limits(100, 50_000), &[Limits::default()]), least);
        assert_eq!(of(Limits::default(), &[]), least);
        assert_eq!(
            least.within(VmShape { vcpus: 4, memory_mib: 100 }),
            VmShape { vcpus: 1, memory_mib: 100 }
        );
    }

    #[test]
    fn limits_that_are_raised_need_a_vm_that_has_them() {
        let defaults = VmDefaults::default();
        let size = VmShape { vcpus: 1, memory_mib: 512 };
        let needs = |before, after, others: &[Limits]| needed(size, (before, after), others, &defaults);
        let none = Limits::default();
        // 372 MiB, the guest's 128 and a 32nd part are 512.
        assert_eq!(needs(none, limits(372, 100_000), &[]), size);
        assert_eq!(needs(none, limits(373, 100_001), &[]), VmShape { vcpus: 2, memory_mib: 513 });
        assert_eq!(needs(limits(64, 50_000), limits(1024, 50_000), &[]).memory_mib, 1184);
        // Those of others count where there was a limit: they add up to the VM.
        let others = [limits(256, 50_000), none];
        assert_eq!(needs(limits(64, 50_000), limits(116, 50_000), &others), size);
        let larger = VmShape { vcpus: 2, memory_mib: 513 };
        assert_eq!(needs(limits(64, 50_000), limits(117, 60_000), &others), larger);
        // What is lowered, lifted or stays needs nothing, also in a VM that is too small for the sum.
        let crowd = [limits(600, 300_000)];
        for (before, after) in [(300, 200), (300, 300), (300, -1)] {
            assert_eq!(needs(limits(before, 100_000), limits(after, 100_000), &crowd), size);
        }
        assert_eq!(needs(none, limits(100, 100_000), &crowd), size);
    }
}
