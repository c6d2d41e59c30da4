//! The container that stands for a pod: it has a process id and an end, and no process in the guest.

use std::time::SystemTime;

use hull_protocol::agent::api::agent::{ContainerStatsResponse, CpuStats, MemoryStats, PidsStats};
use tokio::sync::watch;

use super::{Container, supervise};
use crate::metrics::ProcessUsage;
use crate::process::Exit;
use crate::spec::PodFiles;

/// What there is to a sandbox that was made through the sandbox API.
pub struct ApiSandbox {
    /// What it gives its containers.
    pub files: PodFiles,
    /// Since when it exists.
    pub created_at: SystemTime,
}

/// The way to end a sandbox.
pub struct SandboxEnd(watch::Sender<Option<u32>>);

/// Tells when a sandbox is to end.
pub struct Ending(watch::Receiver<Option<u32>>);

impl SandboxEnd {
    /// A sandbox that goes on.
    pub fn new() -> (Self, Ending) {
        let (sender, receiver) = watch::channel(None);
        (Self(sender), Ending(receiver))
    }

    /// Ends it with this status; the first one counts.
    pub fn ask(&self, status: u32) {
        self.0.send_if_modified(|asked| {
            let first = asked.is_none();
            asked.get_or_insert(status);
            first
        });
    }

    /// Does what a signal does to the program that otherwise stands for a pod: it ends on SIGINT and SIGTERM, and has no
    /// use for others.
    pub fn signal(&self, signal: u32) {
        match i32::try_from(signal) {
            Ok(libc::SIGKILL) => self.ask(128 + signal),
            Ok(libc::SIGINT | libc::SIGTERM) => self.ask(0),
            _ => log::debug!("a sandbox has no use for signal {signal}"),
        }
    }
}

impl Ending {
    /// Waits until it is to end; with which status.
    pub async fn asked(mut self) -> u32 {
        let asked = self.0.wait_for(Option::is_some).await.map(|status| *status);
        match asked {
            Ok(status) => status.unwrap_or_default(),
            // Nobody is left who could ask.
            Err(_) => std::future::pending().await,
        }
    }
}

/// What the monitor takes of the host, as the statistics of the sandbox.
pub fn host_stats(usage: ProcessUsage) -> ContainerStatsResponse {
    let ProcessUsage { resident_bytes, user_usec, system_usec, .. } = usage;
    let cpu = CpuStats { usage_usec: user_usec + system_usec, user_usec, system_usec, ..CpuStats::default() };
    let memory =
        MemoryStats { usage_bytes: resident_bytes, anon_bytes: resident_bytes, ..MemoryStats::default() };
    let pids = PidsStats { current: 1, ..PidsStats::default() };
    ContainerStatsResponse {
        memory: Some(memory).into(),
        cpu: Some(cpu).into(),
        pids: Some(pids).into(),
        ..ContainerStatsResponse::default()
    }
}

impl Container {
    /// Records and tells how a sandbox ended.
    pub async fn end_sandbox(&self, exit: Exit) {
        self.init.start_settled().await;
        supervise::record_and_announce(self, exit);
    }
}
