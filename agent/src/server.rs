//! The ttrpc service: requests in, checked and turned into questions to a container or the pod; answers out.

pub mod checked;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hull_protocol::agent::API_VERSION;
use hull_protocol::agent::api::agent as api;
use hull_protocol::agent::api::agent_ttrpc::Agent;
use tokio::sync::{mpsc, watch};
use ttrpc::r#async::TtrpcContext;

use crate::container::{Exit, Handle, ProcessName, Registry, Request, Target};
use crate::cpus;
use crate::deadline::GRACE_MAX;
use crate::debug;
use crate::devices;
use crate::environment::Environment;
use crate::error::Error;
use crate::helper::Output;
use crate::network;
use crate::news::News;
use crate::pod;
use crate::slots::{self, Action};
use checked::name;

/// How long the containers may take to end after their time of grace at a shutdown.
const ENDING: Duration = Duration::from_secs(20);

/// Serves [`Agent`].
pub struct Service {
    environment: Arc<Environment>,
    containers: Registry,
    news: News,
    shut_down: watch::Sender<bool>,
    power_off: mpsc::Sender<()>,
}

impl Service {
    /// After a shutdown request has been answered, `power_off` gets a message.
    pub fn new(environment: Arc<Environment>, containers: Registry, power_off: mpsc::Sender<()>) -> Self {
        let (news, shut_down) = (News::default(), watch::Sender::new(false));
        Self { environment, containers, news, shut_down, power_off }
    }

    fn container(&self, id: &str) -> Result<Handle, Error> {
        self.containers.find(id)
    }

    async fn watch(&self, request: &api::ProcessRequest) -> Result<Exit, Error> {
        let (id, name) = (&request.container_id, name(&request.exec_id));
        let mut exit = self.container(id)?.ask(id, |reply| Request::Watch { name, reply }).await?;
        let gone = |_| Error::NoContainer(id.clone());
        let exit = exit.wait_for(Option::is_some).await.map_err(gone)?;
        exit.ok_or_else(|| Error::NoContainer(id.clone()))
    }

    async fn create(&self, request: api::CreateContainerRequest) -> Result<u32, Error> {
        if *self.shut_down.borrow() {
            return Err(Error::ShuttingDown);
        }
        let nodes = checked::device_nodes(&request)?;
        let disks = devices::numbers(&self.environment.disks, &request.block_devices)?;
        let mut creation = checked::creation(request)?;
        creation.spec.translate_devices(&disks);
        if nodes == api::DeviceNodes::OF_GUEST {
            creation.spec.add_devices(devices::of_the_guest());
        }
        self.containers.create(self.environment.clone(), creation).await
    }

    async fn exec(&self, request: api::CreateExecRequest) -> Result<(), Error> {
        let container = self.container(&request.container_id)?;
        let spec = Box::new(checked::exec(&request)?);
        let cgroup = Some(request.cgroup).filter(|path| !path.is_empty());
        let (id, stdio) = (request.exec_id, request.stdio.unwrap_or_default());
        let exec = |reply| Request::Exec { id, spec, cgroup, stdio, reply };
        container.ask(&request.container_id, exec).await
    }

    async fn signal(&self, request: api::SignalProcessRequest) -> Result<(), Error> {
        let (target, signal) = checked::signal(&request)?;
        let id = &request.container_id;
        self.container(id)?.ask(id, |reply| Request::Signal { target, signal, reply }).await
    }

    async fn resize(&self, request: api::ResizeTerminalRequest) -> Result<(), Error> {
        let size = checked::size(&request)?;
        let (id, name) = (&request.container_id, name(&request.exec_id));
        self.container(id)?.ask(id, |reply| Request::Resize { name, size, reply }).await
    }

