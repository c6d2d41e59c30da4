//! The kernel's own device for an interface, for the monitor to hold.

use std::fs::File;
use std::os::fd::OwnedFd;

use hull_protocol::vmm::{NetworkConfig, NetworkLimits};

const DEVICE: &str = "/dev/vhost-net";

/// Opens the kernel's device for an interface that may have it. Where it has limits, or there is no such device, a line in the
/// log says so, and the monitor moves the frames.
pub fn open(config: &NetworkConfig) -> Option<OwnedFd> {
    let name = &config.name;
    if config.limits != NetworkLimits::default() {
        log::info!("{name} has limits, which vhost does not know: the monitor moves its frames");
        return None;
    }
    match File::options().read(true).write(true).open(DEVICE) {
        Ok(file) => {
            log::info!("the kernel moves the frames of {name}");
            Some(file.into())
        }
        Err(error) => {
            log::warn!("{DEVICE}: {error}: the monitor moves the frames of {name}");
            None
        }
    }
}
