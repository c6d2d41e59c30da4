//! A network namespace, and threads that work in it. A thread that has entered one is never used for anything else: the
//! shim's other threads, and what it starts, stay where they are.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use hull_netlink::Socket;
use hull_netlink::link::{self, Change, State, Statistics};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::oneshot;

use super::{NetworkError, kernel};

/// A thread's stack: its work is a few messages.
const STACK: usize = 256 << 10;

/// A network namespace, held open.
#[derive(Debug)]
pub struct Namespace(File);

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    let what = what.into();
    move |source| NetworkError::Namespace { what, source }
}

impl Namespace {
    /// The namespace at a path. That it is one shows when it is entered.
    pub fn at(path: &Path) -> Result<Self, NetworkError> {
        // A pipe must not hold us up.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        file.map(Self).map_err(failed(format!("open the network namespace {}", path.display())))
    }

    /// A new namespace, which exists as long as it is held open or a process is in it. Its loopback is up.
    pub async fn fresh() -> Result<Self, NetworkError> {
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(io::Error::from)
                .map_err(failed("make a network namespace"))?;
            let socket = Socket::open().map_err(kernel(|| "open a netlink socket".to_owned()))?;
            let up = Change { state: Some(State::Up), ..Change::default() };
            link::list(&socket, Statistics::Without)
                .and_then(|links| links.iter().try_for_each(|link| link::change(&socket, link.index, &up)))
                .map_err(kernel(|| "bring the loopback up".to_owned()))?;
            File::open("/proc/thread-self/ns/net").map(Self).map_err(failed("open the new network namespace"))
        })
        .await
    }

    /// Device and inode number of its file, which no other namespace has at the same time.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        self.0.metadata().map(|found| (found.dev(), found.ino()))
    }

    /// Does work in the namespace, on a thread of its own.
    pub async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Socket) -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        let namespace = Arc::clone(self);
        on_a_thread(move || namespace.enter_and(work)).await
    }

    /// Does short work in the namespace on this thread, which comes back: where nobody is held up, or where no other thread
    /// can be had.
    pub fn run_here<T>(
        &self,
        work: impl FnOnce(&Socket) -> Result<T, NetworkError>,
    ) -> Result<T, NetworkError> {
        let home = File::open("/proc/thread-self/ns/net").map_err(failed("find the way back"))?;
        let result = self.enter_and(work);
        if let Err(error) = setns(&home, CloneFlags::CLONE_NEWNET) {
            // Whatever this process did from here on, it would do to another's network.
            log::error!("cannot leave the pod's network namespace: {error}");
            std::process::abort();
        }
        result
    }

    /// Only for threads that end afterwards, or come back.
    fn enter_and<T>(&self, work: impl FnOnce(&Socket) -> Result<T, NetworkError>) -> Result<T, NetworkError> {
        setns(&self.0, CloneFlags::CLONE_NEWNET)
            .map_err(io::Error::from)
            .map_err(failed("enter the network namespace"))?;
        work(&Socket::open().map_err(kernel(|| "open a netlink socket".to_owned()))?)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    let (answer, answered) = oneshot::channel();
    std::thread::Builder::new()
        .name("netns".to_owned())
        .stack_size(STACK)
        // Nobody may wait for the answer any more.
        .spawn(move || drop(answer.send(work())))
        .map_err(NetworkError::Thread)?;
    answered.await.unwrap_or_else(|_| Err(failed("work in a network namespace")(io::ErrorKind::Other.into())))
}
