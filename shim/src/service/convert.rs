//! What the shim knows, in containerd's messages.

use containerd_shim_protos::api::{PidsResponse, ProcessInfo, StateResponse, Status};
use containerd_shim_protos::cgroups_v2::metrics::{CPUStat, MemoryEvents, MemoryStat, Metrics, PidsStat};
use containerd_shim_protos::shim::oci::ProcessDetails;
use hull_protocol::agent::api::agent::ContainerStatsResponse;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};

use crate::container::{Container, Freezer};
use crate::process::{Phase, Process};
use crate::time::timestamp;

/// The State of a process.
pub fn state(container: &Container, process: &Process) -> StateResponse {
    let [stdin, stdout, stderr] = process.stdio.addresses.clone();
    let mut state = StateResponse {
        id: container.id.clone(),
        exec_id: process.exec.clone().unwrap_or_default(),
        bundle: container.bundle.display().to_string(),
        pid: process.pid(),
        stdin,
        stdout,
        stderr,
        terminal: process.stdio.terminal,
        ..StateResponse::default()
    };
    let status = match (process.phase(), container.freezer()) {
        (Phase::Exited(exit), _) => {
            state.exit_status = exit.status;
            state.exited_at = timestamp(exit.at);
            Status::STOPPED
        }
        (_, Freezer::Frozen) => Status::PAUSED,
        (_, Freezer::Freezing) => Status::PAUSING,
        (Phase::Created | Phase::Starting, Freezer::Thawed) => Status::CREATED,
        (Phase::Running, Freezer::Thawed) => Status::RUNNING,
    };
    state.status = status.into();
    state
}

/// The processes that have a pid: the init always, an exec once it was started.
pub fn pids(container: &Container) -> PidsResponse {
    let init = ProcessInfo { pid: container.init.pid(), ..ProcessInfo::default() };
    let running = container.execs().into_iter().filter(|exec| exec.phase() == Phase::Running);
    let execs = running.map(|exec| {
        let details =
            ProcessDetails { exec_id: exec.exec.clone().unwrap_or_default(), ..ProcessDetails::default() };
        let info = pack("containerd.runc.v1.ProcessDetails", &details).ok();
        ProcessInfo { pid: exec.pid(), info: info.into(), ..ProcessInfo::default() }
    });
    PidsResponse { processes: std::iter::once(init).chain(execs).collect(), ..PidsResponse::default() }
}

/// The statistics of a container, as cgroup v2's.
pub fn metrics(stats: &ContainerStatsResponse) -> ttrpc::Result<Any> {
    let (memory, cpu, pids) = (&stats.memory, &stats.cpu, &stats.pids);
    let metrics = Metrics {
        pids: MessageField::some(PidsStat {
            current: pids.current,
            limit: pids.limit,
            ..PidsStat::default()
        }),
        cpu: MessageField::some(CPUStat {
            usage_usec: cpu.usage_usec,
            user_usec: cpu.user_usec,
            system_usec: cpu.system_usec,
            nr_periods: cpu.nr_periods,
            nr_throttled: cpu.nr_throttled,
            throttled_usec: cpu.throttled_usec,
            ..CPUStat::default()
        }),
        memory: MessageField::some(MemoryStat {
            usage: memory.usage_bytes,
            // cgroup v2 writes "max", which readers of these statistics know as the largest number.
            usage_limit: if memory.limit_bytes == 0 { u64::MAX } else { memory.limit_bytes },
            anon: memory.anon_bytes,
            file: memory.file_bytes,
            inactive_file: memory.inactive_file_bytes,
            ..MemoryStat::default()
        }),
        memory_events: MessageField::some(MemoryEvents {
            oom: memory.oom_events,
            oom_kill: memory.oom_kill_events,
            ..MemoryEvents::default()
        }),
        ..Metrics::default()
    };
    pack("io.containerd.cgroups.v2.Metrics", &metrics)
}

fn pack(type_url: &str, message: &impl Message) -> ttrpc::Result<Any> {
    let value = message.write_to_bytes().map_err(|error| ttrpc::Error::Others(error.to_string()))?;
    Ok(Any { type_url: type_url.to_owned(), value, ..Any::default() })
}
