//! Which jail a monitor is told to close around itself.

use hull_protocol::vmm::{JailConfig, JailNetwork};

use crate::config::JailChoice;

/// The first user and group id of monitors, to which a monitor's process id is added. A process id is its own as long as
/// the process lives, so that no two monitors are the same user, and nothing has to be allocated or given back. Process
/// ids end at 2^22; systemd's table of ids (UIDS-GIDS) has no other use for 0x7000_0000 to 0x7ffd_ffff.
const FIRST_ID: u32 = 0x7000_0000;

/// The jail of the monitor with this process id, which sees this network. Unless one is chosen, a shim that runs as root asks
/// for all of it.
pub fn of_monitor(pid: u32, choice: Option<JailChoice>, network: JailNetwork) -> JailConfig {
    let by_default =
        || if nix::unistd::geteuid().is_root() { JailChoice::Full } else { JailChoice::Unprivileged };
    let id = FIRST_ID + pid;
    match choice.unwrap_or_else(by_default) {
        JailChoice::Full => JailConfig::Full { uid: id, gid: id, network },
        JailChoice::Unprivileged => JailConfig::Unprivileged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_monitor_is_its_own_user() {
        let id = 0x7000_0007;
        let full = JailConfig::Full { uid: id, gid: id, network: JailNetwork::Empty };
        let of = |choice| of_monitor(7, choice, JailNetwork::Empty);
        assert_eq!(of(Some(JailChoice::Full)), full);
        assert_eq!(of(Some(JailChoice::Unprivileged)), JailConfig::Unprivileged);
        let by_default = if nix::unistd::geteuid().is_root() { full } else { JailConfig::Unprivileged };
        assert_eq!(of(None), by_default);
        let inherited = JailConfig::Full { uid: id, gid: id, network: JailNetwork::Inherited };
        assert_eq!(of_monitor(7, Some(JailChoice::Full), JailNetwork::Inherited), inherited);
    }
}
