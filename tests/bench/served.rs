//! The agent outside a VM, on unix sockets, asked as the shim asks it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hull_protocol::agent::api::agent as api;
use hull_protocol::agent::api::agent_ttrpc::AgentClient;
use hull_tests::oci::Runtime;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::runtime::Runtime as Tokio;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::Context;

use crate::config;

/// A serving agent and its client.
pub struct Served {
    process: Child,
    folder: TempDir,
    tokio: Tokio,
    client: AgentClient,
    seccomp: api::SeccompFilter,
}

fn context() -> Context {
    ttrpc::context::with_timeout(120_000_000_000)
}

fn process(id: &str, exec: &str) -> api::ProcessRequest {
    api::ProcessRequest { container_id: id.to_owned(), exec_id: exec.to_owned(), ..Default::default() }
}

impl Served {
    /// Starts it, behind the words of another program if there are any.
    pub fn start(behind: &[&str]) -> Self {
        let folder = TempDir::with_prefix("hull-served-").unwrap();
        let disk = folder.path().join("disks/rootfs");
        std::fs::create_dir_all(disk.join("dev")).unwrap();
        for name in ["true", "sleep"] {
            std::fs::copy("/bin/busybox", disk.join(name)).unwrap();
        }
        let agent = Runtime::hull();
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"]).args(behind);
        command.arg(agent.program()).arg("serve").arg(folder.path()).arg(folder.path().join("disks"));
        let cgroup = format!("hull-bench-{}", folder.path().file_name().unwrap().to_string_lossy());
        let mut process = command.arg(cgroup).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "listening\n");
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = tokio.block_on(async {
            let connection = UnixStream::connect(folder.path().join("control.sock")).await.unwrap();
            AgentClient::new(ttrpc::r#async::Client::new(Socket::new(connection)))
        });
        let profile = config(&[])["linux"]["seccomp"].to_string();
        let (filter, _) =
            hull_seccomp::compile(&hull_seccomp::Profile::from_json(profile.as_bytes()).unwrap()).unwrap();
        let seccomp =
            api::SeccompFilter { program: filter.to_bytes(), flags: filter.flags, ..Default::default() };
        Self { process, folder, tokio, client, seccomp }
    }

    fn create(&self, id: &str, args: &[&str]) {
        let mut rootfs = api::Rootfs::new();
        rootfs.mut_erofs().serial = "rootfs".to_owned();
        rootfs.mut_tmpfs().size_bytes = 16 << 20;
        let request = api::CreateContainerRequest {
            container_id: id.to_owned(),
            spec: config(args).to_string().into_bytes(),
            rootfs: Some(rootfs).into(),
            seccomp: Some(self.seccomp.clone()).into(),
            ..Default::default()
        };
        self.tokio.block_on(self.client.create_container(context(), &request)).unwrap();
    }

    fn start_process(&self, id: &str, exec: &str) {
        self.tokio.block_on(self.client.start_process(context(), &process(id, exec))).unwrap();
    }

    fn wait(&self, id: &str, exec: &str) {
        let status = self.tokio.block_on(self.client.wait_process(context(), &process(id, exec))).unwrap();
        assert_eq!(status.code, 0);
    }

    fn delete(&self, id: &str) {
        let request = api::ContainerRequest { container_id: id.to_owned(), ..Default::default() };
        self.tokio.block_on(self.client.delete_container(context(), &request)).unwrap();
    }

    /// One container of `true`, from its creation to its deletion.
    pub fn timed_container(&mut self) -> Duration {
        let start = Instant::now();
        self.create("bench", &["/true"]);
        self.start_process("bench", "");
        self.wait("bench", "");
        self.delete("bench");
        start.elapsed()
    }

    /// One exec of `true`, from its creation to its deletion.
    pub fn timed_exec(&mut self) -> Duration {
        let start = Instant::now();
        let mut own = config(&["/true"])["process"].take();
        own["cwd"] = "/".into();
        let request = api::CreateExecRequest {
            container_id: "long".to_owned(),
            exec_id: "e".to_owned(),
            process: own.to_string().into_bytes(),
            ..Default::default()
        };
        self.tokio.block_on(self.client.create_exec(context(), &request)).unwrap();
        self.start_process("long", "e");
        self.wait("long", "e");
        self.tokio.block_on(self.client.delete_exec(context(), &process("long", "e"))).unwrap();
        start.elapsed()
    }

    /// Does something while a container is running.
    pub fn with_container<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        self.create("long", &["/sleep", "1000"]);
        self.start_process("long", "");
        let result = work(self);
        self.delete("long");
        result
    }

    /// The agent's resident memory.
    pub fn resident_kib(&self) -> u64 {
        let children = format!("/proc/{0}/task/{0}/children", self.process.id());
        let pid = std::fs::read_to_string(children).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", pid.trim())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Ends it in good order.
    pub fn stop(mut self) -> TempDir {
        self.tokio.block_on(self.client.shutdown(context(), &api::ShutdownRequest::new())).unwrap();
        let Self { process, folder, tokio, client, .. } = &mut self;
        let _ = tokio;
        // The client's connection is what the agent waits for to end.
        *client = {
            let (near, _) = tokio.block_on(async { UnixStream::pair() }).unwrap();
            tokio.block_on(async { AgentClient::new(ttrpc::r#async::Client::new(Socket::new(near))) })
        };
        process.wait().unwrap();
        std::mem::replace(folder, TempDir::new().unwrap())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // With it `unshare` takes the agent along.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How many system calls an agent makes from its start to its end, with all that it starts, when it is asked for `work`.
pub fn traced(work: impl FnOnce(&mut Served)) -> u64 {
    let log = TempDir::new().unwrap();
    let file = log.path().join("strace");
    let mut served =
        Served::start(&["strace", "-f", "-c", "-U", "calls,name", "-o", &file.to_string_lossy()]);
    work(&mut served);
    served.stop();
    crate::total(&file)
}
