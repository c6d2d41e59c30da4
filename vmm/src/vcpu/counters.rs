//! Counts exits to the monitor. Each vCPU thread writes its own counters; others may read them at any time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// The kinds of exit that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    /// `KVM_EXIT_IO`, a read.
    PortRead,
    /// `KVM_EXIT_IO`, a write.
    PortWrite,
    /// `KVM_EXIT_MMIO`, a read.
    MemoryRead,
    /// `KVM_EXIT_MMIO`, a write.
    MemoryWrite,
    /// A signal, or a vCPU that waits to be started.
    Interrupted,
    /// Everything else.
    Other,
}

const KINDS: [(ExitKind, &str); 6] = [
    (ExitKind::PortRead, "port_read"),
    (ExitKind::PortWrite, "port_write"),
    (ExitKind::MemoryRead, "mmio_read"),
    (ExitKind::MemoryWrite, "mmio_write"),
    (ExitKind::Interrupted, "interrupted"),
    (ExitKind::Other, "other"),
];

/// The counters of one vCPU.
#[derive(Debug, Default)]
pub struct ExitCounters {
    counts: [AtomicU64; KINDS.len()],
}

impl ExitCounters {
    /// Counts one. Only the vCPU's own thread may call this: it saves the locked instruction.
    pub fn count(&self, kind: ExitKind) {
        let counter = &self.counts[kind as usize];
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Adds what was counted to a sum by name.
    pub fn add_to(&self, sum: &mut BTreeMap<String, u64>) {
        for (kind, name) in KINDS {
            *sum.entry(name.to_owned()).or_default() += self.counts[kind as usize].load(Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up_by_name() {
        let (a, b) = (ExitCounters::default(), ExitCounters::default());
        a.count(ExitKind::PortWrite);
        b.count(ExitKind::PortWrite);
        b.count(ExitKind::Other);
        let mut sum = BTreeMap::new();
        a.add_to(&mut sum);
        b.add_to(&mut sum);
        assert_eq!((sum["port_write"], sum["other"], sum["port_read"]), (2, 1, 0));
        assert!(KINDS.iter().enumerate().all(|(i, (kind, _))| *kind as usize == i));
    }
}
