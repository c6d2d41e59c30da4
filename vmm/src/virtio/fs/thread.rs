//! The one thread of a VM that may wait for the host's files.
//!
//! It is there before the VM runs, because no thread can be made behind the filters, and outlives the devices it serves,
//! one after another. It owns nothing but the session it is at.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::FsError;
use super::session::Session;
use super::worker::{Shared, serve};
use crate::jail::filters::Role;
use crate::jail::seccomp::Filter;

/// Its name.
pub const NAME: &str = "fs";

/// How long a device that goes waits for the thread to let go of it.
const PATIENCE: Duration = Duration::from_secs(1);

/// A handle on the thread, which ends when this is dropped, after the device that it is at.
#[derive(Debug)]
pub struct FileThread {
    desk: Arc<Desk>,
}

/// What the thread is at.
#[derive(Debug)]
struct Desk {
    work: Mutex<Work>,
    changed: Condvar,
}

#[derive(Debug)]
enum Work {
    /// Nothing to do.
    Idle,
    /// A device, which the thread has yet to turn to.
    Given(Arc<Shared>, Box<Session>),
    /// A device.
    Serving,
    /// A device that is gone, which the thread has yet to see: it hangs, if this lasts.
    Leaving,
    /// The thread has ended, or is to end.
    Ended,
}

/// A device's claim to the thread.
#[derive(Debug)]
pub(super) struct Lease {
    desk: Arc<Desk>,
}

impl FileThread {
    /// Starts the thread, which puts its filter around itself first.
    pub fn start() -> io::Result<Self> {
        let desk = Arc::new(Desk { work: Mutex::new(Work::Idle), changed: Condvar::new() });
        let theirs = Arc::clone(&desk);
        thread::Builder::new().name(NAME.into()).spawn(move || run(&theirs))?;
        Ok(Self { desk })
    }

    /// Has the thread serve a device until the lease is dropped. It serves one at a time.
    pub(super) fn serve(&self, device: Arc<Shared>, session: Session) -> Result<Lease, FsError> {
        let mut work = self.desk.lock();
        match *work {
            Work::Idle => *work = Work::Given(device, Box::new(session)),
            Work::Given(..) | Work::Serving => return Err(FsError::Second),
            Work::Leaving | Work::Ended => return Err(FsError::Hangs),
        }
        drop(work);
        self.desk.changed.notify_all();
        Ok(Lease { desk: Arc::clone(&self.desk) })
    }
}

impl Drop for FileThread {
    /// One that hangs is not waited for.
    fn drop(&mut self) {
        *self.desk.lock() = Work::Ended;
        self.desk.changed.notify_all();
    }
}

impl Drop for Lease {
    /// The session is dropped when this returns, unless the thread hangs.
    fn drop(&mut self) {
        let mut work = self.desk.lock();
        *work = match std::mem::replace(&mut *work, Work::Idle) {
            Work::Given(..) => Work::Idle,
            Work::Serving => Work::Leaving,
            work @ (Work::Idle | Work::Leaving | Work::Ended) => work,
        };
        self.desk.changed.notify_all();
        let leaving = |work: &mut Work| matches!(work, Work::Leaving);
        drop(self.desk.changed.wait_timeout_while(work, PATIENCE, leaving));
    }
}

impl Desk {
    /// A panic ends the process, so a poisoned lock is never seen by anybody who goes on.
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a device.
    fn next(&self) -> Option<(Arc<Shared>, Box<Session>)> {
        let idle = |work: &mut Work| matches!(work, Work::Idle);
        let mut work = self.changed.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *work, Work::Ended) {
            Work::Given(device, session) => {
                *work = Work::Serving;
                Some((device, session))
            }
            Work::Idle | Work::Serving | Work::Leaving | Work::Ended => None,
        }
    }

    /// The device is gone.
    fn finish(&self) {
        let mut work = self.lock();
        if !matches!(*work, Work::Ended) {
            *work = Work::Idle;
        }
        drop(work);
        self.changed.notify_all();
    }

    /// The thread is of no use.
    fn end(&self, error: io::Error) {
        let work = std::mem::replace(&mut *self.lock(), Work::Ended);
        self.changed.notify_all();
        log::error!("the file system's thread cannot close its filter: {error}");
        if let Work::Given(device, _) = work {
            device.lose(error);
        }
    }
}

/// The thread.
fn run(desk: &Desk) {
    // Compiled here, where nobody waits for it.
    if let Err(error) = Filter::of(Role::Files).and_then(|filter| filter.close()) {
        return desk.end(io::Error::other(error));
    }
    while let Some((device, session)) = desk.next() {
        serve(&device, *session);
        desk.finish();
    }
}
