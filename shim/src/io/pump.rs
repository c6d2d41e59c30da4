//! The copying between host and guest for one process, with back-pressure both ways.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hull_protocol::agent::StreamKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::logger::{LoggedProcess, Logger};
use super::output::{Output, UnreadFifo};
use super::stdin::FifoInput;
use super::stream::Streams;
use super::{StdioError, StdioSpec, Target};
use crate::process::Process;

const BUFFER: usize = 64 * 1024;

/// How many bytes the agent says it sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamTotals {
    /// On standard output.
    pub stdout: u64,
    /// On standard error.
    pub stderr: u64,
}

/// Host ends that are open, before the guest's are attached.
struct HostEnds {
    stdin: Option<FifoInput>,
    stdout: Output,
    stderr: Output,
    logger: Option<Logger>,
}

/// What outlives a process's output until the process is forgotten.
#[derive(Default)]
pub struct Leftovers {
    /// Held for its descriptors: fifos that still hold output which nobody has read.
    _unread: Vec<UnreadFifo>,
    logger: Option<Logger>,
}

impl Leftovers {
    /// Lets go of them. A logger has ended when this returns.
    pub async fn end(self) {
        if let Some(logger) = self.logger {
            logger.end().await;
        }
    }
}

/// The running copies of one process. Dropping it ends them at once.
pub struct ProcessIo {
    stdin: Option<(watch::Sender<InputHold>, JoinHandle<()>)>,
    outputs: Vec<OutputPump>,
    logger: Option<Logger>,
}

