//! One VM from nothing to an agent that answers, and back.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hull_protocol::agent::api::agent::{ConfigurePodRequest, InfoRequest, ShutdownRequest};
use hull_protocol::agent::{API_VERSION, CONTROL_PORT, GUEST_CID, VOLUMES_TAG};
use hull_protocol::vmm::{
    Channel, CpuTemplate, FsCache, FsConfig, JailConfig, JailNetwork, MachineConfig, PortConnection, Request,
    VERSION, VsockConfig,
};
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::forward::Forwarder;
use super::hotplug::PlugError;
use super::monitor::AsyncChannel;
use super::network::{Keeper, Settled};
use super::{
    Abandoned, Agent, AgentError, ArtifactError, Artifacts, Broker, BrokerError, Disk, Export, Journal,
    Monitor, MonitorError, RootfsNames, VmEnd, jail, printable,
};
use crate::config::{BOOT_TIMEOUT_VARIABLE, Config};
use crate::io::Streams;
use crate::network::{Namespace, NetworkDevice, NetworkError, NetworkRecord, PodNetwork};
use crate::record::{BootRecord, RecordError};
use crate::spec::NetworkChoice;
use crate::undo::{Undo, UndoError, remove_file};

/// The monitor works without the guest until Boot; slow storage may hold it up.
const SETUP_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a guest may take to shut down in good order.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a start waits for figures about itself.
const FIGURES_TIMEOUT: Duration = Duration::from_secs(1);
/// What of the console is kept for the log.
const CONSOLE_LIMIT: u64 = 1 << 20;
/// What of the console is shown in an error.
const CONSOLE_TAIL: u64 = 2048;
const CONSOLE_TAIL_LINES: usize = 6;
const ENTROPY: usize = 64;

const KERNEL_ARGS: &str = "console=ttyS0 panic=-1 reboot=k quiet rdinit=/init dummy.numdummies=0";

/// A VM to be started.
#[derive(Debug)]
pub struct VmSpec {
    /// Number of vCPUs.
    pub vcpus: u8,
    /// How many of them run from the start; others are started by [`Agent::online_cpus`].
    pub online_vcpus: u8,
    /// Guest memory.
    pub memory_mib: u32,
    /// The disks, open.
    pub disks: Vec<Disk>,
    /// What of the host's files the guest may reach; `None` where it never will reach any.
    pub exports: Option<Vec<Export>>,
    /// File for the guest's console.
    pub console: PathBuf,
    /// Path for the monitor's vsock listener.
    pub stream_socket: PathBuf,
    /// The namespace of the containers' ids.
    pub namespace: String,
    /// The pod's network.
    pub network: NetworkChoice,
    /// The pod's host name.
    pub hostname: String,
    /// Kernel parameters of the pod's network.
    pub sysctls: HashMap<String, String>,
    /// Whether the pod's ports can be reached from its network namespace.
    pub ports: Ports,
}

/// Where a pod's ports can be reached, besides by its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Nowhere.
    Own,
    /// On the loopback of its network namespace as well, where the host's kernel can do that.
    Forwarded,
}

/// Why a VM did not come up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The monitor, kernel or initramfs is not there.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// A file or device of the host cannot be opened.
    #[error("cannot open {what}: {source}")]
    Open {
        /// Its path.
        what: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The pod's network is not usable.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A network device did not get into the running VM.
    #[error(transparent)]
    Plug(#[from] PlugError),
    /// What of the host's files is to be shared cannot be.
    #[error(transparent)]
    Volumes(#[from] BrokerError),
    /// The monitor did not build the VM.
    #[error("cannot build the VM: {0}")]
    Monitor(#[from] MonitorError),
    /// The VM ended before the agent spoke.
    #[error("the VM ended while booting: {end}{console}")]
    Died {
        /// How.
        end: VmEnd,
        /// The console's last lines.
        console: ConsoleTail,
    },
    /// The agent did not speak in time.
    #[error(
        "the guest did not come up within {} s (see vm.boot_timeout_seconds, {BOOT_TIMEOUT_VARIABLE}){console}",
        .deadline.as_secs()
    )]
    Silent {
        /// How long was waited.
        deadline: Duration,
        /// The console's last lines.
        console: ConsoleTail,
    },
    /// The processes of the VM could not be recorded.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The agent spoke and something was wrong.
    #[error("the agent in the guest failed: {0}")]
    Agent(#[from] AgentError),
    /// The agent is of another version.
    #[error(
        "the agent in the guest speaks version {0} of its API, this shim version {API_VERSION}: install both from one release"
    )]
    Version(u32),
    /// Nobody waits for it any more.
    #[error("the pod was shut down while the VM was booting")]
    Abandoned,
}

