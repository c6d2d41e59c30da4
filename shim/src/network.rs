//! The pod's network on the host: the namespace that CNI or docker has set up, a tap in it for each of its interfaces, and
//! what the guest has to know to be in its place.
//!
//! ```text
//!   the world -- eth0 [ingress] ==tc==> [egress] tap -- monitor -- guest's eth0
//!                eth0 [egress]  <==tc== [ingress] tap
//! ```
//! Every frame that comes in by `eth0` goes out by the tap and the other way round; the guest has the interface's Ethernet
//! address, its addresses, routes, neighbours and MTU. The namespace's own stack sees none of it. Taps are not persistent:
//! they go with the monitor, which holds them. The redirections are taken away by [`Redirections::remove`].
//!
//! | module | what it is for |
//! |---|---|
//! | [`namespace`] | entering it, on a thread that goes nowhere else |
//! | [`scan`] | what is there |
//! | [`tap`] | a tap beside an interface |
//! | [`vhost`] | whether the kernel moves its frames |
//! | [`describe`] | the same for the agent |
//! | [`resolver`] | docker's name server, on that loopback |
//! | [`loopback`] | the ports of the namespace's loopback, for who enters it to reach the pod's |

mod bpf;
mod describe;
mod loopback;
mod namespace;
mod resolver;
mod scan;
mod tap;
#[cfg(test)]
mod tests;
mod vhost;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use hull_netlink::redirect::{self, Queue};
use hull_netlink::socket::Watcher;
use hull_netlink::{Error as KernelError, Mac, Socket};
use hull_protocol::agent::api::agent::ConfigureNetworkRequest;
use hull_protocol::vmm::{NetworkBackend, NetworkConfig, NetworkLimits, Request};
use serde::{Deserialize, Serialize};

pub use loopback::Loopback;
pub use namespace::Namespace;
pub use resolver::{name_server, name_server_stream};
#[cfg(test)]
pub use tap::bare as bare_tap;

use crate::config::Vhost;
use crate::spec::NetworkChoice;
use scan::{Interface, Scan};

/// The most interfaces of a pod: each takes one of the VM's slots.
const INTERFACES_MAX: usize = 8;

/// Why a pod has not the network it should have.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The namespace cannot be opened, made or entered.
    #[error("cannot {what}: {source}")]
    Namespace {
        /// What was tried.
        what: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A namespace is entered by a thread of its own.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The kernel refused a step.
    #[error("cannot {what}: {source}")]
    Kernel {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: KernelError,
    },
    /// Interfaces are told apart by their addresses.
    #[error(
        "the interfaces {0} and {1} of the pod have the same Ethernet address, {2}: a VM can have one of them"
    )]
    Twins(String, String, Mac),
    /// There are too many.
    #[error("the pod has {0} interfaces, and a VM can have {INTERFACES_MAX}")]
    TooMany(usize),
}

fn kernel(what: impl FnOnce() -> String) -> impl FnOnce(KernelError) -> NetworkError {
    move |source| NetworkError::Kernel { what: what(), source }
}

/// A network device for the VM.
#[derive(Debug)]
pub struct NetworkDevice {
    /// As the monitor gets it.
    pub config: NetworkConfig,
    /// Its tap.
    pub tap: OwnedFd,
    /// The kernel's device, where the kernel is to move its frames.
    pub vhost: Option<OwnedFd>,
}

impl NetworkDevice {
    /// What the monitor is asked for.
    pub fn request(self) -> (Request, Vec<OwnedFd>) {
        let Self { config, tap, vhost } = self;
        (Request::AddNetwork(config), [Some(tap), vhost].into_iter().flatten().collect())
    }
}

/// What [`PodNetwork::settle`] has found.
#[derive(Debug)]
pub struct Look {
    /// Devices that the VM has not yet.
    pub devices: Vec<NetworkDevice>,
    /// What the guest's network is to be.
    pub description: ConfigureNetworkRequest,
    /// Whether there is a [name server](name_server).
    pub has_name_server: bool,
}

/// An interface that has a tap. The tap stays when the interface goes: one with the same address may take its place.
#[derive(Clone, Debug)]
struct Attached {
    mac: Mac,
    link: u32,
    tap: u32,
}

/// The network of one pod.
#[derive(Debug)]
pub struct PodNetwork {
    namespace: Arc<Namespace>,
    record: Option<NetworkRecord>,
    limits: NetworkLimits,
    vhost: Vhost,
    attached: Vec<Attached>,
    redirections: Redirections,
}

