//! The pod's network: the guest's own network namespace, in which all containers live that do not ask for another one.
//!
//! The host says what it is to be as a whole, each time ([`Plan`]); [`apply`] makes it so, step by step, starting from
//! whatever is there. Nothing is remembered: a workload with the right to may have changed everything meanwhile.

mod apply;
mod plan;

use hull_netlink::link::{self, Statistics};
use hull_netlink::{Error as KernelError, Mac, Socket};
use hull_protocol::agent::api::agent as api;

use plan::Plan;

/// Links whose counters are told, at most: a workload can make as many as it likes.
const COUNTED_MAX: usize = 64;

/// Why the network is not as described.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A description that cannot be right.
    #[error("network {field}: {reason}")]
    Invalid {
        /// Which part of it.
        field: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// An interface without a device.
    #[error("no network device has the address {0}")]
    NoLink(Mac),
    /// The kernel refused.
    #[error("cannot {what}: {source}")]
    Kernel {
        /// What was tried.
        what: String,
        /// Why.
        source: KernelError,
    },
}

fn kernel(what: impl FnOnce() -> String) -> impl FnOnce(KernelError) -> NetworkError {
    move |source| NetworkError::Kernel { what: what(), source }
}

/// Whether a description can be right.
#[cfg(any(test, feature = "testing"))]
pub fn check(request: &api::ConfigureNetworkRequest) -> Result<(), NetworkError> {
    Plan::parse(request).map(drop)
}

/// Makes the network what is described; everything is checked before anything is changed.
pub fn configure(request: &api::ConfigureNetworkRequest) -> Result<(), NetworkError> {
    let plan = Plan::parse(request)?;
    let socket = Socket::open().map_err(kernel(|| "open a netlink socket".to_owned()))?;
    apply::apply(&socket, &plan)
}

/// What went through each link. Empty where that cannot be known.
pub fn counters() -> Vec<api::NetworkStats> {
    let links = Socket::open().and_then(|socket| link::list(&socket, Statistics::With));
    let links = links.unwrap_or_else(|error| {
        log::warn!("cannot read the counters of the network: {error}");
        Vec::new()
    });
    let counted = links.into_iter().filter(|link| !link.is_loopback()).take(COUNTED_MAX);
    counted
        .map(|link| api::NetworkStats {
            name: link.name,
            rx_bytes: link.counters.rx_bytes,
            rx_packets: link.counters.rx_packets,
            rx_errors: link.counters.rx_errors,
            rx_dropped: link.counters.rx_dropped,
            tx_bytes: link.counters.tx_bytes,
            tx_packets: link.counters.tx_packets,
            tx_errors: link.counters.tx_errors,
            tx_dropped: link.counters.tx_dropped,
            ..api::NetworkStats::default()
        })
        .collect()
}
