//! Frames for the guest: from the tap, through one buffer of ours, into the driver's chains.
//!
//! How much room a frame needs is known only when it is here. So it is read first and kept until the driver has room;
//! the chains it goes to are then taken all at once.

use std::io;

use super::header::{FRAME_MAX, HEADER_LENGTH, Header, HeaderError};
use super::tap::{Tap, Transfer};
use super::{Agreed, Buffers, Gone, RX};
use crate::rate_limiter::Throttle;
use crate::virtio::chain::Chain;
use crate::virtio::device::DeviceError;
use crate::virtio::queue::{Handled, RunningQueue};

/// Frames taken from the tap before other devices have their turn.
const TURN: usize = 256;
/// What the driver should make its buffers, when each frame must fit into one (§5.1.6.3.1). Smaller ones are used while
/// they do.
const BUFFER_MIN: usize = 1526;

/// The way in.
#[derive(Debug, Default)]
pub struct Receiver {
    /// Room for a frame with its header, and a byte to see that it was longer. Made when it is first needed.
    buffer: Vec<u8>,
    inbox: Inbox,
    throttle: Option<Throttle>,
    bytes: u64,
}

/// What is known of frames that wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Inbox {
    /// The tap may have some: it has not been asked since it said so.
    #[default]
    Readable,
    /// The tap has none, and will say when that changes.
    Empty,
    /// One is in the buffer, and waits until the limits let it pass.
    Holding(Frame),
    /// One that has passed is in the buffer, and waits for chains of the driver.
    Admitted(Frame),
}

/// A frame in the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    header: Header,
    /// Its length with the header.
    length: usize,
}

/// Why the loop over the driver's chains was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// Nothing is to be done until the tap or the driver says so.
    Idle,
    /// There may be more to do at once.
    Early,
    /// The tap is gone.
    Gone,
    /// The limits cannot be kept to: the host gives no alarm.
    Failed(io::ErrorKind),
}

/// What to do with a chain, or a run of them, for a frame.
enum Fit {
    /// The frame goes here.
    Here,
    /// More chains are needed.
    More,
    /// The chain is too small to be of use; the next may do.
    Useless,
    /// No chain of this driver will do: the frame is lost.
    Never,
}

impl Receiver {
    /// A way in that is as wide as the limits allow.
    pub fn new(throttle: Option<Throttle>) -> Self {
        Self { throttle, ..Self::default() }
    }

    /// What holds frames up, if anything does.
    pub fn throttle(&self) -> Option<&Throttle> {
        self.throttle.as_ref()
    }

    /// Payload bytes that reached the guest.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// There is no driver any more; what waited for it is lost.
    pub fn reset(&mut self) {
        self.inbox = match self.inbox {
            Inbox::Holding(_) | Inbox::Admitted(_) | Inbox::Readable => Inbox::Readable,
            Inbox::Empty => Inbox::Empty,
        };
    }

    /// The tap says that it has something.
    pub fn tap_readable(&mut self) {
        if self.inbox == Inbox::Empty {
            self.inbox = Inbox::Readable;
        }
    }

    /// Moves frames until the tap is empty or the driver's chains are used up.
    pub fn fill(
        &mut self,
        rx: &mut RunningQueue,
        tap: &Tap,
        agreed: Agreed,
    ) -> Result<Option<Gone>, DeviceError> {
        if self.inbox == Inbox::Empty {
            return Ok(None);
        }
        let (ring, mut turn, mut left) = (rx.size(), TURN, Left::Idle);
        let result = rx.process(|chain| {
            let frame = match self.next_frame(tap, agreed, &mut turn) {
                Ok(frame) => frame,
                Err(why) => {
                    left = why;
                    return Handled::Stop;
                }
            };
            match fit(frame, &chain, agreed.buffers, ring) {
                Fit::Here => Handled::Done(self.deliver(frame, &chain)),
                Fit::More => Handled::More,
                Fit::Useless => Handled::Done(0),
                Fit::Never => {
                    self.inbox = Inbox::Readable;
                    left = Left::Early;
                    Handled::Stop
                }
            }
        });
        if left == Left::Early {
            rx.notify_self();
        }
        result.map_err(|source| DeviceError::Queue { queue: RX, source })?;
        match left {
            Left::Idle | Left::Early => Ok(None),
            Left::Gone => Ok(Some(Gone)),
            Left::Failed(kind) => Err(DeviceError::Host(kind.into())),
        }
    }

    /// The frame that is next, read from the tap if none waits.
    fn next_frame(&mut self, tap: &Tap, agreed: Agreed, turn: &mut usize) -> Result<Frame, Left> {
        self.buffer.resize(FRAME_MAX + 1, 0);
        loop {
            match self.inbox {
                Inbox::Admitted(frame) => return Ok(frame),
                Inbox::Holding(frame) => {
                    self.admit(frame)?;
                    self.inbox = Inbox::Admitted(frame);
                    return Ok(frame);
                }
                Inbox::Empty => return Err(Left::Idle),
                Inbox::Readable => {}
            }
            *turn = turn.checked_sub(1).ok_or(Left::Early)?;
            match tap.read(&mut self.buffer) {
                Transfer::Frame(length) => match self.inspect(length, agreed) {
                    Ok(frame) => self.inbox = Inbox::Holding(frame),
                    Err(error) => {
                        log::debug!("a frame from a tap is dropped: {error}");
                    }
                },
                Transfer::Later => self.inbox = Inbox::Empty,
                Transfer::Refused => {}
                Transfer::Gone => return Err(Left::Gone),
            }
        }
    }

    /// Lets a frame pass, or is idle until the alarm.
    fn admit(&mut self, frame: Frame) -> Result<(), Left> {
        let Some(throttle) = &mut self.throttle else { return Ok(()) };
        match throttle.admits((frame.length - HEADER_LENGTH) as u64) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Left::Idle),
            Err(error) => Err(Left::Failed(error.kind())),
        }
    }

    /// The kernel is trusted, but a frame may have waited in it since another driver had agreed to more.
    fn inspect(&self, length: usize, agreed: Agreed) -> Result<Frame, HeaderError> {
        let header = self.buffer.first_chunk().filter(|_| length >= HEADER_LENGTH);
        let header = header.ok_or(HeaderError::Length(length))?;
        let header = Header::parse(header).check(length - HEADER_LENGTH, agreed.to_guest)?;
        Ok(Frame { header, length })
    }

    fn deliver(&mut self, frame: Frame, chain: &Chain<'_, '_>) -> u32 {
        chain.writable.copy_from(&frame.header.to_bytes(chain.chains()));
        chain.writable.after(HEADER_LENGTH).copy_from(&self.buffer[HEADER_LENGTH..frame.length]);
        self.bytes += (frame.length - HEADER_LENGTH) as u64;
        self.inbox = Inbox::Readable;
        // At most FRAME_MAX.
        u32::try_from(frame.length).unwrap_or(u32::MAX)
    }
}

fn fit(frame: Frame, chain: &Chain<'_, '_>, buffers: Buffers, ring: u16) -> Fit {
    if frame.length <= chain.writable.len() {
        return Fit::Here;
    }
    match buffers {
        Buffers::Mergeable if chain.chains() < ring => Fit::More,
        Buffers::Single if chain.writable.len() < BUFFER_MIN => Fit::Useless,
        // All chains that the ring can have, or one as large as it should be.
        Buffers::Mergeable | Buffers::Single => Fit::Never,
    }
}