impl PodNetwork {
    /// Opens or makes the namespace, whose devices will be no faster than `limits`, and served by the kernel where that may
    /// be. `None` where there is nothing to be done: without privileges, no namespace can be made, and a VM that has no device
    /// needs none.
    pub async fn open(
        choice: &NetworkChoice,
        limits: NetworkLimits,
        vhost: Vhost,
    ) -> Result<Option<Self>, NetworkError> {
        let (namespace, record) = match choice {
            NetworkChoice::Own if !nix::unistd::geteuid().is_root() => return Ok(None),
            NetworkChoice::Own => (Arc::new(Namespace::fresh().await?), None),
            NetworkChoice::At(path) => {
                let namespace = Arc::new(Namespace::at(path)?);
                let record = NetworkRecord::take(&namespace, path).await?;
                (namespace, Some(record))
            }
        };
        let redirections = Redirections::default();
        Ok(Some(Self { namespace, record, limits, vhost, attached: Vec::new(), redirections }))
    }

    /// The namespace.
    pub fn namespace(&self) -> &Arc<Namespace> {
        &self.namespace
    }

    /// What has to be taken away in the end.
    pub fn redirections(&self) -> Redirections {
        self.redirections.clone()
    }

    /// What is enough to clean the namespace up without this process. `None` where it ends with the VM.
    pub fn record(&self) -> Option<NetworkRecord> {
        self.record.clone()
    }

    /// Tells of changes in the namespace.
    pub async fn watcher(&self) -> Result<Watcher, NetworkError> {
        let open = |_: &Socket| Watcher::open().map_err(kernel(|| "watch the pod's network".to_owned()));
        self.namespace.run(open).await
    }

    /// Forgets the tap of a device that the VM did not take.
    pub fn forget(&mut self, mac: [u8; 6]) {
        self.attached.retain(|one| one.mac != Mac(mac));
    }

    /// Looks at the namespace, and gives every interface a tap that has none.
    pub async fn settle(&mut self) -> Result<Look, NetworkError> {
        let known = self.attached.clone();
        let redirections = self.redirections.clone();
        let (attached, mut look) = self
            .namespace
            .run(move |socket| {
                let mut scan = Scan::take(socket, &known.iter().map(|one| one.tap).collect::<Vec<_>>())?;
                check(&scan.interfaces)?;
                let (attached, devices) = attach(socket, &mut scan.interfaces, known, &redirections)?;
                let has_name_server = resolver::is_there();
                Ok((attached, Look { devices, description: describe::describe(&scan), has_name_server }))
            })
            .await?;
        self.attached = attached;
        for device in &mut look.devices {
            device.config.limits = self.limits;
            device.vhost = match self.vhost {
                Vhost::Never => None,
                Vhost::Allow => vhost::open(&device.config),
            };
            if device.vhost.is_some() {
                device.config.backend = NetworkBackend::Vhost;
            }
        }
        Ok(look)
    }
}

fn check(interfaces: &[Interface]) -> Result<(), NetworkError> {
    if interfaces.len() > INTERFACES_MAX {
        return Err(NetworkError::TooMany(interfaces.len()));
    }
    for (place, one) in interfaces.iter().enumerate() {
        if let Some(other) = interfaces[..place].iter().find(|other| other.mac == one.mac) {
            return Err(NetworkError::Twins(other.link.name.clone(), one.link.name.clone(), one.mac));
        }
    }
    Ok(())
}

/// Joins every interface to a tap that is not yet joined to one.
fn attach(
    socket: &Socket,
    interfaces: &mut [Interface],
    mut attached: Vec<Attached>,
    redirections: &Redirections,
) -> Result<(Vec<Attached>, Vec<NetworkDevice>), NetworkError> {
    let mut devices = Vec::new();
    for interface in interfaces {
        let name = interface.link.name.clone();
        let link = interface.link.index;
        let tap = match attached.iter_mut().find(|one| one.mac == interface.mac) {
            Some(one) if one.link == link => {
                tap::follow(socket, one.tap, &interface.link)?;
                continue;
            }
            // The interface was made anew: its tap and the guest's device are still there.
            Some(one) => {
                one.link = link;
                tap::follow(socket, one.tap, &interface.link)?;
                one.tap
            }
            None => {
                let (fd, index) = tap::make(socket, &interface.link)?;
                attached.push(Attached { mac: interface.mac, link, tap: index });
                devices.push(NetworkDevice {
                    config: NetworkConfig {
                        name: format!("net{}", attached.len() - 1),
                        mac: interface.mac.0,
                        mtu: u16::try_from(interface.mtu()).unwrap_or(u16::MAX),
                        limits: NetworkLimits::default(),
                        backend: NetworkBackend::default(),
                    },
                    tap: fd,
                    vhost: None,
                });
                index
            }
        };
        redirections.add(socket, link, &name, tap)?;
        redirections.add(socket, tap, &name, link)?;
    }
    Ok((attached, devices))
}

