//! The client's side: start a pod's shim and speak to its task service, exactly as containerd does.
//!
//! Used by the `hull` command. It owns no state: everything lives in the shim and in the bundle.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use containerd_shim_protos::api;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::empty::Empty;
use ttrpc::asynchronous::Client;
use ttrpc::proto::Request;

use crate::metrics::{self as pod_metrics, PodMetrics};

pub use containerd_shim_protos::api as messages;
pub use containerd_shim_protos::cgroups_v2::metrics;
pub use ttrpc::proto::Code;

/// Environment variable that names the shim's executable.
pub const SHIM_VARIABLE: &str = "HULL_SHIM";
/// File name of the shim's executable.
pub const SHIM_NAME: &str = "containerd-shim-hull-v2";
/// The type URL of the JSON in [`TaskClient::exec`].
pub const PROCESS_TYPE_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// The type URL of the JSON in [`TaskClient::update`].
pub const RESOURCES_TYPE_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

const SERVICE: &str = "containerd.task.v2.Task";
/// A shim answers these from memory.
const QUICK: Duration = Duration::from_secs(30);
/// The guest has a part in these.
const GUEST: Duration = Duration::from_secs(120);

/// Why a shim could not be started or a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No executable where one should be.
    #[error(
        "{SHIM_NAME} is not to be found: set {SHIM_VARIABLE}, or install it beside this program or in PATH"
    )]
    NoShim,
    /// The variable names something that is not there.
    #[error("{SHIM_VARIABLE} names {path}, which does not exist", path = .0.display())]
    BadVariable(PathBuf),
    /// The executable could not be run.
    #[error("cannot run {path}: {source}", path = path.display())]
    Spawn {
        /// The executable.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The shim ran and failed; the message is its own words.
    #[error("{message}")]
    Shim {
        /// How it ended.
        status: ExitStatus,
        /// What it wrote.
        message: String,
    },
    /// The task service cannot be reached, or the connection broke.
    #[error("the shim at {address} cannot be reached: {message}")]
    Connection {
        /// The service's address.
        address: String,
        /// What happened.
        message: String,
    },
    /// The service answered with an error.
    #[error("{message}")]
    Status {
        /// The kind of error.
        code: Code,
        /// The service's words.
        message: String,
    },
}

impl ClientError {
    /// The status code where the service itself answered.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Status { code, .. } => Some(*code),
            Self::NoShim
            | Self::BadVariable(_)
            | Self::Spawn { .. }
            | Self::Shim { .. }
            | Self::Connection { .. } => None,
        }
    }

    /// Whether the service does not know the container or process, or it has already ended.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(Code::NOT_FOUND)
    }

    /// Whether no shim answers: it has ended, or the connection broke.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Connection { .. })
    }
}

/// A shim to be run for one bundle.
#[derive(Clone, Debug)]
pub struct Shim {
    /// The executable, see [`Shim::find`].
    pub binary: PathBuf,
    /// Namespace of the container's id.
    pub namespace: String,
    /// The container's id.
    pub id: String,
    /// The bundle's directory; absolute.
    pub bundle: PathBuf,
    /// The address by which the shim could call back; part of the identity of the pod's socket.
    pub callback_address: String,
}

impl Shim {
    /// The executable: [`SHIM_VARIABLE`], else beside the running program, else in `PATH`.
    pub fn find() -> Result<PathBuf, ClientError> {
        if let Some(path) = std::env::var_os(SHIM_VARIABLE).map(PathBuf::from) {
            return if path.is_file() { Ok(path) } else { Err(ClientError::BadVariable(path)) };
        }
        let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
        let path = std::env::var_os("PATH").unwrap_or_default();
        beside
            .into_iter()
            .chain(std::env::split_paths(&path))
            .map(|folder| folder.join(SHIM_NAME))
            .find(|candidate| candidate.is_file())
            .ok_or(ClientError::NoShim)
    }

