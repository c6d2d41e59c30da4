//! A disk as configured: its content, who may write it, its name.

use std::sync::Arc;

use hull_protocol::vmm::DiskAccess;

use super::SERIAL_LENGTH;
use super::extents::Extents;

/// What requests are carried out on.
#[derive(Debug)]
pub struct Disk {
    extents: Arc<Extents>,
    access: DiskAccess,
    serial: [u8; SERIAL_LENGTH],
}

impl Disk {
    /// `serial` is padded with zeroes.
    pub fn new(extents: Extents, access: DiskAccess, serial: [u8; SERIAL_LENGTH]) -> Self {
        Self { extents: Arc::new(extents), access, serial }
    }

    /// The content, to read.
    pub fn extents(&self) -> &Arc<Extents> {
        &self.extents
    }

    /// The content, to write; `None` on a read-only disk, whatever its descriptors allow.
    pub fn writable(&self) -> Option<&Extents> {
        match self.access {
            DiskAccess::ReadOnly => None,
            DiskAccess::ReadWrite => Some(self.extents.as_ref()),
        }
    }

    /// Who may write.
    pub fn access(&self) -> DiskAccess {
        self.access
    }

    /// The serial number as `VIRTIO_BLK_T_GET_ID` gives it.
    pub fn serial(&self) -> &[u8; SERIAL_LENGTH] {
        &self.serial
    }
}
