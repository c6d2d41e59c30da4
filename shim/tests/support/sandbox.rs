//! A fake containerd's part of the sandbox API: a pod's bundle without a config.json, its network namespace, and a client of the shim.
//! Needs root.

use std::path::Path;
use std::process::Command;

use containerd_shim_protos::sandbox_api::*;
use containerd_shim_protos::sandbox_async::SandboxClient;
use hull_shim::client::{Process, TaskClient};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use ttrpc::asynchronous::Client;
use ttrpc::context::{Context, with_timeout};
use ttrpc::proto::Code;

use crate::support::namespace::Named;
use crate::support::{PATIENCE, Pod, soon};

/// The messages of the shim's own description of a pod.
#[allow(missing_docs, dead_code, clippy::all, clippy::pedantic, clippy::restriction, unused_qualifications)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/cri_messages/messages.rs"));
}
pub use generated::cri::*;

pub const ID: &str = "pod";

/// A pod's bundle without config.json, and its network namespace.
pub struct Bare {
    pub pod: Pod,
    pub netns: Named,
}

/// A shim that serves it.
pub struct Served<'a> {
    pub bare: &'a Bare,
    pub sandbox: SandboxClient,
    pub tasks: TaskClient,
}

pub fn context() -> Context {
    with_timeout(i64::try_from(PATIENCE.as_nanos()).unwrap())
}

pub fn code(error: &ttrpc::Error) -> Code {
    match error {
        ttrpc::Error::RpcStatus(status) => status.code(),
        other => panic!("{other}"),
    }
}

