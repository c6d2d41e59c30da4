//! The guest's memory: how much there is, and how much of it all containers may have together.
//!
//! Were there no bound but the guest's memory, a container that takes all of it would have the kernel reclaim and wait everywhere, in
//! what the agent does too, before it kills. Within a bound of their own, containers wait and are killed among themselves.

use std::sync::{Mutex, PoisonError};

use crate::cgroup::{CgroupError, CgroupParent};
use crate::reap::Children;
use crate::sys;

/// What containers do not get: for buffers of the kernel's, the agent, and its helpers.
const KEPT: u64 = 24 << 20;

/// The guest's memory at this moment, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All that the kernel manages.
    pub total: u64,
    /// What could be had without hurting anybody.
    pub available: u64,
}

impl Memory {
    /// Nothing where the kernel does not say.
    pub fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/meminfo").ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        Some(Self { total: bytes(text, "MemTotal:")?, available: bytes(text, "MemAvailable:")? })
    }

    /// What containers may take together, in a guest that runs nothing but its agent: never less than three quarters of what is
    /// there.
    fn share_of_containers(self) -> u64 {
        self.available - KEPT.min(self.available / 4)
    }
}

/// The bytes in a line `FIELD NUMBER kB`, as the kernel writes them about itself and about processes.
pub fn bytes(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The bound of all containers, which follows the memory that the guest is given and loses while it runs.
#[derive(Debug, Default)]
pub struct Share(Mutex<Option<Bound>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bound {
    /// The memory that it was made for.
    total: u64,
    share: u64,
}

impl Bound {
    /// What containers may take of so much memory: they get what comes, and lose what goes.
    fn of(self, total: u64) -> Self {
        let share = self.share.saturating_add(total.saturating_sub(self.total));
        Self { total, share: share.saturating_sub(self.total.saturating_sub(total)) }
    }
}

impl Share {
    /// Bounds containers, of which there is none yet.
    pub fn begin(containers: &CgroupParent) -> Result<Self, CgroupError> {
        let Some(memory) = Memory::now() else {
            log::warn!("the memory of containers is not limited: /proc/meminfo cannot be read");
            return Ok(Self::default());
        };
        let bound = Bound { total: memory.total, share: memory.share_of_containers() };
        containers.limit_memory(bound.share)?;
        Ok(Self(Mutex::new(Some(bound))))
    }

    /// The new bound, where memory has come or gone since it was asked last.
    fn changed(&self) -> Option<u64> {
        let mut bound = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = (*bound)?;
        let now = before.of(sys::machine::total_memory());
        *bound = Some(now);
        (now.share != before.share).then_some(now.share)
    }

    /// Makes the bound fit the memory that the guest has now.
    pub async fn follow(&self, containers: &CgroupParent, children: &Children) -> Result<(), CgroupError> {
        match self.changed() {
            Some(share) => containers.change_memory_limit(share, children).await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_kernels_words_are_numbers() {
        let text = "MemTotal:         500000 kB\nMemFree:          480000 kB\nMemAvailable:     470000 kB\n";
        assert_eq!(Memory::parse(text), Some(Memory { total: 500_000 * 1024, available: 470_000 * 1024 }));
        for nonsense in
            ["", "MemTotal: 5 kB", "MemTotal: x kB\nMemAvailable: 1 kB", "MemTotal: 5\nMemAvailable: 5"]
        {
            assert_eq!(Memory::parse(nonsense), None, "{nonsense:?}");
        }
    }

    #[test]
    fn little_and_much_memory() {
        let share = |total: u64, available: u64| {
            Memory { total: total * MIB, available: available * MIB }.share_of_containers() / MIB
        };
        assert_eq!((share(512, 480), share(64, 40), share(8192, 8000)), (456, 30, 7976));
    }

    #[test]
    fn what_comes_and_goes_is_the_containers() {
        let bound = Bound { total: 500 * MIB, share: 450 * MIB };
        let more = bound.of(800 * MIB);
        assert_eq!((more.share, more.of(800 * MIB)), (750 * MIB, more));
        assert_eq!(more.of(500 * MIB), bound);
        assert_eq!(bound.of(10 * MIB).share, 0);
    }

    proptest! {
        #[test]
        fn containers_get_most_and_not_all(total in 1u64..1 << 41, part in 0.01f64..1.0) {
            #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let available = (total as f64 * part) as u64;
            let share = Memory { total, available }.share_of_containers();
            prop_assert!(share <= available && share >= available - available / 4);
        }
    }
}