    /// Starts the pod's shim, or finds the one that already runs, and returns the address of its task service.
    /// Blocks for the few milliseconds that this takes.
    pub fn start(&self) -> Result<String, ClientError> {
        let output = self.run("start", &[])?;
        Ok(String::from_utf8_lossy(&output).trim().to_owned())
    }

    /// Cleans up what a shim that is no more has left behind. Idempotent.
    pub fn delete(&self) -> Result<api::DeleteResponse, ClientError> {
        let bundle = [OsString::from("-bundle"), self.bundle.clone().into_os_string()];
        let output = self.run("delete", &bundle)?;
        api::DeleteResponse::parse_from_bytes(&output).map_err(|error| ClientError::Status {
            code: Code::INTERNAL,
            message: format!("the shim's answer to delete is damaged: {error}"),
        })
    }

    fn run(&self, action: &str, more: &[OsString]) -> Result<Vec<u8>, ClientError> {
        let output = Command::new(&self.binary)
            .args(["-namespace", &self.namespace, "-address", &self.callback_address])
            .args(["-publish-binary", "/bin/true", "-id", &self.id])
            .args(more)
            .arg(action)
            .current_dir(if self.bundle.is_dir() { &self.bundle } else { Path::new("/") })
            .stdin(Stdio::null())
            .output()
            .map_err(|source| ClientError::Spawn { path: self.binary.clone(), source })?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let message =
            if message.is_empty() { format!("the shim ended with {}", output.status) } else { message };
        Err(ClientError::Shim { status: output.status, message })
    }
}

/// The address by which Create and Exec name a file that output is appended to.
pub fn file_address(path: &Path) -> String {
    crate::io::file_address(path)
}

/// Which process of a container: its init, or an exec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process<'a> {
    /// The container's id.
    pub container: &'a str,
    /// The exec's id; empty for the init process.
    pub exec: &'a str,
}

impl<'a> Process<'a> {
    /// The init process of a container.
    pub fn init(container: &'a str) -> Self {
        Self { container, exec: "" }
    }

    /// A further process in a container.
    pub fn exec(container: &'a str, exec: &'a str) -> Self {
        Self { container, exec }
    }
}

/// Whom a signal reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The one process.
    Process,
    /// Every process of the container.
    Container,
}

/// The task service of one pod. Clones share the connection; calls may run at the same time.
///
/// A call whose future is dropped still takes effect in the shim.
#[derive(Clone)]
pub struct TaskClient {
    client: Client,
    address: String,
}

impl TaskClient {
    /// Connects to the address that [`Shim::start`] returned or the bundle's `address` file holds.
    pub async fn connect(address: &str) -> Result<Self, ClientError> {
        let client = Client::connect(address).await.map_err(|error| ClientError::Connection {
            address: address.to_owned(),
            message: error.to_string(),
        })?;
        Ok(Self { client, address: address.to_owned() })
    }

    /// Boots the VM and prepares the container's init process. Returns its process id on the host.
    pub async fn create(&self, request: &api::CreateTaskRequest) -> Result<u32, ClientError> {
        // The shim has its own deadline for the boot; it knows better than we why it was missed.
        let response: api::CreateTaskResponse = self.call("Create", request, None).await?;
        Ok(response.pid)
    }

    /// Lets a created process run. Returns its process id.
    pub async fn start(&self, process: Process<'_>) -> Result<u32, ClientError> {
        let mut request = api::StartRequest::new();
        request.id = process.container.to_owned();
        request.exec_id = process.exec.to_owned();
        let response: api::StartResponse = self.call("Start", &request, Some(GUEST)).await?;
        Ok(response.pid)
    }

    /// Registers an exec, to be run by [`start`](Self::start). `request.spec` is made by [`json_any`].
    pub async fn exec(&self, request: &api::ExecProcessRequest) -> Result<(), ClientError> {
        self.call::<_, Empty>("Exec", request, Some(GUEST)).await.map(drop)
    }

