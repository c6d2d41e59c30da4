//! Every request of the task service in every state of a container, of an exec and of a pod's sandbox: the contract's table,
//! under both names of the service.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use containerd_shim_protos::api::{self, Status};
use containerd_shim_protos::protobuf::Message;
use hull_shim::client::messages::CreateTaskRequest;
use hull_shim::client::{Code, Process, Reach, TaskClient};
use support::{PATIENCE, Pod, soon};
use ttrpc::asynchronous::Client;
use ttrpc::proto::Request;

const V2: &str = "containerd.task.v2.Task";
const V3: &str = "containerd.task.v3.Task";

/// How long a request must go unanswered to pass for one that waits.
const A_WHILE: Duration = Duration::from_millis(200);
/// Pods that are tried at the same time.
const AT_ONCE: usize = 8;

/// What a request comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Yes,
    Waits,
    No(Code),
}

const YES: Answer = Answer::Yes;
const WAITS: Answer = Answer::Waits;
/// The table's "plain" error.
const PLAIN: Answer = Answer::No(Code::UNKNOWN);
const NONE: Answer = Answer::No(Code::NOT_FOUND);
const TAKEN: Answer = Answer::No(Code::ALREADY_EXISTS);
const EARLY: Answer = Answer::No(Code::FAILED_PRECONDITION);
const NEVER: Answer = Answer::No(Code::UNIMPLEMENTED);

/// A state to bring the subject of a request into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Created,
    Running,
    Paused,
    Stopped,
    Deleted,
    /// An exec that is registered in a container that was not started.
    Early,
    /// An exec that is registered, its container paused.
    Held,
    /// An exec that was never started, its container stopped.
    Late,
}

use State::{Absent, Created, Deleted, Early, Held, Late, Paused, Running, Stopped};

