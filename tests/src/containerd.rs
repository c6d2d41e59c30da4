//! A containerd of the test's own: its own folders, socket and configuration, and Hull's shim in its path.
//!
//! `HULL_CONTAINERD_DIR` names a folder with another `containerd` and `ctr` than those in the path.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::hull::{Said, binaries, finished, image, said};
use crate::leaks::Snapshot;
use crate::{PATIENCE, eventually, served};

/// Hull's name among containerd's runtimes.
pub const RUNTIME: &str = "io.containerd.hull.v2";

/// A second runtime, whose sandboxes the shim makes where containerd has that way.
const BY_THE_SHIM: &str = r#"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.hull-sandbox]
  runtime_type = "io.containerd.hull.v2"
  privileged_without_host_devices = true
  sandboxer = "shim"
"#;

/// The administrator's file, in a daemon's folder.
const CHOSEN: &str = "hull.toml";

/// Who makes the sandboxes of pods: containerd's CRI plugin has two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandboxer {
    /// It makes a container that stands for the pod.
    Podsandbox,
    /// It asks the shim for a sandbox.
    Shim,
}

/// A containerd, and what the machine looked like before it.
pub struct Containerd {
    folder: TempDir,
    sandboxer: Sandboxer,
    daemon: Option<Child>,
    environment: Vec<(String, String)>,
    before: Option<Snapshot>,
}

/// What containerd has told of tasks since it was asked.
pub struct Events {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<(String, Value)>,
}

/// One of containerd's programs.
fn program(name: &str) -> PathBuf {
    std::env::var_os("HULL_CONTAINERD_DIR")
        .map_or_else(|| PathBuf::from(name), |dir| Path::new(&dir).join(name))
}

/// A file that installations copy.
fn deployed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name).canonicalize().unwrap()
}

/// The folder of network namespaces becomes a mount of its own when it is first used: before anybody looks at what changes.
fn use_namespaces() {
    for action in ["add", "del"] {
        let netns = Command::new("ip").args(["netns", action, "hull-e2e"]).status().unwrap();
        assert!(netns.success());
    }
}

/// The network of pods, as CNI plugins read it, in a daemon's folder.
fn make_network(folder: &Path) {
    let network = format!(
        r#"{{"cniVersion": "0.4.0", "name": "hull-e2e", "plugins": [{{"type": "ptp", "ipam": {{
            "type": "host-local", "subnet": "192.0.2.0/24", "dataDir": "{}/ipam"}}}}]}}"#,
        folder.display()
    );
    fs::create_dir(folder.join("cni")).unwrap();
    fs::write(folder.join("cni/hull.conflist"), network).unwrap();
}

/// Whether the engine has the sandbox API as containerd 2 has it.
fn has_sandboxes() -> bool {
    let said = Command::new(program("containerd")).arg("--version").output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let major = |word: &str| word.trim_start_matches('v').split_once('.')?.0.parse::<u32>().ok();
    said.split_whitespace().find_map(major).unwrap() >= 2
}

impl Containerd {
    /// Starts one, with the smallest fixture in it.
    pub fn start() -> Self {
        Self::with(|_| String::new())
    }

    /// Starts one whose CRI plugin has Hull among its runtimes, and networks of its own.
    pub fn for_pods() -> Self {
        Self::for_pods_as("")
    }

    /// The same, with choices of Hull's administrator.
    pub fn for_pods_as(chosen: &str) -> Self {
        use_namespaces();
        let runtime = fs::read_to_string(deployed("containerd.toml")).unwrap();
        Self::with(|folder| {
            make_network(folder);
            fs::write(folder.join(CHOSEN), chosen).unwrap();
            format!(
                "[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"{}\"\n\
                 [plugins.\"io.containerd.grpc.v1.cri\".cni]\n  bin_dir = \"/usr/lib/cni\"\n  \
                 conf_dir = \"{}/cni\"\n{runtime}\n{}",
                busybox(),
                folder.display(),
                if has_sandboxes() { BY_THE_SHIM } else { "" }
            )
        })
    }

