//! Which jail a monitor is told to close around itself.

use std::ffi::OsStr;

use hull_protocol::vmm::{JailConfig, JailNetwork};

/// Environment variable: `full` or `unprivileged`. By default a shim that runs as root asks for all of it.
pub const JAIL_VARIABLE: &str = "HULL_JAIL";

/// The first user and group id of monitors, to which a monitor's process id is added. A process id is its own as long as
/// the process lives, so that no two monitors are the same user, and nothing has to be allocated or given back. Process
/// ids end at 2^22; systemd's table of ids (UIDS-GIDS) has no other use for 0x7000_0000 to 0x7ffd_ffff.
const FIRST_ID: u32 = 0x7000_0000;

/// The variable holds another word.
#[derive(Debug, thiserror::Error)]
#[error("{JAIL_VARIABLE} is {0:?}, not full or unprivileged")]
pub struct JailVariableError(String);

/// The jail of the monitor with this process id. `variable` is [`JAIL_VARIABLE`]'s value.
pub fn of_monitor(
    pid: u32,
    variable: Option<&OsStr>,
    network: JailNetwork,
) -> Result<JailConfig, JailVariableError> {
    let id = FIRST_ID + pid;
    let full = JailConfig::Full { uid: id, gid: id, network };
    match variable.map(OsStr::as_encoded_bytes) {
        Some(b"full") => Ok(full),
        Some(b"unprivileged") => Ok(JailConfig::Unprivileged),
        None | Some(b"") if nix::unistd::geteuid().is_root() => Ok(full),
        None | Some(b"") => Ok(JailConfig::Unprivileged),
        Some(_) => Err(JailVariableError(variable.unwrap_or_default().to_string_lossy().into_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_monitor_is_its_own_user() {
        let id = 0x7000_0007;
        let full = JailConfig::Full { uid: id, gid: id, network: JailNetwork::Empty };
        assert_eq!(of_monitor(7, Some("full".as_ref()), JailNetwork::Empty).unwrap(), full);
        assert_eq!(
            of_monitor(7, Some("unprivileged".as_ref()), JailNetwork::Empty).unwrap(),
            JailConfig::Unprivileged
        );
        let by_default = if nix::unistd::geteuid().is_root() { full } else { JailConfig::Unprivileged };
        assert_eq!(of_monitor(7, None, JailNetwork::Empty).unwrap(), by_default);
        assert_eq!(of_monitor(7, Some("".as_ref()), JailNetwork::Empty).unwrap(), by_default);
        let error = of_monitor(7, Some("none".as_ref()), JailNetwork::Empty).unwrap_err().to_string();
        assert_eq!(error, "HULL_JAIL is \"none\", not full or unprivileged");
    }
}
