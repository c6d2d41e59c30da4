//! The sandbox service: a pod as such, for clients that make none of its containers stand for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use containerd_shim_protos::sandbox_api as api;
use containerd_shim_protos::sandbox_async::{Sandbox, create_sandbox};
use containerd_shim_protos::types::platform::Platform;
use protobuf::MessageField;
use ttrpc::asynchronous::{MethodHandler, Service, TtrpcContext};
use ttrpc::proto::{Code, Request, Response};

use super::{call, metrics, run};
use crate::pod::Pod;
use crate::process::Phase;
use crate::time::timestamp;

/// What a client that speaks CRI knows of a pod.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// Methods that later versions of the service have. Whoever calls them wants to know by the status code that they are not here.
const LATER: [&str; 2] = ["PortForward", "UpdateSandbox"];

/// The service, by its name. `id` is the pod's.
pub fn service(pod: &Arc<Pod>, id: &str) -> HashMap<String, Service> {
    let service = SandboxService { pod: Arc::clone(pod), id: id.to_owned() };
    let mut services = create_sandbox(Arc::new(service));
    for service in services.values_mut() {
        for method in LATER {
            service.methods.insert(method.to_owned(), Box::new(Later));
        }
    }
    services
}

struct SandboxService {
    pod: Arc<Pod>,
    id: String,
}

struct Later;

#[async_trait]
impl MethodHandler for Later {
    async fn handler(&self, _: TtrpcContext, _: Request) -> ttrpc::Result<Response> {
        let mut response = Response::new();
        response.set_status(ttrpc::get_status(Code::UNIMPLEMENTED, "this shim has no such method"));
        Ok(response)
    }
}

/// Go's architectures, which containers' images are named by.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        context: &TtrpcContext,
        request: api::CreateSandboxRequest,
    ) -> ttrpc::Result<api::CreateSandboxResponse> {
        log::info!("create the sandbox");
        let id = self.id.clone();
        run(&self.pod, call(context, "Sandbox/CreateSandbox", &self.id), |pod| async move {
            pod.create_sandbox(request, &id).await
        })
        .await?;
        Ok(api::CreateSandboxResponse::new())
    }

    async fn start_sandbox(
        &self,
        context: &TtrpcContext,
        request: api::StartSandboxRequest,
    ) -> ttrpc::Result<api::StartSandboxResponse> {
        let started = run(&self.pod, call(context, "Sandbox/StartSandbox", &self.id), |pod| async move {
            pod.start_sandbox(&request.sandbox_id).await
        });
        let (pid, created_at) = started.await?;
        Ok(api::StartSandboxResponse { pid, created_at: timestamp(created_at), ..Default::default() })
    }

    async fn platform(
        &self,
        _: &TtrpcContext,
        request: api::PlatformRequest,
    ) -> ttrpc::Result<api::PlatformResponse> {
        super::now(self.pod.sandbox(&request.sandbox_id))?;
        let platform = Platform {
            os: "linux".to_owned(),
            architecture: architecture().to_owned(),
            ..Platform::default()
        };
        Ok(api::PlatformResponse { platform: MessageField::some(platform), ..Default::default() })
    }

    async fn stop_sandbox(
        &self,
        context: &TtrpcContext,
        request: api::StopSandboxRequest,
    ) -> ttrpc::Result<api::StopSandboxResponse> {
        let patience = u64::from(request.timeout_secs);
        let patience = (patience > 0).then(|| Duration::from_secs(patience));
        run(&self.pod, call(context, "Sandbox/StopSandbox", &self.id), |pod| async move {
            pod.stop_sandbox(&request.sandbox_id, patience).await
        })
        .await?;
        Ok(api::StopSandboxResponse::new())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::WaitSandboxRequest,
    ) -> ttrpc::Result<api::WaitSandboxResponse> {
        // Changes nothing, so it may end with its client.
        let exit = super::now(self.pod.wait_sandbox(&request.sandbox_id).await)?;
        Ok(api::WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: timestamp(exit.at),
            ..Default::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: api::SandboxStatusRequest,
    ) -> ttrpc::Result<api::SandboxStatusResponse> {
        let (sandbox, created_at) = super::now(self.pod.sandbox(&request.sandbox_id))?;
        let phase = sandbox.init.phase();
        let ready = phase == Phase::Running && sandbox.is_running_sandbox();
        let mut status = api::SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: sandbox.init.pid(),
            state: if ready { READY } else { NOT_READY }.to_owned(),
            created_at: timestamp(created_at),
            ..api::SandboxStatusResponse::default()
        };
        let mut reason = String::new();
        if let Phase::Exited(exit) = &phase {
            status.exited_at = timestamp(exit.at);
            reason.clone_from(&exit.reason);
        }
        if request.verbose {
            let size = sandbox.vm.size().now();
            let info = serde_json::json!({
                "phase": phase.word(),
                "reason": reason,
                "pid": sandbox.init.pid(),
                "vcpus": size.vcpus,
                "memoryMiB": size.memory_mib,
                "bundle": sandbox.bundle,
            });
            status.info.insert("hull".to_owned(), info.to_string());
        }
        Ok(status)
    }

    async fn ping_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::PingRequest,
    ) -> ttrpc::Result<api::PingResponse> {
        super::now(self.pod.ping_sandbox(&request.sandbox_id))?;
        Ok(api::PingResponse::new())
    }

    async fn shutdown_sandbox(
        &self,
        context: &TtrpcContext,
        request: api::ShutdownSandboxRequest,
    ) -> ttrpc::Result<api::ShutdownSandboxResponse> {
        let own = self.id.clone();
        let ended = run(&self.pod, call(context, "Sandbox/ShutdownSandbox", &self.id), |pod| async move {
            pod.shut_down_sandbox(&request.sandbox_id, &own).await
        });
        ended.await?;
        Ok(api::ShutdownSandboxResponse::new())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: api::SandboxMetricsRequest,
    ) -> ttrpc::Result<api::SandboxMetricsResponse> {
        let stats = super::now(self.pod.sandbox_stats(&request.sandbox_id).await)?;
        let mut response = api::SandboxMetricsResponse::new();
        let metric = response.metrics.mut_or_insert_default();
        metric.timestamp = timestamp(SystemTime::now());
        metric.data = MessageField::some(metrics::metrics(&stats)?);
        metric.id = request.sandbox_id;
        Ok(response)
    }
}
