//! A fake containerd: a bundle, a shim around the fake monitor, and a check that nothing is left behind.

#![allow(dead_code, reason = "every test program uses a part")]

pub mod containerd;
#[path = "../../../tests/src/counters.rs"]
pub mod counters;
pub mod few;
pub mod life;
pub mod mount;
pub mod namespace;
#[path = "../../../tests/src/leaks/netns.rs"]
pub mod netns;

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hull_shim::client::messages::{CreateTaskRequest, ExecProcessRequest};
use hull_shim::client::{PROCESS_TYPE_URL, Shim, TaskClient, json_any};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Pod {
    environment: String,
    pub dir: TempDir,
    pub id: String,
    pub shim: Shim,
    pub config: Value,
    pub request: CreateTaskRequest,
}

/// Writes a program for the shell. Another process does: what a thread of ours starts meanwhile would hold the file open for
/// writing, and it could not be run.
pub fn script(path: &Path, text: &str) {
    let mut shell = Command::new("sh");
    shell.args(["-c", "printf '#!/bin/sh\\n%s\\n' \"$1\" >\"$0\" && chmod 755 \"$0\""]);
    assert!(shell.arg(path).arg(text).status().unwrap().success());
}

fn fake_vmm() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().unwrap().parent().unwrap().join("examples/fake-vmm");
    assert!(path.is_file(), "{} is built with the tests", path.display());
    path
}

impl Pod {
    pub fn new(id: &str, args: &[&str]) -> Self {
        Self::with(id, args, "", "")
    }

