//! A pod's whole life as containerd would have it, and what must hold after it whoever failed on the way. Needs root.

use std::fs;
use std::path::Path;

use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, ShutdownSandboxRequest, StartSandboxRequest, StopSandboxRequest, WaitSandboxRequest,
};
use containerd_shim_protos::sandbox_async::SandboxClient;
use hull_shim::client::messages::CreateTaskRequest;
use hull_shim::client::{ClientError, Process, Reach, TaskClient};
use protobuf::well_known_types::any::Any;
use serde_json::json;
use ttrpc::asynchronous::Client;
use ttrpc::context::{Context, with_timeout};

use super::containerd::{Containerd, Story, assert_lawful};
use super::mount::Mounted;
use super::namespace::Named;
use super::{PATIENCE, Pod, eventually, soon};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A container with a VM to itself.
    Alone,
    /// A sandbox, and a container that brings a disk and a folder.
    Sandboxed,
    /// The same, where the sandbox is made by the sandbox API.
    ByApi,
}

/// The sandbox API of the pod's shim.
struct Sandboxes {
    client: Option<SandboxClient>,
    address: String,
}

impl Sandboxes {
    async fn connect(address: String) -> Self {
        Self { client: Client::connect(&address).await.map(SandboxClient::new).ok(), address }
    }

    /// The answer, or the error as the client of the task service has it.
    async fn ask<T>(
        &self,
        ask: impl AsyncFnOnce(&SandboxClient, Context) -> ttrpc::Result<T>,
    ) -> Result<T, ClientError> {
        let gone = |message| ClientError::Connection { address: self.address.clone(), message };
        let client = self.client.as_ref().ok_or_else(|| gone("nobody is there".to_owned()))?;
        let context = with_timeout(i64::try_from(PATIENCE.as_nanos()).unwrap());
        ask(client, context).await.map_err(|error| match error {
            ttrpc::Error::RpcStatus(status) => {
                ClientError::Status { code: status.code(), message: status.message }
            }
            other => gone(other.to_string()),
        })
    }
}

/// Kubernetes' description of a pod that has nothing but a cgroup: `linux` is its field 8, and `cgroup_parent` field 1 of that.
fn pod_in(cgroup_parent: &str) -> Any {
    let field = |tag: u8, value: &[u8]| [&[tag, u8::try_from(value.len()).unwrap()], value].concat();
    let value = field(0x42, &field(0x0a, cgroup_parent.as_bytes()));
    Any { type_url: "runtime.v1.PodSandboxConfig".into(), value, ..Any::default() }
}

/// What the requests of a life came to.
#[derive(Default, Debug)]
pub struct Said {
    pub errors: Vec<(String, ClientError)>,
    /// The init's exit, once it was waited for.
    pub exit: Option<u32>,
}

impl Said {
    pub fn note<T>(&mut self, what: &str, result: Result<T, ClientError>) -> Option<T> {
        result.map_err(|error| self.errors.push((what.to_owned(), error))).ok()
    }

    pub fn shim_is_gone(&self) -> bool {
        self.errors.iter().any(|(_, error)| error.is_gone())
    }
}

pub struct Life {
    /// A small disk, with the bundles and the state on it. First: the pod's folder cannot be removed before it is unmounted.
    disk: Option<[Mounted; 4]>,
    pub pod: Pod,
    pub named: Named,
    pub links: String,
    shape: Shape,
    /// What was mounted in the pod's folder from the beginning.
    mounts: String,
    member: Option<CreateTaskRequest>,
}

impl Life {
    pub fn new(shape: Shape) -> Self {
        let pod = match shape {
            Shape::Alone => Pod::new("web", &["sleep", "1000"]),
            Shape::Sandboxed | Shape::ByApi => Pod::sandbox("pod"),
        };
        let named = Named::new("life");
        let links = named.links();
        let mut life = Self { pod, named, links, shape, disk: None, mounts: String::new(), member: None };
        life.enter_namespace();
        life
    }

    /// The same, with its bundles and state on a small disk.
    #[must_use]
    pub fn on_small_disk(mut self) -> Self {
        let disk = self.pod.file("disk");
        let small = Mounted::tiny(&disk, 256 << 10, 64);
        let on_it = |name: &str| Mounted::again(&disk.join(name), &self.pod.file(name));
        let folders = ["b", "r", "web"].map(on_it);
        let [b, r, web] = folders;
        self.disk = Some([web, r, b, small]);
        self.mounts = mounts_in(self.pod.dir.path());
        self
    }

