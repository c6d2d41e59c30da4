//! Resource use, from the text files of a cgroup.

use std::collections::HashMap;

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

/// All lines `key number` of a file.
fn table(text: &str) -> HashMap<String, u64> {
    let line = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// The lines of a pressure file: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
pub fn pressure(text: &str) -> Option<api::PressureStats> {
    let line = |kind: &str| {
        let values = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let value = |key: &str| values.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let average = |key| value(key).and_then(|text| text.parse().ok()).unwrap_or_default();
        Some(api::Pressure {
            avg10: average("avg10"),
            avg60: average("avg60"),
            avg300: average("avg300"),
            total_usec: value("total").map(number).unwrap_or_default(),
            ..api::Pressure::default()
        })
    };
    let (some, full) = (line("some "), line("full "));
    some.is_some().then(|| api::PressureStats {
        some: some.into(),
        full: full.into(),
        ..api::PressureStats::default()
    })
}

/// The lines of io.stat: `8:0 rbytes=0 wbytes=0 rios=0 wios=0 dbytes=0 dios=0`.
fn io(text: &str) -> Vec<api::IoStats> {
    let line = |line: &str| {
        let (device, values) = line.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        let value = |key: &str| {
            let word = values.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            word.map(number).unwrap_or_default()
        };
        Some(api::IoStats {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            read_bytes: value("rbytes"),
            written_bytes: value("wbytes"),
            reads: value("rios"),
            writes: value("wios"),
            ..api::IoStats::default()
        })
    };
    text.lines().filter_map(line).collect()
}

/// Reads all statistics with `read`, which gives a file's content or nothing. `page_sizes` are those of huge pages, as the
/// kernel writes them in the names of its files.
pub fn read(read: impl Fn(&str) -> String, page_sizes: &[String]) -> Stats {
    let memory = table(&read("memory.stat"));
    let events = table(&read("memory.events"));
    let named = |table: &HashMap<String, u64>, key: &str| table.get(key).copied().unwrap_or_default();
    let cpu = read("cpu.stat");
    let mut stats = Stats::new();
    stats.memory = Some(api::MemoryStats {
        usage_bytes: number(&read("memory.current")),
        limit_bytes: number(&read("memory.max")),
        anon_bytes: named(&memory, "anon"),
        file_bytes: named(&memory, "file"),
        inactive_file_bytes: named(&memory, "inactive_file"),
        oom_events: named(&events, "oom"),
        oom_kill_events: named(&events, "oom_kill"),
        max_usage_bytes: number(&read("memory.peak")),
        swap_usage_bytes: number(&read("memory.swap.current")),
        swap_limit_bytes: number(&read("memory.swap.max")),
        swap_max_usage_bytes: number(&read("memory.swap.peak")),
        pressure: pressure(&read("memory.pressure")).into(),
        stat: memory,
        events,
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
        nr_bursts: field(&cpu, "nr_bursts"),
        burst_usec: field(&cpu, "burst_usec"),
        pressure: pressure(&read("cpu.pressure")).into(),
        ..api::CpuStats::default()
    })
    .into();
    stats.pids = Some(api::PidsStats {
        current: number(&read("pids.current")),
        limit: number(&read("pids.max")),
        ..api::PidsStats::default()
    })
    .into();
    stats.io = io(&read("io.stat"));
    stats.io_pressure = pressure(&read("io.pressure")).into();
    let hugetlb = |size: &String| api::HugetlbStats {
        page_size: size.clone(),
        usage_bytes: number(&read(&format!("hugetlb.{size}.current"))),
        limit_bytes: number(&read(&format!("hugetlb.{size}.max"))),
        limit_events: field(&read(&format!("hugetlb.{size}.events")), "max"),
        ..api::HugetlbStats::default()
    };
    stats.hugetlb = page_sizes.iter().map(hugetlb).collect();
    stats
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_become_numbers() {
        let stats = read(
            |file| {
                match file {
                "memory.current" => "4096\n",
                "memory.max" => "max\n",
                "memory.events" => "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 0\n",
                "cpu.stat" => "usage_usec 10\nuser_usec 7\nsystem_usec 3\n",
                "pids.max" => "12\n",
                "memory.stat" => "anon 5\npgfault 77\n",
                "memory.peak" => "8192\n",
                "memory.pressure" => {
                    "some avg10=1.50 avg60=0.25 avg300=0.00 total=42\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
                }
                "io.stat" => "254:16 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n7:0 \n",
                "hugetlb.2MB.current" => "2097152\n",
                "hugetlb.2MB.max" => "max\n",
                "hugetlb.2MB.events" => "max 3\n",
                _ => "",
            }
            .to_owned()
            },
            &["2MB".to_owned()],
        );
        assert_eq!(
            (stats.memory.anon_bytes, stats.memory.stat["pgfault"], stats.memory.events["max"]),
            (5, 77, 3)
        );
        assert_eq!(stats.memory.max_usage_bytes, 8192);
        let pressure = &stats.memory.pressure;
        assert_eq!((pressure.some.avg10, pressure.some.total_usec, pressure.full.total_usec), (1.5, 42, 7));
        assert!(stats.cpu.pressure.is_none());
        let io: Vec<_> = stats.io.iter().map(|io| (io.major, io.minor, io.read_bytes, io.reads)).collect();
        assert_eq!(io, [(254, 16, 4096, 1), (7, 0, 0, 0)]);
        let huge = &stats.hugetlb[0];
        assert_eq!((huge.usage_bytes, huge.limit_bytes, huge.limit_events), (2 << 20, 0, 3));
        assert_eq!(stats.memory.usage_bytes, 4096);
        assert_eq!(stats.memory.limit_bytes, 0);
        assert_eq!((stats.memory.oom_events, stats.memory.oom_kill_events), (2, 1));
        assert_eq!((stats.cpu.usage_usec, stats.cpu.nr_periods), (10, 0));
        assert_eq!((stats.pids.limit, stats.pids.current), (12, 0));
    }
}