    /// Blocks until the process has exited and its output is delivered.
    pub async fn wait(&self, process: Process<'_>) -> Result<api::WaitResponse, ClientError> {
        let mut request = api::WaitRequest::new();
        request.id = process.container.to_owned();
        request.exec_id = process.exec.to_owned();
        self.call("Wait", &request, None).await
    }

    /// Sends a signal.
    pub async fn kill(&self, process: Process<'_>, signal: u32, reach: Reach) -> Result<(), ClientError> {
        let mut request = api::KillRequest::new();
        request.id = process.container.to_owned();
        request.exec_id = process.exec.to_owned();
        request.signal = signal;
        request.all = reach == Reach::Container;
        self.call::<_, Empty>("Kill", &request, Some(GUEST)).await.map(drop)
    }

    /// Forgets an exited process, and with the init the container.
    pub async fn delete(&self, process: Process<'_>) -> Result<api::DeleteResponse, ClientError> {
        let mut request = api::DeleteRequest::new();
        request.id = process.container.to_owned();
        request.exec_id = process.exec.to_owned();
        self.call("Delete", &request, Some(GUEST)).await
    }

    /// The state of a process.
    pub async fn state(&self, process: Process<'_>) -> Result<api::StateResponse, ClientError> {
        let mut request = api::StateRequest::new();
        request.id = process.container.to_owned();
        request.exec_id = process.exec.to_owned();
        self.call("State", &request, Some(QUICK)).await
    }

    /// The process ids of a container as the host can speak of them.
    pub async fn pids(&self, container: &str) -> Result<Vec<api::ProcessInfo>, ClientError> {
        let mut request = api::PidsRequest::new();
        request.id = container.to_owned();
        let response: api::PidsResponse = self.call("Pids", &request, Some(QUICK)).await?;
        Ok(response.processes)
    }

    /// Freezes a container.
    pub async fn pause(&self, container: &str) -> Result<(), ClientError> {
        let mut request = api::PauseRequest::new();
        request.id = container.to_owned();
        self.call::<_, Empty>("Pause", &request, Some(GUEST)).await.map(drop)
    }

    /// Lets a frozen container go on.
    pub async fn resume(&self, container: &str) -> Result<(), ClientError> {
        let mut request = api::ResumeRequest::new();
        request.id = container.to_owned();
        self.call::<_, Empty>("Resume", &request, Some(GUEST)).await.map(drop)
    }

    /// Sets the size of a process's terminal, in characters.
    pub async fn resize(&self, process: Process<'_>, columns: u32, rows: u32) -> Result<(), ClientError> {
        let mut request = api::ResizePtyRequest::new();
        request.id = process.container.to_owned();
        request.exec_id = process.exec.to_owned();
        request.width = columns;
        request.height = rows;
        self.call::<_, Empty>("ResizePty", &request, Some(GUEST)).await.map(drop)
    }

    /// Ends a process's standard input once what was written to it has been delivered.
    pub async fn close_io(&self, process: Process<'_>) -> Result<(), ClientError> {
        let mut request = api::CloseIORequest::new();
        request.id = process.container.to_owned();
        request.exec_id = process.exec.to_owned();
        request.stdin = true;
        self.call::<_, Empty>("CloseIO", &request, Some(GUEST)).await.map(drop)
    }

    /// Changes a container's limits: an OCI `LinuxResources` as JSON.
    pub async fn update(&self, container: &str, resources: Vec<u8>) -> Result<(), ClientError> {
        let mut request = api::UpdateTaskRequest::new();
        request.id = container.to_owned();
        request.resources = Some(json_any(RESOURCES_TYPE_URL, resources)).into();
        self.call::<_, Empty>("Update", &request, Some(GUEST)).await.map(drop)
    }

