//! From a Create request to a container: the VM, the root file system, the streams, the init process.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use hull_protocol::agent::api::agent::{ContainerRequest, CreateContainerRequest, Rootfs, SeccompFilter};
use hull_protocol::agent::is_valid_id;

use super::{
    Abandon, Abandoned, Booting, BrokerError, Export, Host, Journal, Needs, PlugError, Pod, PodState, Ports,
    PowerOff, RootfsNames, RootfsPlan, Slot, StartError, Vm, VmSpec, devices, news, room,
};
use crate::container::{Container, Ending, Kind, SandboxEnd, own_record, shim_record, supervise_init};
use crate::error::TaskError;
use crate::events::Event;
use crate::io::{ProcessIo, StdioSpec};
use crate::process::{GUEST_PID, Process};
use crate::record::{CONSOLE_FILE, Record};
use crate::spec::{ContainerConfig, Document, Issued, PodSpec, Role, Volume};

/// An id taken in the table. Given back when dropped, unless the container came to be.
pub(super) struct Reservation<'a> {
    pod: &'a Pod,
    id: String,
    pub(super) abandoned: Abandoned,
}

/// What is to be created.
struct Order<'a> {
    request: &'a CreateTaskRequest,
    bundle: PathBuf,
    document: Document,
    abandoned: Abandoned,
}

/// How a new container is seen to its end.
enum Supervision {
    Process(Box<ProcessIo>),
    Sandbox(Ending),
}

