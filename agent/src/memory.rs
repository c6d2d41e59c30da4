//! The guest's memory: how much there is, and how much of it all containers may have together.
//!
//! Were there no bound but the guest's memory, a container that takes all of it would have the kernel reclaim and wait everywhere, in
//! what the agent does too, before it kills. Within a bound of their own, containers wait and are killed among themselves.

use hull_protocol::agent::memory::{share_after, share_of_containers};
use tokio::sync::Mutex;

use crate::cgroup::{CgroupError, CgroupParent};
use crate::reap::Children;
use crate::sys;

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
}

/// The bytes in a line `FIELD NUMBER kB`, as the kernel writes them about itself and about processes.
pub fn bytes(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The bound of all containers, which follows the memory that the guest is given and loses while it runs.
#[derive(Debug, Default)]
pub struct Share(Mutex<Option<Bound>>);

/// What the kernel was told last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bound {
    /// The memory that it was made for.
    total: u64,
    share: u64,
}

impl Bound {
    fn of(self, total: u64) -> Self {
        Self { total, share: share_after(self.share, self.total, total) }
    }
}

impl Share {
    /// Bounds containers, of which there is none yet.
    pub fn begin(containers: &CgroupParent) -> Result<Self, CgroupError> {
        let Some(memory) = Memory::now() else {
            log::warn!("the memory of containers is not limited: /proc/meminfo cannot be read");
            return Ok(Self::default());
        };
        let bound = Bound { total: memory.total, share: share_of_containers(memory.available) };
        containers.limit_memory(bound.share)?;
        Ok(Self(Mutex::new(Some(bound))))
    }

    /// Makes the bound fit the memory that the guest has now.
    pub async fn follow(&self, containers: &CgroupParent, children: &Children) -> Result<(), CgroupError> {
        let write = |share| containers.change_memory_limit(share, children);
        self.change(sys::machine::total_memory(), write).await
    }

    /// What could not be written has not become the bound: the next one who asks tries again.
    async fn change<E>(&self, total: u64, write: impl AsyncFnOnce(u64) -> Result<(), E>) -> Result<(), E> {
        let mut bound = self.0.lock().await;
        let Some(before) = *bound else { return Ok(()) };
        let now = before.of(total);
        if now.share != before.share {
            write(now.share).await?;
        }
        *bound = Some(now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[tokio::test]
    async fn a_bound_that_could_not_be_written_is_written_by_the_next() {
        let began = Bound { total: 500 * MIB, share: 450 * MIB };
        let share = Share(Mutex::new(Some(began)));
        let more = began.of(900 * MIB);
        let failed = share.change(more.total, async |bytes| Err(bytes)).await;
        assert_eq!(failed, Err(more.share));
        assert_eq!(*share.0.lock().await, Some(began));
        let mut written = Vec::new();
        for total in [more.total, more.total, began.total] {
            let write = async |bytes| {
                written.push(bytes);
                Ok::<_, ()>(())
            };
            share.change(total, write).await.unwrap();
        }
        assert_eq!(written, [more.share, began.share]);
    }

    #[tokio::test]
    async fn a_guest_that_says_nothing_of_its_memory_has_no_bound() {
        let never = async |_| -> Result<(), ()> { unreachable!() };
        assert_eq!(Share::default().change(MIB, never).await, Ok(()));
    }
}