    /// `fault` goes to the fake monitor, `environment` are assignments for the shim, and lines of a shell script before it.
    pub fn with(id: &str, args: &[&str], fault: &str, environment: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("hs").tempdir_in("/tmp").unwrap();
        let root = dir.path().display();
        let bundle = dir.path().join("b");
        fs::create_dir(&bundle).unwrap();
        fs::write(dir.path().join("index"), vec![0; 4096]).unwrap();
        // The directory on the command line lets the leak check find it.
        script(&dir.path().join("fsd"), &format!("exec {} broker {root}", fake_vmm().display()));
        let binary = dir.path().join("shim");
        let index = dir.path().join("index");
        let shim = Shim {
            binary,
            namespace: "test".into(),
            id: id.into(),
            bundle: bundle.clone(),
            callback_address: "none".into(),
        };
        let name = dir.path().file_name().unwrap().to_str().unwrap();
        let config = json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "hostname": id,
            "process": {"args": args, "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "linux": {"namespaces": [{"type": "network"}], "cgroupsPath": format!("/hull-test/{name}")}
        });
        let mut request = CreateTaskRequest::new();
        request.id = id.into();
        request.bundle = bundle.display().to_string();
        let mut mount = containerd_shim_protos::types::mount::Mount::new();
        mount.type_ = "erofs".into();
        mount.source = index.display().to_string();
        mount.options = vec!["ro".into()];
        request.rootfs = vec![mount];
        let pod = Self { environment: environment.into(), dir, id: id.into(), shim, config, request };
        pod.set_fault(fault);
        pod.set_environment(&pod.environment);
        pod
    }

    /// What goes wrong in the next VM.
    pub fn set_fault(&self, fault: &str) {
        let root = self.dir.path().display();
        script(&self.file("vmm"), &format!("exec {} '{fault}' {root}", fake_vmm().display()));
    }

    /// How the next shim is run.
    pub fn set_environment(&self, environment: &str) {
        let root = self.dir.path().display();
        let exe = env!("CARGO_BIN_EXE_containerd-shim-hull-v2");
        // A backtrace needs memory; where there is none, the standard library waits for its own lock for ever.
        let text = format!(
            "export RUST_BACKTRACE=0 HULL_STATE_DIR={root}/r HULL_VMM={root}/vmm HULL_FSD={root}/fsd HULL_KERNEL={root}/index HULL_INITRAMFS={root}/index {environment}\nexec {exe} \"$@\""
        );
        script(&self.shim.binary, &text);
    }

    /// A containerd that listens to this pod's shim.
    pub fn containerd(&self) -> containerd::Containerd {
        let socket = self.file("events");
        self.set_environment(&format!("TTRPC_ADDRESS={} {}", socket.display(), self.environment));
        containerd::Containerd::listen(&socket)
    }

    /// The sandbox of a pod, as containerd's CRI plugin would have it.
    pub fn sandbox(id: &str) -> Self {
        let mut pod = Self::new(id, &["/pause"]);
        pod.annotate("io.kubernetes.cri.container-type", "sandbox");
        pod.annotate("io.kubernetes.cri.sandbox-id", id);
        pod.request.rootfs.clear();
        pod
    }

    /// A further container of this sandbox's: its bundle and request. `start` was run for it.
    pub fn member(&self, id: &str, args: &[&str]) -> CreateTaskRequest {
        let request = self.member_request(id, args);
        let shim = Shim { id: id.into(), bundle: PathBuf::from(&request.bundle), ..self.shim.clone() };
        let address = shim.start().unwrap();
        assert_eq!(
            address,
            fs::read_to_string(self.bundle().join("address")).unwrap(),
            "one shim for the pod"
        );
        request
    }

    /// The same, without a `start`.
    pub fn member_request(&self, id: &str, args: &[&str]) -> CreateTaskRequest {
        let bundle = self.file(id);
        fs::create_dir_all(&bundle).unwrap();
        let mut config = self.config.clone();
        config["process"]["args"] = args.into();
        config["root"]["path"] = self.dir.path().display().to_string().into();
        config["hostname"] = Value::Null;
        config["annotations"]["io.kubernetes.cri.container-type"] = "container".into();
        config.as_object_mut().unwrap().remove("hostname");
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        let mut request = CreateTaskRequest::new();
        request.id = id.into();
        request.bundle = bundle.display().to_string();
        request
    }

    pub fn bundle(&self) -> &Path {
        &self.shim.bundle
    }

    pub fn annotate(&mut self, name: &str, value: &str) {
        self.config["annotations"][name] = value.into();
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn fifo(&self, name: &str) -> String {
        let path = self.file(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path.display().to_string()
    }

    /// Runs `start` and connects.
    pub async fn connect(&self) -> TaskClient {
        fs::write(self.bundle().join("config.json"), self.config.to_string()).unwrap();
        let address = self.shim.start().unwrap();
        assert_eq!(fs::read_to_string(self.bundle().join("address")).unwrap(), address);
        TaskClient::connect(&address).await.unwrap()
    }

    pub fn exec_request(&self, exec: &str, args: &[&str]) -> ExecProcessRequest {
        let mut request = ExecProcessRequest::new();
        request.id.clone_from(&self.id);
        request.exec_id = exec.into();
        let process = json!({"args": args, "cwd": "/", "user": {"uid": 0, "gid": 0}});
        request.spec = Some(json_any(PROCESS_TYPE_URL, process.to_string().into_bytes())).into();
        request
    }

    /// Process ids with this pod's directory on their command line.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let mark = self.dir.path().display().to_string();
        let own = std::process::id();
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .filter(|&pid| pid != own)
            .filter_map(|pid| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                line.contains(&mark).then_some((pid, line))
            })
            .collect()
    }

    /// Its cgroups, in every hierarchy that has one.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let roots = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().map(|entry| entry.unwrap().path());
        let path = Path::new("hull-test").join(self.dir.path().file_name().unwrap());
        let roots = roots.chain([PathBuf::from("/sys/fs/cgroup")]);
        roots.map(|root| root.join(&path)).filter(|cgroup| cgroup.is_dir()).collect()
    }

    /// Waits until no process, no socket and no cgroup of the pod is left.
    pub fn assert_nothing_left(&self) {
        let sockets = || fs::read_dir(self.file("r/s")).map_or(0, Iterator::count);
        let (processes, cgroups) = (|| self.processes(), || self.cgroups());
        eventually(
            || processes().is_empty() && sockets() == 0 && cgroups().is_empty(),
            || format!("{:?}, {} sockets, {:?}; log: {}", processes(), sockets(), cgroups(), self.log()),
        );
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.bundle().join("shim.log")).unwrap_or_default()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "shim's log:\n{}", self.log());
        }
        for (pid, _) in self.processes() {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// Waits for a condition that others bring about.
pub fn eventually(condition: impl Fn() -> bool, otherwise: impl Fn() -> String) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{}", otherwise());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Reads a fifo to its end on a thread.
pub struct Reader {
    /// Lets the reader open before the shim does, and see no end before the shim has written.
    hold: fs::File,
    thread: std::thread::JoinHandle<Vec<u8>>,
}

impl Reader {
    /// What was read, once the shim has closed its end. To be called after the process has exited.
    pub fn finish(self) -> Vec<u8> {
        drop(self.hold);
        self.thread.join().unwrap()
    }
}

/// Begins to read a fifo; a reader is there from now on.
pub fn reader(path: &str) -> Reader {
    let hold = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut file = fs::File::open(path).unwrap();
    let thread = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    });
    Reader { hold, thread }
}

/// Fails a test that hangs.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}
