//! Which blocks are plugged. Pure: it knows nothing of addresses or memory.

use std::ops::Range;

/// `virtio_mem_resp.type` (§5.15.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Answer {
    /// `VIRTIO_MEM_RESP_ACK`.
    Done = 0,
    /// `VIRTIO_MEM_RESP_NACK`: not allowed now.
    Refused = 1,
    /// `VIRTIO_MEM_RESP_ERROR`: it makes no sense.
    Error = 3,
}

/// `virtio_mem_resp_state.state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum State {
    Plugged = 0,
    Unplugged = 1,
    Mixed = 2,
}

/// A bit for each block, and how many are set.
#[derive(Debug)]
pub struct Blocks {
    bits: Vec<u64>,
    count: u64,
    plugged: u64,
}

impl Blocks {
    /// So many blocks, none of them plugged.
    pub fn new(count: u64) -> Self {
        let words = usize::try_from(count.div_ceil(64)).unwrap_or(0);
        Self { bits: vec![0; words], count, plugged: 0 }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many are plugged.
    pub fn plugged(&self) -> u64 {
        self.plugged
    }

    /// Plugs blocks, all or none: they must exist and be unplugged, and no more than `allowed` may be plugged in all.
    pub fn plug(&mut self, range: &Range<u64>, allowed: u64) -> Answer {
        if self.state(range) != Some(State::Unplugged) {
            return Answer::Error;
        }
        let length = range.end - range.start;
        if self.plugged + length > allowed {
            return Answer::Refused;
        }
        self.set(range, true);
        self.plugged += length;
        Answer::Done
    }

    /// Unplugs blocks, all or none: they must be plugged.
    pub fn unplug(&mut self, range: &Range<u64>) -> Answer {
        if self.state(range) != Some(State::Plugged) {
            return Answer::Error;
        }
        self.set(range, false);
        self.plugged -= range.end - range.start;
        Answer::Done
    }

    /// Unplugs whatever is plugged.
    pub fn unplug_all(&mut self) -> Answer {
        self.bits.fill(0);
        self.plugged = 0;
        Answer::Done
    }

    /// How some blocks are; `None` for none, or for some that do not exist.
    pub fn state(&self, range: &Range<u64>) -> Option<State> {
        if range.is_empty() || range.end > self.count {
            return None;
        }
        let plugged = range.clone().filter(|block| self.is_plugged(*block)).count() as u64;
        Some(match plugged {
            0 => State::Unplugged,
            all if all == range.end - range.start => State::Plugged,
            _ => State::Mixed,
        })
    }

    fn is_plugged(&self, block: u64) -> bool {
        let (word, bit) = place(block);
        self.bits.get(word).is_some_and(|bits| bits & bit != 0)
    }

    fn set(&mut self, range: &Range<u64>, plugged: bool) {
        for block in range.clone() {
            let (word, bit) = place(block);
            if let Some(bits) = self.bits.get_mut(word) {
                *bits = if plugged { *bits | bit } else { *bits & !bit };
            }
        }
    }
}

/// The word and the bit of a block.
fn place(block: u64) -> (usize, u64) {
    (usize::try_from(block / 64).unwrap_or(usize::MAX), 1 << (block % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Request {
        Plug(Range<u64>, u64),
        Unplug(Range<u64>),
        UnplugAll,
    }

    fn requests() -> impl Strategy<Value = Vec<Request>> {
        let range = || {
            (0..220_u64, prop_oneof![Just(0_u64), 1..5_u64, 0..200_u64])
                .prop_map(|(start, length)| start..start + length)
        };
        let request = prop_oneof![
            8 => (range(), 0..250_u64).prop_map(|(range, allowed)| Request::Plug(range, allowed)),
            5 => range().prop_map(Request::Unplug),
            1 => Just(Request::UnplugAll),
        ];
        prop::collection::vec(request, 0..60)
    }

    proptest! {
        /// Whatever is asked in whatever order: blocks and counters are those of a plain set.
        #[test]
        fn blocks_and_counters_agree(requests in requests()) {
            const COUNT: u64 = 200;
            let mut blocks = Blocks::new(COUNT);
            let mut model = BTreeSet::new();
            for request in requests {
                match request {
                    Request::Plug(range, allowed) => {
                        let sense = !range.is_empty() && range.end <= COUNT && range.clone().all(|block| !model.contains(&block));
                        let room = model.len() as u64 + range.clone().count() as u64 <= allowed;
                        let expected = match (sense, room) {
                            (false, _) => Answer::Error,
                            (true, false) => Answer::Refused,
                            (true, true) => Answer::Done,
                        };
                        prop_assert_eq!(blocks.plug(&range, allowed), expected);
                        if expected == Answer::Done {
                            model.extend(range);
                        }
                    }
                    Request::Unplug(range) => {
                        let sense = !range.is_empty() && range.clone().all(|block| model.contains(&block));
                        prop_assert_eq!(blocks.unplug(&range), if sense { Answer::Done } else { Answer::Error });
                        if sense {
                            model.retain(|block| !range.contains(block));
                        }
                    }
                    Request::UnplugAll => {
                        prop_assert_eq!(blocks.unplug_all(), Answer::Done);
                        model.clear();
                    }
                }
                prop_assert_eq!(blocks.plugged(), model.len() as u64);
                for block in 0..COUNT {
                    let expected = if model.contains(&block) { State::Plugged } else { State::Unplugged };
                    prop_assert_eq!(blocks.state(&(block..block + 1)), Some(expected));
                }
            }
            prop_assert_eq!(blocks.state(&(COUNT..COUNT + 1)), None);
            prop_assert_eq!(blocks.state(&(0..COUNT)).map(|state| state == State::Mixed), Some(!model.is_empty() && model.len() < 200));
        }
    }
}
