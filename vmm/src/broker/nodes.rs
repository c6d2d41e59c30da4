//! The inodes that the monitor holds, each by an `O_PATH` descriptor, and how often it holds each.
//!
//! Node ids are never used twice, so a hostile guest that forgets what it does not hold, or goes on using what it has
//! forgotten, meets nothing but an error.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hull_protocol::fs::{Attributes, NodeId, ROOT};
use nix::errno::Errno;

use super::exports::ExportId;

/// The most inodes held at once; more are refused with `ENFILE`. Each is a descriptor of the broker.
pub const NODES_MAX: usize = 1 << 18;

/// What an inode is known by again. The same inode seen through two exports is two nodes, each with the rights of its
/// own export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    export: ExportId,
    device: u64,
    ino: u64,
}

/// A held inode.
#[derive(Debug)]
pub struct Node {
    fd: OwnedFd,
    key: Key,
    kind: u32,
    /// How often the monitor holds it, at least once.
    count: u64,
}

impl Node {
    /// Its `O_PATH` descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The export it was reached through.
    pub fn export(&self) -> ExportId {
        self.key.export
    }

    /// `S_IFREG` and so on: an inode's kind never changes.
    pub fn kind(&self) -> u32 {
        self.kind
    }
}

/// All held inodes.
#[derive(Debug)]
pub struct Nodes {
    by_id: HashMap<NodeId, Node>,
    by_key: HashMap<Key, NodeId>,
    next: u64,
    max: usize,
}

impl Default for Nodes {
    fn default() -> Self {
        Self::with_limit(NODES_MAX)
    }
}

impl Nodes {
    fn with_limit(max: usize) -> Self {
        Self { by_id: HashMap::new(), by_key: HashMap::new(), next: ROOT.0 + 1, max }
    }

    /// A held inode.
    pub fn get(&self, id: NodeId) -> Result<&Node, Errno> {
        self.by_id.get(&id).ok_or(if id == ROOT { Errno::EROFS } else { Errno::ESTALE })
    }

    /// Holds an inode once more, or for the first time.
    pub fn hold(
        &mut self,
        export: ExportId,
        fd: OwnedFd,
        device: u64,
        attributes: &Attributes,
    ) -> Result<NodeId, Errno> {
        let key = Key { export, device, ino: attributes.ino };
        if let Some((id, node)) =
            self.by_key.get(&key).and_then(|id| self.by_id.get_mut(id).map(|node| (*id, node)))
        {
            node.count = node.count.saturating_add(1);
            return Ok(id);
        }
        if self.by_id.len() >= self.max {
            return Err(Errno::ENFILE);
        }
        let id = NodeId(self.next);
        self.next += 1;
        self.by_id.insert(id, Node { fd, key, kind: attributes.mode & libc::S_IFMT, count: 1 });
        self.by_key.insert(key, id);
        Ok(id)
    }

    /// Holds an inode less often. More often than it is held means no longer.
    pub fn forget(&mut self, id: NodeId, count: u64) {
        let Some(node) = self.by_id.get_mut(&id) else { return };
        node.count = node.count.saturating_sub(count);
        if node.count == 0 {
            let key = node.key;
            self.by_id.remove(&id);
            self.by_key.remove(&key);
        }
    }

    /// Lets everything go.
    pub fn clear(&mut self) {
        self.by_id.clear();
        self.by_key.clear();
    }

    /// Lets everything go that was reached through an export.
    pub fn remove_export(&mut self, export: ExportId) {
        self.by_id.retain(|_, node| node.key.export != export);
        self.by_key.retain(|key, _| key.export != export);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::exports::Exports;
    use super::super::sys;
    use super::*;
    use hull_protocol::fs::{ExportAccess, Name};

    fn export() -> ExportId {
        let root = OwnedFd::from(std::fs::File::open("/").unwrap());
        let mut exports = Exports::default();
        exports.add("x", ExportAccess::ReadWrite, root).unwrap();
        exports.find(&Name::new(b"x").unwrap()).unwrap().id
    }

    fn file() -> (OwnedFd, u64, Attributes) {
        let fd = OwnedFd::from(tempfile::tempfile().unwrap());
        let (device, attributes) = sys::identity(fd.as_fd()).unwrap();
        (fd, device, attributes)
    }

    #[test]
    fn one_inode_is_one_node_and_a_full_table_says_so() {
        let export = export();
        let mut nodes = Nodes::with_limit(2);
        let (a, device, attributes) = file();
        let again = a.try_clone().unwrap();
        let id = nodes.hold(export, a, device, &attributes).unwrap();
        assert_eq!(nodes.hold(export, again, device, &attributes), Ok(id));
        let (b, device_b, attributes_b) = file();
        let other = nodes.hold(export, b, device_b, &attributes_b).unwrap();
        assert_ne!(id, other);
        let (c, device_c, attributes_c) = file();
        let c2 = c.try_clone().unwrap();
        assert_eq!(nodes.hold(export, c, device_c, &attributes_c), Err(Errno::ENFILE));
        nodes.forget(id, 1);
        assert!(nodes.get(id).is_ok());
        nodes.forget(id, 1);
        assert_eq!(nodes.get(id).unwrap_err(), Errno::ESTALE);
        let third = nodes.hold(export, c2, device_c, &attributes_c).unwrap();
        assert!(third != id && third != other, "an id was used twice");
        nodes.remove_export(export);
        assert!(nodes.get(other).is_err() && nodes.by_key.is_empty());
    }

    proptest! {
        /// Whatever is forgotten, a node lives exactly as long as it was looked up more often than forgotten.
        #[test]
        fn counts_hold(steps in proptest::collection::vec((any::<bool>(), 0_u64..4, 0_u64..6), 1..60)) {
            let export = export();
            let (fd, device, attributes) = file();
            let mut nodes = Nodes::default();
            let mut model: HashMap<NodeId, u64> = HashMap::new();
            for (hold, count, id) in steps {
                if hold {
                    let id = nodes.hold(export, fd.try_clone().unwrap(), device, &attributes).unwrap();
                    *model.entry(id).or_default() += 1;
                } else {
                    let id = NodeId(id);
                    nodes.forget(id, count);
                    if let Some(held) = model.get_mut(&id) {
                        *held = held.saturating_sub(count);
                    }
                    model.retain(|_, held| *held > 0);
                }
                for id in (0..70).map(NodeId) {
                    prop_assert_eq!(nodes.get(id).is_ok(), model.contains_key(&id));
                }
            }
        }
    }
}