impl Reservation<'_> {
    pub(super) fn fulfil(self, container: Arc<Container>) {
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
    /// Creates a container, and the VM for it if it is the pod's first. Returns the pid that stands for it on the host.
    /// Whatever fails, everything before it is undone.
    pub async fn create(self: &Arc<Self>, request: CreateTaskRequest) -> Result<u32, TaskError> {
        if !is_valid_id(&request.id) {
            return Err(TaskError::InvalidId(request.id));
        }
        if !request.checkpoint.is_empty() {
            return Err(TaskError::Unsupported("restoring a checkpoint is not supported"));
        }
        let bundle = PathBuf::from(&request.bundle);
        if !bundle.is_absolute() {
            return Err(TaskError::Invalid(format!("the bundle {:?} is no absolute path", request.bundle)));
        }
        let document = Document::read(&bundle, &request.id)?;
        document.check(&self.config)?;
        let role = document.role.clone();
        let (reservation, sandbox) = self.reserve(&request.id, &role)?;
        let abandoned = reservation.abandoned.clone();
        let order = Order { request: &request, bundle, document, abandoned };
        let (container, rest) = match (role, sandbox) {
            (Role::Member { .. }, Some(sandbox)) => Box::pin(self.build_member(order, &sandbox)).await,
            (Role::Sandbox, _) => Box::pin(self.build_sandbox(order)).await,
            (Role::Alone | Role::Member { .. }, _) => Box::pin(self.build_alone(order)).await,
        }?;
        let container = Arc::new(container);
        let pid = container.init.pid();
        self.events().send(Event::Create(create_event(&request, pid)));
        reservation.fulfil(Arc::clone(&container));
        let pod = Arc::clone(self);
        tokio::spawn(async move {
            match rest {
                Supervision::Process(io) => {
                    supervise_init(Arc::clone(&container), *io).await;
                    pod.after_exit(&container).await;
                }
                Supervision::Sandbox(end) => pod.supervise_sandbox(&container, end).await,
            }
        });
        Ok(pid)
    }

    /// Takes the id, and finds the sandbox that the container belongs to.
    pub(super) fn reserve(
        &self,
        id: &str,
        role: &Role,
    ) -> Result<(Reservation<'_>, Option<Arc<Container>>), TaskError> {
        if *self.state.borrow() != PodState::Open {
            return Err(TaskError::ShuttingDown);
        }
        let (abandoned, sandbox) = self.with_table(|table| {
            if table.contains_key(id) {
                return Err(TaskError::Exists(format!("container {id:?}")));
            }
            let sandbox = match role {
                Role::Alone | Role::Sandbox if table.is_empty() => None,
                Role::Alone | Role::Sandbox => {
                    return Err(TaskError::Unsupported("a second container in a pod without a sandbox"));
                }
                Role::Member { sandbox } => match table.get(sandbox) {
                    Some(Slot::Ready(container)) if container.is_running_sandbox() => {
                        Some(Arc::clone(container))
                    }
                    _ => {
                        return Err(TaskError::Precondition {
                            action: "create the container",
                            subject: "pod's sandbox",
                            state: "not running",
                        });
                    }
                },
            };
            let (abandon, abandoned) = Abandon::new();
            table.insert(id.to_owned(), Slot::Creating(abandon));
            Ok((abandoned, sandbox))
        })?;
        Ok((Reservation { pod: self, id: id.to_owned(), abandoned }, sandbox))
    }

    /// A container with a VM of its own.
    async fn build_alone(self: &Arc<Self>, order: Order<'_>) -> Result<(Container, Supervision), TaskError> {
        let Order { request, bundle, mut document, abandoned } = order;
        let (shape, hostname) = (document.shape(&self.config)?, document.hostname());
        let (network, sysctls) = (document.network()?, document.take_network_sysctls()?);
        let cgroup = document.cgroup()?;
        let config = document.translate(&bundle, None)?;
        let rootfs = RootfsPlan::parse(&request.rootfs, &bundle, &config.root)?;
        let stdio = stdio(request)?;
        let names = RootfsNames::first(&request.id);
        let mut open = rootfs.open(&names).await?;
        let layers = std::mem::take(&mut open.layers);
        open.disks.extend(devices::open(&config.devices)?);
        let volumes = exports(&config.volumes).map_err(StartError::from)?;
        let exports: Vec<Export> = open.export.into_iter().chain(volumes).collect();
        let spec = VmSpec {
            size: shape,
            room: room(shape, &self.config.vm, Host::this),
            disks: open.disks,
            // Without a file to share there is no broker.
            exports: (!exports.is_empty()).then_some(exports),
            network,
            sysctls,
            ports: Ports::Own,
            console: bundle.join(CONSOLE_FILE),
            stream_socket: self.sockets.streams.clone(),
            namespace: self.namespace.clone(),
            hostname,
            cgroup,
        };
        let vm = self.boot(spec, &bundle, &abandoned).await?;
        let init = Arc::new(Process::new(&request.id, None, stdio));
        init.set_pid(vm.pid());
        let agents = rootfs.for_agent(&names, layers, vm.tmpfs_bytes());
        match abandoned.or(prepare_init(&vm, &init, &bundle, &config, agents)).await {
            Ok(io) => {
                let container = Container::new(&request.id, bundle, Kind::Alone, vm, init, self.events())
                    .with_lifecycle(config.lifecycle)
                    .with_limits(config.limits)
                    .with_power_off(power_off(&rootfs, &config));
                Ok((container, Supervision::Process(Box::new(io))))
            }
            Err(error) => {
                super::stop(&vm, PowerOff::Now).await;
                Err(error)
            }
        }
    }

    /// The VM of a pod whose containers come later. The sandbox's own root file system and mounts are not used.
    async fn build_sandbox(
        self: &Arc<Self>,
        order: Order<'_>,
    ) -> Result<(Container, Supervision), TaskError> {
        let Order { request, bundle, document, abandoned } = order;
        let pod = document.pod(&self.config)?;
        let stdio = stdio(request)?;
        let vm = self.boot_pod(pod, &bundle, &abandoned).await?;
        let hooks = async { Ok(crate::hooks::create_runtime(&bundle, &request.id, vm.pid()).await?) };
        if let Err(error) = abandoned.or::<_, TaskError>(hooks).await {
            super::stop(&vm, PowerOff::Now).await;
            return Err(error);
        }
        let init = Arc::new(Process::new(&request.id, None, stdio));
        init.set_pid(vm.pid());
        let (end, ending) = SandboxEnd::new();
        let container = Container::new(&request.id, bundle, Kind::Sandbox(end), vm, init, self.events());
        Ok((container, Supervision::Sandbox(ending)))
    }

    /// The VM of a pod.
    pub(super) async fn boot_pod(
        self: &Arc<Self>,
        pod: PodSpec,
        bundle: &Path,
        abandoned: &Abandoned,
    ) -> Result<Arc<Vm>, TaskError> {
        let spec = VmSpec {
            size: pod.shape,
            room: room(pod.shape, &self.config.vm, Host::this),
            disks: Vec::new(),
            // A container that comes later may share files.
            exports: Some(Vec::new()),
            network: pod.network,
            sysctls: pod.sysctls,
            ports: Ports::Forwarded,
            console: bundle.join(CONSOLE_FILE),
            stream_socket: self.sockets.streams.clone(),
            namespace: self.namespace.clone(),
            hostname: pod.hostname,
            cgroup: pod.cgroup,
        };
        self.boot(spec, bundle, abandoned).await
    }

    /// A further container in the VM of a sandbox. If that ends, so does the creation.
    async fn build_member(
        &self,
        order: Order<'_>,
        sandbox: &Container,
    ) -> Result<(Container, Supervision), TaskError> {
        let Order { request, bundle, mut document, .. } = order;
        if let Some(api) = &sandbox.api {
            document.complete(&api.files);
        }
        let vm = Arc::clone(&sandbox.vm);
        shim_record(&vm, Some(&sandbox.id)).write(&bundle)?;
        let config = document.translate(&bundle, Some(&self.issued(sandbox)))?;
        let rootfs = RootfsPlan::parse(&request.rootfs, &bundle, &config.root)?;
        let stdio = stdio(request)?;
        let names = vm.rootfs_names(&request.id);
        let mut open = rootfs.open(&names).await?;
        let layers = std::mem::take(&mut open.layers);
        let needs = Needs {
            rootfs: open,
            volumes: exports(&config.volumes).map_err(PlugError::from)?,
            devices: devices::open(&config.devices)?,
        };
        let attached = vm.attach(needs).await?;
        let init = Arc::new(Process::new(&request.id, None, stdio));
        let agents = rootfs.for_agent(&names, layers, vm.tmpfs_bytes());
        match prepare_init(&vm, &init, &bundle, &config, agents).await {
            Ok(io) => {
                let attachments = Mutex::new(Some(attached));
                let kind = Kind::Member { sandbox: sandbox.id.clone(), attachments };
                let container = Container::new(&request.id, bundle, kind, vm, init, self.events())
                    .with_limits(config.limits)
                    .with_power_off(power_off(&rootfs, &config));
                Ok((container, Supervision::Process(Box::new(io))))
            }
            Err(error) => {
                let request =
                    ContainerRequest { container_id: request.id.clone(), ..ContainerRequest::default() };
                // Where the agent refused, there is nothing to delete.
                if let Err(error) = vm.agent.delete_container(&request).await {
                    log::debug!("{error}");
                }
                vm.detach(attached).await;
                Err(error)
            }
        }
    }

    /// The numbers by which a container may name the namespaces of others.
    fn issued(&self, sandbox: &Container) -> Issued {
        let containers = self.containers();
        let others = containers.iter().filter(|other| other.id != sandbox.id);
        let containers = others.map(|other| (other.init.pid(), other.id.clone())).collect();
        Issued { sandbox: sandbox.init.pid(), containers }
    }

    async fn boot(
        self: &Arc<Self>,
        spec: VmSpec,
        bundle: &Path,
        abandoned: &Abandoned,
    ) -> Result<Arc<Vm>, TaskError> {
        let record = own_record(vec![self.sockets.task.clone(), self.sockets.streams.clone()]);
        let journal = Journal::new(bundle.to_owned(), record);
        let booting = Booting::prepare(spec, &self.config, journal, abandoned).await?;
        let vm = Arc::new(booting.boot(abandoned).await?);
        tokio::spawn(news::follow(Arc::downgrade(self), vm.agent.clone()));
        Ok(vm)
    }
}

