//! From a process to a connection, up to the last byte that the process wrote.

use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout};

use super::{ATTACH_GRACE, Attachment, CHUNK, Connection, DRAIN_MAX, Endpoint, Phase, QUIET};

/// Moves bytes until the end, then says in `drained` how many the host was sent.
pub async fn run(
    source: Arc<Endpoint>,
    attachment: oneshot::Receiver<Attachment>,
    mut phase: watch::Receiver<Phase>,
    drained: oneshot::Sender<u64>,
) {
    let mut drained = Some(drained);
    let mut sent = 0;
    let mut connection = attached(&source, attachment, phase.clone(), &mut drained).await;
    if let Some(connection) = &mut connection {
        let copy = Copy { source: &source, phase: phase.clone(), ending: None };
        let abandoned = async {
            // An error means that the process was forgotten.
            let _ = phase.wait_for(|phase| *phase == Phase::Abandoned).await;
        };
        tokio::select! {
            () = copy.run(connection, &mut sent) => {}
            () = abandoned => {}
        }
    }
    // Closed first, so that who still writes learns it before the exit is reported.
    drop(source);
    if let Some(mut connection) = connection
        && let Err(error) = connection.shutdown().await
    {
        log::debug!("cannot end an output stream: {error}");
    }
    if let Some(drained) = drained {
        // Nobody waits when the process was forgotten.
        let _ = drained.send(sent);
    }
}

/// Waits for a connection. `None` when the process is gone and there is nothing to send, or nobody to send it to.
async fn attached(
    source: &Endpoint,
    mut attachment: oneshot::Receiver<Attachment>,
    mut phase: watch::Receiver<Phase>,
    drained: &mut Option<oneshot::Sender<u64>>,
) -> Option<Box<dyn Connection>> {
    let exited = async {
        let _ = phase.wait_for(|phase| *phase != Phase::Running).await;
    };
    tokio::select! {
        attachment = &mut attachment => return attachment.ok().map(|attachment| attachment.connection),
        () = exited => {}
    }
    if source.pending().bytes == 0 {
        return None;
    }
    let abandoned = async {
        let _ = phase.wait_for(|phase| *phase == Phase::Abandoned).await;
    };
    let late = async {
        if let Ok(attachment) = timeout(ATTACH_GRACE, &mut attachment).await {
            return attachment.ok();
        }
        log::warn!("a process has exited and nobody has attached to its output");
        if let Some(drained) = drained.take() {
            // As in `run`.
            let _ = drained.send(0);
        }
        attachment.await.ok()
    };
    tokio::select! {
        attachment = late => attachment.map(|attachment| attachment.connection),
        () = abandoned => None,
    }
}

/// What is left to do after the exit.
struct Ending {
    /// Bytes that were there at the exit and must be sent, however slowly the host reads. So must all others, where nobody can
    /// write any more.
    owed: u64,
    /// When to stop waiting for what others may still write.
    deadline: Instant,
}

struct Copy<'a> {
    source: &'a Endpoint,
    phase: watch::Receiver<Phase>,
    ending: Option<Ending>,
}

impl Copy<'_> {
    async fn run(mut self, connection: &mut Box<dyn Connection>, sent: &mut u64) {
        let mut buffer = vec![0; CHUNK];
        let mut broken = false;
        while let Some(count) = self.read(&mut buffer).await {
            // A host that stopped listening must not make the process fail: the rest goes nowhere.
            if !broken {
                match connection.write_all(&buffer[..count]).await {
                    Ok(()) => *sent += count as u64,
                    Err(error) => {
                        log::debug!("an output stream lost its connection: {error}");
                        broken = true;
                    }
                }
            }
        }
    }

    /// The next bytes; `None` at the end of the stream, or of the time that it has after the exit.
    async fn read(&mut self, buffer: &mut [u8]) -> Option<usize> {
        if self.ending.is_none() {
            let source = self.source;
            let mut phase = self.phase.clone();
            tokio::select! {
                // In this order: somebody who writes without end must not hide the exit.
                biased;
                _ = phase.wait_for(|phase| *phase != Phase::Running) => {}
                result = source.read(buffer) => return end_of(result),
            }
            self.ending = Some(Ending { owed: source.pending().bytes, deadline: Instant::now() + DRAIN_MAX });
        }
        let ending = self.ending.as_mut()?;
        let patience = if ending.owed > 0 || self.source.pending().closed {
            QUIET
        } else {
            QUIET.min(ending.deadline.checked_duration_since(Instant::now())?)
        };
        let count = end_of(timeout(patience, self.source.read(buffer)).await.ok()?)?;
        ending.owed = ending.owed.saturating_sub(count as u64);
        Some(count)
    }
}

fn end_of(result: std::io::Result<usize>) -> Option<usize> {
    match result {
        Ok(0) => None,
        Ok(count) => Some(count),
        Err(error) => {
            log::error!("reading a process's output: {error}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsFd;

    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::sys::terminal;

    #[tokio::test]
    async fn a_terminal_is_read_to_its_end_however_slow_the_host_is() {
        let master = File::options().read(true).write(true).open("/dev/ptmx").unwrap();
        let mut slave = File::from(terminal::open_slave(master.as_fd()).unwrap());
        let source = Arc::new(Endpoint::new(master.into()).unwrap());
        let (attached, attachment) = oneshot::channel();
        let (phase, phases) = watch::channel(Phase::Running);
        let (drained, count) = oneshot::channel();
        tokio::spawn(run(source, attachment, phases, drained));
        let (mut host, agent) = tokio::io::duplex(16);
        attached.send(Attachment { connection: Box::new(agent), early: Vec::new() }).unwrap();

        // Much more than its master tells of.
        let written = [b'x'; 9_000];
        slave.write_all(&written).unwrap();
        drop(slave);
        phase.send(Phase::Exited).unwrap();
        tokio::time::sleep(DRAIN_MAX + QUIET).await;
        let mut read = Vec::new();
        host.read_to_end(&mut read).await.unwrap();
        assert_eq!((read.len(), count.await.unwrap()), (written.len(), 9_000));
    }
}
