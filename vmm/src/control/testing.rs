//! A conversation without a process around it, for the fuzz targets: nothing is jailed, and nothing boots.

use std::os::fd::OwnedFd;

use hull_protocol::vmm::{Message, Request};

use super::{Phase, Step};

/// The requests up to the boot, and their answers.
pub struct Conversation(Phase);

impl Default for Conversation {
    fn default() -> Self {
        Self(Phase::New)
    }
}

impl Conversation {
    /// The answer to a request; `None` at the end, which is a boot or a stop.
    pub fn answer(&mut self, request: Request, fds: Vec<OwnedFd>) -> Option<Message> {
        let phase = std::mem::replace(&mut self.0, Phase::Spent);
        if let (Phase::Free, Request::Jail(_)) = (&phase, &request) {
            self.0 = Phase::Describing(Box::default());
            return Some(Message::Done);
        }
        match phase.take(request, fds) {
            Step::Answer(phase, message) => {
                self.0 = phase;
                Some(message)
            }
            Step::Boot(_) | Step::Stop => None,
        }
    }
}
