//! The requests that are being carried out: at most so many, each with what it needs to its end.
//!
//! A request is a list of steps that the engine takes one after the other; requests among themselves have no order. A
//! step that was cut short goes on where it stopped; one that fails ends its request.

use std::io;

use super::engine::{Action, Engine, Finished, STEPS_MAX, Step, Submitted};
use super::request::Moved;
use crate::virtio::device::DeviceError;
use crate::virtio::pinned::Pinned;
use crate::virtio::queue::RunningQueue;

/// How often a step may end without having done anything before that is an error (`EINTR`, `EAGAIN`).
const ATTEMPTS_MAX: u8 = 8;

/// A request from the ring to its answer.
#[derive(Debug)]
pub struct Flight {
    /// Its chain.
    pub head: u16,
    /// Where its status belongs.
    pub status: Pinned,
    /// What it will have moved.
    pub moved: Moved,
    /// The steps to come, the next one last.
    steps: Vec<Step>,
    attempts: u8,
}

impl Flight {
    /// A request with its steps in order.
    pub fn new(head: u16, status: Pinned, moved: Moved, mut steps: Vec<Step>) -> Self {
        steps.reverse();
        Self { head, status, moved, steps, attempts: 0 }
    }
}

/// What comes after a step.
enum Then {
    Next(Step),
    End(io::Result<()>),
}

/// Requests and the engine that has their steps.
#[derive(Debug)]
pub struct InFlight {
    engine: Box<dyn Engine>,
    /// By token.
    flights: Vec<Option<Flight>>,
    free: Vec<u16>,
}

impl InFlight {
    /// Nothing in flight.
    pub fn new(engine: Box<dyn Engine>) -> Self {
        Self { engine, flights: (0..STEPS_MAX).map(|_| None).collect(), free: (0..STEPS_MAX).rev().collect() }
    }

    /// The engine.
    pub fn engine(&self) -> &dyn Engine {
        self.engine.as_ref()
    }

    /// Whether no further request can be started.
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Whether no request has been started that has not ended.
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.flights.len()
    }

    /// Starts a request. Gives it back if there is nothing to do for it, or no room.
    pub fn start(&mut self, mut flight: Flight) -> Option<Flight> {
        if self.is_full() {
            return Some(flight);
        }
        let Some(step) = flight.steps.pop() else { return Some(flight) };
        let Some(token) = self.free.pop() else { return Some(flight) };
        self.flights[usize::from(token)] = Some(flight);
        self.engine.start(token, step);
        None
    }

    /// Hands over what was started, and hands each request that has ended to `ended`.
    pub fn advance(&mut self, mut ended: impl FnMut(Flight, io::Result<()>)) -> io::Result<Submitted> {
        loop {
            let submitted = self.engine.submit()?;
            let mut went_on = false;
            while let Some(Finished { token, step, result }) = self.engine.finished() {
                let Some(place) = self.flights.get_mut(usize::from(token)) else { continue };
                let Some(flight) = place.as_mut() else { continue };
                match flight.after(step, result) {
                    Then::Next(step) => {
                        self.engine.start(token, step);
                        went_on = true;
                    }
                    Then::End(result) => {
                        self.free.push(token);
                        if let Some(flight) = place.take() {
                            ended(flight, result);
                        }
                    }
                }
            }
            if !went_on {
                return Ok(submitted);
            }
        }
    }

    /// Waits until all requests have ended, and hands them to `ended`.
    pub fn drain(&mut self, mut ended: impl FnMut(Flight, io::Result<()>)) -> io::Result<()> {
        self.advance(&mut ended)?;
        while !self.is_empty() {
            self.engine.wait();
            self.advance(&mut ended)?;
        }
        Ok(())
    }

    /// Gives the requests that `work` ends back to the driver in their queue, the device's only one: `answer` says what
    /// status belongs into each, and how many bytes of its chain are written then. Without a driver nothing is written.
    /// Answers what `work` does, and how many requests that were.
    pub fn give_back<T, S: AsRef<[u8]>>(
        &mut self,
        mut queue: Option<&mut RunningQueue>,
        work: impl FnOnce(&mut Self, &mut dyn FnMut(Flight, io::Result<()>)) -> io::Result<T>,
        mut answer: impl FnMut(&Flight, io::Result<()>) -> (S, u32),
    ) -> Result<(T, u32), DeviceError> {
        let (mut count, mut failure) = (0, None);
        let result = work(self, &mut |flight, result| {
            count += 1;
            let (status, written) = answer(&flight, result);
            let Some(queue) = &mut queue else { return };
            flight.status.copy_from(status.as_ref());
            if let Err(error) = queue.complete(flight.head, written) {
                failure.get_or_insert(error);
            }
        });
        match failure {
            Some(source) => Err(DeviceError::Queue { queue: 0, source }),
            None => Ok((result?, count)),
        }
    }

    /// Waits until the engine has given back every step, and forgets all requests: nobody wants their answers.
    pub fn discard(&mut self) {
        while !self.is_empty() {
            self.engine.wait();
            while let Some(finished) = self.engine.finished() {
                self.flights[usize::from(finished.token)] = None;
                self.free.push(finished.token);
            }
        }
        self.engine.acknowledge();
    }
}

impl Flight {
    fn after(&mut self, step: Step, result: io::Result<usize>) -> Then {
        let moved = match result {
            Ok(moved) => moved,
            Err(error) if may_be_repeated(&error) && self.attempts < ATTEMPTS_MAX => {
                self.attempts += 1;
                return Then::Next(step);
            }
            Err(error) => return Then::End(Err(error)),
        };
        self.attempts = 0;
        let rest = match step.action {
            Action::Read { mut buffer, offset } => {
                if moved == 0 && !buffer.is_empty() {
                    // The file has become shorter since it was checked.
                    return Then::End(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                buffer.advance(moved);
                (!buffer.is_empty()).then(|| Action::Read { buffer, offset: offset + moved as u64 })
            }
            Action::Write { mut buffer, offset } => {
                if moved == 0 && !buffer.is_empty() {
                    return Then::End(Err(io::ErrorKind::WriteZero.into()));
                }
                buffer.advance(moved);
                (!buffer.is_empty()).then(|| Action::Write { buffer, offset: offset + moved as u64 })
            }
            Action::Sync => None,
        };
        match rest.map(|action| Step { file: step.file, action }).or_else(|| self.steps.pop()) {
            Some(step) => Then::Next(step),
            None => Then::End(Ok(())),
        }
    }
}

fn may_be_repeated(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}
