//! What happens in the guest that nobody asked for: its memory runs short, or the kernel kills for want of memory.
//!
//! Nothing is done here until the host asks for the next event, and nothing is lost between two of its questions: what is
//! watched are descriptors on which the kernel itself remembers.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use hull_protocol::agent::api::agent as api;
use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, MutexGuard};

use crate::cgroup::{self, Kills};
use crate::environment::Environment;
use crate::error::Error;
use crate::memory::Memory;
use crate::sys;

/// Of the whole guest.
const PRESSURE_FILE: &std::ffi::CStr = c"/proc/pressure/memory";
/// When the kernel tells of pressure: processes have waited for memory for 200 ms of two seconds (kernel: accounting/psi).
const TRIGGER: &[u8] = b"some 200000 2000000\0";
/// The shortest time between two events about pressure.
const QUIET: Duration = Duration::from_secs(10);

/// The guest's news, for one reader.
#[derive(Default)]
pub struct News(Mutex<Option<Sources>>);

struct Sources {
    kills: Kills,
    /// Nothing where the kernel does not count pressure.
    pressure: Option<AsyncFd<OwnedFd>>,
    /// When pressure was told of.
    told: Option<Instant>,
    killed: VecDeque<String>,
}

impl News {
    /// Waits for the next event.
    pub async fn next(&self, environment: &Environment) -> Result<api::GuestEvent, Error> {
        let busy = |_| Error::State { action: "wait for an event", state: "somebody does already" };
        let mut sources: MutexGuard<'_, Option<Sources>> = self.0.try_lock().map_err(busy)?;
        let sources = match &mut *sources {
            Some(sources) => sources,
            none => none.insert(Sources::open(environment)?),
        };
        let mut event = api::GuestEvent::new();
        loop {
            if let Some(id) = sources.killed.pop_front() {
                event.set_oom_kill(id);
                return Ok(event);
            }
            tokio::select! {
                killed = sources.kills.next() => sources.killed.extend(killed?),
                () = pressed(sources.pressure.as_ref()) => {
                    if sources.told.is_none_or(|told| told.elapsed() >= QUIET) {
                        sources.told = Some(Instant::now());
                        event.set_memory_pressure(pressure(environment)?);
                        return Ok(event);
                    }
                }
            }
        }
    }
}

impl Sources {
    fn open(environment: &Environment) -> Result<Self, Error> {
        let pressure = match open_pressure() {
            Ok(pressure) => Some(pressure),
            Err(error) => {
                log::warn!("memory pressure cannot be watched: {error}");
                None
            }
        };
        Ok(Self { kills: environment.cgroups.watch_kills()?, pressure, told: None, killed: VecDeque::new() })
    }
}

fn open_pressure() -> std::io::Result<AsyncFd<OwnedFd>> {
    let file = sys::path::open(PRESSURE_FILE, libc::O_RDWR | libc::O_NONBLOCK)?;
    sys::path::write_control(file.as_fd(), TRIGGER)?;
    sys::ready::watch(file, Interest::PRIORITY)
}

/// Waits until the kernel says that memory is short; for ever where it cannot be asked.
async fn pressed(watched: Option<&AsyncFd<OwnedFd>>) {
    if let Some(watched) = watched {
        match watched.ready(Interest::PRIORITY).await {
            Ok(mut ready) => return ready.clear_ready(),
            Err(error) => log::error!("memory pressure is not watched any more: {error}"),
        }
    }
    std::future::pending::<()>().await;
}

fn pressure(environment: &Environment) -> Result<api::MemoryPressure, Error> {
    let (containers_bytes, containers_limit_bytes) = environment.cgroups.memory()?;
    let memory = Memory::now().ok_or_else(|| Error::system("read /proc/meminfo")(Errno::EIO))?;
    let text =
        std::fs::read_to_string("/proc/pressure/memory").map_err(Error::system("read the pressure"))?;
    Ok(api::MemoryPressure {
        pressure: cgroup::pressure(&text).into(),
        total_bytes: memory.total,
        available_bytes: memory.available,
        containers_bytes,
        containers_limit_bytes,
        ..api::MemoryPressure::default()
    })
}
