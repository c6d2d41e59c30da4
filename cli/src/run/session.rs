//! An attached process: output flows, stdin is forwarded, signals and the terminal's size are handed on, until it exits.

use hull_shim::client::{ClientError, Process, Reach, TaskClient};

use super::signals::{Event, Signals};
use crate::error::{self, CliError};
use crate::spec::WindowSize;
use crate::streams::Streams;
use crate::terminal::{self, RawTerminal};

/// After so many requests to end, Hull stops asking.
const PATIENCE: u32 = 3;
const SIGKILL: u32 = 9;
const SIGPIPE_STATUS: u32 = 128 + 13;

/// How the stay with a process ended.
#[derive(Debug)]
pub enum End {
    /// The process exited.
    Exited(u32),
    /// The shim went away before it said how.
    Lost(ClientError),
}

/// A process that was started and is attached.
pub struct Session<'a> {
    /// The pod's task service.
    pub client: &'a TaskClient,
    /// Which process.
    pub process: Process<'a>,
    /// Its streams.
    pub streams: Streams,
    /// Whether it has a terminal, and stdin is Hull's.
    pub terminal: Option<RawTerminal>,
}

impl Session<'_> {
    /// Stays until the process has exited. The streams come back: they end when the shim lets go of them.
    pub async fn run(
        mut self,
        signals: &mut Signals,
        follow_size: Option<WindowSize>,
    ) -> Result<(End, Streams), CliError> {
        self.streams.forward_stdin()?;
        let mut size = follow_size;
        if let Some(size) = size {
            self.resize(size).await;
        }
        let client = self.client.clone();
        let wait = client.wait(self.process);
        tokio::pin!(wait);
        let mut stdin_open = true;
        let mut reader = Reader::There;
        let mut asked = 0;
        let outcome = loop {
            tokio::select! {
                outcome = &mut wait => break outcome,
                event = signals.next() => match event {
                    Event::Forward(signal) => {
                        asked += u32::from(matches!(signal, 2 | 15));
                        self.forward(signal, asked).await;
                    }
                    Event::Resized => {
                        let now = terminal::window_size();
                        if size.is_some() && now != size && let Some(now) = now {
                            size = Some(now);
                            self.resize(now).await;
                        }
                    }
                },
                _ = &mut self.streams.stdin_ended, if stdin_open => {
                    stdin_open = false;
                    tolerate("end the input", self.client.close_io(self.process).await);
                }
                gone = &mut self.streams.reader_gone, if reader == Reader::There => {
                    reader = if gone.is_ok() { Reader::Gone } else { Reader::Finished };
                    if reader == Reader::Gone {
                        // What happens to a local process whose reader is gone, only that it cannot be SIGPIPE: the first
                        // process of a pid namespace would not notice.
                        tolerate("kill the process", self.client.kill(self.process, SIGKILL, Reach::Process).await);
                    }
                }
            }
        };
        drop(self.terminal);
        let end = match outcome {
            Ok(_) if reader == Reader::Gone => End::Exited(SIGPIPE_STATUS),
            Ok(exit) => End::Exited(exit.exit_status),
            Err(error) => End::Lost(error),
        };
        Ok((end, self.streams))
    }

    async fn forward(&self, signal: u32, asked: u32) {
        if asked >= PATIENCE {
            error::say("the container does not end: killing it");
            tolerate("kill the process", self.client.kill(self.process, SIGKILL, Reach::Process).await);
        } else {
            tolerate("send a signal", self.client.kill(self.process, signal, Reach::Process).await);
        }
    }

    async fn resize(&self, size: WindowSize) {
        let result = self.client.resize(self.process, u32::from(size.columns), u32::from(size.rows)).await;
        tolerate("resize the terminal", result);
    }
}

/// The process may end at any time; that shows in the wait, not here.
fn tolerate(what: &str, result: Result<(), ClientError>) {
    match result {
        Err(error) if !error.is_not_found() && !error.is_gone() => {
            error::say(&format!("cannot {what}: {}", error::describe(&error)));
        }
        _ => {}
    }
}

/// Who reads what the process writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    /// Somebody.
    There,
    /// Nobody any more, and the process still writes.
    Gone,
    /// The output ended first.
    Finished,
}

/// An exit status as this program can have it.
pub fn exit_byte(status: u32) -> u8 {
    u8::try_from(status).unwrap_or(u8::MAX)
}
