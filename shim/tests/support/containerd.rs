//! containerd's ears: the events that a shim publishes, and the laws that they must keep.

use std::collections::BTreeSet;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::api::Empty;
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused, TaskResumed,
    TaskStart,
};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Events, create_events};
use tokio::sync::oneshot;
use ttrpc::asynchronous::{Server, TtrpcContext};

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// `create`, `exec-added` and so on.
    pub topic: String,
    pub container: String,
    /// Empty for the init.
    pub exec: String,
    /// 0 where the event has none.
    pub pid: u32,
    /// 0 where the event has none.
    pub status: u32,
}

/// Whether everything that was to be told could be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Story {
    Whole,
    /// The teller was killed.
    Cut,
}

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Told>>>);

/// A listener that can be away for a while.
pub struct Containerd {
    socket: PathBuf,
    recorder: Recorder,
    ears: Ears,
}

enum Ears {
    Open(Listener),
    /// Connections are taken, and nothing on them is read.
    Deaf(UnixListener),
    Gone,
}

/// How a containerd is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// Its socket is there, and nobody listens.
    Refuses,
    /// There is no socket.
    Vanished,
    /// It takes connections and answers nothing.
    Hangs,
}

impl Containerd {
    /// Listens at a path, where another may have listened before.
    pub fn listen(socket: &Path) -> Self {
        let mut containerd =
            Self { socket: socket.to_owned(), recorder: Recorder::default(), ears: Ears::Gone };
        containerd.come_back();
        containerd
    }

    /// Hears nothing any more.
    pub fn go(&mut self, how: Outage) {
        // What was heard has been answered by then.
        std::thread::sleep(Duration::from_millis(50));
        self.ears = Ears::Gone;
        match how {
            Outage::Refuses => {}
            Outage::Vanished => std::fs::remove_file(&self.socket).unwrap(),
            Outage::Hangs => {
                std::fs::remove_file(&self.socket).unwrap();
                self.ears = Ears::Deaf(UnixListener::bind(&self.socket).unwrap());
            }
        }
    }

    /// Hears again.
    pub fn come_back(&mut self) {
        self.ears = Ears::Gone;
        let _ = std::fs::remove_file(&self.socket);
        self.ears = Ears::Open(Listener::new(&self.socket, self.recorder.clone()));
    }

    /// Whether so many events were told since it was asked for them last.
    pub fn has_told(&self, count: usize) -> bool {
        self.recorder.0.lock().unwrap().len() >= count
    }

    /// What was told since it was asked last.
    pub fn told(&self) -> Vec<Told> {
        std::mem::take(&mut self.recorder.0.lock().unwrap())
    }
}

/// A server with a thread of its own.
struct Listener {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    fn new(socket: &Path, recorder: Recorder) -> Self {
        let (stop, stopped) = oneshot::channel();
        let address = format!("unix://{}", socket.display());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let server = Server::new().bind(&address).unwrap();
                let mut server = server.register_service(create_events(Arc::new(recorder)));
                server.start().await.unwrap();
                let _ = stopped.await;
                server.shutdown().await.unwrap();
            });
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

#[async_trait]
impl Events for Recorder {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        assert_eq!(request.envelope.namespace, "test");
        assert!(request.envelope.timestamp.seconds > 0);
        let topic = request.envelope.topic.strip_prefix("/tasks/").unwrap().to_owned();
        let told = told(topic, &request.envelope.event.type_url, &request.envelope.event.value);
        self.0.lock().unwrap().push(told);
        Ok(Empty::new())
    }
}

fn told(topic: String, type_url: &str, bytes: &[u8]) -> Told {
    fn parse<M: Message>(bytes: &[u8]) -> M {
        M::parse_from_bytes(bytes).unwrap()
    }
    let name = type_url.strip_prefix("containerd.events.Task").unwrap();
    let (container, exec, pid, status) = match name {
        "Create" => parse::<TaskCreate>(bytes).into_parts(),
        "Start" => parse::<TaskStart>(bytes).into_parts(),
        "ExecAdded" => parse::<TaskExecAdded>(bytes).into_parts(),
        "ExecStarted" => parse::<TaskExecStarted>(bytes).into_parts(),
        "Exit" => parse::<TaskExit>(bytes).into_parts(),
        "OOM" => parse::<TaskOOM>(bytes).into_parts(),
        "Paused" => parse::<TaskPaused>(bytes).into_parts(),
        "Resumed" => parse::<TaskResumed>(bytes).into_parts(),
        "Delete" => parse::<TaskDelete>(bytes).into_parts(),
        other => panic!("no event is called {other}"),
    };
    assert_eq!(topic.replace('-', ""), name.to_lowercase(), "topic and type agree");
    Told { topic, container, exec, pid, status }
}

