//! What a pod measures, gathered: from `/proc`, the monitor and the agent, each with a deadline of its own.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use hull_protocol::agent::API_VERSION;
use hull_protocol::agent::api::agent::{ContainerStatsResponse, InfoRequest};

use super::{Pod, Vm, printable, process_usage};
use crate::container::Container;
use crate::metrics::{ContainerMetrics, ContainerUsage, GuestMemory, LinkUsage, PodMetrics};
use crate::process::Phase;

/// How long the monitor and the agent may take. Who asks has other pods to ask.
const PATIENCE: Duration = Duration::from_secs(1);
/// The most links that are told of: the guest may have any number.
const LINKS_MAX: usize = 64;

impl Pod {
    /// The pod's figures, under the name `pod`. It answers within little more than [`PATIENCE`], whatever the guest does.
    pub async fn figures(&self, pod: &str) -> PodMetrics {
        let containers = self.containers();
        let vm = containers.first().map(|container| Arc::clone(&container.vm));
        let vm = vm.filter(|vm| vm.ended().now().is_none());
        let members = containers.iter().filter(|container| !container.is_sandbox());
        let (stats, guest, gathered) = tokio::join!(
            vm_stats(vm.as_deref()),
            guest_memory(vm.as_deref()),
            join_all(members.map(|container| of_container(container)))
        );
        let (containers, links): (Vec<_>, Vec<_>) = gathered.into_iter().unzip();
        PodMetrics {
            namespace: self.namespace.clone(),
            pod: pod.to_owned(),
            shim: process_usage(std::process::id()).ok(),
            monitor: vm.as_ref().and_then(|vm| process_usage(vm.pid()).ok()),
            boot: vm.as_ref().and_then(|vm| vm.boot),
            vm: stats,
            guest,
            containers,
            // Each container tells of the pod's.
            links: links.into_iter().find(|links| !links.is_empty()).unwrap_or_default(),
        }
    }
}

async fn vm_stats(vm: Option<&Vm>) -> Option<hull_protocol::vmm::VmStats> {
    tokio::time::timeout(PATIENCE, vm?.monitor().stats()).await.ok()?.ok()
}

async fn guest_memory(vm: Option<&Vm>) -> Option<GuestMemory> {
    let request = InfoRequest { api_version: API_VERSION, ..InfoRequest::default() };
    let info = tokio::time::timeout(PATIENCE, vm?.agent.info(&request)).await.ok()?.ok()?;
    Some(GuestMemory {
        total_bytes: info.memory_total_bytes,
        available_bytes: info.memory_available_bytes,
        containers_bytes: info.memory_containers_bytes,
    })
}

async fn of_container(container: &Container) -> (ContainerMetrics, Vec<LinkUsage>) {
    let phase = container.init.phase();
    let stats = match phase {
        Phase::Exited(_) => None,
        _ => tokio::time::timeout(PATIENCE, container.stats()).await.ok().and_then(Result::ok),
    };
    let links = stats.iter().flat_map(links).collect();
    let metrics = ContainerMetrics {
        id: container.id.clone(),
        state: phase.word().to_owned(),
        usage: stats.as_ref().map(usage),
    };
    (metrics, links)
}

fn usage(stats: &ContainerStatsResponse) -> ContainerUsage {
    ContainerUsage {
        memory_bytes: stats.memory.usage_bytes,
        cpu_usec: stats.cpu.usage_usec,
        throttled_usec: stats.cpu.throttled_usec,
        pids: stats.pids.current,
        oom_kills: stats.memory.oom_kill_events,
    }
}

fn links(stats: &ContainerStatsResponse) -> impl Iterator<Item = LinkUsage> + '_ {
    stats.network.iter().take(LINKS_MAX).map(|link| LinkUsage {
        name: printable(&link.name),
        rx_bytes: link.rx_bytes,
        tx_bytes: link.tx_bytes,
    })
}
