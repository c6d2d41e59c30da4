//! The agent's API, played with processes of the host.

use std::collections::HashMap;
use std::process::{Command, Stdio as Pipe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use hull_protocol::agent::StreamKind;
use hull_protocol::agent::api::agent as api;
use hull_protocol::agent::api::agent_ttrpc::Agent;
use hull_protocol::vmm::{Channel, ExitReason, Message};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::watch;
use ttrpc::asynchronous::TtrpcContext;
use ttrpc::proto::Code;

use crate::fault::{Fault, note};

/// Names a process: container and exec.
pub type Key = (String, String);

/// The guest's ends of a process's streams, until they are attached.
#[derive(Default)]
pub struct Pipes {
    pub stdin: Option<Sender>,
    pub stdout: Option<Receiver>,
    pub stderr: Option<Receiver>,
}

struct Process {
    spec: serde_json::Value,
    child_ends: Option<[Pipe; 3]>,
    pipes: Pipes,
    pid: Option<u32>,
    exit: watch::Sender<Option<(u32, i64)>>,
    sent: Arc<Mutex<[u64; 2]>>,
    draining: watch::Sender<usize>,
}

#[derive(Clone)]
pub struct FakeAgent {
    fault: Fault,
    control: Arc<Channel>,
    processes: Arc<Mutex<HashMap<Key, Process>>>,
    events: Arc<AtomicUsize>,
}

fn refuse<T>(code: Code, message: &str) -> ttrpc::Result<T> {
    Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, message)))
}

impl FakeAgent {
    pub fn new(fault: Fault, control: Arc<Channel>) -> Self {
        Self { fault, control, processes: Arc::default(), events: Arc::default() }
    }

    fn prepare(&self, key: Key, process: serde_json::Value, stdio: &api::Stdio) {
        let mut child_ends = [Pipe::null(), Pipe::null(), Pipe::null()];
        let mut pipes = Pipes::default();
        let mut open = 0;
        if stdio.stdin {
            let (reader, writer) = std::io::pipe().unwrap();
            child_ends[0] = reader.into();
            pipes.stdin = Some(Sender::from_owned_fd(writer.into()).unwrap());
        }
        if stdio.stdout {
            let (reader, writer) = std::io::pipe().unwrap();
            child_ends[1] = writer.into();
            pipes.stdout = Some(Receiver::from_owned_fd(reader.into()).unwrap());
            open += 1;
        }
        if stdio.stderr {
            let (reader, writer) = std::io::pipe().unwrap();
            child_ends[2] = writer.into();
            pipes.stderr = Some(Receiver::from_owned_fd(reader.into()).unwrap());
            open += 1;
        }
        let process = Process {
            spec: process,
            child_ends: Some(child_ends),
            pipes,
            pid: None,
            exit: watch::Sender::new(None),
            sent: Arc::default(),
            draining: watch::Sender::new(open),
        };
        self.processes.lock().unwrap().insert(key, process);
    }

    /// Takes a stream for its one attachment.
    pub fn take(&self, key: &Key, kind: StreamKind) -> Option<Pipes> {
        self.fault.at("stream");
        let mut processes = self.processes.lock().unwrap();
        let pipes = &mut processes.get_mut(key)?.pipes;
        let taken = match kind {
            StreamKind::Stdin => Pipes { stdin: Some(pipes.stdin.take()?), ..Pipes::default() },
            StreamKind::Stdout => Pipes { stdout: Some(pipes.stdout.take()?), ..Pipes::default() },
            StreamKind::Stderr => Pipes { stderr: Some(pipes.stderr.take()?), ..Pipes::default() },
        };
        Some(taken)
    }

    /// An output stream is at its end after so many bytes.
    pub fn drained(&self, key: &Key, kind: StreamKind, bytes: u64) {
        let processes = self.processes.lock().unwrap();
        let Some(process) = processes.get(key) else { return };
        process.sent.lock().unwrap()[usize::from(kind == StreamKind::Stderr)] = bytes;
        process.draining.send_modify(|open| *open = open.saturating_sub(1));
    }

