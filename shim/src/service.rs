//! The task service, and beside it the sandbox service: containerd's requests in, its status codes out.
//!
//! ttrpc drops a handler when its client disconnects. So every request that changes something runs as a task of its
//! own: it is finished whoever still waits for the answer.

mod convert;
mod debug;
mod figures;
mod metrics;
mod sandbox;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::{Task, create_task};
use protobuf::MessageField;
use ttrpc::asynchronous::{Service, TtrpcContext};
use ttrpc::proto::Code;

use crate::container::Reach;
use crate::error::TaskError;
use crate::io::StdioSpec;
use crate::metrics::DEBUG_METHOD;
use crate::pod::{Pod, ShutdownMode};
use crate::process::WindowSize;
use crate::time::timestamp;
use crate::trace::{self, Call, Parent};

const SERVICE_V3: &str = "containerd.task.v3.Task";
const SERVICE_V2: &str = "containerd.task.v2.Task";

/// The task service of a pod under both names that containerd calls it by, with the same messages; the sandbox service; and
/// the pod's own, under the pod's `id`.
pub fn services(pod: &Arc<Pod>, id: &str) -> HashMap<String, Service> {
    let make = || create_task(Arc::new(TaskService { pod: Arc::clone(pod) }));
    let v2 = make().remove(SERVICE_V3).map(|service| (SERVICE_V2.to_owned(), service));
    let (name, mut own) = figures::service(pod, id);
    own.methods.insert(DEBUG_METHOD.to_owned(), debug::handler(pod));
    make().into_iter().chain(v2).chain(sandbox::service(pod, id)).chain([(name, own)]).collect()
}

struct TaskService {
    pod: Arc<Pod>,
}

impl TaskService {
    async fn run<T, F, W>(
        &self,
        context: &TtrpcContext,
        method: &'static str,
        container: &str,
        work: W,
    ) -> ttrpc::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, TaskError>> + Send + 'static,
        W: FnOnce(Arc<Pod>) -> F,
    {
        run(&self.pod, call(context, method, container), work).await
    }
}

fn call(context: &TtrpcContext, method: &'static str, container: &str) -> Call {
    Call { method, container: container.to_owned(), parent: Parent::of(&context.metadata) }
}

/// Runs a request to its end, even if the client goes away.
async fn run<T, F, W>(pod: &Arc<Pod>, call: Call, work: W) -> ttrpc::Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T, TaskError>> + Send + 'static,
    W: FnOnce(Arc<Pod>) -> F,
{
    let (container, work) = (call.container.clone(), Box::pin(work(Arc::clone(pod))));
    match tokio::spawn(trace::request(pod.tracer(), call, work)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            log::info!(container:% = container; "{error}");
            Err(error.to_status())
        }
        Err(error) => {
            log::error!(container:% = container; "a request ended early: {error}");
            Err(ttrpc::Error::RpcStatus(ttrpc::get_status(Code::INTERNAL, "the request ended early")))
        }
    }
}

