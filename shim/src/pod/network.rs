//! The pod's network while its VM runs: one task looks after it. It settles what has changed when it is asked to, which is
//! before a container starts, and when the kernel says that something has changed in the namespace.

use std::time::Duration;

use hull_netlink::socket::Watcher;
use hull_protocol::agent::api::agent::ConfigureNetworkRequest;
use hull_protocol::vmm::{Request, Unplug};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use super::hotplug::PlugError;
use super::resolver::Resolver;
use super::{Agent, Monitor, StartError};
use crate::io::Streams;
use crate::network::{Look, NetworkDevice, NetworkError, NetworkRecord, PodNetwork};

/// Changes come in crowds: so long is waited for the rest of one. Also the shortest time between two looks.
const CROWD: Duration = Duration::from_millis(100);

/// A pod's network and what the guest was told of it.
pub struct Settled {
    /// The network.
    pub network: PodNetwork,
    /// What the guest has.
    pub told: ConfigureNetworkRequest,
}

/// The way to the task. When every clone is dropped, it ends.
#[derive(Clone)]
pub struct Keeper {
    asks: mpsc::Sender<oneshot::Sender<Result<(), StartError>>>,
    record: Option<NetworkRecord>,
}

impl Keeper {
    /// Starts the task.
    pub async fn start(
        settled: Settled,
        monitor: Monitor,
        agent: Agent,
        streams: Streams,
    ) -> Result<Self, NetworkError> {
        let watcher = settled.network.watcher().await?;
        let failed = |source| NetworkError::Namespace { what: "watch the pod's network".to_owned(), source };
        let watcher = crate::readiness::watch(watcher).map_err(failed)?;
        let (asks, inbox) = mpsc::channel(1);
        let record = settled.network.record();
        let keeping = Keeping { settled, monitor, agent, streams, resolver: None };
        tokio::spawn(keeping.run(inbox, watcher));
        Ok(Self { asks, record })
    }

    /// Makes the guest's network that of the namespace.
    pub async fn settle(&self) -> Result<(), StartError> {
        let (answer, answered) = oneshot::channel();
        // A task that is gone has seen the end of the VM, which whoever asks sees next.
        if self.asks.send(answer).await.is_err() {
            return Ok(());
        }
        answered.await.unwrap_or(Ok(()))
    }

    /// What is enough to clean the namespace up without this process.
    pub fn record(&self) -> Option<NetworkRecord> {
        self.record.clone()
    }
}

struct Keeping {
    settled: Settled,
    monitor: Monitor,
    agent: Agent,
    streams: Streams,
    /// Where the pod's network has a name server on the host's side.
    resolver: Option<Resolver>,
}

impl Keeping {
    async fn run(
        mut self,
        mut inbox: mpsc::Receiver<oneshot::Sender<Result<(), StartError>>>,
        watcher: AsyncFd<Watcher>,
    ) {
        let ended = self.monitor.ended();
        loop {
            tokio::select! {
                ask = inbox.recv() => {
                    let Some(answer) = ask else { return };
                    let result = self.settle().await;
                    // Nobody may wait for the answer any more.
                    drop(answer.send(result));
                }
                changed = changed(&watcher) => {
                    let settled = match changed {
                        Ok(()) => self.settle().await,
                        Err(error) => Err(error.into()),
                    };
                    if let Err(error) = settled && ended.now().is_none() {
                        log::warn!("a change of the pod's network does not reach the guest: {error}");
                    }
                }
                _ = ended.wait() => return,
            }
        }
    }

    async fn settle(&mut self) -> Result<(), StartError> {
        let Look { devices, description, has_name_server } = self.settled.network.settle().await?;
        for device in devices {
            let mac = device.config.mac;
            if let Err(error) = self.plug(device).await {
                self.settled.network.forget(mac);
                return Err(error.into());
            }
        }
        if description != self.settled.told {
            log::info!("the pod's network has changed: {} interfaces", description.interfaces.len());
            self.agent.configure_network(&description).await?;
            self.settled.told = description;
        }
        if has_name_server {
            self.serve_names().await;
        }
        Ok(())
    }

    /// Begins to pass on questions. A container is worth having without.
    async fn serve_names(&mut self) {
        if self.resolver.as_ref().is_some_and(Resolver::is_serving) {
            return;
        }
        match Resolver::start(self.settled.network.namespace(), &self.streams).await {
            Ok(started) => self.resolver = Some(started),
            Err(error) => log::warn!("the name server of the pod's network cannot be asked: {error}"),
        }
    }

    async fn plug(&self, device: NetworkDevice) -> Result<(), PlugError> {
        let name = format!("net-{}", device.config.name);
        let (request, fds) = device.request();
        let slot = self.monitor.plug(request, fds).await?;
        if let Err(error) = self.agent.bind_slot(slot).await {
            let unplug = Request::Unplug { name: name.clone(), how: Unplug::Forced };
            if let Err(error) = self.monitor.request(unplug, Vec::new()).await {
                log::warn!("the device {name} cannot be taken back: {error}");
            }
            return Err(error.into());
        }
        Ok(())
    }
}

/// Waits for a change, and for the crowd that comes with it.
async fn changed(watcher: &AsyncFd<Watcher>) -> Result<(), NetworkError> {
    let failed = |source| NetworkError::Namespace { what: "watch the pod's network".to_owned(), source };
    let mut ready = watcher.readable().await.map_err(failed)?;
    tokio::time::sleep(CROWD).await;
    let drained = watcher.get_ref().drain();
    ready.clear_ready();
    drained.map_err(|error| failed(error.into()))
}