    /// As the kernel does when the init of their namespace ends.
    fn kill_execs(&self, container: &str) {
        for (_, exec) in self.processes.lock().unwrap().iter().filter(|((of, _), _)| of == container) {
            if let Some(pid) = exec.pid
                && exec.exit.borrow().is_none()
            {
                // SAFETY: kill takes integers; where its thread has reaped the child it has hardly been given to another.
                unsafe { libc::kill(i32::try_from(pid).unwrap(), libc::SIGKILL) };
            }
        }
    }

    fn start(&self, key: &Key) -> ttrpc::Result<u32> {
        let mut processes = self.processes.lock().unwrap();
        let Some(process) = processes.get_mut(key) else { return refuse(Code::NOT_FOUND, "no such process") };
        let Some(ends) = process.child_ends.take() else {
            return refuse(Code::FAILED_PRECONDITION, "already started");
        };
        let args: Vec<String> = serde_json::from_value(process.spec["args"].clone()).unwrap();
        let [stdin, stdout, stderr] = ends;
        let mut command = Command::new(&args[0]);
        command.args(&args[1..]).stdin(stdin).stdout(stdout).stderr(stderr);
        command.env("PATH", "/usr/bin:/bin");
        // Processes end with their VM, also with one that has ended before they could say so.
        let parent = i32::try_from(std::process::id()).unwrap();
        // SAFETY: prctl and getppid are plain system calls on integers, between fork and exec.
        unsafe {
            std::os::unix::process::CommandExt::pre_exec(&mut command, move || {
                match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                    0 if libc::getppid() == parent => Ok(()),
                    0 => Err(std::io::Error::from_raw_os_error(libc::ESRCH)),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let Ok(mut child) = command.spawn() else {
            let message = format!("exec: {:?}: executable file not found in $PATH", args[0]);
            return refuse(Code::NOT_FOUND, &message);
        };
        // Our copies of the child's ends would hold its pipes open.
        drop(command);
        let pid = child.id();
        process.pid = Some(pid);
        let exit = process.exit.clone();
        let (agent, init) = (self.clone(), key.1.is_empty().then(|| key.0.clone()));
        std::thread::spawn(move || {
            use std::os::unix::process::ExitStatusExt;
            let status = child.wait().unwrap();
            if let Some(container) = init {
                agent.kill_execs(&container);
            }
            let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap());
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            exit.send_replace(Some((u32::try_from(code).unwrap(), i64::try_from(now.as_nanos()).unwrap())));
        });
        Ok(pid)
    }
}

fn key(request: &api::ProcessRequest) -> Key {
    (request.container_id.clone(), request.exec_id.clone())
}

#[async_trait]
impl Agent for FakeAgent {
    async fn configure_network(
        &self,
        _: &TtrpcContext,
        request: api::ConfigureNetworkRequest,
    ) -> ttrpc::Result<api::Empty> {
        let address =
            |address: &api::NetworkAddress| format!("{:?}/{}", address.address, address.prefix_length);
        let interfaces = request.interfaces.iter().map(|interface| {
            let addresses: Vec<_> = interface.addresses.iter().map(address).collect();
            format!("{} {}", interface.name, addresses.join(","))
        });
        let interfaces: Vec<_> = interfaces.collect();
        self.fault.at("configure-network");
        note("network", &format!("configured {}; {} routes", interfaces.join("; "), request.routes.len()));
        Ok(api::Empty::new())
    }

    async fn bind_slot(&self, _: &TtrpcContext, request: api::SlotRequest) -> ttrpc::Result<api::Empty> {
        self.fault.at("bind");
        note("network", &format!("bound {}", request.slot));
        Ok(api::Empty::new())
    }

    async fn unbind_slot(&self, _: &TtrpcContext, _: api::SlotRequest) -> ttrpc::Result<api::Empty> {
        self.fault.at("unbind");
        Ok(api::Empty::new())
    }

    async fn info(&self, _: &TtrpcContext, request: api::InfoRequest) -> ttrpc::Result<api::InfoResponse> {
        self.fault.at("info");
        Ok(api::InfoResponse { api_version: request.api_version, ..Default::default() })
    }

    async fn configure_pod(
        &self,
        _: &TtrpcContext,
        request: api::ConfigurePodRequest,
    ) -> ttrpc::Result<api::Empty> {
        self.fault.at("configure-pod");
        assert_eq!(request.entropy.len(), 64);
        assert!(request.realtime_nanos > 0 && !request.hostname.is_empty());
        let mut sysctls: Vec<_> =
            request.sysctls.iter().map(|(name, value)| format!("{name}={value}")).collect();
        sysctls.sort();
        note("pod", &format!("{} {}", request.hostname, sysctls.join(",")));
        Ok(api::Empty::new())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: api::CreateContainerRequest,
    ) -> ttrpc::Result<api::CreateContainerResponse> {
        self.fault.at("create");
        let spec: serde_json::Value = serde_json::from_slice(&request.spec).unwrap();
        if spec["hostname"] == "refused-by-the-guest" {
            return refuse(Code::INVALID_ARGUMENT, "the guest does not like this");
        }
        if spec["hostname"] == "slow" {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        }
        for file in &request.rootfs.files {
            note("files", &format!("{} {:?}", file.name, String::from_utf8_lossy(&file.content)));
        }
        for device in &request.block_devices {
            note("disks", &format!("{} is {}:{}", device.serial, device.major, device.minor));
        }
        self.prepare((request.container_id, String::new()), spec["process"].clone(), &request.stdio);
        Ok(api::CreateContainerResponse { pid: 1, ..Default::default() })
    }

    async fn create_exec(
        &self,
        _: &TtrpcContext,
        request: api::CreateExecRequest,
    ) -> ttrpc::Result<api::Empty> {
        self.fault.at("exec");
        let process = serde_json::from_slice(&request.process).unwrap();
        self.prepare((request.container_id, request.exec_id), process, &request.stdio);
        Ok(api::Empty::new())
    }

    async fn start_process(
        &self,
        _: &TtrpcContext,
        request: api::ProcessRequest,
    ) -> ttrpc::Result<api::StartProcessResponse> {
        self.fault.at("start");
        let pid = self.start(&key(&request))?;
        Ok(api::StartProcessResponse { pid, ..Default::default() })
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: api::SignalProcessRequest,
    ) -> ttrpc::Result<api::Empty> {
        self.fault.at("signal");
        let mut processes = self.processes.lock().unwrap();
        let Some(process) = processes.get_mut(&(request.container_id.clone(), request.exec_id)) else {
            return refuse(Code::NOT_FOUND, "no such process");
        };
        let signal = i32::try_from(request.signal).unwrap();
        let exited = process.exit.borrow().is_some();
        match (process.pid, exited) {
            (_, true) => return refuse(Code::NOT_FOUND, "finished"),
            (Some(pid), false) => {
                // SAFETY: kill takes integers; the child is not reaped while its thread still waits for it.
                assert_eq!(unsafe { libc::kill(i32::try_from(pid).unwrap(), signal) }, 0);
            }
            (None, false) => {
                // A guest may report an end and keep the streams open.
                if request.container_id != "hoarder" {
                    process.child_ends = None;
                }
                process.draining.send_replace(0);
                process.exit.send_replace(Some((128 + request.signal, 1)));
            }
        }
        Ok(api::Empty::new())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: api::ProcessRequest,
    ) -> ttrpc::Result<api::ExitStatus> {
        self.fault.at("wait");
        let (mut exit, mut draining, sent) = {
            let processes = self.processes.lock().unwrap();
            let Some(process) = processes.get(&key(&request)) else {
                return refuse(Code::NOT_FOUND, "no such process");
            };
            (process.exit.subscribe(), process.draining.subscribe(), Arc::clone(&process.sent))
        };
        let (code, exited_at_nanos) = exit.wait_for(Option::is_some).await.unwrap().unwrap();
        draining.wait_for(|open| *open == 0).await.unwrap();
        let [stdout_bytes, stderr_bytes] = *sent.lock().unwrap();
        let oom_killed = code == 137 && request.container_id.starts_with("oom");
        Ok(api::ExitStatus {
            code,
            exited_at_nanos,
            oom_killed,
            stdout_bytes,
            stderr_bytes,
            ..Default::default()
        })
    }

    async fn resize_terminal(
        &self,
        _: &TtrpcContext,
        _: api::ResizeTerminalRequest,
    ) -> ttrpc::Result<api::Empty> {
        self.fault.at("resize");
        Ok(api::Empty::new())
    }

    async fn delete_exec(&self, _: &TtrpcContext, request: api::ProcessRequest) -> ttrpc::Result<api::Empty> {
        self.fault.at("delete-exec");
        self.processes.lock().unwrap().remove(&key(&request));
        Ok(api::Empty::new())
    }

    async fn delete_container(
        &self,
        _: &TtrpcContext,
        request: api::ContainerRequest,
    ) -> ttrpc::Result<api::Empty> {
        self.fault.at("delete");
        let mut processes = self.processes.lock().unwrap();
        let before = processes.len();
        processes.retain(|(container, _), _| *container != request.container_id);
        if processes.len() == before {
            return refuse(Code::NOT_FOUND, "no such container");
        }
        Ok(api::Empty::new())
    }

    async fn pause_container(&self, _: &TtrpcContext, _: api::ContainerRequest) -> ttrpc::Result<api::Empty> {
        self.fault.at("pause");
        Ok(api::Empty::new())
    }

    async fn resume_container(
        &self,
        _: &TtrpcContext,
        _: api::ContainerRequest,
    ) -> ttrpc::Result<api::Empty> {
        self.fault.at("resume");
        Ok(api::Empty::new())
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        _: api::UpdateContainerRequest,
    ) -> ttrpc::Result<api::Empty> {
        self.fault.at("update");
        Ok(api::Empty::new())
    }

    async fn revert_update(&self, _: &TtrpcContext, _: api::ContainerRequest) -> ttrpc::Result<api::Empty> {
        self.fault.at("revert");
        Ok(api::Empty::new())
    }

    async fn container_stats(
        &self,
        _: &TtrpcContext,
        _: api::ContainerRequest,
    ) -> ttrpc::Result<api::ContainerStatsResponse> {
        self.fault.at("usage");
        let memory = api::MemoryStats { usage_bytes: 4096, ..Default::default() };
        Ok(api::ContainerStatsResponse { memory: Some(memory).into(), ..Default::default() })
    }

    async fn debug(&self, _: &TtrpcContext, request: api::DebugRequest) -> ttrpc::Result<api::DebugResponse> {
        let output = format!("answer to {}\n", request.line).into_bytes();
        Ok(api::DebugResponse { output, cut: request.line == "long", ..Default::default() })
    }

    async fn next_event(&self, _: &TtrpcContext, _: api::Empty) -> ttrpc::Result<api::GuestEvent> {
        if self.fault != Fault::Flood {
            std::future::pending::<()>().await;
        }
        let mut event = api::GuestEvent::new();
        match self.events.fetch_add(1, Ordering::Relaxed) % 4 {
            0 => event.set_oom_kill("web".to_owned()),
            1 => event.set_memory_pressure(api::MemoryPressure::new()),
            2 => event.set_oom_kill("../no container\n".to_owned()),
            _ => {}
        }
        Ok(event)
    }

    async fn shutdown(&self, _: &TtrpcContext, _: api::ShutdownRequest) -> ttrpc::Result<api::Empty> {
        self.fault.at("shutdown");
        self.control.send(&Message::Exited(ExitReason::Shutdown), &[]).unwrap();
        std::process::exit(0);
    }
}
