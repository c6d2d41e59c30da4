//! `process.scheduler`, `process.ioPriority`, `process.execCPUAffinity` and `linux.personality` as the kernel's numbers.

use super::{SpecError, schema};
use crate::sys::scheduling::{CpuSet, SchedulerAttributes};

/// When and where a process runs. What is not set stays as the agent has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scheduling {
    /// Policy and its parameters.
    pub scheduler: Option<SchedulerAttributes>,
    /// Class and level, as ioprio_set(2) takes them.
    pub io_priority: Option<u16>,
    /// Processors.
    pub affinity: Option<CpuSet>,
}

impl Scheduling {
    pub(super) fn parse(process: &schema::Process) -> Result<Self, SpecError> {
        let affinity = process.exec_cpu_affinity.as_ref();
        // A process is born in its cgroup here, so what runc does before it moves one there and after is one step.
        let cpus = affinity.and_then(|affinity| affinity.last.as_deref().or(affinity.initial.as_deref()));
        Ok(Self {
            scheduler: process.scheduler.as_ref().map(scheduler).transpose()?,
            io_priority: process.io_priority.as_ref().map(io_priority).transpose()?,
            affinity: cpus.filter(|cpus| !cpus.is_empty()).map(cpu_set).transpose()?,
        })
    }
}

fn scheduler(scheduler: &schema::Scheduler) -> Result<SchedulerAttributes, SpecError> {
    const FIELD: &str = "process.scheduler";
    const POLICIES: [&str; 7] =
        ["SCHED_OTHER", "SCHED_FIFO", "SCHED_RR", "SCHED_BATCH", "SCHED_ISO", "SCHED_IDLE", "SCHED_DEADLINE"];
    const FLAGS: [&str; 7] = [
        "SCHED_FLAG_RESET_ON_FORK",
        "SCHED_FLAG_RECLAIM",
        "SCHED_FLAG_DL_OVERRUN",
        "SCHED_FLAG_KEEP_POLICY",
        "SCHED_FLAG_KEEP_PARAMS",
        "SCHED_FLAG_UTIL_CLAMP_MIN",
        "SCHED_FLAG_UTIL_CLAMP_MAX",
    ];
    let number = |names: &[&str], name: &str| {
        let position = (0u32..).zip(names).find(|(_, known)| **known == name);
        position
            .map(|(position, _)| position)
            .ok_or_else(|| SpecError::invalid(FIELD, format!("{name:?} is unknown")))
    };
    let flags = scheduler
        .flags
        .iter()
        .try_fold(0, |flags, name| Ok::<_, SpecError>(flags | 1u64 << number(&FLAGS, name)?))?;
    if !(-20..=19).contains(&scheduler.nice) {
        return Err(SpecError::invalid(FIELD, format!("nice value {} is not in -20..=19", scheduler.nice)));
    }
    Ok(SchedulerAttributes {
        size: 0,
        policy: number(&POLICIES, &scheduler.policy)?,
        flags,
        nice: scheduler.nice,
        priority: scheduler.priority,
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
    })
}

fn io_priority(priority: &schema::IoPriority) -> Result<u16, SpecError> {
    const FIELD: &str = "process.ioPriority";
    let class = match priority.class.as_str() {
        "IOPRIO_CLASS_RT" => 1,
        "IOPRIO_CLASS_BE" => 2,
        "IOPRIO_CLASS_IDLE" => 3,
        other => return Err(SpecError::invalid(FIELD, format!("{other:?} is not a class"))),
    };
    if priority.priority > 7 {
        return Err(SpecError::invalid(FIELD, format!("priority {} is not in 0..=7", priority.priority)));
    }
    Ok(class << 13 | priority.priority)
}

/// From a list like `0-3,7`.
fn cpu_set(list: &str) -> Result<CpuSet, SpecError> {
    let wrong =
        || SpecError::invalid("process.execCPUAffinity", format!("{list:?} is not a list of processors"));
    let mut set = CpuSet::default();
    for range in list.split(',').map(str::trim) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.parse::<usize>().ok().filter(|number| *number < 64 * set.len());
        let (first, last) = (number(first).ok_or_else(wrong)?, number(last).ok_or_else(wrong)?);
        if first > last {
            return Err(wrong());
        }
        for cpu in first..=last {
            set[cpu / 64] |= 1 << (cpu % 64);
        }
    }
    Ok(set)
}

/// The execution domain's number for personality(2).
pub(super) fn personality(personality: &schema::Personality) -> Result<u64, SpecError> {
    const FIELD: &str = "linux.personality";
    if !personality.flags.is_empty() {
        return Err(SpecError::unsupported(FIELD, "flags are not supported by this agent"));
    }
    match personality.domain.as_str() {
        "LINUX" => Ok(0),
        "LINUX32" => Ok(8),
        other => Err(SpecError::invalid(FIELD, format!("{other:?} is not an execution domain"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors() {
        let set = cpu_set("0-2, 7,64").unwrap();
        assert_eq!((set[0], set[1], set[2]), (0b1000_0111, 1, 0));
        assert_eq!(cpu_set("1023").unwrap()[15], 1 << 63);
        for list in ["", "a", "1-", "-1", "2-1", "1024", "0,,1"] {
            assert!(cpu_set(list).is_err(), "{list:?}");
        }
    }
}
