//! The pod's cgroup while a VM comes to be: on record, made, and to be undone.

use super::{Journal, StartError};
use crate::cgroup::{Cgroup, CgroupPath, CgroupPlan, CgroupRecord, OomKills};
use crate::undo::Undo;

/// Where the processes of a VM are counted; nowhere, where the host has no cgroups that could be made.
#[derive(Debug, Default)]
pub struct Accounting {
    cgroup: Option<Cgroup>,
    record: Option<CgroupRecord>,
}

impl Accounting {
    /// Makes the cgroup. What the host refuses is logged.
    pub fn begin(
        path: Option<CgroupPath>,
        journal: &mut Journal,
        undo: &mut Undo,
    ) -> Result<Self, StartError> {
        let Some(path) = path else { return Ok(Self::default()) };
        let plan = match CgroupPlan::new(path) {
            Ok(plan) => plan,
            Err(error) => {
                log::warn!("the VM is in no cgroup of its pod: {error}");
                return Ok(Self::default());
            }
        };
        let record = plan.record();
        journal.cgroup(record.clone())?;
        let removed = record.clone();
        undo.push("the pod's cgroup", async move { removed.remove().await });
        let (cgroup, made) = plan.make();
        if let Err(error) = made {
            log::warn!("the pod's cgroup cannot be made, what the VM takes is not counted there: {error}");
        }
        Ok(Self { cgroup: Some(cgroup), record: Some(record) })
    }

    /// Takes in a process that has just been started.
    pub fn admit(&self, what: &str, pid: u32) {
        let Some(cgroup) = &self.cgroup else { return };
        if let Err(error) = cgroup.admit(pid) {
            log::warn!("{what} cannot be moved into the pod's cgroup: {error}");
        }
    }

    /// Kills by the host's OOM killer, where they are counted.
    pub fn oom_kills(&self) -> Option<OomKills> {
        self.cgroup.as_ref().and_then(Cgroup::oom_kills)
    }

    /// What is enough to remove the cgroup.
    pub fn record(&self) -> Option<CgroupRecord> {
        self.record.clone()
    }
}
