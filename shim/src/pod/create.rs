//! From a Create request to a container: the VM, the root file system, the streams, the init process.

use std::path::PathBuf;
use std::sync::Arc;

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use hull_protocol::agent::api::agent::{CreateContainerRequest, SeccompFilter};
use hull_protocol::agent::is_valid_id;
use tokio::sync::watch;

use super::{Abandon, Booting, Pod, PowerOff, RootfsPlan, Slot, StartError, Vm, VmSpec, start_ticks};
use crate::container::{Container, Parts, own_record, supervise_init};
use crate::error::TaskError;
use crate::events::Event;
use crate::io::{ProcessIo, StdioSpec};
use crate::process::Process;
use crate::record::{CONSOLE_FILE, Record};
use crate::spec::ContainerConfig;

/// An id taken in the table. Given back when dropped, unless the container came to be.
struct Reservation<'a> {
    pod: &'a Pod,
    id: String,
    abandoned: watch::Receiver<Abandon>,
}

impl Reservation<'_> {
    fn fulfil(self, container: Arc<Container>) {
        self.pod.with_table(|table| table.insert(self.id.clone(), Slot::Ready(container)));
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.pod.with_table(|table| {
            if matches!(table.get(&self.id), Some(Slot::Creating(_))) {
                table.remove(&self.id);
            }
        });
    }
}

impl Pod {
    /// Creates a container, and the VM for it. Returns the pid that stands for it on the host. Whatever fails,
    /// everything before it is undone.
    pub async fn create(self: &Arc<Self>, request: CreateTaskRequest) -> Result<u32, TaskError> {
        if !is_valid_id(&request.id) {
            return Err(TaskError::InvalidId(request.id));
        }
        if !request.checkpoint.is_empty() {
            return Err(TaskError::Unsupported("restoring a checkpoint is not supported"));
        }
        let reservation = self.reserve(&request.id)?;
        let mut abandoned = reservation.abandoned.clone();
        let (container, io) = tokio::select! {
            built = self.build(&request) => built?,
            _ = abandoned.wait_for(|abandon| *abandon == Abandon::Yes) => {
                return Err(StartError::Abandoned.into());
            }
        };
        let pid = container.init.pid();
        self.events().send(Event::Create(create_event(&request, pid)));
        reservation.fulfil(Arc::clone(&container));
        let pod = Arc::clone(self);
        tokio::spawn(async move {
            supervise_init(Arc::clone(&container), io).await;
            pod.after_exit(&container).await;
        });
        Ok(pid)
    }

    fn reserve(&self, id: &str) -> Result<Reservation<'_>, TaskError> {
        if *self.state.borrow() == super::PodState::Finished {
            return Err(TaskError::ShuttingDown);
        }
        let abandoned = self.with_table(|table| {
            if table.contains_key(id) {
                return Err(TaskError::Exists(format!("container {id:?}")));
            }
            if !table.is_empty() {
                return Err(TaskError::Unsupported("a second container in a pod is not supported yet"));
            }
            let (abandon, abandoned) = watch::channel(Abandon::No);
            table.insert(id.to_owned(), Slot::Creating(abandon));
            Ok(abandoned)
        })?;
        Ok(Reservation { pod: self, id: id.to_owned(), abandoned })
    }

    async fn build(&self, request: &CreateTaskRequest) -> Result<(Arc<Container>, ProcessIo), TaskError> {
        let bundle = PathBuf::from(&request.bundle);
        if !bundle.is_absolute() {
            return Err(TaskError::Invalid(format!("the bundle {:?} is no absolute path", request.bundle)));
        }
        let config = ContainerConfig::read(&bundle, &request.id, &self.config)?;
        let rootfs = RootfsPlan::parse(&request.rootfs)?;
        let stdio = StdioSpec::parse(&request.stdin, &request.stdout, &request.stderr, request.terminal)?;
        let spec = VmSpec {
            vcpus: config.shape.vcpus,
            online_vcpus: config.shape.vcpus,
            memory_mib: config.shape.memory_mib,
            disks: rootfs.open()?,
            volumes: config.volumes.clone(),
            console: bundle.join(CONSOLE_FILE),
            stream_socket: self.sockets.streams.clone(),
            hostname: config.hostname.clone(),
        };
        let booting = Booting::prepare(spec, &self.config).await?;
        // On disk before it runs: `delete` must find it even if this process is killed now.
        let mut record = own_record(vec![self.sockets.task.clone(), self.sockets.streams.clone()]);
        record.vmm_pid = Some(booting.pid());
        record.vmm_start_ticks = start_ticks(booting.pid());
        if let Err(error) = record.write(&bundle) {
            booting.abandon().await;
            return Err(error.into());
        }
        let vm = Arc::new(booting.boot().await?);
        let init = Arc::new(Process::new(&request.id, None, stdio));
        init.set_pid(vm.pid());
        match self.prepare_init(&vm, &init, &config, &rootfs).await {
            Ok(io) => {
                let power_off = if rootfs.is_persistent() { PowerOff::Orderly } else { PowerOff::Now };
                let container = Container::new(Parts {
                    id: request.id.clone(),
                    bundle,
                    lifecycle: config.lifecycle,
                    vm,
                    power_off,
                    init,
                    events: self.events(),
                });
                Ok((Arc::new(container), io))
            }
            Err(error) => {
                if let Err(error) = vm.stop(PowerOff::Now).await {
                    log::error!("{error}");
                }
                Err(error)
            }
        }
    }

    async fn prepare_init(
        &self,
        vm: &Vm,
        init: &Process,
        config: &ContainerConfig,
        rootfs: &RootfsPlan,
    ) -> Result<ProcessIo, TaskError> {
        let request = CreateContainerRequest {
            container_id: init.container.clone(),
            spec: config.guest_spec.clone(),
            rootfs: Some(rootfs.for_agent(config.shape.tmpfs_bytes())).into(),
            stdio: Some(init.agent_stdio()).into(),
            seccomp: config.seccomp.as_ref().map(seccomp_filter).into(),
            ..CreateContainerRequest::default()
        };
        vm.agent.create_container(&request).await.map_err(super::AgentError::about_the_program)?;
        let io = ProcessIo::attach(&init.stdio, &vm.streams, &init.container, None).await?;
        init.attached(io.control());
        Ok(io)
    }
}

fn seccomp_filter(filter: &hull_seccomp::Filter) -> SeccompFilter {
    SeccompFilter { program: filter.to_bytes(), flags: filter.flags, ..SeccompFilter::default() }
}

fn create_event(request: &CreateTaskRequest, pid: u32) -> TaskCreate {
    let mut event = TaskCreate::new();
    event.container_id.clone_from(&request.id);
    event.bundle.clone_from(&request.bundle);
    event.rootfs.clone_from(&request.rootfs);
    event.checkpoint.clone_from(&request.checkpoint);
    event.pid = pid;
    event.io = Some(TaskIO {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
        ..TaskIO::default()
    })
    .into();
    event
}
