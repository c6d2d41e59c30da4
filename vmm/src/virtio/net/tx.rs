//! Frames from the guest: checked, and written to the tap from where they lie.

use super::header::{HEADER_LENGTH, Header, HeaderError};
use super::offload::Offloads;
use super::tap::{Tap, Transfer};
use super::{Gone, TX};
use crate::rate_limiter::Throttle;
use crate::virtio::device::DeviceError;
use crate::virtio::queue::{Handled, RunningQueue};
use crate::virtio::segments::Segments;

/// The way out.
#[derive(Debug, Default)]
pub struct Transmitter {
    outlet: Outlet,
    next: Next,
    throttle: Option<Throttle>,
    bytes: u64,
}

/// Whether the tap takes frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Outlet {
    #[default]
    Open,
    /// It is full and will say when that changes.
    Full,
}

/// The frame that is first in the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Next {
    /// The limits have not been asked, or hold it up.
    #[default]
    Asks,
    /// They have let it pass, but the tap was full.
    Admitted,
}

impl Transmitter {
    /// A way out that is as wide as the limits allow.
    pub fn new(throttle: Option<Throttle>) -> Self {
        Self { throttle, ..Self::default() }
    }

    /// What holds frames up, if anything does.
    pub fn throttle(&self) -> Option<&Throttle> {
        self.throttle.as_ref()
    }

    /// Payload bytes that left the guest.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// There is no driver any more.
    pub fn reset(&mut self) {
        self.outlet = Outlet::Open;
        self.next = Next::Asks;
    }

    /// The tap says that it has room. Answers whether somebody waits for it.
    pub fn tap_writable(&mut self) -> bool {
        std::mem::take(&mut self.outlet) == Outlet::Full
    }

    /// Takes the driver's frames until there is none or the tap is full. Without a tap they are lost.
    pub fn drain(
        &mut self,
        tx: &mut RunningQueue,
        tap: Option<&Tap>,
        allowed: Offloads,
    ) -> Result<Option<Gone>, DeviceError> {
        if self.outlet == Outlet::Full {
            return Ok(None);
        }
        let Self { outlet, next, throttle, bytes } = self;
        let (mut gone, mut failure) = (None, None);
        tx.process(|chain| {
            let Some(tap) = tap else {
                return Handled::Done(0);
            };
            if let (Next::Asks, Some(throttle)) = (*next, &mut *throttle) {
                match throttle.admits(chain.readable.len().saturating_sub(HEADER_LENGTH) as u64) {
                    Ok(true) => {}
                    Ok(false) => return Handled::Stop,
                    Err(error) => {
                        failure = Some(error);
                        return Handled::Stop;
                    }
                }
            }
            *next = Next::Asks;
            match send(chain.readable, tap, allowed) {
                Ok(Transfer::Frame(length)) => *bytes += length.saturating_sub(HEADER_LENGTH) as u64,
                Ok(Transfer::Later) => {
                    (*outlet, *next) = (Outlet::Full, Next::Admitted);
                    return Handled::Stop;
                }
                Ok(Transfer::Gone) => {
                    gone = Some(Gone);
                    return Handled::Stop;
                }
                Ok(Transfer::Refused) => {}
                Err(error) => {
                    log::debug!("a frame of the guest is dropped: {error}");
                }
            }
            Handled::Done(0)
        })
        .map_err(|source| DeviceError::Queue { queue: TX, source })?;
        failure.map_or(Ok(gone), |error| Err(error.into()))
    }
}

/// Checks one frame and writes it.
fn send(packet: Segments<'_, '_>, tap: &Tap, allowed: Offloads) -> Result<Transfer, HeaderError> {
    let mut header = [0; HEADER_LENGTH];
    if packet.copy_to(&mut header) < HEADER_LENGTH {
        return Err(HeaderError::Length(packet.len()));
    }
    let frame = packet.after(HEADER_LENGTH);
    let header = Header::parse(&header).without_promise().check(frame.len(), allowed)?;
    Ok(tap.write(&header.to_bytes(0), frame))
}
