//! The device's side of the thread that serves its queues: how the thread gets, and gives back, what belongs to the driver.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::socket::{Shutdown, shutdown};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::session::Session;
use super::thread::{FileThread, Lease};
use super::{FsError, QUEUES};
use crate::virtio::device::{DeviceError, Quiet};
use crate::virtio::queue::{Handled, RunningQueue};

/// How long a reset waits for the request in flight before it gives the broker up, and how long after that.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a pause waits for the request in flight: a large file may have to reach a slow disk.
const PAUSE_PATIENCE: Duration = Duration::from_secs(5);

type Queues = [Option<RunningQueue>; QUEUES];

/// The device's side of the thread.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    /// The broker's socket, only to be shut down.
    socket: OwnedFd,
    /// Lets the thread go when it is dropped.
    _lease: Lease,
}

/// What the device and the thread share.
#[derive(Debug)]
pub(super) struct Shared {
    inbox: Mutex<Inbox>,
    changed: Condvar,
    /// Asks the thread to stop after the request it is at.
    stop: AtomicBool,
    /// Readable when there is a failure to report.
    failed: EventFd,
    to_guest: AtomicU64,
    from_guest: AtomicU64,
}

#[derive(Debug)]
struct Inbox {
    place: Place,
    notified: [bool; QUEUES],
    failure: Option<DeviceError>,
    life: Life,
}

/// Where the queues are.
#[derive(Debug)]
enum Place {
    /// The device is not active.
    Nowhere,
    /// Here, for the thread to take.
    Here(Box<Queues>),
    /// Here, but nothing is done about them before the next notification.
    Held(Box<Queues>),
    /// The thread works on them.
    WithThread,
    /// The thread hangs in the host's file system with queues that the driver has taken back.
    Lost,
}

#[derive(Debug, PartialEq, Eq)]
enum Life {
    Serving,
    Ended,
}

impl Shared {
    /// A panic ends the process, so a poisoned lock is never seen by anybody who goes on.
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    /// Has the thread serve a session. `socket` is another descriptor of the session's.
    pub fn start(thread: &FileThread, session: Session, socket: OwnedFd) -> Result<Self, FsError> {
        let shared = Arc::new(Shared {
            inbox: Mutex::new(Inbox {
                place: Place::Nowhere,
                notified: [false; QUEUES],
                failure: None,
                life: Life::Serving,
            }),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
            failed: EventFd::new(EFD_NONBLOCK)?,
            to_guest: AtomicU64::new(0),
            from_guest: AtomicU64::new(0),
        });
        let lease = thread.serve(Arc::clone(&shared), session)?;
        Ok(Self { shared, socket, _lease: lease })
    }

    /// The driver's queues are the thread's from here.
    pub fn give(&self, queues: Queues) {
        let mut inbox = self.shared.lock();
        inbox.notified = [false; QUEUES];
        match inbox.place {
            Place::Nowhere | Place::Here(_) | Place::Held(_) => {
                inbox.place = Place::Here(Box::new(queues));
            }
            Place::WithThread | Place::Lost => {
                inbox.failure = Some(DeviceError::Host(io::ErrorKind::TimedOut.into()));
                self.shared.report();
            }
        }
    }

    /// The queues are the driver's again when this returns. The request in flight is finished first; where the host
    /// hangs for longer than [`PATIENCE`], the broker is given up, and the device with it.
    pub fn take_back(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let mut inbox = self.shared.lock();
        inbox.failure = None;
        for hang in [Hang::Perhaps, Hang::Surely] {
            let waited = self
                .shared
                .changed
                .wait_timeout_while(inbox, PATIENCE, |inbox| matches!(inbox.place, Place::WithThread));
            inbox = waited.unwrap_or_else(PoisonError::into_inner).0;
            match (&inbox.place, hang) {
                (Place::WithThread, Hang::Perhaps) => {
                    log::error!("a file operation hangs on the host; the guest's mount is given up");
                    self.give_up();
                }
                (Place::WithThread | Place::Lost, _) => inbox.place = Place::Lost,
                (Place::Nowhere | Place::Here(_) | Place::Held(_), _) => {
                    inbox.place = Place::Nowhere;
                    break;
                }
            }
        }
        drop(inbox);
        self.shared.stop.store(false, Ordering::SeqCst);
    }

    /// Finishes the request in flight and begins no other before the next notification. What is left in the queues is
    /// notified anew, so that it is not forgotten.
    pub fn quiesce(&self) -> Quiet {
        self.shared.stop.store(true, Ordering::SeqCst);
        let waited = self.shared.changed.wait_timeout_while(self.shared.lock(), PAUSE_PATIENCE, |inbox| {
            matches!(inbox.place, Place::WithThread)
        });
        let mut inbox = waited.unwrap_or_else(PoisonError::into_inner).0;
        self.shared.stop.store(false, Ordering::SeqCst);
        let (place, quiet) = match std::mem::replace(&mut inbox.place, Place::Nowhere) {
            Place::WithThread => (Place::WithThread, Quiet::NotYet),
            Place::Here(queues) => {
                for (queue, notified) in queues.iter().zip(std::mem::take(&mut inbox.notified)) {
                    if let (Some(queue), true) = (queue, notified) {
                        queue.notify_self();
                    }
                }
                (Place::Held(queues), Quiet::Yes)
            }
            place @ (Place::Nowhere | Place::Held(_) | Place::Lost) => (place, Quiet::Yes),
        };
        inbox.place = place;
        quiet
    }

