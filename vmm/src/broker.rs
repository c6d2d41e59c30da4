//! The file broker: everything that names, makes or owns a file, for one pod's monitor.
//!
//! The monitor has the guest's bytes and no privilege; the broker has privileges over the files of its exports and
//! sees no byte of the guest's memory. It answers one request after another ([`operations`]) about inodes that the
//! monitor holds ([`nodes`]) and files it has open ([`handles`]), inside of what the shim gave it ([`exports`]).
//! Open regular files go to the monitor as descriptors; descriptors of directories never do, for with them a name
//! could be resolved.
//!
//! Every look-up is one component, by `openat2(2)` with `RESOLVE_BENEATH`, without following any link, relative to a
//! descriptor of the parent. No request, and no change on the host meanwhile, leads out of an export.

use std::os::fd::OwnedFd;

pub mod exports;
pub mod handles;
pub mod jail;
pub mod nodes;
mod operations;
pub mod server;
mod sys;

use exports::Exports;
use handles::Handles;
use hull_protocol::fs::HandleId;
use nodes::Nodes;

/// The broker's state for one monitor.
#[derive(Debug)]
pub struct Broker {
    exports: Exports,
    nodes: Nodes,
    handles: Handles,
    /// `/proc/self/fd`: the way from an inode's descriptor to an open file of it.
    proc: OwnedFd,
}

impl Broker {
    /// A broker without exports. `proc` is an `O_PATH` descriptor of `/proc/self/fd`.
    pub fn new(proc: OwnedFd) -> Self {
        Self { exports: Exports::default(), nodes: Nodes::default(), handles: Handles::default(), proc }
    }

    /// What may be given out.
    pub fn exports_mut(&mut self) -> &mut Exports {
        &mut self.exports
    }

    /// Takes an export away, with everything that the monitor holds of it here. Answers the files that the monitor has
    /// open, if there was such an export.
    pub fn remove_export(&mut self, name: &str) -> Option<Vec<HandleId>> {
        let export = self.exports.remove(name)?;
        self.nodes.remove_export(export);
        Some(self.handles.remove_export(export))
    }
}
