//! What a container uses, as containerd's cgroup v2 metrics.

use std::collections::HashMap;

use containerd_shim_protos::cgroups_v2::metrics as containerd;
use hull_protocol::agent::api::agent::{
    ContainerStatsResponse, CpuStats, MemoryStats, NetworkStats, PressureStats,
};
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;

use super::convert::pack;
use crate::pod::printable;

/// The most links that are told of: the guest may have any number.
const NETWORKS_MAX: usize = 64;

/// The statistics of a container, as cgroup v2's.
pub fn metrics(stats: &ContainerStatsResponse) -> ttrpc::Result<Any> {
    let pids = containerd::PidsStat {
        current: stats.pids.current,
        limit: stats.pids.limit,
        ..containerd::PidsStat::default()
    };
    let usage = stats.io.iter().map(|io| containerd::IOEntry {
        major: io.major.into(),
        minor: io.minor.into(),
        rbytes: io.read_bytes,
        wbytes: io.written_bytes,
        rios: io.reads,
        wios: io.writes,
        ..containerd::IOEntry::default()
    });
    let io = containerd::IOStat {
        usage: usage.collect(),
        psi: pressure(&stats.io_pressure),
        ..containerd::IOStat::default()
    };
    let hugetlb = stats.hugetlb.iter().map(|huge| containerd::HugeTlbStat {
        current: huge.usage_bytes,
        max: limit(huge.limit_bytes),
        pagesize: huge.page_size.clone(),
        failcnt: huge.limit_events,
        ..containerd::HugeTlbStat::default()
    });
    let metrics = containerd::Metrics {
        pids: MessageField::some(pids),
        cpu: MessageField::some(cpu(&stats.cpu)),
        memory: MessageField::some(memory(&stats.memory)),
        memory_events: MessageField::some(memory_events(&stats.memory)),
        io: MessageField::some(io),
        hugetlb: hugetlb.collect(),
        network: stats.network.iter().take(NETWORKS_MAX).map(network).collect(),
        ..containerd::Metrics::default()
    };
    pack("io.containerd.cgroups.v2.Metrics", &metrics)
}

fn network(link: &NetworkStats) -> containerd::NetworkStat {
    containerd::NetworkStat {
        name: printable(&link.name),
        rx_bytes: link.rx_bytes,
        rx_packets: link.rx_packets,
        rx_errors: link.rx_errors,
        rx_dropped: link.rx_dropped,
        tx_bytes: link.tx_bytes,
        tx_packets: link.tx_packets,
        tx_errors: link.tx_errors,
        tx_dropped: link.tx_dropped,
        ..containerd::NetworkStat::default()
    }
}

fn cpu(cpu: &CpuStats) -> containerd::CPUStat {
    containerd::CPUStat {
        usage_usec: cpu.usage_usec,
        user_usec: cpu.user_usec,
        system_usec: cpu.system_usec,
        nr_periods: cpu.nr_periods,
        nr_throttled: cpu.nr_throttled,
        throttled_usec: cpu.throttled_usec,
        psi: pressure(&cpu.pressure),
        nr_bursts: cpu.nr_bursts,
        burst_usec: cpu.burst_usec,
        ..containerd::CPUStat::default()
    }
}

