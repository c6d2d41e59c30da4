//! The last steps before exec, in the order in which each still has the rights it needs: limits, bounding set, user,
//! capabilities, no_new_privs, seccomp.

use nix::errno::Errno;

use super::channel::{Failure, Step, at};
use super::{ProcessPlan, Users};
use crate::spec::{Credentials, Scheduling};
use crate::sys::{path, process, scheduling, seccomp};

const PR_CAPBSET_DROP: libc::c_int = libc::PR_CAPBSET_DROP;
/// `CAP_SYS_ADMIN` as a bit.
const SYS_ADMIN: u64 = 1 << 21;

/// Gives the calling process the rights of the plan and no more, but for what [`confine`] needs and then takes. Ends in the
/// working directory.
pub fn apply(plan: &ProcessPlan<'_>) -> Result<(), Failure> {
    if plan.user == Users::Guests {
        set_oom_score(plan).map_err(at(Step::OomScore, 0))?;
        for (index, limit) in plan.rlimits.iter().enumerate() {
            process::set_limit(limit.resource, limit.soft, limit.hard).map_err(at(Step::Rlimit, index))?;
        }
        set_scheduling(&plan.spec.scheduling, 0)?;
    }
    if let Some(domain) = plan.personality {
        scheduling::set_personality(domain).map_err(at(Step::Personality, 0))?;
    }
    let known = u64::MAX >> (63 - plan.last_capability);
    let sets = &plan.capabilities;
    for capability in 0..=plan.last_capability {
        if sets.bounding & (1 << capability) == 0 {
            process::control(PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0)
                .map_err(at(Step::Capabilities, 0))?;
        }
    }
    // As root first, for directories that only root may enter; where root may not (a remote or FUSE file system), as the user.
    let entered = match process::change_directory(&plan.spec.cwd) {
        Err(Errno::EACCES) => false,
        result => result.map(|()| true).map_err(at(Step::Cwd, 0))?,
    };
    become_user(&plan.spec.credentials).map_err(at(Step::Credentials, 0))?;
    if !entered {
        process::change_directory(&plan.spec.cwd).map_err(at(Step::Cwd, 0))?;
    }
    process::check_directory_reachable().map_err(at(Step::Cwd, 0))?;
    let extra = needed_for_filter(plan);
    process::set_capabilities(
        sets.effective & known | extra,
        sets.permitted & known | extra,
        sets.inheritable & known,
    )
    .map_err(at(Step::Capabilities, 0))?;
    set_ambient(sets.ambient & known, plan.last_capability).map_err(at(Step::AmbientCapabilities, 0))?;
    if plan.no_new_privileges {
        process::control(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map_err(at(Step::NoNewPrivileges, 0))?;
    }
    process::set_umask(plan.spec.credentials.umask);
    Ok(())
}

/// Root becomes the user and keeps its capabilities, of which it loses none as long as it is root.
fn become_user(credentials: &Credentials) -> nix::Result<()> {
    let keep = |keep| match credentials.uid {
        0 => Ok(()),
        _ => process::control(libc::PR_SET_KEEPCAPS, keep, 0),
    };
    keep(1)?;
    process::set_ids(credentials.uid, credentials.gid, &credentials.groups)?;
    keep(0)
}

/// Of a process; 0 is the caller.
pub fn set_scheduling(wanted: &Scheduling, pid: libc::pid_t) -> Result<(), Failure> {
    if let Some(cpus) = &wanted.affinity {
        scheduling::set_affinity(pid, cpus).map_err(at(Step::Scheduling, 0))?;
    }
    if let Some(attributes) = &wanted.scheduler {
        scheduling::set_scheduler(pid, attributes).map_err(at(Step::Scheduling, 1))?;
    }
    match wanted.io_priority {
        Some(priority) => scheduling::set_io_priority(pid, priority).map_err(at(Step::Scheduling, 2)),
        None => Ok(()),
    }
}

/// Installs the seccomp filter. It is the last step but the exec, so that a profile need not allow what the set-up does; only
/// a process that may still gain privileges gives up one capability after it, and so needs capset(2).
pub fn confine(plan: &ProcessPlan<'_>) -> Result<(), Failure> {
    let Some(filter) = plan.seccomp else { return Ok(()) };
    seccomp::install(&filter.program, filter.flags).map_err(at(Step::Seccomp, 0))?;
    if needed_for_filter(plan) == 0 {
        return Ok(());
    }
    let known = u64::MAX >> (63 - plan.last_capability);
    let sets = &plan.capabilities;
    process::set_capabilities(sets.effective & known, sets.permitted & known, sets.inheritable & known)
        .map_err(at(Step::Capabilities, 1))
}

/// The kernel takes a filter from a process that cannot gain privileges, or that has this one (seccomp(2)).
fn needed_for_filter(plan: &ProcessPlan<'_>) -> u64 {
    let has_it = plan.no_new_privileges || plan.capabilities.effective & SYS_ADMIN != 0;
    if plan.seccomp.is_none() || has_it { 0 } else { SYS_ADMIN }
}

/// Always written: the agent's own score, which a child starts with, would make it unkillable.
fn set_oom_score(plan: &ProcessPlan<'_>) -> nix::Result<()> {
    use std::os::fd::AsFd;
    let file = path::open_at(plan.proc, c"self/oom_score_adj", libc::O_WRONLY)?;
    path::write_control(file.as_fd(), plan.oom_score_adj.as_bytes())
}

fn set_ambient(set: u64, last: u32) -> nix::Result<()> {
    let ambient = |operation: libc::c_int, capability: u32| {
        process::control(
            libc::PR_CAP_AMBIENT,
            libc::c_ulong::from(operation.cast_unsigned()),
            libc::c_ulong::from(capability),
        )
    };
    ambient(libc::PR_CAP_AMBIENT_CLEAR_ALL, 0)?;
    (0..=last)
        .filter(|capability| set & (1 << capability) != 0)
        .try_for_each(|capability| ambient(libc::PR_CAP_AMBIENT_RAISE, capability))
}