/// The last lines of a console, printable; as a suffix to a sentence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsoleTail(Vec<String>);

impl std::fmt::Display for ConsoleTail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "; its console ends: {}", self.0.join(" | ")) }
    }
}

/// How a VM is to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerOff {
    /// The guest syncs and unmounts first.
    Orderly,
    /// At once; nothing in it is worth keeping.
    Now,
}

/// A VM whose agent answers.
pub struct Vm {
    /// The agent.
    pub agent: Agent,
    /// The way to the agent's standard streams.
    pub streams: Streams,
    /// What the boot took, where the monitor could say.
    pub boot: Option<BootRecord>,
    /// Guest memory.
    pub memory_mib: u32,
    broker: Option<Broker>,
    /// How many containers came after the first.
    further: AtomicU32,
    monitor: Monitor,
    network: Option<Keeper>,
    stream_socket: PathBuf,
    undo: std::sync::Mutex<Option<Undo>>,
    remains: watch::Sender<Remains>,
}

/// What there is of a VM outside of it: processes, sockets, taps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remains {
    Something,
    Nothing,
}

/// Something between nothing and a [`Vm`].
pub struct Booting {
    monitor: Monitor,
    connections: AsyncChannel,
    network: Option<Settled>,
    spec: VmSpecRest,
    since: Instant,
    undo: Undo,
}

struct VmSpecRest {
    memory_mib: u32,
    boot_timeout: Duration,
    console: PathBuf,
    stream_socket: PathBuf,
    namespace: String,
    hostname: String,
    sysctls: HashMap<String, String>,
    ports: Ports,
    broker: Option<Broker>,
}

impl Booting {
    /// Opens everything and starts the monitor process; the VM does not exist yet.
    pub async fn prepare(
        spec: VmSpec,
        config: &Config,
        journal: Journal,
        abandoned: &Abandoned,
    ) -> Result<Self, StartError> {
        let mut undo = Undo::default();
        let since = Instant::now();
        match abandoned.or(Self::build(spec, config, journal, &mut undo)).await {
            Ok((monitor, connections, network, spec)) => {
                Ok(Self { monitor, connections, network, spec, since, undo })
            }
            Err(error) => {
                // The failures are logged; the first error is the one to report.
                let _ = undo.run().await;
                Err(error)
            }
        }
    }

    async fn build(
        spec: VmSpec,
        config: &Config,
        mut journal: Journal,
        undo: &mut Undo,
    ) -> Result<(Monitor, AsyncChannel, Option<Settled>, VmSpecRest), StartError> {
        let artifacts = Artifacts::find(&config.artifacts)?;
        let read = |path: &Path| OpenOptions::new().read(true).open(path).map_err(open_error(path));
        let kvm_path = Path::new("/dev/kvm");
        let kvm = OpenOptions::new().read(true).write(true).open(kvm_path).map_err(open_error(kvm_path))?;
        let kernel = read(&artifacts.kernel)?;
        let initramfs = read(&artifacts.initramfs)?;
        let console = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&spec.console)
            .map_err(open_error(&spec.console))?;
        let listener = bind_private(&spec.stream_socket).map_err(open_error(&spec.stream_socket))?;
        let path = spec.stream_socket.clone();
        undo.push("the stream socket", async move { remove_file(&path) });
        let (ours, theirs) = Channel::pair().map_err(MonitorError::from_io)?;
        let (broker, files) = match spec.exports {
            None => (None, None),
            Some(exports) => {
                let (broker, files) = share(exports, &artifacts.broker(&config.artifacts)?, undo).await?;
                (Some(broker), Some(files))
            }
        };

        let (network, devices) = match PodNetwork::open(&spec.network).await? {
            Some(network) => {
                if let Some(record) = network.record() {
                    journal.network(record)?;
                }
                let (settled, devices) = join(network, undo).await?;
                (Some(settled), devices)
            }
            None => (None, Vec::new()),
        };

