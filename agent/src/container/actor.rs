//! The life of one container: what it is asked, what has happened to it, and what follows from both.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use hull_protocol::agent::api::agent as api;
use tokio::sync::{mpsc, oneshot};

use super::create::{self, Created, Creation};
use super::handle::{ProcessName, Registry, Reply, Request, Target};
use super::process::{Exit, Others, Process, State, now_nanos, supervise};
use crate::cgroup::{Cgroup, CgroupError};
use crate::environment::Environment;
use crate::error::Error;
use crate::launch::{self, LaunchError, Launched};
use crate::rootfs::Rootfs;
use crate::spec::{ContainerSpec, Origin, ProcessSpec};
use crate::stdio::{Phase, Prepared};
use crate::sys;

/// The most execs that a container remembers.
const EXECS_MAX: usize = 4096;
/// How often all processes are looked for, so that one forked meanwhile gets the signal too.
const SIGNAL_PASSES: usize = 5;

/// What the actor's own tasks report.
enum Event {
    Created(Result<Box<Created>, Error>),
    InitRuns(Result<(), LaunchError>),
    ExecRuns {
        id: String,
        launched: Box<Launched>,
        stdio: Prepared,
        result: Result<Option<OwnedFd>, LaunchError>,
    },
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

    fn process(&mut self, name: &ProcessName) -> Result<&mut Process, Error> {
        match name {
            ProcessName::Init => Ok(&mut self.init),
            ProcessName::Exec(id) => self.execs.get_mut(id).ok_or_else(|| Error::NoExec(id.clone())),
        }
    }

