//! The life of one container: what it is asked, what has happened to it, and what follows from both.
//!
//! Here are its state and its init; in the modules below, its further processes, what is done to all of them, and its end.

mod control;
mod execs;
mod removal;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, oneshot};

use super::create::{self, Created, Creation};
use super::handle::{ProcessName, Registry, Reply, Request};
use super::process::{Exit, Others, Process, State, now_nanos, supervise};
use crate::cgroup::{Cgroup, CgroupError, Undo};
use crate::deadline;
use crate::environment::Environment;
use crate::error::Error;
use crate::launch::{Launched, UserNamespace};
use crate::rootfs::Rootfs;
use crate::spec::{ContainerSpec, Origin};
use crate::stdio::Prepared;

/// The most execs that a container remembers.
const EXECS_MAX: usize = 4096;

/// What the actor's own tasks report.
enum Event {
    Created(Result<Box<Created>, Error>),
    InitRuns(Result<(), Error>),
    ExecRuns { id: String, launched: Box<Launched>, stdio: Prepared, result: Result<Option<OwnedFd>, Error> },
    Exited(ProcessName, Exit),
    Frozen(Result<(), CgroupError>),
    Removed(Result<(), Error>),
}

/// What exists of the container in the kernel.
enum Existence {
    Creating {
        cancel: Option<oneshot::Sender<()>>,
        reply: Option<Reply<u32>>,
    },
    Real {
        cgroup: Arc<Cgroup>,
        rootfs: Arc<Rootfs>,
        user: Option<Arc<UserNamespace>>,
    },
    /// The creation failed and undid itself.
    Nothing,
}

enum Freezer {
    Thawed,
    Freezing(Reply<()>),
    Frozen,
}

enum Removal {
    NotAsked,
    Running(Vec<Reply<()>>),
    /// Nothing is left in the kernel; processes' ends are still being reported.
    Done(Vec<Reply<()>>),
}

struct Actor {
    id: String,
    environment: Arc<Environment>,
    spec: Arc<ContainerSpec>,
    existence: Existence,
    freezer: Freezer,
    removal: Removal,
    init: Process,
    /// The end of init, which is announced after the ends of all execs.
    init_exit: Option<Exit>,
    execs: HashMap<String, Process>,
    /// What takes the last update back. Held by the one that is at work: one after the other, each all or nothing.
    updates: Arc<Mutex<Undo>>,
    events: mpsc::UnboundedSender<Event>,
}

/// Lives as long as the container.
pub async fn run(
    environment: Arc<Environment>,
    registry: Registry,
    creation: Creation,
    mut requests: mpsc::Receiver<Request>,
    created: Reply<u32>,
) {
    let Creation { id, spec, rootfs, stdio } = creation;
    let (events, mut happened) = mpsc::unbounded_channel();
    let (init, expected) = Process::init(&spec.process, &stdio);
    let (cancel, cancelled) = oneshot::channel();
    let spec = Arc::new(spec);
    {
        let (environment, registry, spec, id, events) =
            (environment.clone(), registry.clone(), spec.clone(), id.clone(), events.clone());
        tokio::spawn(async move {
            let result = create::run(&environment, &registry, &id, &spec, &rootfs, expected, cancelled).await;
            report(&events, Event::Created(result.map(Box::new)));
        });
    }
    let mut actor = Actor {
        id,
        environment,
        spec,
        existence: Existence::Creating { cancel: Some(cancel), reply: Some(created) },
        freezer: Freezer::Thawed,
        removal: Removal::NotAsked,
        init,
        init_exit: None,
        execs: HashMap::new(),
        updates: Arc::default(),
        events,
    };
    while !actor.is_gone() {
        tokio::select! {
            // The registry holds the other end until it is told to forget.
            Some(request) = requests.recv() => actor.handle(request),
            Some(event) = happened.recv() => actor.happened(event),
        }
    }
    registry.forget(&actor.id);
    if let Removal::Running(replies) | Removal::Done(replies) = actor.removal {
        for reply in replies {
            answer(reply, Ok(()));
        }
    }
}

/// The actor outlives its tasks, except at the very end, when nothing they say matters.
fn report(events: &mpsc::UnboundedSender<Event>, event: Event) {
    let _ = events.send(event);
}

