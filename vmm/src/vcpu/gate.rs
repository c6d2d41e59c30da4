//! Where vCPU threads wait while the VM is paused.
//!
//! A thread comes here when it was kicked, and only then: what it last did for the guest is complete, because `KVM_RUN`
//! completes it before it looks at a kick (KVM API §5, `immediate_exit`). Whoever pauses closes the gate first and kicks
//! afterwards, so no kick comes too early.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Longer than a vCPU thread is ever away from `KVM_RUN`, whatever device it waits for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The gate of all vCPU threads of a VM.
#[derive(Debug)]
pub struct Gate {
    inside: Mutex<Inside>,
    changed: Condvar,
}

#[derive(Debug)]
struct Inside {
    state: State,
    /// Threads that wait at the gate.
    waiting: usize,
    /// Threads that have not ended.
    threads: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Closed,
}

/// How a thread came through the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// It was open.
    AtOnce,
    /// It had to wait: time has passed that the guest has not seen.
    AfterAPause,
}

/// Why a VM is not paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// It is already.
    #[error("the VM is paused already")]
    Closed,
    /// It is not.
    #[error("the VM is not paused")]
    Open,
    /// A thread did not come. The gate is open again.
    #[error("a vCPU did not stop within {} seconds", PATIENCE.as_secs())]
    Late,
}

impl Gate {
    /// An open gate for so many threads, each of which [leaves](Self::leave) when it ends.
    pub fn new(threads: usize) -> Self {
        Self {
            inside: Mutex::new(Inside { state: State::Open, waiting: 0, threads }),
            changed: Condvar::new(),
        }
    }

    /// For a vCPU thread that was kicked: waits while the gate is closed.
    pub fn pass(&self) -> Passed {
        let mut inside = self.lock();
        if inside.state == State::Open {
            return Passed::AtOnce;
        }
        inside.waiting += 1;
        self.changed.notify_all();
        let mut inside = self
            .changed
            .wait_while(inside, |inside| inside.state == State::Closed)
            .unwrap_or_else(PoisonError::into_inner);
        inside.waiting -= 1;
        self.changed.notify_all();
        Passed::AfterAPause
    }

    /// For a vCPU thread that ends: nobody waits for it any more.
    pub fn leave(&self) {
        self.lock().threads -= 1;
        self.changed.notify_all();
    }

    /// Closes the gate, calls `kick`, which must kick all threads, and waits until they are here.
    pub fn close(&self, kick: impl FnOnce()) -> Result<(), GateError> {
        {
            let mut inside = self.lock();
            if inside.state == State::Closed {
                return Err(GateError::Closed);
            }
            // Those of the last pause may still be on their way out.
            inside = self
                .changed
                .wait_while(inside, |inside| inside.waiting > 0)
                .unwrap_or_else(PoisonError::into_inner);
            inside.state = State::Closed;
        }
        kick();
        let (mut inside, late) = self
            .changed
            .wait_timeout_while(self.lock(), PATIENCE, |inside| inside.waiting < inside.threads)
            .unwrap_or_else(PoisonError::into_inner);
        if late.timed_out() {
            inside.state = State::Open;
            self.changed.notify_all();
            return Err(GateError::Late);
        }
        Ok(())
    }

    /// Opens the gate.
    pub fn open(&self) -> Result<(), GateError> {
        let mut inside = self.lock();
        if inside.state == State::Open {
            return Err(GateError::Open);
        }
        inside.state = State::Open;
        self.changed.notify_all();
        Ok(())
    }

    /// Whether threads are held back.
    pub fn is_closed(&self) -> bool {
        self.lock().state == State::Closed
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn nobody_moves_behind_a_closed_gate() {
        const ROUNDS: u64 = 200;
        let (gate, steps, end) = (Gate::new(3), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while end.load(Ordering::SeqCst) == 0 {
                        steps.fetch_add(1, Ordering::SeqCst);
                        gate.pass();
                    }
                    gate.leave();
                });
            }
            for _ in 0..ROUNDS {
                gate.close(|| {}).unwrap();
                assert_eq!(gate.close(|| {}), Err(GateError::Closed));
                let before = steps.load(Ordering::SeqCst);
                std::thread::yield_now();
                assert_eq!(steps.load(Ordering::SeqCst), before);
                gate.open().unwrap();
                assert_eq!(gate.open(), Err(GateError::Open));
                while steps.load(Ordering::SeqCst) < before + 3 {
                    std::thread::yield_now();
                }
            }
            end.store(1, Ordering::SeqCst);
        });
        // Those that have left are not waited for.
        gate.close(|| {}).unwrap();
        assert!(gate.is_closed());
    }
}