/// The answers of a request in the states of a table's head.
type Rows<const STATES: usize> = [(&'static str, [Answer; STATES])];

const CONTAINER_STATES: [State; 6] = [Absent, Created, Running, Paused, Stopped, Deleted];
const CONTAINER: &Rows<6> = &[
    ("Create", [YES, TAKEN, TAKEN, TAKEN, TAKEN, YES]),
    ("Start", [NONE, YES, PLAIN, PLAIN, PLAIN, NONE]),
    ("Delete", [NONE, YES, PLAIN, PLAIN, YES, NONE]),
    ("State", [NONE, YES, YES, YES, YES, NONE]),
    ("Pids", [NONE, YES, YES, YES, YES, NONE]),
    ("Wait", [NONE, WAITS, WAITS, WAITS, YES, NONE]),
    ("Kill", [NONE, YES, YES, YES, NONE, NONE]),
    ("Exec", [NONE, YES, YES, PLAIN, PLAIN, NONE]),
    ("Pause", [NONE, PLAIN, YES, PLAIN, PLAIN, NONE]),
    ("Resume", [NONE, PLAIN, PLAIN, YES, PLAIN, NONE]),
    ("ResizePty", [NONE, YES, YES, YES, PLAIN, NONE]),
    ("CloseIO", [NONE, YES, YES, YES, YES, NONE]),
    ("Update", [NONE, YES, YES, YES, PLAIN, NONE]),
    ("Stats", [NONE, YES, YES, YES, NONE, NONE]),
    ("Checkpoint", [NEVER; 6]),
    ("Connect", [YES; 6]),
    ("Shutdown", [YES; 6]),
];

const EXEC_STATES: [State; 9] = [Absent, Early, Created, Held, Running, Paused, Stopped, Late, Deleted];
const EXEC: &Rows<9> = &[
    ("Exec", [YES, TAKEN, TAKEN, PLAIN, TAKEN, PLAIN, TAKEN, PLAIN, YES]),
    ("Start", [NONE, EARLY, YES, PLAIN, PLAIN, PLAIN, PLAIN, EARLY, NONE]),
    ("Delete", [NONE, YES, YES, YES, PLAIN, PLAIN, YES, YES, NONE]),
    ("State", [NONE, YES, YES, YES, YES, YES, YES, YES, NONE]),
    ("Wait", [NONE, WAITS, WAITS, WAITS, WAITS, WAITS, YES, YES, NONE]),
    ("Kill", [NONE, EARLY, EARLY, EARLY, YES, YES, NONE, NONE, NONE]),
    ("ResizePty", [NONE, YES, YES, YES, YES, YES, PLAIN, PLAIN, NONE]),
    ("CloseIO", [NONE, YES, YES, YES, YES, YES, YES, YES, NONE]),
];

const SANDBOX_STATES: [State; 5] = [Absent, Created, Running, Stopped, Deleted];
const SANDBOX: &Rows<5> = &[
    ("Create", [YES, TAKEN, TAKEN, TAKEN, YES]),
    ("Start", [NONE, YES, PLAIN, PLAIN, NONE]),
    ("Delete", [NONE, YES, PLAIN, YES, NONE]),
    ("State", [NONE, YES, YES, YES, NONE]),
    ("Pids", [NONE, YES, YES, YES, NONE]),
    ("Wait", [NONE, WAITS, WAITS, YES, NONE]),
    ("Kill", [NONE, YES, YES, NONE, NONE]),
    ("Exec", [NONE, NEVER, NEVER, PLAIN, NONE]),
    ("Pause", [NONE, NEVER, NEVER, NEVER, NONE]),
    ("Resume", [NONE, NEVER, NEVER, NEVER, NONE]),
    ("ResizePty", [NONE, YES, YES, PLAIN, NONE]),
    ("CloseIO", [NONE, YES, YES, YES, NONE]),
    ("Update", [NONE, NEVER, NEVER, PLAIN, NONE]),
    ("Stats", [NONE, YES, YES, NONE, NONE]),
    ("Checkpoint", [NEVER; 5]),
    ("Connect", [YES; 5]),
    ("Shutdown", [YES; 5]),
];

/// A container in its pod, and the exec that requests name; empty for the init.
struct Subject<'a> {
    pod: &'a Pod,
    create: CreateTaskRequest,
    exec: &'static str,
}

impl Subject<'_> {
    fn init(&self) -> Process<'_> {
        Process::init(&self.create.id)
    }

    fn process(&self) -> Process<'_> {
        Process::exec(&self.create.id, self.exec)
    }

    fn exec_request(&self, exec: &str) -> api::ExecProcessRequest {
        let mut request = self.pod.exec_request(exec, &["sleep", "1000"]);
        request.id.clone_from(&self.create.id);
        request
    }

    /// Brings the subject from Absent into a state.
    async fn bring(&self, client: &TaskClient, state: State) {
        if self.exec.is_empty() {
            self.bring_init(client, state).await;
        } else {
            self.bring_exec(client, state).await;
        }
        let status = match state {
            Absent | Deleted => {
                assert!(soon(client.state(self.process())).await.unwrap_err().is_not_found());
                return;
            }
            Created | Early => Status::CREATED,
            Running => Status::RUNNING,
            Paused | Held => Status::PAUSED,
            Stopped | Late => Status::STOPPED,
        };
        let found = soon(client.state(self.process())).await.unwrap();
        assert_eq!(found.status.unwrap(), status, "{state:?}");
        let exit = if status == Status::STOPPED { 137 } else { 0 };
        assert_eq!((found.exit_status, found.exited_at.is_some()), (exit, exit != 0), "{state:?}");
    }

    async fn bring_init(&self, client: &TaskClient, state: State) {
        let init = self.init();
        if state == Absent {
            return;
        }
        soon(client.create(&self.create)).await.unwrap();
        if state == Created {
            return;
        }
        soon(client.start(init)).await.unwrap();
        match state {
            Paused => soon(client.pause(init.container)).await.unwrap(),
            Stopped | Deleted => {
                soon(client.kill(init, 9, Reach::Process)).await.unwrap();
                soon(client.wait(init)).await.unwrap();
            }
            _ => {}
        }
        if state == Deleted {
            soon(client.delete(init)).await.unwrap();
        }
    }

    async fn bring_exec(&self, client: &TaskClient, state: State) {
        let (init, exec) = (self.init(), self.process());
        self.bring_init(client, if state == Early { Created } else { Running }).await;
        if state == Absent {
            return;
        }
        soon(client.exec(&self.exec_request(self.exec))).await.unwrap();
        if matches!(state, Running | Paused | Stopped | Deleted) {
            soon(client.start(exec)).await.unwrap();
        }
        match state {
            Paused | Held => soon(client.pause(init.container)).await.unwrap(),
            Stopped | Deleted => {
                soon(client.kill(exec, 9, Reach::Process)).await.unwrap();
                soon(client.wait(exec)).await.unwrap();
            }
            Late => {
                soon(client.kill(init, 9, Reach::Process)).await.unwrap();
                soon(client.wait(init)).await.unwrap();
            }
            _ => {}
        }
        if state == Deleted {
            soon(client.delete(exec)).await.unwrap();
        }
    }

    /// Whatever a request made of it, it can be ended and forgotten.
    async fn end(&self, client: &TaskClient) {
        let init = self.init();
        if soon(client.state(init)).await.is_err() {
            return;
        }
        match soon(client.kill(init, 9, Reach::Container)).await {
            Err(error) if !error.is_not_found() => panic!("{error}"),
            _ => {}
        }
        soon(client.wait(init)).await.unwrap();
        assert_eq!(soon(client.delete(init)).await.unwrap().exit_status, 137);
    }

    /// A request's bytes.
    fn request(&self, method: &str) -> Vec<u8> {
        let (id, exec_id) = (self.create.id.clone(), self.exec.to_owned());
        macro_rules! message {
            ($name:ident { $($field:ident: $value:expr),* }) => {{
                let mut message = api::$name::new();
                message.id = id;
                $(message.$field = $value;)*
                message.write_to_bytes()
            }};
        }
        let bytes = match method {
            "Create" => self.create.write_to_bytes(),
            "Exec" => {
                self.exec_request(if self.exec.is_empty() { "new" } else { self.exec }).write_to_bytes()
            }
            "Start" => message!(StartRequest { exec_id: exec_id }),
            "Delete" => message!(DeleteRequest { exec_id: exec_id }),
            "State" => message!(StateRequest { exec_id: exec_id }),
            "Wait" => message!(WaitRequest { exec_id: exec_id }),
            "Kill" => message!(KillRequest { exec_id: exec_id, signal: 9 }),
            "ResizePty" => message!(ResizePtyRequest { exec_id: exec_id, width: 80, height: 25 }),
            "CloseIO" => message!(CloseIORequest { exec_id: exec_id, stdin: true }),
            "Pids" => message!(PidsRequest {}),
            "Pause" => message!(PauseRequest {}),
            "Resume" => message!(ResumeRequest {}),
            "Checkpoint" => message!(CheckpointTaskRequest {}),
            "Update" => {
                let resources = hull_shim::client::json_any("", b"{}".to_vec());
                message!(UpdateTaskRequest { resources: Some(resources).into() })
            }
            "Stats" => message!(StatsRequest {}),
            "Connect" => message!(ConnectRequest {}),
            "Shutdown" => message!(ShutdownRequest {}),
            other => panic!("no request is called {other}"),
        };
        bytes.unwrap()
    }

    async fn ask(&self, service: &str, method: &str, expected: Answer) -> Answer {
        let address = std::fs::read_to_string(self.pod.bundle().join("address")).unwrap();
        let client = Client::connect(&address).await.unwrap();
        let mut envelope = Request::new();
        envelope.service = service.to_owned();
        envelope.method = method.to_owned();
        envelope.payload = self.request(method);
        let patience = if expected == WAITS { A_WHILE } else { PATIENCE };
        match tokio::time::timeout(patience, client.request(envelope)).await {
            Err(_) => WAITS,
            Ok(Ok(_)) => YES,
            Ok(Err(ttrpc::Error::RpcStatus(status))) => Answer::No(status.code()),
            // It may end before its answer is out.
            Ok(Err(_)) if method == "Shutdown" => YES,
            Ok(Err(error)) => panic!("{method}: {error}"),
        }
    }

    /// One cell of a table.
    async fn try_one(&self, client: &TaskClient, service: &str, cell: &Cell) -> Result<(), String> {
        let Cell { method, state, answer } = *cell;
        self.bring(client, state).await;
        let found = self.ask(service, method, answer).await;
        if found == answer {
            return Ok(());
        }
        let what = if self.exec.is_empty() { "container" } else { "exec" };
        Err(format!("{method} of a {what} that is {state:?}: {found:?}, not {answer:?}"))
    }
}