    /// Gives it another network namespace.
    pub fn rename(&mut self) {
        self.named = Named::new("another");
        self.links = self.named.links();
        self.enter_namespace();
    }

    fn enter_namespace(&mut self) {
        self.pod.config["linux"]["namespaces"] = json!([{"type": "network", "path": self.named.path()}]);
        fs::write(self.pod.file("netns"), self.named.names().join("\n")).unwrap();
    }

    /// Undoes what goes wrong for good: the room on the disk is there again, and the namespace.
    fn repair(&mut self) {
        for entry in fs::read_dir(self.pod.file("disk")).into_iter().flatten().map(Result::unwrap) {
            if entry.file_name().to_string_lossy().starts_with("ballast") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        if !Path::new(&self.named.path()).exists() {
            self.rename();
        }
        if self.shape != Shape::ByApi {
            fs::write(self.pod.bundle().join("config.json"), self.pod.config.to_string()).unwrap();
        }
    }

    /// The container's bundle and request.
    fn prepare(&mut self) {
        if self.shape != Shape::Alone {
            let mut member = self.pod.member_request("web", &["sleep", "1000"]);
            let mut disk = Pod::new("unused", &["true"]).request.rootfs.remove(0);
            disk.source = self.pod.file("index").display().to_string();
            member.rootfs = vec![disk];
            let path = Path::new(&member.bundle).join("config.json");
            let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            let folder = self.pod.file("index").display().to_string();
            config["mounts"] =
                json!([{"destination": "/d", "type": "bind", "source": folder, "options": ["bind"]}]);
            fs::write(path, config.to_string()).unwrap();
            self.member = Some(member);
        }
    }

    /// Everything that is done with a container; what fails is noted, and the rest is tried all the same.
    pub async fn live(&self, client: &TaskClient) -> Said {
        let mut said = Said::default();
        let (web, e) = (Process::init("web"), Process::exec("web", "e"));
        let sandbox = Process::init("pod");
        let mut sandbox_created = None;
        if self.shape == Shape::Sandboxed {
            sandbox_created = said.note("create the sandbox", soon(client.create(&self.pod.request)).await);
            said.note("start the sandbox", soon(client.start(sandbox)).await);
        }
        let by_api = self.shape == Shape::ByApi;
        let sandboxes = match by_api {
            true => {
                Some(Sandboxes::connect(fs::read_to_string(self.pod.bundle().join("address")).unwrap()).await)
            }
            false => None,
        };
        if let Some(sandboxes) = &sandboxes {
            let request = self.sandbox_request();
            let create =
                sandboxes.ask(async |client, context| client.create_sandbox(context, &request).await);
            sandbox_created = said.note("create the sandbox", soon(create).await).map(|_| 0);
            let request = StartSandboxRequest { sandbox_id: "pod".into(), ..Default::default() };
            let start = sandboxes.ask(async |client, context| client.start_sandbox(context, &request).await);
            said.note("start the sandbox", soon(start).await);
        }
        let request = self.member.as_ref().unwrap_or(&self.pod.request);
        let created = said.note("create", soon(client.create(request)).await);
        if created.is_some() {
            said.note("start", soon(client.start(web)).await);
            let mut exec = self.pod.exec_request("e", &["sleep", "1000"]);
            exec.id = "web".into();
            exec.stdout = format!("file://{}", self.pod.file("output").display());
            said.note("exec", soon(client.exec(&exec)).await);
            let started = said.note("start the exec", soon(client.start(e)).await);
            said.note("pause", soon(client.pause("web")).await);
            said.note("resume", soon(client.resume("web")).await);
            said.note("update", soon(client.update("web", b"{}".to_vec())).await);
            said.note("stats", soon(client.stats("web")).await);
            said.note("kill the exec", soon(client.kill(e, 9, Reach::Process)).await);
            if started.is_some()
                && let Some(exit) = said.note("wait for the exec", soon(client.wait(e)).await)
            {
                assert_eq!(exit.exit_status, 137);
            }
            said.note("delete the exec", soon(client.delete(e)).await);
            said.note("kill", soon(client.kill(web, 9, Reach::Container)).await);
            if let Some(exit) = said.note("wait", soon(client.wait(web)).await) {
                said.exit = Some(exit.exit_status);
            }
            said.note("delete", soon(client.delete(web)).await);
        }
        if let Some(sandboxes) = &sandboxes {
            let sandbox_id = "pod".to_owned();
            if sandbox_created.is_some() {
                let request = StopSandboxRequest { sandbox_id: sandbox_id.clone(), ..Default::default() };
                let stop =
                    sandboxes.ask(async |client, context| client.stop_sandbox(context, &request).await);
                said.note("stop the sandbox", soon(stop).await);
                let request = WaitSandboxRequest { sandbox_id: sandbox_id.clone(), ..Default::default() };
                let wait =
                    sandboxes.ask(async |client, context| client.wait_sandbox(context, &request).await);
                said.note("wait for the sandbox", soon(wait).await);
            }
            let request = ShutdownSandboxRequest { sandbox_id, ..Default::default() };
            let end = sandboxes.ask(async |client, context| client.shutdown_sandbox(context, &request).await);
            said.note("shutdown", soon(end).await);
            return said;
        }
        if sandbox_created.is_some() {
            said.note("kill the sandbox", soon(client.kill(sandbox, 9, Reach::Process)).await);
            said.note("wait for the sandbox", soon(client.wait(sandbox)).await);
            said.note("delete the sandbox", soon(client.delete(sandbox)).await);
        }
        said.note("shutdown", soon(client.shutdown(&self.pod.id)).await);
        said
    }

    fn sandbox_request(&self) -> CreateSandboxRequest {
        let name = self.pod.dir.path().file_name().unwrap().to_str().unwrap();
        CreateSandboxRequest {
            sandbox_id: "pod".into(),
            bundle_path: self.pod.bundle().display().to_string(),
            options: Some(pod_in(&format!("/hull-test/{name}"))).into(),
            netns_path: self.named.path(),
            ..CreateSandboxRequest::default()
        }
    }

    /// One life, and what it leaves: nothing. `fault` is the fake monitor's.
    pub async fn once(&mut self, fault: &str) -> Said {
        let (containerd, client) = self.begin(fault).await;
        let said = self.live(&client).await;
        self.conclude(fault, &containerd, &said);
        said
    }

    /// A shim with containerd's ears.
    pub async fn begin(&mut self, fault: &str) -> (Containerd, TaskClient) {
        self.repair();
        let _ = fs::remove_file(self.pod.file("steps"));
        self.pod.set_fault(fault);
        let containerd = self.pod.containerd();
        self.prepare();
        let address = self.pod.shim.start().unwrap();
        (containerd, TaskClient::connect(&address).await.unwrap())
    }

    /// Cleans up as containerd does, where the shim is gone; then nothing is left, and what was told is lawful.
    pub fn conclude(&self, fault: &str, containerd: &Containerd, said: &Said) {
        let mut story = Story::Whole;
        if said.shim_is_gone() {
            story = Story::Cut;
            // As containerd does for every container.
            for _ in 0..2 {
                for request in self.member.iter().chain([&self.pod.request]) {
                    let mut shim = self.pod.shim.clone();
                    shim.id.clone_from(&request.id);
                    shim.bundle = request.bundle.clone().into();
                    assert_eq!(shim.delete().unwrap().exit_status, 137, "{fault}");
                }
            }
        }
        self.pod.assert_nothing_left();
        // Those of a namespace that is gone are gone with it.
        if Path::new(&self.named.path()).exists() {
            assert_eq!(self.named.links(), self.links, "{fault}");
            let holders = || self.named.holders();
            eventually(|| holders().is_empty(), || format!("{fault}: {:?}", holders()));
        }
        let told = containerd.told();
        assert_lawful(&told, story);
        assert!(told.iter().all(|event| event.topic != "exit" || event.status == 137), "{fault}: {told:#?}");
        assert_eq!(mounts_in(self.pod.dir.path()), self.mounts, "{fault}");
        for bundle in [self.pod.bundle(), &self.pod.file("web")] {
            forget(bundle);
        }
    }
}

/// What is mounted below a folder.
fn mounts_in(folder: &Path) -> String {
    let folder = folder.display().to_string();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().filter(|line| line.contains(&folder)).map(|line| format!("{line}\n")).collect()
}

/// Nothing lies in a bundle but what is for its client to read, and that is removed as the client would.
fn forget(bundle: &Path) {
    for entry in fs::read_dir(bundle).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.file_name().unwrap().to_str().unwrap() {
            "config.json" => {}
            "address" | "console.log" | "exit.json" | "shim.json" | "shim.log" => {
                fs::remove_file(path).unwrap();
            }
            _ => panic!("{} is left", path.display()),
        }
    }
}
