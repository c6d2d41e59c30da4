//! An agent outside a VM, with a root file system of busybox, and its client.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use hull_protocol::agent::api::agent as api;
use hull_protocol::agent::api::agent_ttrpc::AgentClient;
use hull_protocol::agent::{StreamHeader, StreamKind};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::Context;

/// The agent: `HULL_AGENT`, or the one that was built with the test.
fn program() -> PathBuf {
    std::env::var_os("HULL_AGENT").map_or_else(|| env!("CARGO_BIN_EXE_hull-agent").into(), PathBuf::from)
}

/// Ends with its owner: after a failed test `unshare --kill-child` takes the agent and everything in it along.
struct AgentProcess(Child);

impl Drop for AgentProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Guest {
    agent: AgentProcess,
    pub directory: tempfile::TempDir,
    pub client: AgentClient,
    pub cgroup: String,
}

/// Runs a test against an agent of its own.
pub fn with_guest<F: Future<Output = Guest>>(test: impl FnOnce(Guest) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let guest = test(Guest::start().await).await;
        guest.stop().await;
    });
}

/// Runs a test against the bare control connection of an agent of its own, which then must end well.
pub fn with_agent<F: Future<Output = ()>>(test: impl FnOnce(UnixStream) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (mut agent, directory, _) = AgentProcess::start();
    runtime.block_on(async {
        test(UnixStream::connect(directory.path().join("control.sock")).await.unwrap()).await;
    });
    // Whatever the test left open is closed.
    drop(runtime);
    let status = agent.0.wait().unwrap();
    assert!(status.success(), "the agent ended with {status}");
}

impl AgentProcess {
    /// An agent that listens in a directory of its own, with a cgroup of this name.
    fn start() -> (Self, tempfile::TempDir, String) {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let directory = tempfile::Builder::new().prefix("hull-agent-").tempdir().unwrap();
        make_root(&directory.path().join("disks/rootfs"));
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("hull-test-{}-{number}", std::process::id());
        let mut agent = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg(program())
            .arg("serve")
            .arg(directory.path())
            .arg(directory.path().join("disks"))
            .arg(&cgroup)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(agent.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "listening\n", "the agent does not start (these tests need root)");
        (Self(agent), directory, cgroup)
    }
}

impl Guest {
    pub async fn start() -> Self {
        let (agent, directory, cgroup) = AgentProcess::start();
        let connection = UnixStream::connect(directory.path().join("control.sock")).await.unwrap();
        let client = AgentClient::new(ttrpc::r#async::Client::new(Socket::new(connection)));
        let request =
            api::InfoRequest { api_version: hull_protocol::agent::API_VERSION, ..Default::default() };
        client.info(context(), &request).await.unwrap();
        Self { agent, directory, client, cgroup }
    }

    /// Shuts the agent down and checks that it ended well.
    pub async fn stop(mut self) {
        let request = api::ShutdownRequest::new();
        self.client.shutdown(context(), &request).await.unwrap();
        drop(self.client);
        let status = self.agent.0.wait().unwrap();
        assert!(status.success(), "the agent ended with {status}");
    }

    /// Goes away without a word, as a host that dies, and checks that the agent ends all by itself.
    pub async fn hang_up(mut self) {
        drop(self.client);
        // The client's own tasks end with it.
        tokio::task::yield_now().await;
        let status = tokio::task::spawn_blocking(move || self.agent.0.wait()).await.unwrap().unwrap();
        assert!(status.success(), "the agent ended with {status}");
    }

    /// The agent's own pid here.
    pub fn agent_pid(&self) -> u32 {
        let children = format!("/proc/{0}/task/{0}/children", self.agent.0.id());
        std::fs::read_to_string(children).unwrap().trim().parse().unwrap()
    }

    pub fn disk(&self) -> PathBuf {
        self.directory.path().join("disks/rootfs")
    }

    pub async fn create(&self, id: &str, spec: &Value, stdio: [bool; 3]) -> Result<u32, ttrpc::Error> {
        self.create_with(id, spec, stdio, Some(16 << 20)).await
    }

    pub async fn create_with(
        &self,
        id: &str,
        spec: &Value,
        stdio: [bool; 3],
        tmpfs: Option<u64>,
    ) -> Result<u32, ttrpc::Error> {
        let request = self.create_request(id, spec, stdio, tmpfs);
        self.client.create_container(context(), &request).await.map(|response| response.pid)
    }

    pub fn create_request(
        &self,
        id: &str,
        spec: &Value,
        stdio: [bool; 3],
        tmpfs: Option<u64>,
    ) -> api::CreateContainerRequest {
        let mut rootfs = api::Rootfs::new();
        rootfs.mut_erofs().serial = "rootfs".to_owned();
        if let Some(size) = tmpfs {
            rootfs.mut_tmpfs().size_bytes = size;
        }
        api::CreateContainerRequest {
            container_id: id.to_owned(),
            spec: spec.to_string().into_bytes(),
            rootfs: Some(rootfs).into(),
            stdio: Some(streams(stdio)).into(),
            seccomp: filter(&spec["linux"]["seccomp"]).into(),
            ..Default::default()
        }
    }

    pub async fn create_exec(
        &self,
        id: &str,
        exec: &str,
        process: &Value,
        stdio: [bool; 3],
    ) -> Result<(), ttrpc::Error> {
        self.create_exec_in(id, exec, process, stdio, "").await
    }

    /// The same, in a cgroup below the container's.
    pub async fn create_exec_in(
        &self,
        id: &str,
        exec: &str,
        process: &Value,
        stdio: [bool; 3],
        cgroup: &str,
    ) -> Result<(), ttrpc::Error> {
        let request = api::CreateExecRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            process: process.to_string().into_bytes(),
            stdio: Some(streams(stdio)).into(),
            cgroup: cgroup.to_owned(),
            ..Default::default()
        };
        self.client.create_exec(context(), &request).await.map(drop)
    }

