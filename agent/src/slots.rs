//! Devices that come and go: the monitor puts a device into a slot that was empty when the kernel looked, and the driver is
//! made to look again; before it takes a device away, the driver is made to let go.
//!
//! The driver works while the file is written, and a device that does not answer holds it up: so a child writes, and it is
//! not waited for longer than [`DEADLINE`].

use std::ffi::CString;
use std::time::Duration;

use nix::errno::Errno;

use crate::error::Error;
use crate::helper::{self, HelperError, Work};
use crate::reap::Children;

/// How long a driver may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Slots that the monitor can have.
const SLOTS: u32 = 32;

/// What a driver shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Take the device.
    Bind,
    /// Let go of it.
    Unbind,
}

/// Why a driver did not.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// There is no device, or it is bound, or not bound, already.
    #[error("slot {slot} has no device that could be {action}")]
    Unfit {
        /// The slot.
        slot: u32,
        /// "bound" or "unbound".
        action: &'static str,
    },
    /// Something else went wrong.
    #[error("slot {slot}: {source}")]
    Work {
        /// The slot.
        slot: u32,
        /// What.
        source: HelperError,
    },
}

/// Makes the driver of virtio-mmio devices take, or let go of, the device in a slot. When this returns it has.
pub async fn drive(children: &Children, action: Action, slot: u32) -> Result<(), Error> {
    if slot >= SLOTS {
        return Err(Error::Range { what: "slot", value: slot.into() });
    }
    let (file, what, doing) = match action {
        Action::Bind => (c"/sys/bus/platform/drivers/virtio-mmio/bind", "bound", "binding a device"),
        Action::Unbind => (c"/sys/bus/platform/drivers/virtio-mmio/unbind", "unbound", "unbinding a device"),
    };
    // The kernel numbers the devices of its command line in their order, which is that of the slots.
    let device = CString::new(format!("virtio-mmio.{slot}")).unwrap_or_default();
    let work = [Work::WriteControl { path: file.to_owned(), text: device }];
    match tokio::time::timeout(DEADLINE, helper::run(children, &work)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(HelperError::Failed { source: Errno::ENODEV | Errno::EBUSY | Errno::ENXIO, .. })) => {
            Err(SlotError::Unfit { slot, action: what }.into())
        }
        Ok(Err(source)) => Err(SlotError::Work { slot, source }.into()),
        Err(_elapsed) => Err(Error::Deadline(doing)),
    }
}