    /// One for pods that has Hull by the drop-in file, beside a configuration as containerd 2 has it; `None` where that is older.
    pub fn for_pods_by_drop_in() -> Option<Self> {
        if !has_sandboxes() {
            eprintln!("skipped: a drop-in file cannot add to a plugin's settings there");
            return None;
        }
        use_namespaces();
        let head = format!("version = 3\nimports = [{:?}]", deployed("containerd-2.toml"));
        Some(Self::begin(&head, &[], |folder| {
            make_network(folder);
            format!(
                "[plugins.'io.containerd.cri.v1.images'.pinned_images]\n  sandbox = \"{}\"\n\
                 [plugins.'io.containerd.cri.v1.runtime'.cni]\n  bin_dir = \"/usr/lib/cni\"\n  \
                 conf_dir = \"{}/cni\"\n",
                busybox(),
                folder.display()
            )
        }))
    }

    /// One whose pods are made by the sandbox API; `None` where the engine has it not.
    pub fn for_sandboxes() -> Option<Self> {
        if !has_sandboxes() {
            eprintln!("skipped: this containerd has no sandbox API");
            return None;
        }
        let mut containerd = Self::for_pods();
        containerd.sandboxer = Sandboxer::Shim;
        Some(containerd)
    }

    /// The runtime that its pods are run by.
    pub fn handler(&self) -> &'static str {
        match self.sandboxer {
            Sandboxer::Podsandbox => "hull",
            Sandboxer::Shim => "hull-sandbox",
        }
    }

    /// A pod's bundle.
    pub fn pod_bundle(&self, id: &str) -> PathBuf {
        let kind = match self.sandboxer {
            Sandboxer::Podsandbox => "runtime.v2.task",
            Sandboxer::Shim => "sandbox.controller.v1.shim",
        };
        self.file(&format!("state/io.containerd.{kind}/k8s.io/{id}"))
    }

    /// Starts one with these words in its environment, and with choices of Hull's administrator.
    pub fn traced(chosen: &str, environment: &[(&str, &str)]) -> Self {
        Self::begin("version = 2", environment, |folder| {
            fs::write(folder.join(CHOSEN), chosen).unwrap();
            String::new()
        })
    }

    /// Starts one with further lines of configuration, which `prepare` makes, with what belongs to them in this folder.
    pub fn with(prepare: impl FnOnce(&Path) -> String) -> Self {
        Self::begin("version = 2", &[], prepare)
    }

    fn begin(head: &str, environment: &[(&str, &str)], prepare: impl FnOnce(&Path) -> String) -> Self {
        let folder = TempDir::with_prefix("hull-e2e-").unwrap();
        let before = Some(Snapshot::take(folder.path()));
        let place = folder.path().display();
        let configuration = prepare(folder.path());
        let text = format!(
            "{head}\nroot = \"{place}/root\"\nstate = \"{place}/state\"\n\
             [grpc]\n  address = \"{place}/containerd.sock\"\n[debug]\n  level = \"debug\"\n{configuration}"
        );
        fs::write(folder.path().join("config.toml"), text).unwrap();
        let environment =
            environment.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        let mut containerd =
            Self { folder, sandboxer: Sandboxer::Podsandbox, daemon: None, environment, before };
        containerd.run_daemon();
        containerd.ok(["images", "pull", "--plain-http", &busybox()]);
        containerd
    }

    /// Starts the daemon, at first and after it was stopped.
    pub fn run_daemon(&mut self) {
        let path = std::env::var("PATH").unwrap_or_default();
        let beside = std::env::var("HULL_CONTAINERD_DIR").map(|dir| format!("{dir}:")).unwrap_or_default();
        let log = File::options().create(true).append(true).open(self.file("log")).unwrap();
        let daemon = Command::new(program("containerd"))
            .arg("--config")
            .arg(self.file("config.toml"))
            .env("PATH", format!("{}:{beside}{path}", binaries().display()))
            .env("HULL_STATE_DIR", self.file("hull"))
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .envs(self.file(CHOSEN).exists().then(|| ("HULL_CONFIG", self.file(CHOSEN))))
            // Where no udev makes the nodes of mapped devices.
            .env("DM_DISABLE_UDEV", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemon = Some(daemon);
        served(&self.socket());
        eventually("containerd answers", || {
            (self.ctr(["version"]).output().unwrap().status.success()).then_some(())
        });
    }

    /// Changes what Hull's administrator has chosen, for pods that begin after this.
    pub fn choose(&self, chosen: &str) {
        fs::write(self.file(CHOSEN), chosen).unwrap();
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    /// What it and the shims have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    /// A file in its folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The first two numbers of its version.
    pub fn version(&self) -> (u32, u32) {
        let said = self.ok(["version"]);
        let version = said.rsplit("Version:").next().unwrap().trim();
        let mut numbers = version.split('.').map(|number| number.parse().unwrap());
        (numbers.next().unwrap(), numbers.next().unwrap())
    }

    /// Where its API is served.
    pub fn socket(&self) -> PathBuf {
        self.file("containerd.sock")
    }

    /// Runs the command line over the same pods.
    pub fn hull<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Said {
        let mut command = Command::new(binaries().join("hull"));
        said(&finished(command.args(words).env("HULL_STATE_DIR", self.file("hull")).stdin(Stdio::null())))
    }

    /// Ends the daemon with this signal; what it runs goes on.
    pub fn stop(&mut self, signal: Signal) {
        let mut daemon = self.daemon.take().unwrap();
        kill(Pid::from_raw(daemon.id().try_into().unwrap()), signal).unwrap();
        daemon.wait().unwrap();
    }

    /// Ends the daemon with this signal and starts it again.
    pub fn restart(&mut self, signal: Signal) {
        self.stop(signal);
        self.run_daemon();
    }

    /// A command of `ctr`, not yet started.
    pub fn ctr<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(program("ctr"));
        command.arg("--address").arg(self.socket()).args(words).stdin(Stdio::null());
        command
    }

    /// Runs `ctr` to its end.
    pub fn run<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Said {
        said(&finished(&mut self.ctr(words)))
    }

    /// Runs `ctr` to its end and expects exit code 0. Returns standard output.
    #[track_caller]
    pub fn ok<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> String {
        let mut command = self.ctr(words);
        let said = said(&finished(&mut command));
        assert_eq!(said.code, 0, "{command:?}\nstdout: {}\nstderr: {}", said.out, said.err);
        said.out
    }

    /// `ctr run` with Hull.
    pub fn run_container(&self, options: &[&str], id: &str, words: &[&str]) -> Said {
        let image = busybox();
        self.run([&["run", "--runtime", RUNTIME], options, &[image.as_str(), id], words].concat())
    }

    /// A container in the background that Hull runs.
    #[track_caller]
    pub fn detached(&self, options: &[&str], id: &str, words: &[&str]) {
        let said = self.run_container(&[&["-d"], options].concat(), id, words);
        assert_eq!(said.code, 0, "{said:?}");
    }

    /// The state of a task as `ctr` shows it; empty if there is none.
    pub fn status(&self, id: &str) -> String {
        let listed = self.ok(["task", "ls"]);
        let line = listed.lines().find(|line| line.split_whitespace().next() == Some(id)).unwrap_or_default();
        line.split_whitespace().nth(2).unwrap_or_default().to_owned()
    }

    /// Waits until a task is in this state.
    #[track_caller]
    pub fn becomes(&self, id: &str, status: &str) {
        eventually(&format!("{id} is {status:?}"), || (self.status(id) == status).then_some(()));
    }

    /// Deletes a task that has ended; its exit code.
    #[track_caller]
    pub fn exit_code(&self, id: &str) -> i32 {
        let mut command = self.ctr(["task", "rm", id]);
        let said = said(&finished(&mut command));
        assert_eq!(said.code, 0, "{said:?}");
        // ctr says it in a warning, and only if it is not 0.
        said.err.rsplit_once("exit code ").map_or(0, |(_, rest)| {
            rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
        })
    }

    /// Ends a task that may still run, and forgets its container.
    pub fn remove(&self, id: &str) {
        if self.status(id) == "RUNNING" {
            self.ok(["task", "kill", "-s", "SIGKILL", id]);
            self.becomes(id, "STOPPED");
        }
        if !self.status(id).is_empty() {
            self.run(["task", "rm", id]);
        }
        self.ok(["container", "rm", id]);
    }

    /// A container's bundle.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.file("state/io.containerd.runtime.v2.task/default").join(id)
    }

    /// What the shim wrote down about a container.
    pub fn shim_record(&self, id: &str) -> Value {
        serde_json::from_slice(&fs::read(self.bundle(id).join("shim.json")).unwrap()).unwrap()
    }

    /// Shows how the containers that there still are have ended, and what their guests said.
    fn tell_of_bundles(&self) {
        let below =
            |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        for bundle in below(self.file("state/io.containerd.runtime.v2.task")).flat_map(below) {
            for name in ["exit.json", "console.log"] {
                let text = fs::read(bundle.join(name)).unwrap_or_default();
                let text = String::from_utf8_lossy(&text[text.len().saturating_sub(4096)..]);
                if !text.is_empty() {
                    eprintln!("{}:\n{text}", bundle.join(name).display());
                }
            }
        }
    }

    /// Listens to events.
    pub fn events(&self) -> Events {
        let mut child = self.ctr(["events"]).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let events = Events { child, lines, seen: Vec::new() };
        // It is only known to listen once it has told something.
        eventually("events are told", || {
            self.ok(["images", "label", &busybox(), "asked=yes"]);
            events.lines.recv_timeout(std::time::Duration::from_millis(200)).ok()
        });
        events
    }

    /// Ends the daemon, and fails unless the machine is as it was before it.
    #[track_caller]
    pub fn left_nothing(mut self) {
        assert_eq!(self.ok(["task", "ls", "-q"]), "");
        self.stop(Signal::SIGTERM);
        // Its own folders are containerd's business; the shim's are not.
        assert_nothing_mounted(self.folder.path());
        for folder in ["root", "state", "cni", "ipam"] {
            if let Err(error) = fs::remove_dir_all(self.file(folder)) {
                assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{folder}: {error}");
            }
        }
        for file in ["config.toml", "log"] {
            fs::remove_file(self.file(file)).unwrap();
        }
        let _ = fs::remove_file(self.file(CHOSEN));
        for socket in ["containerd.sock", "containerd.sock.ttrpc"] {
            let _ = fs::remove_file(self.file(socket));
        }
        self.before.take().unwrap().assert_unchanged(self.folder.path());
    }
}

