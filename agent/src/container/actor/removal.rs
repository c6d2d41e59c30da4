//! The end of a container.

use super::{Actor, Event, Existence, Removal, answer, report};
use crate::container::handle::Reply;
use crate::error::Error;
use crate::stdio::Phase;

impl Actor {
    pub(super) fn delete(&mut self, reply: Reply<()>) {
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

    pub(super) fn remove(&self) {
        let Existence::Real { cgroup, rootfs, .. } = &self.existence else { return };
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

    pub(super) fn removed(&mut self, result: Result<(), Error>) {
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
}
