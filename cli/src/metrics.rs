//! What the pods of this host measure, asked of their shims and put together for Prometheus.
//!
//! The shims answer figures ([`PodMetrics`]); their names, units and the text format are here and nowhere else.

mod families;
mod listen;

use std::path::{Path, PathBuf};
use std::time::Duration;

use hull_shim::client::TaskClient;
use hull_shim::metrics::PodMetrics;
use hull_shim::pod_sockets;
use tokio::task::JoinSet;

pub use listen::listen;

use crate::error::CliError;

/// How long a shim may take. It waits for its guest for one second.
const DEADLINE: Duration = Duration::from_secs(4);
/// How many shims are asked at once.
const AT_ONCE: usize = 32;

/// The answers of all shims.
#[derive(Debug, Default)]
pub struct Scrape {
    /// What was answered, sorted by namespace and id.
    pub pods: Vec<PodMetrics>,
    /// How many sockets there are at which nobody answered.
    pub silent: usize,
}

/// What every pod below a state root measures, as Prometheus reads it.
pub async fn page(root: &Path) -> Result<String, CliError> {
    Ok(families::text(scrape(root).await?)?)
}

/// Asks every shim whose socket is below a state root.
async fn scrape(root: &Path) -> Result<Scrape, CliError> {
    let mut sockets = pod_sockets(root).map_err(CliError::io("cannot look for pods"))?.into_iter();
    let mut scrape = Scrape::default();
    let mut asked: JoinSet<Option<PodMetrics>> = JoinSet::new();
    for socket in sockets.by_ref().take(AT_ONCE) {
        asked.spawn(ask(socket));
    }
    while let Some(answer) = asked.join_next().await {
        if let Some(socket) = sockets.next() {
            asked.spawn(ask(socket));
        }
        match answer {
            Ok(Some(pod)) => scrape.pods.push(pod),
            Ok(None) | Err(_) => scrape.silent += 1,
        }
    }
    scrape.pods.sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
    Ok(scrape)
}

/// The shim of a pod, by its id, that of a container in it, or the beginning of either that no other pod has.
pub async fn find(root: &Path, id: &str) -> Result<Option<TaskClient>, CliError> {
    let sockets = pod_sockets(root).map_err(CliError::io("cannot look for pods"))?;
    let mut found = None;
    for socket in sockets {
        let Some(pod) = ask(socket.clone()).await else { continue };
        let mut ids = pod.containers.iter().map(|container| &container.id).chain([&pod.pod]);
        if pod.pod == id || pod.containers.iter().any(|container| container.id == id) {
            found = Some(socket);
            break;
        }
        if !id.is_empty() && ids.any(|own| own.starts_with(id)) && found.replace(socket).is_some() {
            return Err(CliError::AmbiguousPod(id.to_owned()));
        }
    }
    match found {
        Some(socket) => Ok(Some(TaskClient::connect(&format!("unix://{}", socket.display())).await?)),
        None => Ok(None),
    }
}

async fn ask(socket: PathBuf) -> Option<PodMetrics> {
    let answer = async {
        let client = TaskClient::connect(&format!("unix://{}", socket.display())).await.ok()?;
        client.pod_metrics().await.ok()
    };
    tokio::time::timeout(DEADLINE, answer).await.ok().flatten()
}