/// A redirection, and how it is undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Redirection {
    /// The number of the link that it is on.
    link: u32,
    /// Whose the link's ingress queue is.
    queue: Queue,
}

impl Redirection {
    fn remove(&self, socket: &Socket) -> Result<(), KernelError> {
        redirect::remove(socket, self.link, self.queue)
    }
}

/// Every redirection that was made, for whoever takes them away. Clones share the list.
#[derive(Clone, Debug, Default)]
pub struct Redirections(Arc<Mutex<Vec<Redirection>>>);

impl Redirections {
    /// Sends what comes in by a link out by another one, and no longer where it went before.
    fn add(&self, socket: &Socket, link: u32, interface: &str, to: u32) -> Result<(), NetworkError> {
        let failed = || kernel(|| format!("redirect the frames of {interface}"));
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = list.iter().position(|one| one.link == link) {
            list.swap_remove(place).remove(socket).map_err(failed())?;
        }
        let queue = redirect::add(socket, link, to).map_err(failed())?;
        list.push(Redirection { link, queue });
        Ok(())
    }

    /// Takes all of them away, the latest first; reports the first error.
    pub async fn remove(self, namespace: Arc<Namespace>) -> io::Result<()> {
        let list = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if list.is_empty() {
            return Ok(());
        }
        let list = Arc::new(list);
        let there = Arc::clone(&list);
        match namespace.run(move |socket| remove_all(socket, &there)).await {
            // Nothing may be left for want of one.
            Err(NetworkError::Thread(_)) => namespace.run_here(|socket| remove_all(socket, &list)),
            other => other,
        }
        .map_err(io::Error::other)
    }
}

/// Tries all of them, and reports the first error.
fn remove_all(socket: &Socket, redirections: &[Redirection]) -> Result<(), NetworkError> {
    let results: Vec<_> = redirections.iter().rev().map(|one| one.remove(socket)).collect();
    let result = results.into_iter().collect::<Result<(), _>>();
    result.map_err(kernel(|| "end a redirection".to_owned()))
}

/// What is enough to clean up a pod's network namespace without its shim. It is the same from before the first change on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// Where the namespace is.
    namespace: PathBuf,
    /// Which one it was: device and inode number of its file. Paths are used again.
    device: u64,
    inode: u64,
    /// The numbers of the links that had an ingress queue then.
    #[serde(default)]
    queues: Vec<u32>,
}

impl NetworkRecord {
    async fn take(namespace: &Arc<Namespace>, path: &Path) -> Result<Self, NetworkError> {
        let queues =
            |socket: &Socket| redirect::queues(socket).map_err(kernel(|| "list the pod's queues".to_owned()));
        let queues = namespace.run(queues).await?;
        let (device, inode) = namespace.identity().map_err(|source| NetworkError::Namespace {
            what: format!("look at the network namespace {}", path.display()),
            source,
        })?;
        Ok(Self { namespace: path.to_owned(), device, inode, queues })
    }

    /// Takes away what a shim that is gone has left in the namespace, if that still exists. What was on its taps went with
    /// them, and what leads to the tap of another is left alone. Blocks for a moment.
    pub fn clean_up(self) -> Result<(), NetworkError> {
        let Ok(namespace) = Namespace::at(&self.namespace) else { return Ok(()) };
        if namespace.identity().ok() != Some((self.device, self.inode)) {
            return Ok(());
        }
        namespace.run_here(|socket| self.sweep(socket))
    }

    /// Tries every link, and reports the first error.
    fn sweep(&self, socket: &Socket) -> Result<(), NetworkError> {
        let queues = redirect::queues(socket).map_err(kernel(|| "list the pod's queues".to_owned()))?;
        let sweep = |link: u32| {
            let queue = if self.queues.contains(&link) { Queue::Found } else { Queue::Ours };
            redirect::sweep(socket, link, queue)
        };
        let results: Vec<_> = queues.into_iter().map(sweep).collect();
        let result = results.into_iter().collect::<Result<(), _>>();
        result.map_err(kernel(|| "end a redirection".to_owned()))
    }
}
