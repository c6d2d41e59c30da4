//! The agent in the guest, asked over ttrpc. Every call ends: with an answer, at its deadline, or when the VM ends.

use std::time::Duration;

use hull_protocol::agent::ANSWER_DEADLINE;
use hull_protocol::agent::api::agent::{
    ConfigureNetworkRequest, ConfigurePodRequest, ContainerRequest, ContainerStatsResponse,
    CreateContainerRequest, CreateExecRequest, DebugRequest, DebugResponse, Empty, ExitStatus, GuestEvent,
    InfoRequest, InfoResponse, OnlineCpusRequest, ProcessRequest, ResizeTerminalRequest, ShutdownRequest,
    SignalProcessRequest, SlotRequest, UpdateContainerRequest,
};
use hull_protocol::agent::api::agent_ttrpc::AgentClient;
use tokio::net::UnixStream;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::Context;
use ttrpc::proto::Code;

use super::{VmEnd, VmEnded, printable};
use crate::trace::{self, Kind};

/// When an agent that keeps its own deadline has answered; generous, because hosts may be slow.
const DEADLINE: Duration = ANSWER_DEADLINE.saturating_add(Duration::from_secs(10));

/// Why the agent did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It refused.
    #[error("{message}")]
    Refused {
        /// Its status code.
        code: Code,
        /// Its words, bounded and printable.
        message: String,
    },
    /// It did not answer.
    #[error("the agent in the guest did not answer {call} within {} s", .deadline.as_secs())]
    Silent {
        /// What was asked.
        call: &'static str,
        /// How long was waited.
        deadline: Duration,
    },
    /// The connection broke.
    #[error("the connection to the agent in the guest broke: {0}")]
    Connection(String),
    /// The VM ended.
    #[error("the VM ended: {0}")]
    VmEnded(VmEnd),
}

impl AgentError {
    /// The status code for the client.
    pub fn code(&self) -> Code {
        match self {
            Self::Refused { code, .. } => *code,
            Self::Silent { .. } => Code::DEADLINE_EXCEEDED,
            Self::Connection(_) | Self::VmEnded(_) => Code::UNKNOWN,
        }
    }

    /// The same error under UNKNOWN, as runc's errors about the program to run reach clients.
    #[must_use]
    pub fn about_the_program(self) -> Self {
        match self {
            Self::Refused {
                code: Code::NOT_FOUND | Code::ALREADY_EXISTS | Code::INVALID_ARGUMENT,
                message,
            } => Self::Refused { code: Code::UNKNOWN, message },
            other => other,
        }
    }
}

/// The agent of one VM. Clones share the connection.
#[derive(Clone)]
pub struct Agent {
    client: AgentClient,
    end: VmEnded,
}

impl Agent {
    /// The agent at the other end of a connection that it opened itself.
    pub fn new(connection: UnixStream, end: VmEnded) -> Self {
        Self { client: AgentClient::new(Client::new(Socket::new(connection))), end }
    }

    async fn call<T>(
        &self,
        call: &'static str,
        deadline: Option<Duration>,
        answer: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, AgentError> {
        let bounded = async {
            match deadline {
                None => Ok(answer.await),
                Some(deadline) => tokio::time::timeout(deadline, answer)
                    .await
                    .map_err(|_elapsed| AgentError::Silent { call, deadline }),
            }
        };
        let span = trace::step(Kind::Client, || format!("agent/{call}"));
        let answered = tokio::select! {
            answer = bounded => match answer {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(ttrpc::Error::RpcStatus(status))) => {
                    Err(AgentError::Refused { code: status.code(), message: printable(&status.message) })
                }
                Ok(Err(error)) => Err(self.broken(&error).await),
                Err(error) => Err(error),
            },
            end = self.end.wait() => Err(AgentError::VmEnded(end)),
        };
        trace::done(span, answered)
    }

    /// A broken connection is nearly always the VM's end, which is known a moment later.
    async fn broken(&self, error: &ttrpc::Error) -> AgentError {
        match tokio::time::timeout(Duration::from_secs(2), self.end.wait()).await {
            Ok(end) => AgentError::VmEnded(end),
            Err(_elapsed) => AgentError::Connection(printable(&error.to_string())),
        }
    }

    /// What the guest is.
    pub async fn info(&self, request: &InfoRequest) -> Result<InfoResponse, AgentError> {
        self.call("Info", Some(DEADLINE), self.client.info(Context::default(), request)).await
    }

    /// Pod-wide settings.
    pub async fn configure_pod(&self, request: &ConfigurePodRequest) -> Result<(), AgentError> {
        self.call("ConfigurePod", Some(DEADLINE), self.client.configure_pod(Context::default(), request))
            .await
            .map(drop)
    }

    /// The pod's network.
    pub async fn configure_network(&self, request: &ConfigureNetworkRequest) -> Result<(), AgentError> {
        let answer = self.client.configure_network(Context::default(), request);
        self.call("ConfigureNetwork", Some(DEADLINE), answer).await.map(drop)
    }

    /// Prepares a container's init process.
    pub async fn create_container(&self, request: &CreateContainerRequest) -> Result<u32, AgentError> {
        let answer = self.client.create_container(Context::default(), request);
        self.call("CreateContainer", Some(DEADLINE), answer).await.map(|response| response.pid)
    }

