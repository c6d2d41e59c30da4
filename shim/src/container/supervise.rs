//! Waits for processes to end, and tells everybody in the right order: output, record, OOM, exit, waiters.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::events::task::TaskExit;

use super::{Container, Kind};
use crate::events::Event;
use crate::io::{ProcessIo, StreamTotals};
use crate::pod::{AgentError, PowerOff, VmEnd, printable};
use crate::process::{Exit, Phase, Process, STALL};
use crate::record::{ExitRecord, Record};

/// 128 + SIGKILL: the status of what ended with its VM, or was never started.
const KILLED: u32 = 137;
/// Exit codes are at most eight bits; the guest is not believed to keep to that.
const STATUS_MAX: u32 = 255;
/// What already arrived from a dead VM is delivered to whoever still reads.
const AFTER_DEATH: Duration = Duration::from_secs(1);
/// How long an init's exit waits for those of its execs, which the kernel kills with it.
const EXECS_DEADLINE: Duration = Duration::from_secs(15);

/// The exit of a process whose VM ended under it.
pub fn vm_died(end: &VmEnd) -> Exit {
    let oom_killed = matches!(end, VmEnd::OutOfMemory);
    Exit { status: KILLED, at: SystemTime::now(), oom_killed, reason: format!("the VM ended: {end}") }
}

/// The exit of a process that was deleted before its start.
pub fn never_started() -> Exit {
    Exit {
        status: KILLED,
        at: SystemTime::now(),
        oom_killed: false,
        reason: "it was never started".to_owned(),
    }
}

/// Sees an exec to its end.
pub async fn supervise_exec(container: Arc<Container>, process: Arc<Process>, io: ProcessIo) {
    let exit = wait(&container, &process, io).await;
    announce(&container, &process, exit);
}

/// Sees the init process to its end, and the VM after it. Returns how the init ended.
pub async fn supervise_init(container: Arc<Container>, io: ProcessIo) -> Exit {
    let init = Arc::clone(&container.init);
    let exit = wait(&container, &init, io).await;
    let execs = async {
        // One that is being started may run then, or fail; another may have begun meanwhile.
        while let Some(exec) = container.execs().iter().find(|exec| is_under_way(exec)) {
            exec.start_settled().await;
            if exec.phase() != Phase::Created {
                exec.exited().await;
            }
        }
    };
    if tokio::time::timeout(EXECS_DEADLINE, execs).await.is_err() {
        log::warn!(container:% = container.id; "execs outlive their container");
    }
    for exec in container.execs() {
        // Never to be started now; whoever waits for it must not wait for ever.
        if exec.phase() == Phase::Created {
            exec.set_exited(never_started());
        }
    }
    record_and_announce(&container, exit.clone());
    exit
}

fn is_under_way(process: &Process) -> bool {
    matches!(process.phase(), Phase::Running | Phase::Starting)
}

/// The end of an init: on disk, then to everybody.
pub(super) fn record_and_announce(container: &Container, exit: Exit) {
    let record = ExitRecord {
        exit_code: exit.status,
        exited_at: crate::time::rfc3339(exit.at),
        oom_killed: exit.oom_killed,
        reason: exit.reason.clone(),
    };
    if let Err(error) = record.write(&container.bundle) {
        log::error!(container:% = container.id; "the exit cannot be recorded: {error}");
    }
    if exit.oom_killed && !container.oom_told.load(Ordering::Relaxed) {
        container.tell_oom();
    }
    announce(container, &container.init, exit);
}

async fn wait(container: &Container, process: &Process, mut io: ProcessIo) -> Exit {
    let control = io.control();
    let (exit, totals, pause) = match container.vm.agent.wait_process(&process.request()).await {
        Ok(status) => {
            let exit = Exit {
                status: status.code.min(STATUS_MAX),
                at: believable(crate::time::from_nanos(status.exited_at_nanos)),
                oom_killed: status.oom_killed,
                reason: String::new(),
            };
            let totals = StreamTotals { stdout: status.stdout_bytes, stderr: status.stderr_bytes };
            (exit, Some(totals), STALL)
        }
        Err(AgentError::VmEnded(end)) => (vm_died(&end), None, AFTER_DEATH),
        Err(error) => {
            log::error!(container:% = process.container; "the container is lost: {error}");
            // Without its agent a container cannot be known to run or not to run.
            let agent_answers = matches!(error, AgentError::Refused { .. });
            if (matches!(container.kind, Kind::Alone) || !agent_answers)
                && let Err(error) = container.vm.stop(PowerOff::Now).await
            {
                log::error!("{error}");
            }
            let reason = format!("the agent is lost: {}", printable(&error.to_string()));
            (Exit { status: KILLED, at: SystemTime::now(), oom_killed: false, reason }, None, AFTER_DEATH)
        }
    };
    let watcher = tokio::spawn(control.abandon_when_stalled(pause));
    let left = io.drain(totals, process).await;
    watcher.abort();
    process.delivered(left);
    process.start_settled().await;
    exit
}

/// The guest's clock may be anything; an exit is neither in the future nor at the beginning of time.
fn believable(at: SystemTime) -> SystemTime {
    let now = SystemTime::now();
    if at > now || at == SystemTime::UNIX_EPOCH { now } else { at }
}

fn announce(container: &Container, process: &Process, exit: Exit) {
    let mut event = TaskExit::new();
    event.container_id.clone_from(&container.id);
    event.id = process.exec.clone().unwrap_or_else(|| container.id.clone());
    event.pid = process.pid();
    event.exit_status = exit.status;
    event.exited_at = crate::time::timestamp(exit.at);
    container.events.send(Event::Exit(event));
    process.set_exited(exit);
}
