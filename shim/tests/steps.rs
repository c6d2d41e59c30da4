//! Somebody dies at each step of a pod's life, one step after the other: each time the requests end with the right errors and
//! the right exits, the events keep their laws, nothing is left, and the next pod works. Needs root.
//!
//! A step is whatever the shim asks of the monitor or of the agent. A life without a fault shows how many there are.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use hull_shim::client::messages::CreateTaskRequest;
use hull_shim::client::{ClientError, Code, Process, Reach, TaskClient};
use hull_shim::record::{Record, ShimRecord};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use support::containerd::{Story, assert_lawful};
use support::namespace::Named;
use support::{Pod, soon};

/// Lives that are lived at the same time: most of each is waiting.
const AT_ONCE: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// A container with a VM to itself.
    Alone,
    /// A sandbox, and a container that brings a disk and a folder.
    Sandboxed,
}

/// What the requests of a life came to.
#[derive(Default, Debug)]
struct Said {
    errors: Vec<(String, ClientError)>,
    /// The init's exit, once it was waited for.
    exit: Option<u32>,
}

impl Said {
    fn note<T>(&mut self, what: &str, result: Result<T, ClientError>) -> Option<T> {
        result.map_err(|error| self.errors.push((what.to_owned(), error))).ok()
    }

    fn shim_is_gone(&self) -> bool {
        self.errors.iter().any(|(_, error)| error.is_gone())
    }
}

struct Life {
    pod: Pod,
    shape: Shape,
    named: Named,
    links: String,
    member: Option<CreateTaskRequest>,
}

impl Life {
    fn new(shape: Shape) -> Self {
        let named = Named::new("steps");
        let links = named.links();
        let mut pod = match shape {
            Shape::Alone => Pod::new("web", &["sleep", "1000"]),
            Shape::Sandboxed => Pod::sandbox("pod"),
        };
        pod.config["linux"]["namespaces"] = json!([{"type": "network", "path": named.path()}]);
        fs::write(pod.bundle().join("config.json"), pod.config.to_string()).unwrap();
        Self { pod, shape, named, links, member: None }
    }

    /// The container's bundle and request.
    fn prepare(&mut self) {
        if self.shape == Shape::Sandboxed {
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
    async fn live(&self, client: &TaskClient) -> Said {
        let mut said = Said::default();
        let (web, e) = (Process::init("web"), Process::exec("web", "e"));
        let sandbox = Process::init("pod");
        let mut sandbox_created = None;
        if self.shape == Shape::Sandboxed {
            sandbox_created = said.note("create the sandbox", soon(client.create(&self.pod.request)).await);
            said.note("start the sandbox", soon(client.start(sandbox)).await);
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
        if sandbox_created.is_some() {
            said.note("kill the sandbox", soon(client.kill(sandbox, 9, Reach::Process)).await);
            said.note("wait for the sandbox", soon(client.wait(sandbox)).await);
            said.note("delete the sandbox", soon(client.delete(sandbox)).await);
        }
        said.note("shutdown", soon(client.shutdown(&self.pod.id)).await);
        said
    }

    /// One life, and what it leaves: nothing.
    async fn once(&mut self, fault: &str) -> Said {
        let _ = fs::remove_file(self.pod.file("steps"));
        self.pod.set_fault(fault);
        let containerd = self.pod.containerd();
        self.prepare();
        let address = self.pod.shim.start().unwrap();
        let client = TaskClient::connect(&address).await.unwrap();
        let said = self.live(&client).await;
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
        assert_eq!(self.named.links(), self.links, "{fault}");
        let told = containerd.told();
        assert_lawful(&told, story);
        assert!(told.iter().all(|event| event.topic != "exit" || event.status == 137), "{fault}: {told:#?}");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(&self.pod.dir.path().display().to_string()), "{fault}: {mounts}");
        for bundle in [self.pod.bundle(), &self.pod.file("web")] {
            forget(bundle);
        }
        said
    }
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

/// Whether an error is what a client should hear of this death.
fn is_fitting(victim: &str, error: &ClientError) -> bool {
    let words = error.to_string();
    match error.code() {
        None => victim == "shim",
        // The process is gone, or the sandbox is; clients take it for that.
        Some(Code::NOT_FOUND | Code::FAILED_PRECONDITION) => true,
        Some(Code::UNKNOWN) => {
            ["ended", "stopped", "the connection to the agent in the guest broke", "file broker"]
                .iter()
                .any(|part| words.contains(part))
                // One request after the first error.
                || words.starts_with("cannot ")
        }
        Some(_) => false,
    }
}

/// The steps of a life without a fault.
async fn steps(shape: Shape) -> Vec<String> {
    let mut life = Life::new(shape);
    let said = life.once("").await;
    assert!(said.errors.is_empty(), "{said:?}");
    assert_eq!(said.exit, Some(137));
    fs::read_to_string(life.pod.file("steps")).unwrap().lines().map(str::to_owned).collect()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(future)
}

fn every_step(shape: Shape, victim: &str) {
    let steps = block_on(steps(shape));
    assert!(steps.len() > 20, "{steps:?}");
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let step = next.fetch_add(1, Ordering::SeqCst)
                    && step < steps.len()
                {
                    block_on(one_step(shape, victim, step, &steps[step]));
                }
            });
        }
    });
}