    /// Prepares a further process.
    pub async fn create_exec(&self, request: &CreateExecRequest) -> Result<(), AgentError> {
        let answer = self.client.create_exec(Context::default(), request);
        self.call("CreateExec", Some(DEADLINE), answer).await.map(drop)
    }

    /// Lets a process run; its process id in the guest.
    pub async fn start_process(&self, request: &ProcessRequest) -> Result<u32, AgentError> {
        let answer = self.client.start_process(Context::default(), request);
        self.call("StartProcess", Some(DEADLINE), answer).await.map(|response| response.pid)
    }

    /// Sends a signal.
    pub async fn signal_process(&self, request: &SignalProcessRequest) -> Result<(), AgentError> {
        let answer = self.client.signal_process(Context::default(), request);
        self.call("SignalProcess", Some(DEADLINE), answer).await.map(drop)
    }

    /// Waits for a process, however long that takes.
    pub async fn wait_process(&self, request: &ProcessRequest) -> Result<ExitStatus, AgentError> {
        self.call("WaitProcess", None, self.client.wait_process(Context::default(), request)).await
    }

    /// Sets a terminal's size.
    pub async fn resize_terminal(&self, request: &ResizeTerminalRequest) -> Result<(), AgentError> {
        let answer = self.client.resize_terminal(Context::default(), request);
        self.call("ResizeTerminal", Some(DEADLINE), answer).await.map(drop)
    }

    /// Forgets an exec.
    pub async fn delete_exec(&self, request: &ProcessRequest) -> Result<(), AgentError> {
        self.call("DeleteExec", Some(DEADLINE), self.client.delete_exec(Context::default(), request))
            .await
            .map(drop)
    }

    /// Removes a container and what still runs in it.
    pub async fn delete_container(&self, request: &ContainerRequest) -> Result<(), AgentError> {
        let answer = self.client.delete_container(Context::default(), request);
        self.call("DeleteContainer", Some(DEADLINE), answer).await.map(drop)
    }

    /// Freezes a container.
    pub async fn pause_container(&self, request: &ContainerRequest) -> Result<(), AgentError> {
        let answer = self.client.pause_container(Context::default(), request);
        self.call("PauseContainer", Some(DEADLINE), answer).await.map(drop)
    }

    /// Lets a frozen container go on.
    pub async fn resume_container(&self, request: &ContainerRequest) -> Result<(), AgentError> {
        let answer = self.client.resume_container(Context::default(), request);
        self.call("ResumeContainer", Some(DEADLINE), answer).await.map(drop)
    }

    /// Changes limits.
    pub async fn update_container(&self, request: &UpdateContainerRequest) -> Result<(), AgentError> {
        let answer = self.client.update_container(Context::default(), request);
        self.call("UpdateContainer", Some(DEADLINE), answer).await.map(drop)
    }

    /// Asks the debug console.
    pub async fn debug(&self, request: &DebugRequest) -> Result<DebugResponse, AgentError> {
        self.call("Debug", Some(DEADLINE), self.client.debug(Context::default(), request)).await
    }

    /// Takes the last change of limits back.
    pub async fn revert_update(&self, request: &ContainerRequest) -> Result<(), AgentError> {
        let answer = self.client.revert_update(Context::default(), request);
        self.call("RevertUpdate", Some(DEADLINE), answer).await.map(drop)
    }

    /// What a container uses.
    pub async fn container_stats(
        &self,
        request: &ContainerRequest,
    ) -> Result<ContainerStatsResponse, AgentError> {
        let answer = self.client.container_stats(Context::default(), request);
        self.call("ContainerStats", Some(DEADLINE), answer).await
    }

    /// Makes the driver take the device in a slot.
    pub async fn bind_slot(&self, slot: u8) -> Result<(), AgentError> {
        let request = SlotRequest { slot: slot.into(), ..SlotRequest::default() };
        let answer = self.client.bind_slot(Context::default(), &request);
        self.call("BindSlot", Some(DEADLINE), answer).await.map(drop)
    }

    /// Makes the driver let go of the device in a slot.
    pub async fn unbind_slot(&self, slot: u8) -> Result<(), AgentError> {
        let request = SlotRequest { slot: slot.into(), ..SlotRequest::default() };
        let answer = self.client.unbind_slot(Context::default(), &request);
        self.call("UnbindSlot", Some(DEADLINE), answer).await.map(drop)
    }

    /// Has so many processors run: starts further ones, or stops those that are more.
    pub async fn online_cpus(&self, count: u8) -> Result<(), AgentError> {
        let request = OnlineCpusRequest { count: count.into(), ..OnlineCpusRequest::default() };
        let answer = self.client.online_cpus(Context::default(), &request);
        self.call("OnlineCpus", Some(DEADLINE), answer).await.map(drop)
    }

    /// Waits for what happens in the guest unasked. One caller at a time.
    pub async fn next_event(&self) -> Result<GuestEvent, AgentError> {
        let nothing = Empty::new();
        self.call("NextEvent", None, self.client.next_event(Context::default(), &nothing)).await
    }

    /// Ends the guest in good order. The VM's end is the answer as good as any other.
    pub async fn shutdown(&self, request: &ShutdownRequest) -> Result<(), AgentError> {
        match self.call("Shutdown", Some(DEADLINE), self.client.shutdown(Context::default(), request)).await {
            Err(AgentError::VmEnded(_)) => Ok(()),
            other => other.map(drop),
        }
    }
}