/// The code of each RPC.
pub type Codes = [(&'static str, Code); 7];

impl Bare {
    pub fn new(fault: &str) -> Self {
        let mut pod = Pod::with(ID, &["/pause"], fault, "");
        pod.annotate("io.kubernetes.cri.container-type", "sandbox");
        pod.annotate("io.kubernetes.cri.sandbox-id", ID);
        Self { pod, netns: Named::new("api") }
    }

    pub async fn serve(&self) -> Served<'_> {
        let address = self.pod.shim.start().unwrap();
        let client = Client::connect(&address).await.unwrap();
        let tasks = TaskClient::connect(&address).await.unwrap();
        Served { bare: self, sandbox: SandboxClient::new(client), tasks }
    }

    pub fn config(&self) -> PodSandboxConfig {
        let name = self.pod.dir.path().file_name().unwrap().to_str().unwrap();
        PodSandboxConfig {
            hostname: "web-0".into(),
            dns_config: MessageField::some(DNSConfig {
                servers: vec!["192.0.2.1".into(), "192.0.2.2".into()],
                searches: vec!["a.example".into(), "b.example".into()],
                options: vec!["ndots:5".into()],
                ..DNSConfig::default()
            }),
            linux: MessageField::some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/hull-test/{name}"),
                sysctls: [("net.core.somaxconn".to_owned(), "9".to_owned())].into(),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        }
    }

    pub fn request(&self) -> CreateSandboxRequest {
        self.request_of(&self.config())
    }

    pub fn request_of(&self, config: &PodSandboxConfig) -> CreateSandboxRequest {
        let options = Any {
            type_url: "runtime.v1.PodSandboxConfig".into(),
            value: config.write_to_bytes().unwrap(),
            ..Any::default()
        };
        CreateSandboxRequest {
            sandbox_id: ID.into(),
            bundle_path: self.pod.bundle().display().to_string(),
            options: MessageField::some(options),
            netns_path: self.netns.path(),
            ..CreateSandboxRequest::default()
        }
    }

    pub fn delete(&self, id: &str, bundle: &Path) -> std::process::Output {
        let args = ["-namespace", "test", "-id", id, "-address", "none", "-bundle"];
        let output =
            Command::new(&self.pod.shim.binary).args(args).arg(bundle).arg("delete").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output
    }

    /// Nothing of the pod is left, in its network namespace neither.
    pub fn assert_nothing_left(&self) {
        self.pod.assert_nothing_left();
        assert_eq!(self.netns.links(), r#"["lo", "eth0@if2"] []"#);
    }
}

impl Served<'_> {
    pub async fn create(&self) -> ttrpc::Result<CreateSandboxResponse> {
        self.sandbox.create_sandbox(context(), &self.bare.request()).await
    }

    pub async fn start(&self) -> ttrpc::Result<StartSandboxResponse> {
        let request = StartSandboxRequest { sandbox_id: ID.into(), ..Default::default() };
        self.sandbox.start_sandbox(context(), &request).await
    }

    /// A sandbox that is ready; its pid.
    pub async fn ready(&self) -> u32 {
        self.create().await.unwrap();
        self.start().await.unwrap().pid
    }

    pub async fn status(&self, id: &str) -> ttrpc::Result<SandboxStatusResponse> {
        let request = SandboxStatusRequest { sandbox_id: id.into(), verbose: true, ..Default::default() };
        self.sandbox.sandbox_status(context(), &request).await
    }

    pub async fn state(&self) -> String {
        self.status(ID).await.unwrap().state
    }

    pub async fn wait(&self, id: &str) -> ttrpc::Result<WaitSandboxResponse> {
        let request = WaitSandboxRequest { sandbox_id: id.into(), ..Default::default() };
        self.sandbox.wait_sandbox(context(), &request).await
    }

    pub async fn stop(&self, id: &str, seconds: u32) -> ttrpc::Result<StopSandboxResponse> {
        let request =
            StopSandboxRequest { sandbox_id: id.into(), timeout_secs: seconds, ..Default::default() };
        self.sandbox.stop_sandbox(context(), &request).await
    }

    pub async fn shut_down(&self, id: &str) -> ttrpc::Result<ShutdownSandboxResponse> {
        let request = ShutdownSandboxRequest { sandbox_id: id.into(), ..Default::default() };
        self.sandbox.shutdown_sandbox(context(), &request).await
    }

    /// What each RPC that changes nothing, and a second creation and start, say.
    pub async fn codes(&self, id: &str) -> Codes {
        let of = |result: Result<(), ttrpc::Error>| result.map_or_else(|error| code(&error), |()| Code::OK);
        let mut again = self.bare.request();
        again.sandbox_id = id.into();
        let start = StartSandboxRequest { sandbox_id: id.into(), ..Default::default() };
        let platform = PlatformRequest { sandbox_id: id.into(), ..Default::default() };
        let ping = PingRequest { sandbox_id: id.into(), ..Default::default() };
        let metrics = SandboxMetricsRequest { sandbox_id: id.into(), ..Default::default() };
        let shutdown_of_another = self.shut_down("another").await.map(drop);
        [
            ("create", of(self.sandbox.create_sandbox(context(), &again).await.map(drop))),
            ("start", of(self.sandbox.start_sandbox(context(), &start).await.map(drop))),
            ("platform", of(self.sandbox.platform(context(), &platform).await.map(drop))),
            ("status", of(self.status(id).await.map(drop))),
            ("ping", of(self.sandbox.ping_sandbox(context(), &ping).await.map(drop))),
            ("metrics", of(self.sandbox.sandbox_metrics(context(), &metrics).await.map(drop))),
            ("shutdown of another", of(shutdown_of_another)),
        ]
    }

    /// A container in the pod: `start` was run for it, as for every container of a shim whose answer is an address.
    pub async fn member(&self, id: &str, args: &[&str]) -> u32 {
        soon(self.tasks.create(&self.bare.pod.member(id, args))).await.unwrap();
        soon(self.tasks.start(Process::init(id))).await.unwrap()
    }

    pub async fn end(self) {
        self.stop(ID, 0).await.unwrap();
        self.shut_down(ID).await.unwrap();
        self.bare.assert_nothing_left();
    }
}