fn stdio(request: &CreateTaskRequest) -> Result<StdioSpec, TaskError> {
    Ok(StdioSpec::parse(&request.stdin, &request.stdout, &request.stderr, request.terminal)?)
}

fn exports(volumes: &[Volume]) -> Result<Vec<Export>, BrokerError> {
    volumes.iter().map(Export::of_volume).collect()
}

fn power_off(rootfs: &RootfsPlan, config: &ContainerConfig) -> PowerOff {
    let lasting = rootfs.is_persistent() || devices::any_writable(&config.devices);
    if lasting { PowerOff::Orderly } else { PowerOff::Now }
}

/// Runs the hooks that come before, has the agent make the container, and attaches its streams. An init without a pid on
/// the host gets one.
async fn prepare_init(
    vm: &Vm,
    init: &Process,
    bundle: &Path,
    config: &ContainerConfig,
    mut rootfs: Rootfs,
) -> Result<ProcessIo, TaskError> {
    crate::hooks::create_runtime(bundle, &init.container, vm.pid()).await?;
    rootfs.files.clone_from(&config.files);
    let request = CreateContainerRequest {
        container_id: init.container.clone(),
        spec: config.guest_spec.clone(),
        rootfs: Some(rootfs).into(),
        stdio: Some(init.agent_stdio()).into(),
        seccomp: config.seccomp.as_ref().map(seccomp_filter).into(),
        namespaces: Some(config.namespaces.clone()).into(),
        device_nodes: config.device_nodes.into(),
        block_devices: devices::for_agent(&config.devices),
        ..CreateContainerRequest::default()
    };
    let pid = vm.agent.create_container(&request).await.map_err(super::AgentError::about_the_program)?;
    init.set_pid(pid | GUEST_PID);
    let io = ProcessIo::attach(&init.stdio, &vm.streams, &init.container, None).await?;
    init.attached(io.control());
    Ok(io)
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