        let namespace = network.as_ref().map(|settled| settled.network.namespace().as_fd());
        let monitor = Monitor::spawn(&artifacts.vmm, namespace)?;
        let killed = monitor.clone();
        undo.push("the monitor", async move {
            killed.kill().await;
            Ok(())
        });
        journal.monitor(monitor.pid())?;
        let seen = if network.is_some() { JailNetwork::Inherited } else { JailNetwork::Empty };
        let jail = jail::of_monitor(monitor.pid(), config.jail, seen);
        if jail == JailConfig::Unprivileged {
            log::warn!(
                "the jail is the unprivileged one: the monitor keeps this user, its namespaces and its root"
            );
        }
        let requests = async {
            monitor.request(Request::Hello { version: VERSION }, Vec::new()).await?;
            monitor.request(Request::Jail(jail), Vec::new()).await?;
            let machine = MachineConfig {
                vcpus: spec.vcpus,
                online_vcpus: Some(spec.online_vcpus),
                cpu: CpuTemplate::Host,
                memory_mib: spec.memory_mib,
                kernel_args: KERNEL_ARGS.to_owned(),
                console_limit_bytes: CONSOLE_LIMIT,
            };
            let fds = [kvm, kernel, initramfs, console].map(OwnedFd::from).into();
            monitor.request(Request::Machine(machine), fds).await?;
            for disk in spec.disks {
                monitor.request(Request::AddDisk(disk.config), disk.fds).await?;
            }
            let vsock = VsockConfig { guest_cid: GUEST_CID, guest_to_host_ports: vec![CONTROL_PORT] };
            monitor.request(Request::AddVsock(vsock), vec![listener.into(), theirs.into()]).await?;
            for NetworkDevice { config, tap } in devices {
                monitor.request(Request::AddNetwork(config), vec![tap]).await?;
            }
            if let Some(files) = files {
                let config = FsConfig { tag: VOLUMES_TAG.to_owned(), cache: FsCache::Auto };
                monitor.request(Request::AddFs(config), vec![files]).await?;
            }
            monitor.request(Request::AddEntropy, Vec::new()).await
        };
        match tokio::time::timeout(SETUP_TIMEOUT, requests).await {
            Ok(result) => result?,
            Err(_elapsed) => {
                return Err(StartError::Silent { deadline: SETUP_TIMEOUT, console: ConsoleTail::default() });
            }
        }
        let connections = AsyncChannel::new(ours).map_err(MonitorError::from)?;
        let VmSpec { memory_mib, console, stream_socket, namespace, hostname, sysctls, ports, .. } = spec;
        let boot_timeout = config.vm.boot_timeout;
        let rest = VmSpecRest {
            boot_timeout,
            memory_mib,
            console,
            stream_socket,
            namespace,
            hostname,
            sysctls,
            ports,
            broker,
        };
        Ok((monitor, connections, network, rest))
    }

    /// Boots, and waits for the agent. Everything is undone when that fails.
    pub async fn boot(self, abandoned: &Abandoned) -> Result<Vm, StartError> {
        let Self { monitor, connections, network, spec, since, mut undo } = self;
        let streams = Streams::new(spec.stream_socket.clone(), spec.namespace.clone(), monitor.ended());
        let up = async {
            let (agent, boot) = boot(&monitor, connections, &spec, since).await?;
            let network = match network {
                Some(settled) => {
                    if spec.ports == Ports::Forwarded {
                        forward(settled.network.namespace(), streams.clone(), &mut undo).await;
                    }
                    Some(hand_over(settled, &monitor, &agent).await?)
                }
                None => None,
            };
            Ok::<_, StartError>((agent, boot, network))
        };
        match abandoned.or(up).await {
            Ok((agent, boot, network)) => Ok(Vm {
                agent,
                boot,
                network,
                memory_mib: spec.memory_mib,
                broker: spec.broker,
                further: AtomicU32::new(0),
                streams,
                monitor,
                stream_socket: spec.stream_socket,
                undo: std::sync::Mutex::new(Some(undo)),
                remains: watch::Sender::new(Remains::Something),
            }),
            Err(error) => {
                // The failures are logged; the first error is the one to report.
                let _ = undo.run().await;
                Err(error)
            }
        }
    }
}

impl Vm {
    /// The monitor's process id, which stands for the container's init on the host.
    pub fn pid(&self) -> u32 {
        self.monitor.pid()
    }

    /// The monitor.
    pub(super) fn monitor(&self) -> &Monitor {
        &self.monitor
    }

    /// The file broker, if the VM has one.
    pub(super) fn broker(&self) -> Option<&Broker> {
        self.broker.as_ref()
    }

    /// Names for a further container's root file system, which no other in this VM has had.
    pub fn rootfs_names(&self, container: &str) -> RootfsNames {
        let number = self.further.fetch_add(1, Ordering::Relaxed);
        RootfsNames {
            lower: format!("rootfs-{number}"),
            upper: format!("upper-{number}"),
            folder: format!("{container}.root"),
        }
    }