    pub async fn start_process(&self, id: &str, exec: &str) -> Result<u32, ttrpc::Error> {
        self.client.start_process(context(), &process(id, exec)).await.map(|response| response.pid)
    }

    pub async fn wait(&self, id: &str, exec: &str) -> Result<api::ExitStatus, ttrpc::Error> {
        self.client.wait_process(context(), &process(id, exec)).await
    }

    pub async fn signal(&self, id: &str, exec: &str, signal: i32, all: bool) -> Result<(), ttrpc::Error> {
        let request = api::SignalProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            signal: signal.unsigned_abs(),
            all,
            ..Default::default()
        };
        self.client.signal_process(context(), &request).await.map(drop)
    }

    pub async fn resize(&self, id: &str, exec: &str, columns: u32, rows: u32) -> Result<(), ttrpc::Error> {
        let request = api::ResizeTerminalRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            columns,
            rows,
            ..Default::default()
        };
        self.client.resize_terminal(context(), &request).await.map(drop)
    }

    pub async fn delete(&self, id: &str) -> Result<(), ttrpc::Error> {
        self.client.delete_container(context(), &container(id)).await.map(drop)
    }

    pub async fn delete_exec(&self, id: &str, exec: &str) -> Result<(), ttrpc::Error> {
        self.client.delete_exec(context(), &process(id, exec)).await.map(drop)
    }

    /// Attaches a stream, or says why not.
    pub async fn attach(&self, id: &str, exec: Option<&str>, kind: StreamKind) -> Result<UnixStream, String> {
        self.open(&StreamHeader::new(id, exec, kind).unwrap().to_string()).await
    }

    /// A connection for what the line says, or why not.
    pub async fn open(&self, line: &str) -> Result<UnixStream, String> {
        let mut stream = UnixStream::connect(self.directory.path().join("streams.sock")).await.unwrap();
        stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        let mut line = Vec::new();
        loop {
            let byte = stream.read_u8().await.unwrap();
            if byte == b'\n' {
                break;
            }
            line.push(byte);
        }
        let line = String::from_utf8(line).unwrap();
        if line == "OK" { Ok(stream) } else { Err(line) }
    }

    /// Creates, attaches, starts, collects, deletes.
    pub async fn run(&self, spec: &Value) -> Output {
        let id = "run";
        self.create(id, spec, [false, true, true]).await.unwrap();
        let output = self.collect(id).await;
        self.delete(id).await.unwrap();
        output
    }

    /// Runs a created container to its end.
    pub async fn collect(&self, id: &str) -> Output {
        let mut stdout = self.attach(id, None, StreamKind::Stdout).await.unwrap();
        let mut stderr = self.attach(id, None, StreamKind::Stderr).await.unwrap();
        self.start_process(id, "").await.unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let (a, b) = tokio::join!(stdout.read_to_end(&mut out), stderr.read_to_end(&mut err));
        a.unwrap();
        b.unwrap();
        let status = self.wait(id, "").await.unwrap();
        assert_eq!((status.stdout_bytes, status.stderr_bytes), (out.len() as u64, err.len() as u64));
        Output { code: status.code, stdout: text(out), stderr: text(err) }
    }

    /// Runs a program in a container, and collects its output.
    pub async fn exec(&self, id: &str, exec: &str, process: &Value) -> Output {
        self.create_exec(id, exec, process, [false, true, true]).await.unwrap();
        self.collect_exec(id, exec).await
    }

    /// Runs a created exec to its end.
    pub async fn collect_exec(&self, id: &str, exec: &str) -> Output {
        let mut stdout = self.attach(id, Some(exec), StreamKind::Stdout).await.unwrap();
        let mut stderr = self.attach(id, Some(exec), StreamKind::Stderr).await.unwrap();
        self.start_process(id, exec).await.unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let (a, b) = tokio::join!(stdout.read_to_end(&mut out), stderr.read_to_end(&mut err));
        a.unwrap();
        b.unwrap();
        let status = self.wait(id, exec).await.unwrap();
        self.delete_exec(id, exec).await.unwrap();
        Output { code: status.code, stdout: text(out), stderr: text(err) }
    }

    /// Runs a shell script in a container with the default spec.
    pub async fn shell(&self, script: &str) -> Output {
        self.run(&spec(&["sh", "-c", script])).await
    }

    /// What the agent has in the kernel: mounts, child processes, open files, cgroups.
    pub fn footprint(&self) -> Footprint {
        let pid = self.agent_pid();
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
        Footprint {
            mounts: read("mountinfo").lines().count(),
            children: read(&format!("task/{pid}/children")).split_whitespace().count(),
            files: std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
            cgroups: self.container_cgroups().len(),
        }
    }

    /// Where the cgroups of containers are, seen through the agent's own mounts.
    pub fn cgroup_directory(&self) -> PathBuf {
        let directory = self.directory.path().display();
        format!("/proc/{}/root{directory}/cgroup/{}", self.agent_pid(), self.cgroup).into()
    }

    /// Names of the cgroups of containers, seen through the agent's own mounts.
    pub fn container_cgroups(&self) -> Vec<String> {
        std::fs::read_dir(self.cgroup_directory())
            .unwrap()
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().unwrap().is_dir())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct Output {
    pub code: u32,
    pub stdout: String,
    pub stderr: String,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Footprint {
    pub mounts: usize,
    pub children: usize,
    pub files: usize,
    pub cgroups: usize,
}

pub fn context() -> Context {
    ttrpc::context::with_timeout(60_000_000_000)
}

pub fn process(id: &str, exec: &str) -> api::ProcessRequest {
    api::ProcessRequest { container_id: id.to_owned(), exec_id: exec.to_owned(), ..Default::default() }
}

pub fn container(id: &str) -> api::ContainerRequest {
    api::ContainerRequest { container_id: id.to_owned(), ..Default::default() }
}

fn streams([stdin, stdout, stderr]: [bool; 3]) -> api::Stdio {
    api::Stdio { stdin, stdout, stderr, ..Default::default() }
}

/// What the host does with a profile.
fn filter(profile: &Value) -> Option<api::SeccompFilter> {
    if profile.is_null() {
        return None;
    }
    let profile = hull_seccomp::Profile::from_json(profile.to_string().as_bytes()).unwrap();
    let (filter, _) = hull_seccomp::compile(&profile).unwrap();
    Some(api::SeccompFilter { program: filter.to_bytes(), flags: filter.flags, ..Default::default() })
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// The code and the message of a refused request.
pub fn refusal<T: std::fmt::Debug>(result: Result<T, ttrpc::Error>) -> (ttrpc::Code, String) {
    match result.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => (status.code.enum_value().unwrap(), status.message),
        other => panic!("{other}"),
    }
}

/// A root file system with busybox and little else; mount points are left to the agent.
fn make_root(root: &Path) {
    for directory in ["bin", "etc", "tmp", "root"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    std::fs::set_permissions(root.join("tmp"), std::fs::Permissions::from_mode(0o1777)).unwrap();
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let list = Command::new("/bin/busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(list.stdout).unwrap().lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
}

/// What docker gives a container by default, without what this agent cannot do yet.
pub fn spec(args: &[&str]) -> Value {
    let capabilities: Vec<String> = [
        "CHOWN",
        "DAC_OVERRIDE",
        "FSETID",
        "FOWNER",
        "MKNOD",
        "NET_RAW",
        "SETGID",
        "SETUID",
        "SETFCAP",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "SYS_CHROOT",
        "KILL",
        "AUDIT_WRITE",
    ]
    .iter()
    .map(|name| format!("CAP_{name}"))
    .collect();
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "oomScoreAdj": 0
        },
        "root": {"path": "rootfs"},
        "hostname": "testhost",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["ro", "nosuid", "noexec", "nodev"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]}
        ],
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "network"}, {"type": "uts"}, {"type": "pid"}, {"type": "ipc"},
                           {"type": "cgroup"}],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}
