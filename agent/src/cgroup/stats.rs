//! Resource use, from the text files of a cgroup.

use hull_protocol::agent::api::agent as api;

/// What a container uses. Controllers that the guest lacks count as zero.
pub type Stats = api::ContainerStatsResponse;

/// The number after `key` in a file of `key number` lines.
pub fn field(text: &str, key: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

/// A file with one number; `max` and nothing count as 0.
fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// Reads all statistics with `read`, which gives a file's content or nothing.
pub fn read(read: impl Fn(&str) -> String) -> Stats {
    let memory = read("memory.stat");
    let events = read("memory.events");
    let cpu = read("cpu.stat");
    let mut stats = Stats::new();
    stats.memory = Some(api::MemoryStats {
        usage_bytes: number(&read("memory.current")),
        limit_bytes: number(&read("memory.max")),
        anon_bytes: field(&memory, "anon"),
        file_bytes: field(&memory, "file"),
        inactive_file_bytes: field(&memory, "inactive_file"),
        oom_events: field(&events, "oom"),
        oom_kill_events: field(&events, "oom_kill"),
        ..api::MemoryStats::default()
    })
    .into();
    stats.cpu = Some(api::CpuStats {
        usage_usec: field(&cpu, "usage_usec"),
        user_usec: field(&cpu, "user_usec"),
        system_usec: field(&cpu, "system_usec"),
        nr_periods: field(&cpu, "nr_periods"),
        nr_throttled: field(&cpu, "nr_throttled"),
        throttled_usec: field(&cpu, "throttled_usec"),
        ..api::CpuStats::default()
    })
    .into();
    stats.pids = Some(api::PidsStats {
        current: number(&read("pids.current")),
        limit: number(&read("pids.max")),
        ..api::PidsStats::default()
    })
    .into();
    stats
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_become_numbers() {
        let stats = read(|file| {
            match file {
                "memory.current" => "4096\n",
                "memory.max" => "max\n",
                "memory.events" => "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 0\n",
                "cpu.stat" => "usage_usec 10\nuser_usec 7\nsystem_usec 3\n",
                "pids.max" => "12\n",
                _ => "",
            }
            .to_owned()
        });
        assert_eq!(stats.memory.usage_bytes, 4096);
        assert_eq!(stats.memory.limit_bytes, 0);
        assert_eq!((stats.memory.oom_events, stats.memory.oom_kill_events), (2, 1));
        assert_eq!((stats.cpu.usage_usec, stats.cpu.nr_periods), (10, 0));
        assert_eq!((stats.pids.limit, stats.pids.current), (12, 0));
    }
}