    /// Ends any wait for the broker.
    fn give_up(&self) {
        // It fails only where the other end is gone, which ends the wait as well.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }

    /// There may be chains in a queue.
    pub fn notify(&self, queue: usize) {
        let mut inbox = self.shared.lock();
        if let Some(notified) = inbox.notified.get_mut(queue) {
            *notified = true;
        }
        inbox.place = match std::mem::replace(&mut inbox.place, Place::Nowhere) {
            Place::Held(queues) => Place::Here(queues),
            place => place,
        };
        drop(inbox);
        self.shared.changed.notify_all();
    }

    /// Readable when [`failure`](Self::failure) has something.
    pub fn failed(&self) -> &EventFd {
        &self.shared.failed
    }

    /// Why the thread has stopped serving the queues.
    pub fn failure(&self) -> Option<DeviceError> {
        // Empty where nothing was reported.
        let _ = self.shared.failed.read();
        self.shared.lock().failure.take()
    }

    /// File data to the guest and from the guest.
    pub fn bytes_moved(&self) -> (u64, u64) {
        (self.shared.to_guest.load(Ordering::Relaxed), self.shared.from_guest.load(Ordering::Relaxed))
    }
}

#[derive(Clone, Copy)]
enum Hang {
    Perhaps,
    Surely,
}

impl Drop for Worker {
    /// The thread lets go of guest memory, unless it hangs on the host: that is not waited for.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.lock().life = Life::Ended;
        self.shared.changed.notify_all();
        self.give_up();
        let at_work = |inbox: &mut Inbox| matches!(inbox.place, Place::WithThread);
        drop(self.shared.changed.wait_timeout_while(self.shared.lock(), PATIENCE, at_work));
    }
}

impl Shared {
    /// The thread cannot serve: whoever gives it queues is told.
    pub(super) fn lose(&self, error: io::Error) {
        let mut inbox = self.lock();
        inbox.place = Place::Lost;
        inbox.failure = Some(DeviceError::Host(error));
        self.report();
    }

    fn report(&self) {
        if let Err(error) = self.failed.write(1)
            && error.kind() != io::ErrorKind::WouldBlock
        {
            log::error!("cannot report a failure: {error}");
        }
    }

    /// Waits for work.
    fn next(&self) -> Option<(Box<Queues>, [bool; QUEUES])> {
        let idle = |inbox: &mut Inbox| {
            let work = matches!(inbox.place, Place::Here(_)) && inbox.notified.contains(&true);
            !work && inbox.life == Life::Serving
        };
        let mut inbox = self.changed.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        if inbox.life == Life::Ended {
            return None;
        }
        let Place::Here(queues) = std::mem::replace(&mut inbox.place, Place::WithThread) else { return None };
        Some((queues, std::mem::take(&mut inbox.notified)))
    }

    /// The thread has done what there was to do.
    fn give_back(&self, queues: Box<Queues>, result: Result<(), DeviceError>) {
        let mut inbox = self.lock();
        inbox.place = match (&inbox.place, &result) {
            (Place::WithThread, Ok(())) => Place::Here(queues),
            (Place::WithThread, Err(_)) => Place::Nowhere,
            // Taken back long ago: whoever has them now, it is not us.
            (Place::Nowhere | Place::Here(_) | Place::Held(_) | Place::Lost, _) => Place::Lost,
        };
        if let Err(error) = result {
            inbox.failure = Some(error);
            self.report();
        }
        drop(inbox);
        self.changed.notify_all();
    }
}

/// The thread's work for one device, until that is dropped.
pub(super) fn serve(shared: &Shared, mut session: Session) {
    while let Some((mut queues, notified)) = shared.next() {
        let mut result = Ok(());
        for (index, queue) in queues.iter_mut().enumerate() {
            if notified[index] && result.is_ok() {
                result = process(shared, &mut session, index, queue.as_mut());
            }
        }
        shared.give_back(queues, result);
    }
}

fn process(
    shared: &Shared,
    session: &mut Session,
    index: usize,
    queue: Option<&mut RunningQueue>,
) -> Result<(), DeviceError> {
    let queue = queue.ok_or(DeviceError::MissingQueue(index))?;
    let mut stopped = false;
    queue
        .process(|chain| {
            if shared.stop.load(Ordering::SeqCst) {
                stopped = true;
                return Handled::Stop;
            }
            let outcome = session.execute(chain.readable, chain.writable);
            shared.to_guest.fetch_add(outcome.to_guest, Ordering::Relaxed);
            shared.from_guest.fetch_add(outcome.from_guest, Ordering::Relaxed);
            Handled::Done(outcome.written)
        })
        .map_err(|source| DeviceError::Queue { queue: index, source })?;
    if stopped {
        // Whoever made us stop may let us go on.
        queue.notify_self();
    }
    Ok(())
}