    async fn end_all(&self, grace: Duration) -> Result<(), Error> {
        self.shut_down.send_replace(true);
        let ended = self.containers.all().into_iter().map(|container| async move {
            let target = Target::All;
            let terminate =
                container.ask("", |reply| Request::Signal { target, signal: libc::SIGTERM, reply }).await;
            if terminate.is_ok() && !grace.is_zero() {
                let init = container.ask("", |reply| Request::Watch { name: ProcessName::Init, reply }).await;
                if let Ok(mut init) = init {
                    // Either way the next step is the same.
                    let _ = tokio::time::timeout(grace, init.wait_for(Option::is_some)).await;
                }
            }
            match container.ask("", |reply| Request::Delete { reply }).await {
                // Somebody else deleted it.
                Ok(()) | Err(Error::NoContainer(_)) => Ok(()),
                Err(error) => Err(error),
            }
        });
        let results = futures::future::join_all(ended).await;
        results.into_iter().collect()
    }
}

fn empty(_: ()) -> api::Empty {
    api::Empty::new()
}

#[async_trait]
impl Agent for Service {
    async fn info(&self, _: &TtrpcContext, request: api::InfoRequest) -> ttrpc::Result<api::InfoResponse> {
        if request.api_version != API_VERSION {
            return Err(Error::Version { theirs: request.api_version, ours: API_VERSION }.into());
        }
        Ok(pod::info(&self.environment))
    }

    async fn configure_pod(
        &self,
        _: &TtrpcContext,
        request: api::ConfigurePodRequest,
    ) -> ttrpc::Result<api::Empty> {
        Ok(pod::configure(&self.environment, &request).map(empty).map_err(Error::from)?)
    }

    async fn configure_network(
        &self,
        _: &TtrpcContext,
        request: api::ConfigureNetworkRequest,
    ) -> ttrpc::Result<api::Empty> {
        Ok(network::configure(&request).map(empty).map_err(Error::from)?)
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: api::CreateContainerRequest,
    ) -> ttrpc::Result<api::CreateContainerResponse> {
        let pid = self.create(request).await?;
        Ok(api::CreateContainerResponse { pid, ..api::CreateContainerResponse::default() })
    }

    async fn create_exec(
        &self,
        _: &TtrpcContext,
        request: api::CreateExecRequest,
    ) -> ttrpc::Result<api::Empty> {
        Ok(self.exec(request).await.map(empty)?)
    }

    async fn start_process(
        &self,
        _: &TtrpcContext,
        request: api::ProcessRequest,
    ) -> ttrpc::Result<api::StartProcessResponse> {
        let (id, name) = (&request.container_id, name(&request.exec_id));
        let pid = self.container(id)?.ask(id, |reply| Request::Start { name, reply }).await?;
        Ok(api::StartProcessResponse { pid, ..api::StartProcessResponse::default() })
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: api::SignalProcessRequest,
    ) -> ttrpc::Result<api::Empty> {
        Ok(self.signal(request).await.map(empty)?)
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: api::ProcessRequest,
    ) -> ttrpc::Result<api::ExitStatus> {
        let exit = self.watch(&request).await?;
        Ok(api::ExitStatus {
            code: exit.code,
            exited_at_nanos: exit.at_nanos,
            oom_killed: exit.oom_killed,
            stdout_bytes: exit.sent.stdout,
            stderr_bytes: exit.sent.stderr,
            ..api::ExitStatus::default()
        })
    }

    async fn resize_terminal(
        &self,
        _: &TtrpcContext,
        request: api::ResizeTerminalRequest,
    ) -> ttrpc::Result<api::Empty> {
        Ok(self.resize(request).await.map(empty)?)
    }

    async fn delete_exec(&self, _: &TtrpcContext, request: api::ProcessRequest) -> ttrpc::Result<api::Empty> {
        let (container, id) = (&request.container_id, request.exec_id);
        let container_handle = self.container(container)?;
        Ok(container_handle.ask(container, |reply| Request::DeleteExec { id, reply }).await.map(empty)?)
    }

    async fn delete_container(
        &self,
        _: &TtrpcContext,
        request: api::ContainerRequest,
    ) -> ttrpc::Result<api::Empty> {
        let id = &request.container_id;
        Ok(self.container(id)?.ask(id, |reply| Request::Delete { reply }).await.map(empty)?)
    }