fn now<T>(result: Result<T, TaskError>) -> ttrpc::Result<T> {
    result.map_err(|error| error.to_status())
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        context: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        let id = request.id.clone();
        log::info!(container:% = id; "create");
        let pid =
            self.run(context, "Task/Create", &id, |pod| async move { pod.create(request).await }).await?;
        Ok(api::CreateTaskResponse { pid, ..Default::default() })
    }

    async fn start(
        &self,
        context: &TtrpcContext,
        request: api::StartRequest,
    ) -> ttrpc::Result<api::StartResponse> {
        let pid = self
            .run(context, "Task/Start", &request.id.clone(), |pod| async move {
                let container = pod.container(&request.id)?;
                if request.exec_id.is_empty() {
                    container.start_init().await
                } else {
                    container.start_exec(&request.exec_id).await
                }
            })
            .await?;
        Ok(api::StartResponse { pid, ..Default::default() })
    }

    async fn exec(&self, _: &TtrpcContext, request: api::ExecProcessRequest) -> ttrpc::Result<api::Empty> {
        now((|| {
            let stdio = StdioSpec::parse(&request.stdin, &request.stdout, &request.stderr, request.terminal)?;
            self.pod.container(&request.id)?.add_exec(&request.exec_id, &request.spec.value, stdio)
        })())?;
        Ok(api::Empty::new())
    }

    async fn delete(
        &self,
        context: &TtrpcContext,
        request: api::DeleteRequest,
    ) -> ttrpc::Result<api::DeleteResponse> {
        let (pid, exit) = self
            .run(context, "Task/Delete", &request.id.clone(), |pod| async move {
                if request.exec_id.is_empty() {
                    pod.delete(&request.id).await
                } else {
                    pod.container(&request.id)?.delete_exec(&request.exec_id).await
                }
            })
            .await?;
        Ok(api::DeleteResponse {
            pid,
            exit_status: exit.status,
            exited_at: timestamp(exit.at),
            ..Default::default()
        })
    }

    async fn kill(&self, context: &TtrpcContext, request: api::KillRequest) -> ttrpc::Result<api::Empty> {
        let reach = if request.all { Reach::Container } else { Reach::Process };
        self.run(context, "Task/Kill", &request.id.clone(), |pod| async move {
            pod.container(&request.id)?.kill(&request.exec_id, request.signal, reach).await
        })
        .await?;
        Ok(api::Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, request: api::WaitRequest) -> ttrpc::Result<api::WaitResponse> {
        // Changes nothing, so it may end with its client.
        let process = now(self.pod.container(&request.id).and_then(|c| c.process(&request.exec_id)))?;
        let exit = process.exited().await;
        Ok(api::WaitResponse {
            exit_status: exit.status,
            exited_at: timestamp(exit.at),
            ..Default::default()
        })
    }

    async fn state(&self, _: &TtrpcContext, request: api::StateRequest) -> ttrpc::Result<api::StateResponse> {
        let container = now(self.pod.container(&request.id))?;
        let process = now(container.process(&request.exec_id))?;
        Ok(convert::state(&container, &process))
    }

    async fn pids(&self, _: &TtrpcContext, request: api::PidsRequest) -> ttrpc::Result<api::PidsResponse> {
        let container = now(self.pod.container(&request.id))?;
        Ok(convert::pids(&container))
    }

    async fn pause(&self, context: &TtrpcContext, request: api::PauseRequest) -> ttrpc::Result<api::Empty> {
        self.run(context, "Task/Pause", &request.id.clone(), |pod| async move {
            pod.container(&request.id)?.pause().await
        })
        .await?;
        Ok(api::Empty::new())
    }

    async fn resume(&self, context: &TtrpcContext, request: api::ResumeRequest) -> ttrpc::Result<api::Empty> {
        self.run(context, "Task/Resume", &request.id.clone(), |pod| async move {
            pod.container(&request.id)?.resume().await
        })
        .await?;
        Ok(api::Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: api::CloseIORequest) -> ttrpc::Result<api::Empty> {
        let process = now(self.pod.container(&request.id).and_then(|c| c.process(&request.exec_id)))?;
        if request.stdin {
            process.close_stdin();
        }
        Ok(api::Empty::new())
    }

    async fn resize_pty(
        &self,
        context: &TtrpcContext,
        request: api::ResizePtyRequest,
    ) -> ttrpc::Result<api::Empty> {
        let size = WindowSize { columns: request.width, rows: request.height };
        self.run(context, "Task/ResizePty", &request.id.clone(), |pod| async move {
            pod.container(&request.id)?.resize(&request.exec_id, size).await
        })
        .await?;
        Ok(api::Empty::new())
    }

    async fn update(
        &self,
        context: &TtrpcContext,
        request: api::UpdateTaskRequest,
    ) -> ttrpc::Result<api::Empty> {
        self.run(context, "Task/Update", &request.id.clone(), |pod| async move {
            pod.update(&request.id, &request.resources.value).await
        })
        .await?;
        Ok(api::Empty::new())
    }

    async fn stats(
        &self,
        context: &TtrpcContext,
        request: api::StatsRequest,
    ) -> ttrpc::Result<api::StatsResponse> {
        let stats = self
            .run(context, "Task/Stats", &request.id.clone(), |pod| async move {
                pod.container(&request.id)?.stats().await
            })
            .await?;
        let stats = MessageField::some(metrics::metrics(&stats)?);
        Ok(api::StatsResponse { stats, ..Default::default() })
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: api::ConnectRequest,
    ) -> ttrpc::Result<api::ConnectResponse> {
        Ok(api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: self.pod.task_pid(&request.id),
            ..Default::default()
        })
    }

    async fn shutdown(
        &self,
        context: &TtrpcContext,
        request: api::ShutdownRequest,
    ) -> ttrpc::Result<api::Empty> {
        let mode = if request.now { ShutdownMode::Now } else { ShutdownMode::WhenEmpty };
        self.run(context, "Task/Shutdown", &request.id.clone(), |pod| async move {
            pod.shut_down(mode).await;
            Ok(())
        })
        .await?;
        Ok(api::Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: api::CheckpointTaskRequest) -> ttrpc::Result<api::Empty> {
        Err(TaskError::Unsupported("checkpoints are not supported").to_status())
    }
}