#[track_caller]
fn assert_nothing_mounted(folder: &Path) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounts = table.lines().filter_map(|line| line.split(' ').nth(4));
    let left: Vec<&str> = mounts.filter(|mount| Path::new(mount).starts_with(folder)).collect();
    assert!(left.is_empty(), "still mounted: {left:?}");
}

/// The image of the tests.
pub fn busybox() -> String {
    format!("{}:latest", image("busybox"))
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            // What the shims said names their pods.
            let matters = |line: &&str| {
                // What is no line of a log is a panic.
                ["level=warn", "level=error", " pod="].iter().any(|it| line.contains(it))
                    || !line.starts_with("time=")
            };
            let told: Vec<&str> = log.lines().filter(matters).collect();
            eprintln!("containerd:\n{}", told[told.len().saturating_sub(120)..].join("\n"));
            self.tell_of_bundles();
            if self.daemon.is_some() {
                for id in self.run(["task", "ls", "-q"]).out.split_whitespace() {
                    let _ = self.ctr(["task", "kill", "-s", "SIGKILL", id]).output();
                    let _ = self.ctr(["task", "rm", "-f", id]).output();
                }
            }
        }
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

impl Events {
    /// Waits until `topic` was told of a container or exec, and returns all topics of that container so far, with the exec's
    /// id where there is one.
    #[track_caller]
    pub fn until(&mut self, topic: &str, container: &str) -> Vec<String> {
        while !self.seen.iter().any(|(seen, event)| seen == topic && of(event) == container) {
            let line =
                self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no {topic}: {:?}", self.seen));
            // 2026-01-02 03:04:05.6 +0000 UTC default /tasks/start {"container_id":...}
            let (Some(start), Some(json)) = (line.find(" /"), line.find('{')) else { continue };
            let seen = line[start..json].trim().to_owned();
            self.seen.push((seen, serde_json::from_str(&line[json..]).unwrap()));
        }
        let told =
            self.seen.iter().filter(|(topic, event)| topic.starts_with("/tasks/") && of(event) == container);
        told.map(|(topic, event)| {
            let exec = event["exec_id"].as_str().or_else(|| event["id"].as_str()).unwrap_or_default();
            let name = topic.trim_start_matches("/tasks/");
            if exec.is_empty() || exec == container { name.to_owned() } else { format!("{name} {exec}") }
        })
        .collect()
    }
}

fn of(event: &Value) -> &str {
    event["container_id"].as_str().unwrap_or_default()
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