/// Nobody listens when the request was cancelled, and then nothing is owed.
fn answer<T>(reply: Reply<T>, result: Result<T, Error>) {
    let _ = reply.send(result);
}

impl Actor {
    fn is_gone(&self) -> bool {
        match (&self.existence, &self.removal) {
            (Existence::Nothing, _) => true,
            (_, Removal::Done(_)) => self.init.is_over() && self.execs.values().all(Process::is_over),
            _ => false,
        }
    }

    fn cgroup(&self, action: &'static str) -> Result<&Arc<Cgroup>, Error> {
        match &self.existence {
            Existence::Real { cgroup, .. } => Ok(cgroup),
            Existence::Creating { .. } => {
                Err(Error::State { action, state: "the container is being created" })
            }
            Existence::Nothing => Err(Error::NoContainer(self.id.clone())),
        }
    }

    /// Its user namespace, if that is not the guest's.
    fn user(&self) -> Option<&Arc<UserNamespace>> {
        match &self.existence {
            Existence::Real { user, .. } => user.as_ref(),
            Existence::Creating { .. } | Existence::Nothing => None,
        }
    }

    fn process(&mut self, name: &ProcessName) -> Result<&mut Process, Error> {
        match name {
            ProcessName::Init => Ok(&mut self.init),
            ProcessName::Exec(id) => self.execs.get_mut(id).ok_or_else(|| Error::NoExec(id.clone())),
        }
    }

    fn handle(&mut self, request: Request) {
        match request {
            Request::Exec { id, spec, cgroup, stdio, reply } => {
                answer(reply, self.create_exec(id, spec, cgroup, &stdio));
            }
            Request::Start { name: ProcessName::Init, reply } => self.start_init(reply),
            Request::Start { name: ProcessName::Exec(id), reply } => self.start_exec(id, reply),
            Request::Signal { target, signal, reply } => {
                let result = self.signal(&target, signal);
                answer(reply, result);
            }
            Request::Watch { name, reply } => {
                let result = self.process(&name).map(|process| process.exit.subscribe());
                answer(reply, result);
            }
            Request::Resize { name, size, reply } => {
                let result = self.process(&name).and_then(|process| process.resize(size));
                answer(reply, result);
            }
            Request::Attach { name, kind, reply } => {
                let result = self.process(&name).and_then(|process| process.attach(kind));
                answer(reply, result);
            }
            Request::Join { reply } => answer(reply, self.join()),
            Request::DeleteExec { id, reply } => answer(reply, self.delete_exec(&id)),
            Request::Delete { reply } => self.delete(reply),
            Request::Pause { reply } => self.pause(reply),
            Request::Resume { reply } => {
                let result = self.resume();
                answer(reply, result);
            }
            Request::Update { limits, reply } => self.update(limits, reply),
            Request::Revert { reply } => self.revert(reply),
            Request::Stats { reply } => {
                answer(reply, self.cgroup("read statistics").map(|cgroup| cgroup.stats()));
            }
            Request::Pids { reply } => answer(reply, self.pids()),
        }
    }

    fn happened(&mut self, event: Event) {
        match event {
            Event::Created(result) => self.created(result),
            Event::InitRuns(result) => {
                if let Some(reply) = self.init.starting.take() {
                    let pid = self.init_pid();
                    answer(reply, result.map(|()| pid));
                }
            }
            Event::ExecRuns { id, launched, stdio, result } => self.exec_runs(&id, launched, stdio, result),
            Event::Exited(name, exit) => self.exited(&name, exit),
            Event::Frozen(result) => {
                if let Freezer::Freezing(reply) = std::mem::replace(&mut self.freezer, Freezer::Thawed) {
                    if result.is_ok() {
                        self.freezer = Freezer::Frozen;
                    }
                    answer(reply, result.map_err(Error::from));
                }
            }
            Event::Removed(result) => self.removed(result),
        }
    }