fn memory(memory: &MemoryStats) -> containerd::MemoryStat {
    let stat = |key| named(&memory.stat, key);
    containerd::MemoryStat {
        anon: stat("anon"),
        file: stat("file"),
        kernel_stack: stat("kernel_stack"),
        slab: stat("slab"),
        sock: stat("sock"),
        shmem: stat("shmem"),
        file_mapped: stat("file_mapped"),
        file_dirty: stat("file_dirty"),
        file_writeback: stat("file_writeback"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        slab_reclaimable: stat("slab_reclaimable"),
        slab_unreclaimable: stat("slab_unreclaimable"),
        pgfault: stat("pgfault"),
        pgmajfault: stat("pgmajfault"),
        workingset_nodereclaim: stat("workingset_nodereclaim"),
        pgrefill: stat("pgrefill"),
        pgscan: stat("pgscan"),
        pgsteal: stat("pgsteal"),
        pgactivate: stat("pgactivate"),
        pgdeactivate: stat("pgdeactivate"),
        pglazyfree: stat("pglazyfree"),
        pglazyfreed: stat("pglazyfreed"),
        thp_fault_alloc: stat("thp_fault_alloc"),
        thp_collapse_alloc: stat("thp_collapse_alloc"),
        anon_thp: stat("anon_thp"),
        // Counted in one before Linux 5.9, and separately for files and anonymous memory since.
        workingset_refault: stat("workingset_refault_anon") + stat("workingset_refault_file"),
        workingset_activate: stat("workingset_activate_anon") + stat("workingset_activate_file"),
        usage: memory.usage_bytes,
        usage_limit: limit(memory.limit_bytes),
        swap_usage: memory.swap_usage_bytes,
        swap_limit: limit(memory.swap_limit_bytes),
        max_usage: memory.max_usage_bytes,
        swap_max_usage: memory.swap_max_usage_bytes,
        psi: pressure(&memory.pressure),
        ..containerd::MemoryStat::default()
    }
}

fn memory_events(memory: &MemoryStats) -> containerd::MemoryEvents {
    let event = |key| named(&memory.events, key);
    containerd::MemoryEvents {
        low: event("low"),
        high: event("high"),
        max: event("max"),
        oom: memory.oom_events,
        oom_kill: memory.oom_kill_events,
        oom_group_kill: event("oom_group_kill"),
        ..containerd::MemoryEvents::default()
    }
}

fn pressure(pressure: &MessageField<PressureStats>) -> MessageField<containerd::PSIStats> {
    let Some(pressure) = pressure.as_ref() else { return MessageField::none() };
    let data = |data: &hull_protocol::agent::api::agent::Pressure| containerd::PSIData {
        avg10: data.avg10,
        avg60: data.avg60,
        avg300: data.avg300,
        total: data.total_usec,
        ..containerd::PSIData::default()
    };
    MessageField::some(containerd::PSIStats {
        some: pressure.some.as_ref().map(data).into(),
        full: pressure.full.as_ref().map(data).into(),
        ..containerd::PSIStats::default()
    })
}

fn named(table: &HashMap<String, u64>, key: &str) -> u64 {
    table.get(key).copied().unwrap_or_default()
}

/// cgroup v2 writes "max", which readers of these statistics know as the largest number.
fn limit(bytes: u64) -> u64 {
    if bytes == 0 { u64::MAX } else { bytes }
}

#[cfg(test)]
mod tests {
    use hull_protocol::agent::api::agent as api;
    use protobuf::Message;

    use super::*;

    #[test]
    fn everything_has_its_place() {
        let mut stats = ContainerStatsResponse::new();
        let memory = stats.memory.mut_or_insert_default();
        (memory.usage_bytes, memory.oom_kill_events) = (4096, 2);
        memory.stat.extend([
            ("anon".to_owned(), 5),
            ("workingset_refault_anon".to_owned(), 1),
            ("workingset_refault_file".to_owned(), 2),
        ]);
        memory.events.insert("high".to_owned(), 9);
        memory.pressure.mut_or_insert_default().some.mut_or_insert_default().avg10 = 1.5;
        stats.io.push(api::IoStats { major: 8, reads: 3, ..Default::default() });
        stats.hugetlb.push(api::HugetlbStats { page_size: "2MB".to_owned(), ..Default::default() });
        let any = metrics(&stats).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = containerd::Metrics::parse_from_bytes(&any.value).unwrap();
        let memory = &metrics.memory;
        assert_eq!((memory.usage, memory.usage_limit, memory.anon), (4096, u64::MAX, 5));
        assert_eq!((memory.workingset_refault, memory.psi.some.avg10), (3, 1.5));
        assert_eq!((metrics.memory_events.high, metrics.memory_events.oom_kill), (9, 2));
        assert_eq!((metrics.io.usage[0].major, metrics.io.usage[0].rios), (8, 3));
        assert_eq!((metrics.hugetlb[0].pagesize.as_str(), metrics.hugetlb[0].max), ("2MB", u64::MAX));
        assert!(metrics.cpu.psi.is_none());
    }
}
