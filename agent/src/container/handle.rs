//! How the rest of the agent talks to a container's actor.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use hull_protocol::agent::StreamKind;
use hull_protocol::agent::api::agent as api;
use tokio::sync::{mpsc, oneshot, watch};

use super::actor;
use super::create::Creation;
use super::process::Exit;
use crate::environment::Environment;
use crate::error::Error;
use crate::launch::Kept;
use crate::spec::{Limits, ProcessSpec};
use crate::stdio::Attachment;
use crate::sys::terminal::WindowSize;

/// Requests that may wait in a mailbox.
const MAILBOX: usize = 64;

/// A process of a container.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ProcessName {
    /// The container's init.
    Init,
    /// An exec, by its id.
    Exec(String),
}

/// Whom a signal is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One process.
    One(ProcessName),
    /// Every process in the container.
    All,
}

/// Where an answer goes. Nobody listens when the request was cancelled, which is why a failed send is no error anywhere.
pub type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What a container can be asked.
pub enum Request {
    Exec { id: String, spec: Box<ProcessSpec>, cgroup: Option<String>, stdio: api::Stdio, reply: Reply<()> },
    Start { name: ProcessName, reply: Reply<u32> },
    Signal { target: Target, signal: i32, reply: Reply<()> },
    Watch { name: ProcessName, reply: Reply<watch::Receiver<Option<Exit>>> },
    Resize { name: ProcessName, size: WindowSize, reply: Reply<()> },
    Attach { name: ProcessName, kind: StreamKind, reply: Reply<oneshot::Sender<Attachment>> },
    Join { reply: Reply<Kept> },
    DeleteExec { id: String, reply: Reply<()> },
    Delete { reply: Reply<()> },
    Pause { reply: Reply<()> },
    Resume { reply: Reply<()> },
    Update { limits: Limits, reply: Reply<()> },
    Revert { reply: Reply<()> },
    Stats { reply: Reply<api::ContainerStatsResponse> },
    Pids { reply: Reply<Vec<u32>> },
}

/// The containers of the guest, by id.
#[derive(Clone, Default)]
pub struct Registry {
    handles: Arc<Mutex<HashMap<String, Handle>>>,
}

impl Registry {
    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<String, Handle>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The container of this id.
    pub fn find(&self, id: &str) -> Result<Handle, Error> {
        self.map().get(id).cloned().ok_or_else(|| Error::NoContainer(id.to_owned()))
    }

    /// All containers.
    pub fn all(&self) -> Vec<Handle> {
        self.map().values().cloned().collect()
    }

    /// Creates a container and answers with its init's pid once that stands before its first instruction.
    pub async fn create(&self, environment: Arc<Environment>, creation: Creation) -> Result<u32, Error> {
        let (created, answer) = oneshot::channel();
        {
            let mut map = self.map();
            let id = creation.id.clone();
            if map.contains_key(&id) {
                return Err(Error::Exists { kind: "container", id });
            }
            let (mailbox, incoming) = mpsc::channel(MAILBOX);
            map.insert(id, Handle { mailbox });
            tokio::spawn(actor::run(environment, self.clone(), creation, incoming, created));
        }
        answer.await.unwrap_or(Err(Error::Cancelled))
    }

    /// For the actor, when nothing is left of its container.
    pub(super) fn forget(&self, id: &str) {
        self.map().remove(id);
    }
}

/// A container.
#[derive(Clone)]
pub struct Handle {
    mailbox: mpsc::Sender<Request>,
}

impl Handle {
    /// Sends the request that `make` builds around a reply and waits for the answer.
    pub async fn ask<T>(&self, id: &str, make: impl FnOnce(Reply<T>) -> Request) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::NoContainer(id.to_owned());
        self.mailbox.send(make(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}
