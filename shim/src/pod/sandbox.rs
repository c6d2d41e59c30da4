//! The sandbox API: a pod that is asked for as such, without a container that stands for it. The VM boots when it is created.
//!
//! It is the same [`Container`] of [`Kind::Sandbox`] that a pause container becomes. No client of the task service sees it, and
//! no event is told of it: its own client waits for it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::sandbox_api::CreateSandboxRequest;
use hull_protocol::agent::api::agent::ContainerStatsResponse;

use super::{Pod, PowerOff, ShutdownMode, Slot, stop};
use crate::container::{ApiSandbox, Container, Kind, SandboxEnd};
use crate::error::TaskError;
use crate::events::Events;
use crate::io::StdioSpec;
use crate::process::{Exit, Phase, Process};
use crate::spec::{Role, SandboxRequest, check_id};

/// The status of a sandbox that was asked to end.
const ENDED: u32 = 0;

impl Pod {
    /// Boots the VM of a pod. Whatever fails, everything before it is undone.
    pub async fn create_sandbox(
        self: &Arc<Self>,
        request: CreateSandboxRequest,
        own: &str,
    ) -> Result<(), TaskError> {
        check_id(&request.sandbox_id, own)?;
        let (reservation, _) = self.reserve(own, &Role::Sandbox)?;
        let asked = SandboxRequest {
            id: own,
            namespace: &self.namespace,
            options: request.options.as_ref(),
            netns: &request.netns_path,
        };
        let (pod, files) = asked.translate(&self.config)?;
        let no_streams = StdioSpec::parse("", "", "", false)?;
        let bundle = PathBuf::from(&request.bundle_path);
        let vm = self.boot_pod(pod, &bundle, &reservation.abandoned).await?;
        let init = Arc::new(Process::new(own, None, no_streams));
        init.set_pid(vm.pid());
        let (end, ending) = SandboxEnd::new();
        let api = ApiSandbox { files, created_at: SystemTime::now() };
        let container =
            Container::new(own, bundle, Kind::Sandbox(end), vm, init, Events::nowhere()).with_api(api);
        let container = Arc::new(container);
        reservation.fulfil(Arc::clone(&container));
        let pod = Arc::clone(self);
        tokio::spawn(async move { pod.supervise_sandbox(&container, ending).await });
        Ok(())
    }

    /// The pod's sandbox, if it was made through the sandbox API.
    pub fn sandbox(&self, id: &str) -> Result<(Arc<Container>, SystemTime), TaskError> {
        let table = self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match table.get(id) {
            Some(Slot::Ready(container) | Slot::Deleting(container)) => match &container.api {
                Some(api) => Ok((Arc::clone(container), api.created_at)),
                None => Err(TaskError::NoSandbox(id.to_owned())),
            },
            Some(Slot::Creating(_)) => Err(TaskError::Precondition {
                action: "use the sandbox",
                subject: "sandbox",
                state: "still being created",
            }),
            None => Err(TaskError::NoSandbox(id.to_owned())),
        }
    }

    /// Lets containers come. Returns the pid that stands for the pod on the host, and since when it exists.
    pub async fn start_sandbox(&self, id: &str) -> Result<(u32, SystemTime), TaskError> {
        let (sandbox, created_at) = self.sandbox(id)?;
        let phase = sandbox.init.phase();
        if phase != Phase::Created {
            return Err(TaskError::Precondition {
                action: "start the sandbox",
                subject: "sandbox",
                state: phase.word(),
            });
        }
        Ok((sandbox.start_init().await?, created_at))
    }

    /// Ends the VM and everything in it; when it returns, nothing of it is left on the host. After `patience` no guest is
    /// waited for any more. One that has ended stays so.
    pub async fn stop_sandbox(&self, id: &str, patience: Option<Duration>) -> Result<(), TaskError> {
        let (sandbox, _) = self.sandbox(id)?;
        if let Kind::Sandbox(end) = &sandbox.kind {
            end.ask(ENDED);
        }
        let exited = sandbox.init.exited();
        match patience {
            None => drop(exited.await),
            Some(patience) => {
                if tokio::time::timeout(patience, exited).await.is_err() {
                    stop(&sandbox.vm, PowerOff::Now).await;
                    sandbox.init.exited().await;
                }
            }
        }
        Ok(())
    }

    /// Waits for the end of the pod.
    pub async fn wait_sandbox(&self, id: &str) -> Result<Exit, TaskError> {
        let (sandbox, _) = self.sandbox(id)?;
        Ok(sandbox.init.exited().await)
    }

    /// Whether the pod's VM is there.
    pub fn ping_sandbox(&self, id: &str) -> Result<(), TaskError> {
        let (sandbox, _) = self.sandbox(id)?;
        if sandbox.is_running_sandbox() {
            return Ok(());
        }
        Err(TaskError::Precondition { action: "ping the sandbox", subject: "sandbox", state: "stopped" })
    }

    /// What the pod's VM takes of the host.
    pub async fn sandbox_stats(&self, id: &str) -> Result<ContainerStatsResponse, TaskError> {
        let (sandbox, _) = self.sandbox(id)?;
        sandbox.stats().await
    }

    /// Ends everything, and lets the shim end. There may be nothing.
    pub async fn shut_down_sandbox(&self, id: &str, own: &str) -> Result<(), TaskError> {
        if id != own {
            return Err(TaskError::NoSandbox(id.to_owned()));
        }
        self.shut_down(ShutdownMode::Now).await;
        Ok(())
    }
}