    fn handle(&mut self, request: Request) {
        match request {
            Request::Exec { id, spec, stdio, reply } => answer(reply, self.create_exec(id, spec, &stdio)),
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
            Request::Update { limits, reply } => {
                let result = self.cgroup("update").and_then(|cgroup| Ok(cgroup.apply(&limits)?));
                answer(reply, result);
            }
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
                    answer(reply, result.map(|()| pid).map_err(Error::from));
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
            let Created { cgroup, rootfs, init, stdio, terminal } = *created;
            self.existence = Existence::Real { cgroup: cgroup.clone(), rootfs: Arc::new(rootfs) };
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
                let events = self.events.clone();
                tokio::spawn(async move {
                    let result = launched.running().await.map(drop);
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

    /// For those who join its namespaces.
    fn join(&self) -> Result<Arc<OwnedFd>, Error> {
        let state = match &self.init.state {
            State::Created(launched) => return Ok(launched.pidfd.clone()),
            State::Running(_, pidfd) => return Ok(pidfd.clone()),
            State::Creating | State::Prepared(..) => "the container is being created",
            State::Exited => "the container has ended",
        };
        Err(Error::State { action: "join the container's namespaces", state })
    }

    fn create_exec(&mut self, id: String, spec: Box<ProcessSpec>, stdio: &api::Stdio) -> Result<(), Error> {
        if self.execs.contains_key(&id) {
            return Err(Error::Exists { kind: "exec", id });
        }
        if self.execs.len() >= EXECS_MAX {
            return Err(Error::State { action: "create an exec", state: "too many are not deleted" });
        }
        if matches!(self.init.state, State::Exited) || !matches!(self.removal, Removal::NotAsked) {
            return Err(Error::State { action: "create an exec", state: "the container has ended" });
        }
        self.execs.insert(id, Process::exec(spec, stdio));
        Ok(())
    }

    fn start_exec(&mut self, id: String, reply: Reply<u32>) {
        match self.launch_exec(&id) {
            Err(error) => answer(reply, Err(error)),
            Ok((launched, stdio)) => {
                let mut launched = Box::new(launched);
                if let Some(exec) = self.execs.get_mut(&id) {
                    exec.starting = Some(reply);
                }
                let events = self.events.clone();
                tokio::spawn(async move {
                    let result = launched.running().await;
                    report(&events, Event::ExecRuns { id, launched, stdio, result });
                });
            }
        }
    }

    fn launch_exec(&mut self, id: &str) -> Result<(Launched, Prepared), Error> {
        const ACTION: &str = "start an exec";
        let cgroup = self.cgroup(ACTION)?.clone();
        let refuse = |state| Err(Error::State { action: ACTION, state });
        let State::Running(_, container) = &self.init.state else {
            return refuse("the container is not running");
        };
        if !matches!(self.freezer, Freezer::Thawed) {
            return refuse("the container is paused");
        }
        let exec = self.execs.get_mut(id).ok_or_else(|| Error::NoExec(id.to_owned()))?;
        if !matches!(exec.state, State::Prepared(..)) {
            return refuse("the process has been started");
        }
        let State::Prepared(mut spec, expected) = std::mem::replace(&mut exec.state, State::Exited) else {
            return refuse("the process has been started");
        };
        spec.console = exec.console();
        let launched = Prepared::new(expected, spec.console, &self.environment.null)
            .map_err(Error::system("make pipes"))
            .and_then(|(stdio, child)| {
                let launched =
                    launch::exec(&self.environment, &spec, &self.spec, container.as_fd(), &cgroup, &child)?;
                Ok((launched, stdio))
            });
        match launched {
            Ok((launched, stdio)) => {
                exec.state = State::Running(launched.pid, launched.pidfd.clone());
                Ok((launched, stdio))
            }
            Err(error) => {
                exec.finish(not_run());
                Err(error)
            }
        }
    }

    fn exec_runs(
        &mut self,
        id: &str,
        launched: Box<Launched>,
        stdio: Prepared,
        result: Result<Option<OwnedFd>, LaunchError>,
    ) {
        let cgroup = self.cgroup("start an exec").cloned();
        let Some(exec) = self.execs.get_mut(id) else { return };
        let streams = result.map_err(Error::from).and_then(|terminal| {
            stdio
                .start(terminal, &exec.phase.subscribe())
                .map_err(Error::system("watch the standard streams"))
        });
        let reply = exec.starting.take();
        let pid = launched.pid;
        let result = match (streams, cgroup) {
            (Ok(streams), Ok(cgroup)) => {
                exec.set_terminal(streams.terminal.clone());
                self.supervise(
                    ProcessName::Exec(id.to_owned()),
                    &cgroup,
                    pid,
                    launched.pidfd.clone(),
                    streams,
                );
                Ok(pid.unsigned_abs())
            }
            (Err(error), _) | (_, Err(error)) => {
                let (children, events, name) = (
                    self.environment.children.clone(),
                    self.events.clone(),
                    ProcessName::Exec(id.to_owned()),
                );
                tokio::spawn(async move {
                    launched.abort(&children).await;
                    report(&events, Event::Exited(name, not_run()));
                });
                Err(error)
            }
        };
        if let Some(reply) = reply {
            answer(reply, result);
        }
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

    fn signal(&mut self, target: &Target, signal: i32) -> Result<(), Error> {
        if let Existence::Creating { cancel, .. } = &mut self.existence {
            if signal != libc::SIGKILL {
                return Err(Error::State {
                    action: "send a signal",
                    state: "the container is being created",
                });
            }
            if let Some(cancel) = cancel.take() {
                // A creation that is over already reports itself.
                let _ = cancel.send(());
            }
            return Ok(());
        }
        match target {
            Target::One(name) => self.process(name)?.signal(signal),
            Target::All if signal == libc::SIGKILL => Ok(self.cgroup("send a signal")?.kill()?),
            Target::All => self.signal_all(signal),
        }
    }

    fn signal_all(&self, signal: i32) -> Result<(), Error> {
        let cgroup = self.cgroup("send a signal")?;
        let mut signalled = std::collections::HashSet::new();
        for _ in 0..SIGNAL_PASSES {
            let new: Vec<_> = cgroup.pids()?.into_iter().filter(|pid| !signalled.contains(pid)).collect();
            if new.is_empty() {
                break;
            }
            for pid in new {
                signalled.insert(pid);
                let Ok(pidfd) = sys::process::open_pidfd(pid) else { continue };
                // The number may have passed to another process since the list was read.
                if !cgroup.pids()?.contains(&pid) {
                    continue;
                }
                match sys::process::send_signal(pidfd.as_fd(), signal) {
                    Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                    Err(error) => return Err(Error::system("send a signal")(error)),
                }
            }
        }
        Ok(())
    }

    fn delete_exec(&mut self, id: &str) -> Result<(), Error> {
        let exec = self.execs.get(id).ok_or_else(|| Error::NoExec(id.to_owned()))?;
        if !exec.is_over() {
            return Err(Error::State { action: "delete an exec", state: "it is running" });
        }
        self.execs.remove(id);
        Ok(())
    }

    fn delete(&mut self, reply: Reply<()>) {
        match &mut self.removal {
            Removal::Running(replies) | Removal::Done(replies) => return replies.push(reply),
            Removal::NotAsked => self.removal = Removal::Running(vec![reply]),
        }
        match &mut self.existence {
            Existence::Creating { cancel, .. } => {
                if let Some(cancel) = cancel.take() {
                    // A creation that is over already reports itself.
                    let _ = cancel.send(());
                }
            }
            Existence::Real { .. } => self.remove(),
            Existence::Nothing => {}
        }
    }

    fn remove(&self) {
        let Existence::Real { cgroup, rootfs } = &self.existence else { return };
        for process in self.execs.values().chain(std::iter::once(&self.init)) {
            process.phase.send_replace(Phase::Abandoned);
        }
        let (cgroup, rootfs, environment, events) =
            (cgroup.clone(), rootfs.clone(), self.environment.clone(), self.events.clone());
        tokio::spawn(async move {
            let result = async {
                cgroup.remove().await?;
                Ok(rootfs.remove(&environment.children).await?)
            };
            let result = result.await;
            report(&events, Event::Removed(result));
        });
    }

    fn removed(&mut self, result: Result<(), Error>) {
        let Removal::Running(mut replies) = std::mem::replace(&mut self.removal, Removal::NotAsked) else {
            return;
        };
        match result {
            Ok(()) => self.removal = Removal::Done(replies),
            // It can be tried again.
            Err(error) => {
                log::error!("container {}: cannot be deleted: {error}", self.id);
                let first = replies.remove(0);
                for reply in replies {
                    answer(reply, Err(Error::State { action: "delete", state: "an earlier attempt failed" }));
                }
                answer(first, Err(error));
            }
        }
    }

    fn pause(&mut self, reply: Reply<()>) {
        const ACTION: &str = "pause";
        let state = match (&self.init.state, &self.freezer) {
            (State::Running(..), Freezer::Thawed) => None,
            (State::Running(..), _) => Some("it is paused already"),
            _ => Some("the container is not running"),
        };
        let cgroup = match (self.cgroup(ACTION), state) {
            (Ok(cgroup), None) => cgroup.clone(),
            (Ok(_), Some(state)) => return answer(reply, Err(Error::State { action: ACTION, state })),
            (Err(error), _) => return answer(reply, Err(error)),
        };
        self.freezer = Freezer::Freezing(reply);
        let events = self.events.clone();
        tokio::spawn(async move {
            let result = cgroup.freeze().await;
            report(&events, Event::Frozen(result));
        });
    }

    fn resume(&mut self) -> Result<(), Error> {
        const ACTION: &str = "resume";
        if !matches!(self.freezer, Freezer::Frozen) {
            return Err(Error::State { action: ACTION, state: "the container is not paused" });
        }
        self.cgroup(ACTION)?.thaw()?;
        self.freezer = Freezer::Thawed;
        Ok(())
    }

    fn pids(&self) -> Result<Vec<u32>, Error> {
        Ok(self.cgroup("list processes")?.pids()?.into_iter().map(i32::unsigned_abs).collect())
    }
}

/// The end of a process that never ran its program.
fn not_run() -> Exit {
    Exit { code: 127, at_nanos: now_nanos(), oom_killed: false, sent: crate::stdio::Sent::default() }
}