    fn created(&mut self, result: Result<Box<Created>, Error>) {
        let Existence::Creating { reply, .. } = std::mem::replace(&mut self.existence, Existence::Nothing)
        else {
            return;
        };
        let result = result.and_then(|created| {
            let Created { cgroup, rootfs, user, init, stdio, terminal } = *created;
            self.existence = Existence::Real { cgroup: cgroup.clone(), rootfs: Arc::new(rootfs), user };
            let pid = init.pid;
            let pidfd = init.pidfd.clone();
            self.init.state = State::Created(Box::new(init));
            let streams = stdio
                .start(terminal, &self.init.phase.subscribe())
                .map_err(Error::system("watch the standard streams"))?;
            self.init.set_terminal(streams.terminal.clone());
            self.supervise(ProcessName::Init, &cgroup, pid, pidfd, streams);
            Ok(pid.unsigned_abs())
        });
        if matches!(self.existence, Existence::Real { .. }) && !matches!(self.removal, Removal::NotAsked) {
            self.remove();
        }
        if let Some(reply) = reply {
            answer(reply, result);
        }
    }

    fn supervise(
        &self,
        name: ProcessName,
        cgroup: &Arc<Cgroup>,
        pid: libc::pid_t,
        pidfd: Arc<OwnedFd>,
        streams: crate::stdio::Running,
    ) {
        let (process, others) = match &name {
            ProcessName::Init if self.spec.namespaces.pid == Origin::Own => (&self.init, Others::Stay),
            ProcessName::Init => (&self.init, Others::Killed),
            ProcessName::Exec(id) => (self.execs.get(id).unwrap_or(&self.init), Others::Stay),
        };
        let phase = process.phase.clone();
        let (children, cgroup, events) =
            (self.environment.children.clone(), cgroup.clone(), self.events.clone());
        tokio::spawn(async move {
            let exit = supervise(children, cgroup, pid, pidfd, others, streams, phase).await;
            report(&events, Event::Exited(name, exit));
        });
    }

    fn init_pid(&self) -> u32 {
        match &self.init.state {
            State::Running(pid, _) => pid.unsigned_abs(),
            State::Created(launched) => launched.pid.unsigned_abs(),
            State::Prepared(..) | State::Creating | State::Exited => 0,
        }
    }

    fn start_init(&mut self, reply: Reply<u32>) {
        let state = match &self.init.state {
            State::Created(_) => {
                let State::Created(mut launched) = std::mem::replace(&mut self.init.state, State::Exited)
                else {
                    return;
                };
                let pid = launched.pid;
                self.init.state = State::Running(pid, launched.pidfd.clone());
                if let Err(error) = launched.release() {
                    return answer(reply, Err(error.into()));
                }
                self.init.starting = Some(reply);
                let (environment, events) = (self.environment.clone(), self.events.clone());
                tokio::spawn(async move {
                    let result = running(&mut launched, &environment).await.map(drop);
                    report(&events, Event::InitRuns(result));
                });
                return;
            }
            State::Creating | State::Prepared(..) => "the container is being created",
            State::Running(..) => "the process has been started",
            State::Exited => "the process has ended",
        };
        answer(reply, Err(Error::State { action: "start", state }));
    }

    fn exited(&mut self, name: &ProcessName, exit: Exit) {
        match name {
            ProcessName::Init => self.init_exit = Some(exit),
            ProcessName::Exec(id) => {
                if let Some(exec) = self.execs.get_mut(id) {
                    exec.finish(exit);
                }
            }
        }
        // No exec outlives init, so this comes.
        if self.execs.values().all(Process::is_over)
            && let Some(exit) = self.init_exit.take()
        {
            self.init.finish(exit);
        }
    }
}

/// Waits until the program of a process runs. One that does not come so far in time is killed.
async fn running(launched: &mut Launched, environment: &Environment) -> Result<Option<OwnedFd>, Error> {
    match tokio::time::timeout(deadline::PROCESS, launched.running(environment)).await {
        Ok(result) => Ok(result?),
        Err(_elapsed) => {
            launched.kill();
            Err(Error::Deadline("the start of the process"))
        }
    }
}

/// The end of a process that never ran its program.
fn not_run() -> Exit {
    Exit { code: 127, at_nanos: now_nanos(), oom_killed: false, sent: crate::stdio::Sent::default() }
}
