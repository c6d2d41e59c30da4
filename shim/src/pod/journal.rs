//! What `delete` has to know of a VM that comes to be: on disk before it is so. The shim may be killed at any time, and nobody
//! else knows then what it has changed.

use std::path::PathBuf;

use crate::network::NetworkRecord;
use crate::proc_stat::start_ticks;
use crate::record::{CgroupRecord, Record, RecordError, ShimRecord};

/// The record of a bundle while the VM comes to be.
#[derive(Debug)]
pub struct Journal {
    bundle: PathBuf,
    record: ShimRecord,
}

impl Journal {
    /// Goes on from the record of a shim without a VM.
    pub fn new(bundle: PathBuf, record: ShimRecord) -> Self {
        Self { bundle, record }
    }

    /// A cgroup is about to be made.
    pub fn cgroup(&mut self, cgroup: CgroupRecord) -> Result<(), RecordError> {
        self.record.cgroup = Some(cgroup);
        self.record.write(&self.bundle)
    }

    /// A namespace is about to be changed.
    pub fn network(&mut self, network: NetworkRecord) -> Result<(), RecordError> {
        self.record.network = Some(network);
        self.record.write(&self.bundle)
    }

    /// The monitor's process is there.
    pub fn monitor(&mut self, pid: u32) -> Result<(), RecordError> {
        self.record.vmm_pid = Some(pid);
        self.record.vmm_start_ticks = start_ticks(pid);
        self.record.write(&self.bundle)
    }
}