    /// The most that a writable layer in memory may take.
    pub fn tmpfs_bytes(&self) -> u64 {
        u64::from(self.memory_mib) * (1 << 20) / 2
    }

    /// Makes the guest's network that of the pod's namespace.
    pub async fn settle_network(&self) -> Result<(), StartError> {
        match &self.network {
            Some(keeper) => keeper.settle().await,
            None => Ok(()),
        }
    }

    /// What the shim has changed in the pod's network namespace.
    pub fn network_record(&self) -> Option<NetworkRecord> {
        self.network.as_ref().and_then(Keeper::record)
    }

    /// The path of the monitor's vsock listener.
    pub fn stream_socket(&self) -> &Path {
        &self.stream_socket
    }

    /// Tells when the VM has ended.
    pub fn ended(&self) -> super::VmEnded {
        self.monitor.ended()
    }

    /// Ends the VM and cleans up; when it returns, nothing of the VM is left. Whoever calls it first does it, others wait for
    /// it, and one who calls for an end at once need not wait for the guest.
    pub async fn stop(&self, how: PowerOff) -> Result<(), UndoError> {
        let undo = self.undo.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let Some(undo) = undo else {
            if how == PowerOff::Now {
                self.monitor.kill().await;
            }
            // The sender is ours: it cannot be gone.
            let _ = self.remains.subscribe().wait_for(|remains| *remains == Remains::Nothing).await;
            return Ok(());
        };
        if how == PowerOff::Orderly && self.ended().now().is_none() {
            let orderly = async {
                self.agent.shutdown(&ShutdownRequest::new()).await?;
                Ok::<_, AgentError>(self.ended().wait().await)
            };
            match tokio::time::timeout(SHUTDOWN_TIMEOUT, orderly).await {
                Ok(Ok(end)) => log::debug!("powered off: {end}"),
                Ok(Err(error)) => log::warn!("the guest does not shut down: {error}"),
                Err(_elapsed) => log::warn!("the guest does not shut down in time"),
            }
        }
        let undone = undo.run().await;
        self.remains.send_replace(Remains::Nothing);
        undone
    }
}

impl MonitorError {
    fn from_io(error: io::Error) -> Self {
        Self::Channel(error.into())
    }
}

/// Gives the pod's interfaces their taps. What that leaves in the namespace is undone after the monitor's end.
async fn join(
    mut network: PodNetwork,
    undo: &mut Undo,
) -> Result<(Settled, Vec<NetworkDevice>), NetworkError> {
    let namespace = Arc::clone(network.namespace());
    undo.push("the pod's network", network.redirections().remove(namespace));
    let (devices, told) = network.settle().await?;
    Ok((Settled { network, told }, devices))
}

/// Tells the guest of its network, and has it looked after from then on.
async fn hand_over(settled: Settled, monitor: &Monitor, agent: &Agent) -> Result<Keeper, StartError> {
    if !settled.told.interfaces.is_empty() {
        agent.configure_network(&settled.told).await?;
    }
    Ok(Keeper::start(settled, monitor.clone(), agent.clone()).await?)
}

/// Makes the pod's ports reachable in its network namespace. A pod is worth having without.
async fn forward(namespace: &Arc<Namespace>, streams: Streams, undo: &mut Undo) {
    match Forwarder::start(namespace, streams).await {
        Ok(forwarder) => undo.push("the forwarded ports", async move {
            forwarder.end().await;
            Ok(())
        }),
        Err(error) => log::warn!("ports of the pod cannot be forwarded: {error}"),
    }
}

