//! What is done to all processes of a container: signals, freezing, limits, listing; and who may join them.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{Actor, Event, Existence, Freezer, answer, report};
use crate::cgroup::{Undo, Writer};
use crate::container::handle::{Reply, Target};
use crate::container::process::State;
use crate::environment::Environment;
use crate::error::Error;
use crate::launch::Kept;
use crate::spec::Limits;

impl Actor {
    pub(super) fn signal(&mut self, target: &Target, signal: i32) -> Result<(), Error> {
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
            Target::All => {
                Ok(self.cgroup("send a signal")?.signal_all(signal, self.init_pid().cast_signed())?)
            }
        }
    }

    pub(super) fn pause(&mut self, reply: Reply<()>) {
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

    pub(super) fn resume(&mut self) -> Result<(), Error> {
        const ACTION: &str = "resume";
        if !matches!(self.freezer, Freezer::Frozen) {
            return Err(Error::State { action: ACTION, state: "the container is not paused" });
        }
        self.cgroup(ACTION)?.thaw()?;
        self.freezer = Freezer::Thawed;
        Ok(())
    }

    pub(super) fn update(&self, limits: Limits, reply: Reply<()>) {
        let cgroup = match self.cgroup("update") {
            Ok(cgroup) => cgroup.clone(),
            Err(error) => return answer(reply, Err(error)),
        };
        let (updates, environment) = (self.updates.clone(), self.environment.clone());
        tokio::spawn(async move {
            let mut last = updates.lock().await;
            *last = Undo::default();
            let Environment { memory, cgroups, children, .. } = &*environment;
            let result = async {
                // What it gets now may have come with memory that the guest got before.
                memory.follow(cgroups, children).await?;
                *last = cgroup.apply(&limits, Writer::Helper(children)).await?;
                Ok::<_, Error>(())
            };
            answer(reply, result.await);
        });
    }

    /// Takes back what the last update has changed; nothing where there was none, or it was taken back before.
    pub(super) fn revert(&self, reply: Reply<()>) {
        let cgroup = match self.cgroup("take an update back") {
            Ok(cgroup) => cgroup.clone(),
            Err(error) => return answer(reply, Err(error)),
        };
        let (updates, environment) = (self.updates.clone(), self.environment.clone());
        tokio::spawn(async move {
            let mut last = updates.lock().await;
            let Environment { memory, cgroups, children, .. } = &*environment;
            let result = async {
                memory.follow(cgroups, children).await?;
                cgroup.take_back(std::mem::take(&mut *last), Writer::Helper(children)).await
            };
            answer(reply, result.await.map_err(Error::from));
        });
    }

    pub(super) fn pids(&self) -> Result<Vec<u32>, Error> {
        Ok(self.cgroup("list processes")?.pids()?.into_iter().map(i32::unsigned_abs).collect())
    }

    /// For those who join its namespaces.
    pub(super) fn join(&self) -> Result<Kept, Error> {
        let kept = |process: &Arc<OwnedFd>| Kept { process: process.clone(), user: self.user().cloned() };
        let state = match &self.init.state {
            State::Created(launched) => return Ok(kept(&launched.pidfd)),
            State::Running(_, pidfd) => return Ok(kept(pidfd)),
            State::Creating | State::Prepared(..) => "the container is being created",
            State::Exited => "the container has ended",
        };
        Err(Error::State { action: "join the container's namespaces", state })
    }
}