async fn one_step(shape: Shape, victim: &str, step: usize, name: &str) {
    let fault = format!("{victim}@{}", step + 1);
    let mut life = Life::new(shape);
    let said = life.once(&fault).await;
    for (what, error) in &said.errors {
        assert!(is_fitting(victim, error), "{fault} ({name}): {what}: {:?} {error}", error.code());
    }
    assert!(matches!(said.exit, None | Some(137)), "{fault} ({name}): {said:?}");
    if victim == "shim" || victim == "monitor" {
        // A VM that ends while its container is taken out of it has nothing left to be said.
        let quiet = ["wait", "stats", "delete", "unbind", "unplug"];
        assert!(!said.errors.is_empty() || quiet.contains(&name), "{fault} ({name}) was not noticed");
    }
    let said = life.once("").await;
    assert!(said.errors.is_empty() && said.exit == Some(137), "the pod after {fault} ({name}): {said:?}");
}

#[test]
fn the_monitor_dies() {
    every_step(Shape::Alone, "monitor");
}

#[test]
fn the_monitor_of_a_pod_dies() {
    every_step(Shape::Sandboxed, "monitor");
}

#[test]
fn the_agent_breaks_off() {
    every_step(Shape::Alone, "agent");
}

#[test]
fn the_agent_of_a_pod_breaks_off() {
    every_step(Shape::Sandboxed, "agent");
}

#[test]
fn the_shim_dies() {
    every_step(Shape::Alone, "shim");
}

#[test]
fn the_shim_of_a_pod_dies() {
    every_step(Shape::Sandboxed, "shim");
}

#[test]
fn the_file_broker_of_a_pod_dies() {
    every_step(Shape::Sandboxed, "broker");
}

#[tokio::test]
async fn the_network_namespace_goes_away() {
    let mut life = Life::new(Shape::Alone);
    let client = life.pod.connect().await;
    let web = Process::init("web");
    soon(client.create(&life.pod.request)).await.unwrap();
    soon(client.start(web)).await.unwrap();
    // Its name, and the far end with its interface; the monitor still holds the namespace.
    life.named.remove();
    soon(client.state(web)).await.unwrap();
    soon(client.kill(web, 9, Reach::Process)).await.unwrap();
    assert_eq!(soon(client.wait(web)).await.unwrap().exit_status, 137);
    soon(client.delete(web)).await.unwrap();
    // Before the creation, it is an error that names it.
    let error = soon(client.create(&life.pod.request)).await.unwrap_err().to_string();
    assert!(error.contains(&life.named.path()), "{error}");
    soon(client.shutdown("web")).await.unwrap();
    life.pod.assert_nothing_left();
    life.named = Named::new("again");
    life.links = life.named.links();
    life.pod.config["linux"]["namespaces"] = json!([{"type": "network", "path": life.named.path()}]);
    fs::write(life.pod.bundle().join("config.json"), life.pod.config.to_string()).unwrap();
    // And after the shim was killed, no obstacle to cleaning up.
    let client = life.pod.connect().await;
    soon(client.create(&life.pod.request)).await.unwrap();
    let record = ShimRecord::read(life.pod.bundle()).unwrap().unwrap();
    life.named.remove();
    kill(Pid::from_raw(record.shim_pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    assert_eq!(life.pod.shim.delete().unwrap().exit_status, 137);
    life.pod.assert_nothing_left();
}
