//! Plays the file broker: keeps the names of what it is given, and gives out nothing.

use std::collections::BTreeSet;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::exit;

use hull_protocol::fs::{CONTROL_FD, Control, ControlReply};
use hull_protocol::vmm::Channel;

/// Until the shim's end closes.
pub fn run() -> ! {
    // SAFETY: the shim passed the descriptor for this process to own.
    let control = Channel::from(unsafe { OwnedFd::from_raw_fd(CONTROL_FD) });
    let mut names = BTreeSet::new();
    while let Ok(Some(received)) = control.receive::<Control>() {
        let done = match received.message {
            Control::AddExport { name, .. } => received.fds.len() == 1 && names.insert(name),
            Control::RemoveExport { name } => names.remove(&name),
            Control::Hello { .. } | Control::Serve => true,
        };
        let reply =
            if done { ControlReply::Done } else { ControlReply::Failed("no such name, or twice".into()) };
        if control.send(&reply, &[]).is_err() {
            break;
        }
    }
    exit(0);
}
