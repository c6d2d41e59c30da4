//! Flow control of one connection (virtio 1.3 §5.10.6.3): how much each side may send before the other has taken it.
//!
//! All counters run freely and wrap, as on the wire. The guest's numbers may be lies: they can stop our sending, they
//! cannot make us send more than the guest claims to have room for, nor buffer more than we offered.

use std::num::Wrapping;

use super::packet::Header;

/// The largest payload a Linux guest puts into one packet; credit below it makes the guest send in pieces.
const LARGEST_PACKET: u32 = 64 * 1024;

/// The guest has sent more than it was offered room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overrun;

/// Both directions of a connection.
#[derive(Clone, Debug)]
pub struct Credit {
    /// Room in the guest for this connection, as it says.
    guest_buffer: u32,
    /// How much the guest has taken out of it, as it says.
    guest_taken: Wrapping<u32>,
    /// How much we have sent.
    sent: Wrapping<u32>,
    /// Our room for this connection.
    buffer: u32,
    /// How much the guest has sent.
    received: Wrapping<u32>,
    /// How much of that has left for the host.
    forwarded: Wrapping<u32>,
    /// What of `forwarded` the guest was told last.
    announced: Wrapping<u32>,
}

impl Credit {
    /// A new connection, with `buffer` bytes of room for the guest's data.
    pub fn new(buffer: u32) -> Self {
        Self {
            guest_buffer: 0,
            guest_taken: Wrapping(0),
            sent: Wrapping(0),
            buffer,
            received: Wrapping(0),
            forwarded: Wrapping(0),
            announced: Wrapping(0),
        }
    }

    /// Every packet from the guest carries its credit.
    pub fn learn(&mut self, header: &Header) {
        self.guest_buffer = header.buf_alloc;
        self.guest_taken = Wrapping(header.fwd_cnt);
    }

    /// How much may be sent to the guest now.
    pub fn guest_room(&self) -> u32 {
        self.guest_buffer.saturating_sub((self.sent - self.guest_taken).0)
    }

    /// This much was sent to the guest.
    pub fn on_sent(&mut self, count: u32) {
        self.sent += count;
    }

    /// The guest has sent this much.
    pub fn on_received(&mut self, count: u32) -> Result<(), Overrun> {
        let held = (self.received - self.forwarded).0;
        if held.checked_add(count).is_none_or(|held| held > self.buffer) {
            return Err(Overrun);
        }
        self.received += count;
        Ok(())
    }

    /// This much of what the guest sent has left.
    pub fn on_forwarded(&mut self, count: u32) {
        self.forwarded += count;
    }

    /// Whether the guest may be waiting for room that it was not told of.
    pub fn update_is_due(&self) -> bool {
        let seen = self.buffer.saturating_sub((self.received - self.announced).0);
        self.forwarded != self.announced && seen < (self.buffer / 2).max(LARGEST_PACKET)
    }

    /// Puts our credit into a packet to the guest.
    pub fn announce(&mut self, header: &mut Header) {
        self.announced = self.forwarded;
        header.buf_alloc = self.buffer;
        header.fwd_cnt = self.forwarded.0;
    }
}

#[cfg(test)]
mod tests;
