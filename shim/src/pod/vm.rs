//! One VM from nothing to an agent that answers, and back.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hull_protocol::agent::api::agent::ShutdownRequest;
use hull_protocol::agent::{CONTROL_PORT, DEBUG_ARGUMENT, GUEST_CID, VOLUMES_TAG};
use hull_protocol::vmm::{
    Channel, FsCache, FsConfig, JailConfig, JailNetwork, MachineConfig, RateLimits, Request, VERSION,
    VsockConfig,
};
use tokio::sync::watch;

use super::cgroup::Accounting;
use super::devices::SharedDevices;
use super::forward::Forwarder;
use super::monitor::AsyncChannel;
use super::network::{Keeper, Settled};
use super::{
    Abandoned, Agent, AgentError, Artifacts, Broker, Disk, Export, Journal, Monitor, MonitorError,
    RootfsNames, Size, jail, resize,
};
use crate::cgroup::CgroupRecord;
use crate::config::{Config, DebugConsole, FreeMemory};
use crate::io::Streams;
use crate::network::{Look, Namespace, NetworkDevice, NetworkError, NetworkRecord, PodNetwork};
use crate::record::BootRecord;
use crate::spec::VmShape;
use crate::undo::{Undo, UndoError, remove_file};

mod boot;
mod error;
mod spec;

use boot::boot;
use error::ConsoleTail;
pub use error::StartError;
pub use spec::{Ports, PowerOff, VmSpec};

/// The monitor works without the guest until Boot; slow storage may hold it up.
const SETUP_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a guest may take to shut down in good order.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);
/// What of the console is kept for the log.
const CONSOLE_LIMIT: u64 = 1 << 20;

/// Memory that is plugged can be taken away again if nothing but what can be moved is in it.
const KERNEL_ARGS: &str = "console=ttyS0 panic=-1 reboot=k quiet rdinit=/init dummy.numdummies=0 memhp_default_state=online_movable";

/// A VM whose agent answers.
pub struct Vm {
    /// The agent.
    pub agent: Agent,
    /// The way to the agent's standard streams.
    pub streams: Streams,
    /// What the boot took, where the monitor could say.
    pub boot: Option<BootRecord>,
    pub(super) size: Size,
    broker: Option<Broker>,
    /// Of each disk.
    disk_limits: RateLimits,
    /// How many containers came after the first.
    further: AtomicU32,
    devices: SharedDevices,
    monitor: Monitor,
    network: Option<Keeper>,
    accounting: Accounting,
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
    size: VmShape,
    room: VmShape,
    disk_limits: RateLimits,
    boot_timeout: Duration,
    console: PathBuf,
    stream_socket: PathBuf,
    namespace: String,
    hostname: String,
    sysctls: HashMap<String, String>,
    ports: Ports,
    accounting: Accounting,
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
        let accounting = Accounting::begin(spec.cgroup, &mut journal, undo)?;
        let (ours, theirs) = Channel::pair().map_err(MonitorError::from_io)?;
        let (broker, files) = match spec.exports {
            None => (None, None),
            Some(exports) => {
                let (broker, files) =
                    share(exports, &artifacts.broker(&config.artifacts)?, &accounting, undo).await?;
                (Some(broker), Some(files))
            }
        };

        let (network, devices) =
            match PodNetwork::open(&spec.network, config.limits.network, config.vhost).await? {
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
        let monitor = Monitor::spawn(&artifacts.vmm, namespace, &accounting, spec.console.clone())?;
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
                vcpus: spec.room.vcpus,
                online_vcpus: Some(spec.size.vcpus),
                cpu: config.vm.cpu,
                memory_mib: spec.size.memory_mib,
                kernel_args: kernel_args(config.debug_console),
                console_limit_bytes: CONSOLE_LIMIT,
            };
            let fds = [kvm, kernel, initramfs, console].map(OwnedFd::from).into();
            monitor.request(Request::Machine(machine), fds).await?;
            resize::reserve(&monitor, spec.size, spec.room).await?;
            for disk in spec.disks {
                let Disk { config, fds } = disk.limited(config.limits.disk);
                monitor.request(Request::AddDisk(config), fds).await?;
            }
            let vsock = VsockConfig { guest_cid: GUEST_CID, guest_to_host_ports: vec![CONTROL_PORT] };
            monitor.request(Request::AddVsock(vsock), vec![listener.into(), theirs.into()]).await?;
            for device in devices {
                let (request, fds) = device.request();
                monitor.request(request, fds).await?;
            }
            if let Some(files) = files {
                let config = FsConfig { tag: VOLUMES_TAG.to_owned(), cache: FsCache::Auto };
                monitor.request(Request::AddFs(config), vec![files]).await?;
            }
            match config.vm.free_memory {
                FreeMemory::Keep => {}
                FreeMemory::Return => monitor.request(Request::AddBalloon, Vec::new()).await?,
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
        let VmSpec { size, room, console, stream_socket, namespace, hostname, sysctls, ports, .. } = spec;
        let boot_timeout = config.vm.boot_timeout;
        let rest = VmSpecRest {
            boot_timeout,
            size,
            room,
            disk_limits: config.limits.disk,
            console,
            stream_socket,
            namespace,
            hostname,
            sysctls,
            ports,
            accounting,
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
                    Some(hand_over(settled, &monitor, &agent, &streams).await?)
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
                size: Size::new(spec.size, spec.room),
                disk_limits: spec.disk_limits,
                broker: spec.broker,
                accounting: spec.accounting,
                further: AtomicU32::new(0),
                devices: SharedDevices::default(),
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

    /// The host's block devices that containers share.
    pub(super) fn devices(&self) -> &SharedDevices {
        &self.devices
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

    /// How fast each of its disks may be.
    pub(super) fn disk_limits(&self) -> RateLimits {
        self.disk_limits
    }

    /// The most that a writable layer in memory may take.
    pub fn tmpfs_bytes(&self) -> u64 {
        u64::from(self.size.began().memory_mib) * (1 << 20) / 2
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

    /// The pod's cgroup.
    pub fn cgroup_record(&self) -> Option<CgroupRecord> {
        self.accounting.record()
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

/// What the guest's kernel is told.
fn kernel_args(console: DebugConsole) -> String {
    match console {
        DebugConsole::Off => KERNEL_ARGS.to_owned(),
        DebugConsole::On => format!("{KERNEL_ARGS} {DEBUG_ARGUMENT}"),
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
    let Look { devices, description: told, .. } = network.settle().await?;
    Ok((Settled { network, told }, devices))
}

/// Tells the guest of its network, and has it looked after from then on.
async fn hand_over(
    settled: Settled,
    monitor: &Monitor,
    agent: &Agent,
    streams: &Streams,
) -> Result<Keeper, StartError> {
    if !settled.told.interfaces.is_empty() {
        agent.configure_network(&settled.told).await?;
    }
    Ok(Keeper::start(settled, monitor.clone(), agent.clone(), streams.clone()).await?)
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

/// Starts the file broker with what it gives out; and what the monitor needs to speak with it.
async fn share(
    exports: Vec<Export>,
    program: &Path,
    accounting: &Accounting,
    undo: &mut Undo,
) -> Result<(Broker, OwnedFd), StartError> {
    let (broker, files) = Broker::start(program, accounting).await?;
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
