//! From the monitor's `Boot` to an agent that has been introduced to its pod.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hull_protocol::agent::api::agent::{ConfigurePodRequest, InfoRequest};
use hull_protocol::agent::{API_VERSION, CONTROL_PORT};
use hull_protocol::vmm::{PortConnection, Request};
use tokio::net::UnixStream;

use super::error::{StartError, console_tail};
use super::{VmSpecRest, open_error};
use crate::pod::monitor::AsyncChannel;
use crate::pod::{Agent, AgentError, Monitor, MonitorError, printable};
use crate::record::BootRecord;
use crate::trace::{self, Kind};

/// How long a start waits for figures about itself.
const FIGURES_TIMEOUT: Duration = Duration::from_secs(1);
const ENTROPY: usize = 64;

/// Boots, and waits for the agent; and what that took.
pub(super) async fn boot(
    monitor: &Monitor,
    connections: AsyncChannel,
    spec: &VmSpecRest,
    since: Instant,
) -> Result<(Agent, Option<BootRecord>), StartError> {
    let deadline = spec.boot_timeout;
    let ended = monitor.ended();
    let up = async {
        monitor.request(Request::Boot, Vec::new()).await?;
        match connections.receive::<PortConnection>().await {
            Ok(Some(mut received)) if received.message.port == CONTROL_PORT && received.fds.len() == 1 => {
                let fd = received.fds.pop().ok_or(MonitorError::OutOfTurn)?;
                let stream = std::os::unix::net::UnixStream::from(fd);
                stream.set_nonblocking(true).map_err(MonitorError::from_io)?;
                Ok(UnixStream::from_std(stream).map_err(MonitorError::from_io)?)
            }
            // The channel's other end is gone: so is the monitor.
            Ok(None) => Err(MonitorError::Ended(ended.wait().await)),
            Ok(Some(_)) => Err(MonitorError::OutOfTurn),
            Err(error) => Err(error.into()),
        }
    };
    let booting = trace::step(Kind::Internal, || "the guest boots".to_owned());
    let died = |end| StartError::Died { end, console: console_tail(&spec.console) };
    let connected = tokio::select! {
        biased;
        up = tokio::time::timeout(deadline, up) => match up {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(MonitorError::Ended(end))) => Err(died(end)),
            Ok(Err(error)) => Err(error.into()),
            Err(_elapsed) => Err(StartError::Silent { deadline, console: console_tail(&spec.console) }),
        },
        end = ended.wait() => Err(died(end)),
    };
    let connection = trace::done(booting, connected)?;
    // One connection is all there is: the port is closed from here on.
    drop(connections);
    let figures = boot_figures(monitor, since.elapsed()).await;
    let agent = Agent::new(connection, ended);
    introduce(&agent, spec).await.map_err(|error| match error {
        StartError::Agent(AgentError::VmEnded(end)) => died(end),
        other => other,
    })?;
    Ok((agent, figures))
}

/// Figures are worth having, and not worth failing for.
async fn boot_figures(monitor: &Monitor, took: Duration) -> Option<BootRecord> {
    match tokio::time::timeout(FIGURES_TIMEOUT, monitor.stats()).await {
        Ok(Ok(stats)) => Some(BootRecord {
            first_entry_us: stats.start_to_first_entry_us,
            agent_ready_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            vm_exits: stats.vm_exits,
            monitor_exits: stats.exits.values().sum(),
            mmio_exits: ["mmio_read", "mmio_write"].iter().filter_map(|kind| stats.exits.get(*kind)).sum(),
            interrupts: stats.interrupts,
            device_interrupts: stats.devices.values().map(|device| device.interrupts).sum(),
            notifications: stats.devices.values().map(|device| device.notifications).sum(),
        }),
        Ok(Err(error)) => {
            log::debug!("the monitor has no figures: {error}");
            None
        }
        Err(_elapsed) => {
            log::debug!("the monitor is slow to give figures");
            None
        }
    }
}

async fn introduce(agent: &Agent, spec: &VmSpecRest) -> Result<(), StartError> {
    let info = agent.info(&InfoRequest { api_version: API_VERSION, ..InfoRequest::default() }).await?;
    if info.api_version != API_VERSION {
        return Err(StartError::Version(info.api_version));
    }
    log::info!("agent {} on Linux {}", printable(&info.agent_version), printable(&info.kernel_release));
    let mut entropy = vec![0; ENTROPY];
    let source = Path::new("/dev/urandom");
    File::open(source).and_then(|mut file| file.read_exact(&mut entropy)).map_err(open_error(source))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let request = ConfigurePodRequest {
        hostname: spec.hostname.clone(),
        sysctls: spec.sysctls.clone(),
        realtime_nanos: i64::try_from(now.as_nanos()).unwrap_or_default(),
        entropy,
        ..ConfigurePodRequest::default()
    };
    Ok(agent.configure_pod(&request).await?)
}