/// Container, exec, pid and status of an event.
trait IntoParts {
    fn into_parts(self) -> (String, String, u32, u32);
}

macro_rules! parts {
    ($($event:ident: $body:expr;)*) => {$(
        impl IntoParts for $event {
            fn into_parts(self) -> (String, String, u32, u32) {
                let body: fn(Self) -> (String, String, u32, u32) = $body;
                body(self)
            }
        }
    )*};
}

parts! {
    TaskCreate: |e| (e.container_id, String::new(), e.pid, 0);
    TaskStart: |e| (e.container_id, String::new(), e.pid, 0);
    TaskExecAdded: |e| (e.container_id, e.exec_id, 0, 0);
    TaskExecStarted: |e| (e.container_id, e.exec_id, e.pid, 0);
    TaskExit: |e| {
        let exec = if e.id == e.container_id { String::new() } else { e.id };
        (e.container_id, exec, e.pid, e.exit_status)
    };
    TaskOOM: |e| (e.container_id, String::new(), 0, 0);
    TaskPaused: |e| (e.container_id, String::new(), 0, 0);
    TaskResumed: |e| (e.container_id, String::new(), 0, 0);
    TaskDelete: |e| (e.container_id, String::new(), e.pid, e.exit_status);
}

/// Fails unless events of containers, each of which lived once, keep containerd's laws (docs/runtime-v2.md): create < start <
/// oom < exit < delete; exec-added < exec-started < exit, before that of the init; each once, with one pid.
#[track_caller]
pub fn assert_lawful(events: &[Told], story: Story) {
    let containers: BTreeSet<&str> = events.iter().map(|event| event.container.as_str()).collect();
    for container in containers {
        let of: Vec<&Told> = events.iter().filter(|event| event.container == container).collect();
        let of = |topics: &[&str], exec: &str| -> Vec<(usize, Told)> {
            let found = topics.iter().filter_map(|topic| {
                let mut found = of.iter().enumerate();
                let mut found = found.by_ref().filter(|(_, e)| e.topic == *topic && e.exec == exec);
                let first = found.next();
                assert!(found.next().is_none(), "{topic} of {container} {exec} twice: {events:#?}");
                first.map(|(at, event)| (at, (*event).clone()))
            });
            found.collect()
        };
        let in_order = |found: &[(usize, Told)]| {
            assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0), "{found:#?} of {events:#?}");
            let pids: BTreeSet<u32> = found.iter().map(|(_, e)| e.pid).filter(|pid| *pid != 0).collect();
            assert!(pids.len() <= 1, "{found:#?} are of one process");
        };
        let init = of(&["create", "start", "oom", "exit", "delete"], "");
        in_order(&init);
        assert_eq!((init[0].0, init[0].1.topic.as_str()), (0, "create"), "{events:#?}");
        let exit = init.iter().find(|(_, event)| event.topic == "exit");
        let deleted = init.iter().any(|(_, event)| event.topic == "delete");
        assert!(exit.is_some() || !deleted, "{container} has no exit: {events:#?}");
        assert!(story == Story::Cut || deleted, "{container} is not deleted: {events:#?}");
        let execs: BTreeSet<&str> =
            events.iter().filter(|e| e.container == container).map(|e| e.exec.as_str()).collect();
        for exec in execs.into_iter().filter(|exec| !exec.is_empty()) {
            let told = of(&["exec-added", "exec-started", "exit"], exec);
            in_order(&told);
            let topics: Vec<&str> = told.iter().map(|(_, event)| event.topic.as_str()).collect();
            match (topics.as_slice(), exit) {
                (["exec-added"], _) | (["exec-added", "exec-started"], None) => {}
                (["exec-added", "exec-started", "exit"], exit) => {
                    assert!(
                        exit.is_none_or(|(at, _)| told[2].0 < *at),
                        "{exec} outlives its init: {events:#?}"
                    );
                }
                (other, _) => panic!("{exec}: {other:?} of {events:#?}"),
            }
        }
    }
}