async fn boot(
    monitor: &Monitor,
    connections: AsyncChannel,
    spec: &VmSpecRest,
    since: Instant,
) -> Result<(Agent, Option<BootRecord>), StartError> {
    let deadline = spec.boot_timeout;
    let ended = monitor.ended();
    let up = async {
        monitor.request(Request::Boot, Vec::new()).await?;
        match connections.receive::<PortConnection>().await {
            Ok(Some(mut received)) if received.message.port == CONTROL_PORT && received.fds.len() == 1 => {
                let fd = received.fds.pop().ok_or(MonitorError::OutOfTurn)?;
                let stream = std::os::unix::net::UnixStream::from(fd);
                stream.set_nonblocking(true).map_err(MonitorError::from_io)?;
                Ok(UnixStream::from_std(stream).map_err(MonitorError::from_io)?)
            }
            // The channel's other end is gone: so is the monitor.
            Ok(None) => Err(MonitorError::Ended(ended.wait().await)),
            Ok(Some(_)) => Err(MonitorError::OutOfTurn),
            Err(error) => Err(error.into()),
        }
    };
    let died = |end| StartError::Died { end, console: console_tail(&spec.console) };
    let connection = tokio::select! {
        biased;
        up = tokio::time::timeout(deadline, up) => match up {
            Ok(Ok(connection)) => connection,
            Ok(Err(MonitorError::Ended(end))) => return Err(died(end)),
            Ok(Err(error)) => return Err(error.into()),
            Err(_elapsed) => {
                return Err(StartError::Silent { deadline, console: console_tail(&spec.console) });
            }
        },
        end = ended.wait() => return Err(died(end)),
    };
    // One connection is all there is: the port is closed from here on.
    drop(connections);
    let figures = boot_figures(monitor, since.elapsed()).await;
    let agent = Agent::new(connection, ended);
    introduce(&agent, spec).await.map_err(|error| match error {
        StartError::Agent(AgentError::VmEnded(end)) => died(end),
        other => other,
    })?;
    Ok((agent, figures))
}

/// Starts the file broker with what it gives out; and what the monitor needs to speak with it.
async fn share(
    exports: Vec<Export>,
    program: &Path,
    undo: &mut Undo,
) -> Result<(Broker, OwnedFd), StartError> {
    let (broker, files) = Broker::start(program).await?;
    let ended = broker.clone();
    undo.push("the file broker", async move {
        ended.end().await;
        Ok(())
    });
    for export in exports {
        broker.share(export).await?;
    }
    Ok((broker, files))
}

/// Figures are worth having, and not worth failing for.
async fn boot_figures(monitor: &Monitor, took: Duration) -> Option<BootRecord> {
    match tokio::time::timeout(FIGURES_TIMEOUT, monitor.stats()).await {
        Ok(Ok(stats)) => Some(BootRecord {
            first_entry_us: stats.start_to_first_entry_us,
            agent_ready_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            vm_exits: stats.vm_exits,
            monitor_exits: stats.exits.values().sum(),
            mmio_exits: ["mmio_read", "mmio_write"].iter().filter_map(|kind| stats.exits.get(*kind)).sum(),
            interrupts: stats.interrupts,
            device_interrupts: stats.devices.values().map(|device| device.interrupts).sum(),
            notifications: stats.devices.values().map(|device| device.notifications).sum(),
        }),
        Ok(Err(error)) => {
            log::debug!("the monitor has no figures: {error}");
            None
        }
        Err(_elapsed) => {
            log::debug!("the monitor is slow to give figures");
            None
        }
    }
}

async fn introduce(agent: &Agent, spec: &VmSpecRest) -> Result<(), StartError> {
    let info = agent.info(&InfoRequest { api_version: API_VERSION, ..InfoRequest::default() }).await?;
    if info.api_version != API_VERSION {
        return Err(StartError::Version(info.api_version));
    }
    log::info!("agent {} on Linux {}", printable(&info.agent_version), printable(&info.kernel_release));
    let mut entropy = vec![0; ENTROPY];
    let source = Path::new("/dev/urandom");
    File::open(source).and_then(|mut file| file.read_exact(&mut entropy)).map_err(open_error(source))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let request = ConfigurePodRequest {
        hostname: spec.hostname.clone(),
        sysctls: spec.sysctls.clone(),
        realtime_nanos: i64::try_from(now.as_nanos()).unwrap_or_default(),
        entropy,
        ..ConfigurePodRequest::default()
    };
    Ok(agent.configure_pod(&request).await?)
}

/// A listening socket that only this user may connect to.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    // Whatever lies there is a dead pod's: the directory is ours alone, and the task socket is the lock.
    remove_file(path)?;
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn open_error(path: &Path) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Open { what: path.display().to_string(), source }
}

fn console_tail(path: &Path) -> ConsoleTail {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(CONSOLE_TAIL)))?;
        let mut bytes = Vec::new();
        file.take(CONSOLE_TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_else(|error| format!("(unreadable: {error})").into_bytes());
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let mut lines: Vec<String> = text
        .lines()
        .rev()
        .map(printable)
        .filter(|line| !line.trim().is_empty())
        .take(CONSOLE_TAIL_LINES)
        .collect();
    lines.reverse();
    ConsoleTail(lines)
}