    /// What a container uses.
    pub async fn stats(&self, container: &str) -> Result<metrics::Metrics, ClientError> {
        let mut request = api::StatsRequest::new();
        request.id = container.to_owned();
        let response: api::StatsResponse = self.call("Stats", &request, Some(GUEST)).await?;
        let stats = response.stats.into_option().unwrap_or_default();
        metrics::Metrics::parse_from_bytes(&stats.value).map_err(|error| ClientError::Status {
            code: Code::INTERNAL,
            message: format!("the shim's statistics are damaged: {error}"),
        })
    }

    /// The process ids of the shim and of a container's init.
    pub async fn connect_task(&self, container: &str) -> Result<api::ConnectResponse, ClientError> {
        let mut request = api::ConnectRequest::new();
        request.id = container.to_owned();
        self.call("Connect", &request, Some(QUICK)).await
    }

    /// Ends the shim if no container is left. That the connection breaks on the way is not an error.
    pub async fn shutdown(&self, container: &str) -> Result<(), ClientError> {
        self.shut_down(container, false).await
    }

    /// Ends the shim and the VM whatever still runs. That the connection breaks on the way is not an error.
    pub async fn shutdown_now(&self, container: &str) -> Result<(), ClientError> {
        self.shut_down(container, true).await
    }

    async fn shut_down(&self, container: &str, now: bool) -> Result<(), ClientError> {
        let mut request = api::ShutdownRequest::new();
        request.id = container.to_owned();
        request.now = now;
        match self.call::<_, Empty>("Shutdown", &request, Some(QUICK)).await {
            Err(error) if error.is_gone() => Ok(()),
            other => other.map(drop),
        }
    }

    /// What the pod measures.
    pub async fn pod_metrics(&self) -> Result<PodMetrics, ClientError> {
        let answer: Any =
            self.ask((pod_metrics::SERVICE, pod_metrics::METHOD), &Empty::new(), Some(QUICK)).await?;
        serde_json::from_slice(&answer.value).map_err(|error| ClientError::Status {
            code: Code::INTERNAL,
            message: format!("the pod's figures are damaged: {error}"),
        })
    }

    /// Asks the pod's debug console. The answer is the guest's: any bytes.
    pub async fn debug(&self, line: &str) -> Result<Vec<u8>, ClientError> {
        let line = json_any(pod_metrics::TEXT_TYPE_URL, line.as_bytes().to_vec());
        let answer: Any =
            self.ask((pod_metrics::SERVICE, pod_metrics::DEBUG_METHOD), &line, Some(QUICK)).await?;
        Ok(answer.value)
    }

    async fn call<Q: Message, A: Message>(
        &self,
        method: &str,
        request: &Q,
        deadline: Option<Duration>,
    ) -> Result<A, ClientError> {
        self.ask((SERVICE, method), request, deadline).await
    }

    async fn ask<Q: Message, A: Message>(
        &self,
        (service, method): (&str, &str),
        request: &Q,
        deadline: Option<Duration>,
    ) -> Result<A, ClientError> {
        let damaged = |error: protobuf::Error| ClientError::Status {
            code: Code::INTERNAL,
            message: format!("{method}: {error}"),
        };
        let mut envelope = Request::new();
        envelope.service = service.to_owned();
        envelope.method = method.to_owned();
        envelope.payload = request.write_to_bytes().map_err(damaged)?;
        envelope.timeout_nano =
            deadline.map_or(0, |deadline| i64::try_from(deadline.as_nanos()).unwrap_or(i64::MAX));
        let response = self.client.request(envelope).await.map_err(|error| match error {
            ttrpc::Error::RpcStatus(status) => {
                ClientError::Status { code: status.code(), message: status.message }
            }
            other => ClientError::Connection { address: self.address.clone(), message: other.to_string() },
        })?;
        A::parse_from_bytes(&response.payload).map_err(damaged)
    }
}

/// Wraps JSON as the task service takes it.
pub fn json_any(type_url: &str, json: Vec<u8>) -> Any {
    Any { type_url: type_url.to_owned(), value: json, ..Any::default() }
}
