//! Events for containerd: one ordered queue, one publisher that reconnects.
//!
//! An event that cannot be delivered holds up those behind it, is kept for longer than a containerd that is restarted or
//! upgraded is away, and is then dropped with a log line; so is what finds the queue full: publishing must neither reorder
//! events nor hold up or kill a pod. One whose answer is lost is told again: nobody can know that it arrived.

use std::time::{Duration, Instant, SystemTime};

use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused, TaskResumed,
    TaskStart,
};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::EventsClient;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use ttrpc::asynchronous::Client;
use ttrpc::context;

use crate::time::timestamp;

/// Environment variable with the address of containerd's ttrpc services.
pub const ADDRESS_VARIABLE: &str = "TTRPC_ADDRESS";

const QUEUE: usize = 2048;
const KEPT: Duration = Duration::from_secs(600);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
const FORWARD_DEADLINE: Duration = Duration::from_secs(5);
const DRAIN_DEADLINE: Duration = Duration::from_secs(3);

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A container was created.
    Create(TaskCreate),
    /// Its init process runs.
    Start(TaskStart),
    /// An exec was registered.
    ExecAdded(TaskExecAdded),
    /// An exec runs.
    ExecStarted(TaskExecStarted),
    /// A process exited.
    Exit(TaskExit),
    /// The OOM killer was at work.
    Oom(TaskOOM),
    /// A container was frozen.
    Paused(TaskPaused),
    /// A container goes on.
    Resumed(TaskResumed),
    /// A container is forgotten.
    Delete(TaskDelete),
}

impl Event {
    fn pack(&self) -> Result<(&'static str, Any), protobuf::Error> {
        // The names are written out: to ask the generated code for them takes what describes all messages, in the program
        // and in memory.
        let (topic, name, value) = match self {
            Self::Create(event) => ("/tasks/create", "containerd.events.TaskCreate", event.write_to_bytes()),
            Self::Start(event) => ("/tasks/start", "containerd.events.TaskStart", event.write_to_bytes()),
            Self::ExecAdded(event) => {
                ("/tasks/exec-added", "containerd.events.TaskExecAdded", event.write_to_bytes())
            }
            Self::ExecStarted(event) => {
                ("/tasks/exec-started", "containerd.events.TaskExecStarted", event.write_to_bytes())
            }
            Self::Exit(event) => ("/tasks/exit", "containerd.events.TaskExit", event.write_to_bytes()),
            Self::Oom(event) => ("/tasks/oom", "containerd.events.TaskOOM", event.write_to_bytes()),
            Self::Paused(event) => ("/tasks/paused", "containerd.events.TaskPaused", event.write_to_bytes()),
            Self::Resumed(event) => {
                ("/tasks/resumed", "containerd.events.TaskResumed", event.write_to_bytes())
            }
            Self::Delete(event) => ("/tasks/delete", "containerd.events.TaskDelete", event.write_to_bytes()),
        };
        Ok((topic, Any { type_url: name.to_owned(), value: value?, ..Any::default() }))
    }
}

/// The queue. Clones feed the same publisher.
#[derive(Clone)]
pub struct Events {
    queue: Option<mpsc::Sender<Queued>>,
}

struct Queued {
    at: SystemTime,
    since: Instant,
    event: Event,
}

/// The publisher's end, to be waited for when the shim ends.
pub struct Publisher(Option<JoinHandle<()>>);

impl Events {
    /// Starts a publisher to `address`; without one, events go nowhere.
    pub fn start(address: Option<String>, namespace: String) -> (Self, Publisher) {
        let Some(address) = address.filter(|address| !address.is_empty()) else {
            return (Self { queue: None }, Publisher(None));
        };
        let (queue, events) = mpsc::channel(QUEUE);
        let task = tokio::spawn(publish(address, namespace, events));
        (Self { queue: Some(queue) }, Publisher(Some(task)))
    }

    /// Events that nobody wants.
    pub fn nowhere() -> Self {
        Self { queue: None }
    }

    /// Queues an event behind all earlier ones. Never waits.
    pub fn send(&self, event: Event) {
        if let Some(queue) = &self.queue
            && let Err(error) = queue.try_send(Queued { at: SystemTime::now(), since: Instant::now(), event })
        {
            log::error!("an event is lost: {error}");
        }
    }
}

impl Publisher {
    /// Waits until everything is published, for a bounded time. All [`Events`] must have been dropped.
    pub async fn drain(self) {
        if let Some(task) = self.0
            && tokio::time::timeout(DRAIN_DEADLINE, task).await.is_err()
        {
            log::warn!("not every event could be published");
        }
    }
}

async fn publish(address: String, namespace: String, mut events: mpsc::Receiver<Queued>) {
    // containerd gives a plain path.
    let address = if address.contains("://") { address } else { format!("unix://{address}") };
    let mut connection = None;
    while let Some(Queued { at, since, event }) = events.recv().await {
        let (topic, any) = match event.pack() {
            Ok(packed) => packed,
            Err(error) => {
                log::error!("an event cannot be encoded: {error}");
                continue;
            }
        };
        let envelope = Envelope {
            timestamp: timestamp(at),
            namespace: namespace.clone(),
            topic: topic.to_owned(),
            event: MessageField::some(any),
            ..Envelope::default()
        };
        let request = ForwardRequest { envelope: MessageField::some(envelope), ..ForwardRequest::default() };
        forward(&address, &mut connection, topic, &request, since + KEPT).await;
    }
}

async fn forward(
    address: &str,
    connection: &mut Option<Client>,
    topic: &str,
    request: &ForwardRequest,
    until: Instant,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        match try_forward(address, connection, request).await {
            Ok(()) => return,
            Err(error) => {
                *connection = None;
                if Instant::now() > until {
                    log::error!("{topic} could not be published: {error}");
                    return;
                }
                if pause == FIRST_PAUSE {
                    log::warn!("{topic} is not published yet: {error}");
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn try_forward(
    address: &str,
    connection: &mut Option<Client>,
    request: &ForwardRequest,
) -> ttrpc::Result<()> {
    let client = match connection {
        Some(client) => client.clone(),
        None => connection.insert(Client::connect(address).await?).clone(),
    };
    let deadline = context::with_duration(FORWARD_DEADLINE);
    EventsClient::new(client).forward(deadline, request).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_containerd_that_hangs_holds_up_nobody_and_costs_a_bounded_memory() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("events");
        let _deaf = UnixListener::bind(&socket).unwrap();
        let (events, publisher) = Events::start(Some(socket.display().to_string()), "test".into());
        for _ in 0..3 * QUEUE {
            events.send(Event::Create(TaskCreate::new()));
        }
        assert_eq!(events.queue.as_ref().unwrap().capacity(), 0);
        drop(events);
        let asked = Instant::now();
        publisher.drain().await;
        assert!(asked.elapsed() < DRAIN_DEADLINE + Duration::from_secs(1));
    }
}
