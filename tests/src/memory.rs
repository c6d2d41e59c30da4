//! What the kernel says of a process's memory and sleep.

use std::fs;

/// Sums over mappings, in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Pages that no other process has.
    pub private: u64,
    /// Proportional share.
    pub pss: u64,
}

/// All of a process's mappings.
pub fn whole(pid: u64) -> Usage {
    sum(pid, |_| true)
}

/// A monitor's mappings: those besides the guest's memory of `guest_bytes`, and that memory.
pub fn split(pid: u64, guest_bytes: u64) -> (Usage, Usage) {
    (sum(pid, |bytes| bytes < guest_bytes / 2), sum(pid, |bytes| bytes >= guest_bytes / 2))
}

fn sum(pid: u64, wanted: impl Fn(u64) -> bool) -> Usage {
    let mut usage = Usage::default();
    let mut counted = false;
    for line in fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap().lines() {
        let mut words = line.split_whitespace();
        let (Some(first), second) = (words.next(), words.next()) else { continue };
        if let Some((from, to)) = first.split_once('-').filter(|_| !first.ends_with(':')) {
            let address = |text| u64::from_str_radix(text, 16).unwrap();
            counted = wanted(address(to) - address(from));
        } else if counted {
            let kib = || second.and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
            match first {
                "Private_Clean:" | "Private_Dirty:" => usage.private += kib(),
                "Pss:" => usage.pss += kib(),
                _ => {}
            }
        }
    }
    usage
}

/// How often the threads that are not vCPUs have gone to sleep: a program that polls does so all the time.
pub fn wakeups(pid: u64) -> u64 {
    let mut count = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if !field("Name:").is_some_and(|name| name.starts_with("vcpu")) {
            count += field("voluntary_ctxt_switches:").and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    count
}