struct OutputPump {
    kind: StreamKind,
    task: JoinHandle<Pumped>,
    progress: Arc<AtomicU64>,
    mode: watch::Sender<OutputMode>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum InputHold {
    Held,
    Released,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum OutputMode {
    Deliver,
    /// What else comes is taken, and delivered to nobody.
    Discard,
    /// Nothing else is taken.
    Abandon,
}

struct Pumped {
    bytes: u64,
    unread: Option<UnreadFifo>,
    error: Option<io::Error>,
}

/// What can be done to a process's streams while others wait for them.
#[derive(Clone)]
pub struct IoControl {
    stdin: Option<watch::Sender<InputHold>>,
    pumps: Vec<(Arc<AtomicU64>, watch::Sender<OutputMode>)>,
}

impl HostEnds {
    async fn open(spec: &StdioSpec, process: LoggedProcess<'_>) -> Result<Self, StdioError> {
        let stdin = match &spec.stdin {
            Target::Fifo(path) => Some(FifoInput::open(path)?),
            Target::Null | Target::File(_) | Target::Logger(_) => None,
        };
        if let Target::Logger(command) = &spec.stdout {
            let failed = |source| StdioError::Logger { path: command.program.clone(), source };
            let (logger, [stdout, stderr]) = Logger::start(command, process).await.map_err(failed)?;
            let (stdout, stderr) = (Output::Logger(stdout), Output::Logger(stderr));
            return Ok(Self { stdin, stdout, stderr, logger: Some(logger) });
        }
        let (stdout, stderr) = (Output::open(&spec.stdout)?, Output::open(&spec.stderr)?);
        Ok(Self { stdin, stdout, stderr, logger: None })
    }
}

impl ProcessIo {
    /// Opens the host's ends, attaches the agent's streams and starts to copy.
    pub async fn attach(
        spec: &StdioSpec,
        streams: &Streams,
        container: &str,
        exec: Option<&str>,
    ) -> Result<Self, StdioError> {
        let process = LoggedProcess { namespace: streams.namespace(), id: exec.unwrap_or(container) };
        let ends = HostEnds::open(spec, process).await?;
        let mut io = Self { stdin: None, outputs: Vec::new(), logger: ends.logger };
        for (kind, target, output) in
            [(StreamKind::Stdout, &spec.stdout, ends.stdout), (StreamKind::Stderr, &spec.stderr, ends.stderr)]
        {
            if target.is_wanted() {
                let stream = streams.attach(container, exec, kind).await?;
                io.outputs.push(OutputPump::start(kind, stream, output));
            }
        }
        if let Some(input) = ends.stdin {
            let stream = streams.attach(container, exec, StreamKind::Stdin).await?;
            let (hold, held) = watch::channel(InputHold::Held);
            io.stdin = Some((hold, tokio::spawn(pump_input(input, stream, held))));
        }
        Ok(io)
    }

    /// A handle that outlives the borrow of whoever drains.
    pub fn control(&self) -> IoControl {
        IoControl {
            stdin: self.stdin.as_ref().map(|(hold, _)| hold.clone()),
            pumps: self.outputs.iter().map(|pump| (Arc::clone(&pump.progress), pump.mode.clone())).collect(),
        }
    }

    /// Waits until everything the agent sent, `totals` where it could still say so, is delivered. Returns what is to be
    /// kept until the process, `of` whom the log speaks, is forgotten.
    pub async fn drain(&mut self, totals: Option<StreamTotals>, of: &Process) -> Leftovers {
        let exec = of.exec.as_deref().unwrap_or_default();
        if let Some((_, task)) = self.stdin.take() {
            task.abort();
        }
        let mut unread = Vec::new();
        for pump in &mut self.outputs {
            let expected = totals.map(|totals| match pump.kind {
                StreamKind::Stdout | StreamKind::Stdin => totals.stdout,
                StreamKind::Stderr => totals.stderr,
            });
            match (&mut pump.task).await {
                Ok(pumped) => {
                    if let Some(error) = pumped.error {
                        log::warn!(container:% = of.container, exec; "{:?}: output was lost: {error}", pump.kind);
                    } else if let Some(expected) = expected.filter(|&expected| expected != pumped.bytes) {
                        log::warn!(container:% = of.container, exec; "{:?}: {} bytes of {expected} arrived", pump.kind, pumped.bytes);
                    }
                    unread.extend(pumped.unread);
                }
                Err(error) => {
                    log::error!(container:% = of.container, exec; "{:?}: the copy ended early: {error}", pump.kind);
                }
            }
        }
        self.outputs.clear();
        Leftovers { _unread: unread, logger: self.logger.take() }
    }
}

impl Drop for ProcessIo {
    fn drop(&mut self) {
        for task in self.stdin.iter().map(|(_, task)| task.abort_handle()) {
            task.abort();
        }
        for pump in &self.outputs {
            pump.task.abort();
        }
    }
}

impl IoControl {
    /// Ends standard input after what was already written to it.
    pub fn close_stdin(&self) {
        if let Some(hold) = &self.stdin {
            hold.send_replace(InputHold::Released);
        }
    }

    /// Returns once output has stood still for `pause`; what is left is then discarded. Or when all output is at its end.
    pub async fn discard_when_stalled(self, pause: Duration) {
        self.when_stalled(pause, OutputMode::Discard).await;
    }

    /// The same after an exit: nothing else is waited for then, also where the guest keeps the streams open.
    pub async fn abandon_when_stalled(self, pause: Duration) {
        self.when_stalled(pause, OutputMode::Abandon).await;
    }

    async fn when_stalled(self, pause: Duration, then: OutputMode) {
        tokio::select! {
            () = self.ended() => {}
            () = self.stalled(pause) => {
                for (_, mode) in &self.pumps {
                    mode.send_replace(then);
                }
            }
        }
    }

    /// Waits until nothing is copied out any more.
    async fn ended(&self) {
        for (_, mode) in &self.pumps {
            mode.closed().await;
        }
    }

    /// Waits until nothing has been copied out for `pause`.
    async fn stalled(&self, pause: Duration) {
        let total = || self.pumps.iter().map(|(progress, _)| progress.load(Ordering::Relaxed)).sum::<u64>();
        let mut before = total();
        loop {
            tokio::time::sleep(pause).await;
            let now = total();
            if now == before {
                return;
            }
            before = now;
        }
    }
}

impl OutputPump {
    fn start(kind: StreamKind, stream: UnixStream, output: Output) -> Self {
        let progress = Arc::new(AtomicU64::new(0));
        let (mode, modes) = watch::channel(OutputMode::Deliver);
        let task = tokio::spawn(pump_output(stream, output, Arc::clone(&progress), modes));
        Self { kind, task, progress, mode }
    }
}

async fn pump_output(
    mut stream: UnixStream,
    mut output: Output,
    progress: Arc<AtomicU64>,
    mut mode: watch::Receiver<OutputMode>,
) -> Pumped {
    let mut buffer = vec![0; BUFFER];
    let mut bytes = 0;
    let mut error = None;
    loop {
        let read = tokio::select! {
            biased;
            read = stream.read(&mut buffer) => read,
            _ = mode.wait_for(|mode| *mode == OutputMode::Abandon) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "the guest does not end it"))
            }
        };
        let count = match read {
            Ok(0) => break,
            Ok(count) => count,
            Err(failed) => {
                error.get_or_insert(failed);
                break;
            }
        };
        bytes += count as u64;
        // After a failed write the guest's output is still taken, or the process would block for ever.
        if error.is_none() && *mode.borrow() == OutputMode::Deliver {
            tokio::select! {
                biased;
                written = output.write_all(&buffer[..count]) => error = written.err(),
                _ = mode.wait_for(|mode| *mode != OutputMode::Deliver) => {
                    error = Some(io::Error::new(io::ErrorKind::TimedOut, "nobody read it"));
                }
            }
        }
        progress.fetch_add(count as u64, Ordering::Relaxed);
    }
    Pumped { bytes, unread: output.close(), error }
}

async fn pump_input(mut input: FifoInput, mut stream: UnixStream, mut hold: watch::Receiver<InputHold>) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let released = *hold.borrow() == InputHold::Released;
        if released {
            input.release();
        }
        let count = tokio::select! {
            count = input.read(&mut buffer) => count,
            changed = hold.changed(), if !released => match changed {
                Ok(()) => continue,
                // The process is being forgotten.
                Err(_) => return,
            },
        };
        let outcome = match count {
            Ok(0) => {
                if let Err(error) = stream.shutdown().await {
                    log::debug!("standard input was closed by the guest first: {error}");
                }
                return;
            }
            Ok(count) => stream.write_all(&buffer[..count]).await,
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            // The process closed its input or exited: what else the client writes has no reader.
            log::debug!("standard input ends: {error}");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_waits_for_output_that_has_ended() {
        let (stream, guest) = UnixStream::pair().unwrap();
        let pump = OutputPump::start(StreamKind::Stdout, stream, Output::open(&Target::Null).unwrap());
        let control = IoControl { stdin: None, pumps: vec![(pump.progress, pump.mode)] };
        let waiting = tokio::spawn(control.discard_when_stalled(Duration::from_hours(1)));
        drop(guest);
        tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    }
}