    async fn pause_container(
        &self,
        _: &TtrpcContext,
        request: api::ContainerRequest,
    ) -> ttrpc::Result<api::Empty> {
        let id = &request.container_id;
        Ok(self.container(id)?.ask(id, |reply| Request::Pause { reply }).await.map(empty)?)
    }

    async fn resume_container(
        &self,
        _: &TtrpcContext,
        request: api::ContainerRequest,
    ) -> ttrpc::Result<api::Empty> {
        let id = &request.container_id;
        Ok(self.container(id)?.ask(id, |reply| Request::Resume { reply }).await.map(empty)?)
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: api::UpdateContainerRequest,
    ) -> ttrpc::Result<api::Empty> {
        let id = &request.container_id;
        let container = self.container(id)?;
        let limits = checked::update(&request)?;
        Ok(container.ask(id, |reply| Request::Update { limits, reply }).await.map(empty)?)
    }

    async fn revert_update(
        &self,
        _: &TtrpcContext,
        request: api::ContainerRequest,
    ) -> ttrpc::Result<api::Empty> {
        let id = &request.container_id;
        Ok(self.container(id)?.ask(id, |reply| Request::Revert { reply }).await.map(empty)?)
    }

    async fn container_stats(
        &self,
        _: &TtrpcContext,
        request: api::ContainerRequest,
    ) -> ttrpc::Result<api::ContainerStatsResponse> {
        let id = &request.container_id;
        let mut stats = self.container(id)?.ask(id, |reply| Request::Stats { reply }).await?;
        stats.network = network::counters();
        Ok(stats)
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        request: api::ContainerRequest,
    ) -> ttrpc::Result<api::ListProcessesResponse> {
        let id = &request.container_id;
        let pids = self.container(id)?.ask(id, |reply| Request::Pids { reply }).await?;
        Ok(api::ListProcessesResponse { pids, ..api::ListProcessesResponse::default() })
    }

    async fn bind_slot(&self, _: &TtrpcContext, request: api::SlotRequest) -> ttrpc::Result<api::Empty> {
        Ok(slots::drive(&self.environment.children, Action::Bind, request.slot).await.map(empty)?)
    }

    async fn unbind_slot(&self, _: &TtrpcContext, request: api::SlotRequest) -> ttrpc::Result<api::Empty> {
        Ok(slots::drive(&self.environment.children, Action::Unbind, request.slot).await.map(empty)?)
    }

    async fn online_cpus(
        &self,
        _: &TtrpcContext,
        request: api::OnlineCpusRequest,
    ) -> ttrpc::Result<api::Empty> {
        Ok(cpus::online(&self.environment.children, request.count).await.map(empty)?)
    }

    async fn debug(&self, _: &TtrpcContext, request: api::DebugRequest) -> ttrpc::Result<api::DebugResponse> {
        let Environment { console, children, .. } = &*self.environment;
        let Output { bytes, cut } = debug::ask(*console, children, &request.line).await?;
        Ok(api::DebugResponse { output: bytes, cut, ..api::DebugResponse::default() })
    }

    async fn next_event(&self, _: &TtrpcContext, _: api::Empty) -> ttrpc::Result<api::GuestEvent> {
        Ok(self.news.next(&self.environment).await?)
    }

    async fn shutdown(&self, _: &TtrpcContext, request: api::ShutdownRequest) -> ttrpc::Result<api::Empty> {
        let grace = Duration::from_millis(request.grace_millis.into()).min(GRACE_MAX);
        let ended = tokio::time::timeout(grace + ENDING, self.end_all(grace)).await;
        let result = ended.unwrap_or(Err(Error::Deadline("ending the containers")));
        // The machine ends even if a container did not want to; a full channel means that it is ending already.
        let _ = self.power_off.try_send(());
        Ok(result.map(empty)?)
    }
}