#[derive(Clone, Copy)]
struct Cell {
    method: &'static str,
    state: State,
    answer: Answer,
}

fn cells<const N: usize>(rows: &Rows<N>, states: [State; N]) -> Vec<Cell> {
    let row = |(method, answers): &(&'static str, [Answer; N])| {
        let method = *method;
        states.into_iter().zip(*answers).map(move |(state, answer)| Cell { method, state, answer })
    };
    rows.iter().flat_map(row).collect()
}

/// Every cell in a pod of its own.
fn alone(make: fn() -> Pod, exec: &'static str, service: &str, cells: &[Cell]) {
    let next = AtomicUsize::new(0);
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            let mut wrong = Vec::new();
            while let Some(cell) = cells.get(next.fetch_add(1, Ordering::SeqCst)) {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                wrong.extend(runtime.block_on(in_its_own_pod(&make(), exec, service, cell)).err());
            }
            wrong
        };
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{wrong:#?}");
}

async fn in_its_own_pod(pod: &Pod, exec: &'static str, service: &str, cell: &Cell) -> Result<(), String> {
    let client = pod.connect().await;
    let subject = Subject { pod, create: pod.request.clone(), exec };
    let result = subject.try_one(&client, service, cell).await;
    // A shutdown without a container is the shim's end.
    if cell.method != "Shutdown" || !matches!(cell.state, Absent | Deleted) || !exec.is_empty() {
        subject.end(&client).await;
        soon(client.shutdown(&pod.id)).await.unwrap();
    }
    pod.assert_nothing_left();
    result
}

/// Every cell in a container of its own, all in one pod.
async fn together(exec: &'static str, service: &str, cells: &[Cell]) {
    let pod = Pod::sandbox("pod");
    let client = pod.connect().await;
    let sandbox = Process::init("pod");
    soon(client.create(&pod.request)).await.unwrap();
    soon(client.start(sandbox)).await.unwrap();
    let mut wrong = Vec::new();
    for (number, cell) in cells.iter().enumerate() {
        let create = pod.member_request(&format!("c{number}"), &["sleep", "1000"]);
        let subject = Subject { pod: &pod, create, exec };
        wrong.extend(subject.try_one(&client, service, cell).await.err());
        subject.end(&client).await;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    soon(client.kill(sandbox, 9, Reach::Process)).await.unwrap();
    soon(client.wait(sandbox)).await.unwrap();
    soon(client.delete(sandbox)).await.unwrap();
    soon(client.shutdown("pod")).await.unwrap();
    pod.assert_nothing_left();
}

fn a_container() -> Pod {
    Pod::new("web", &["sleep", "1000"])
}

#[test]
fn of_a_container_with_a_vm_to_itself() {
    alone(a_container, "", V2, &cells(CONTAINER, CONTAINER_STATES));
}

#[test]
fn of_its_execs() {
    alone(a_container, "e", V3, &cells(EXEC, EXEC_STATES));
}

#[test]
fn of_a_pods_sandbox() {
    alone(|| Pod::sandbox("pod"), "", V3, &cells(SANDBOX, SANDBOX_STATES));
}

#[tokio::test]
async fn of_a_pods_containers() {
    together("", V3, &cells(CONTAINER, CONTAINER_STATES)).await;
}

#[tokio::test]
async fn of_their_execs() {
    together("e", V2, &cells(EXEC, EXEC_STATES)).await;
}
