//! Signals that Hull itself receives, as a stream.

use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::error::CliError;

/// What is handed on to the container.
const FORWARDED: [Signal; 6] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2];

/// Something that a signal said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The container shall get this signal.
    Forward(u32),
    /// The terminal has another size.
    Resized,
}

/// The signals since this was made; from then on none of them ends Hull.
#[derive(Debug)]
pub struct Signals {
    events: mpsc::UnboundedReceiver<Event>,
}

impl Signals {
    /// Begins to listen. A signal that was ignored when Hull started (`nohup`) stays ignored.
    pub fn listen() -> Result<Self, CliError> {
        let (sender, events) = mpsc::unbounded_channel();
        let forwarded =
            FORWARDED.into_iter().map(|which| (which, Event::Forward((which as i32).unsigned_abs())));
        for (which, event) in forwarded.chain([(Signal::SIGWINCH, Event::Resized)]) {
            if is_ignored(which) {
                continue;
            }
            let mut stream = signal(SignalKind::from_raw(which as i32))
                .map_err(CliError::io("cannot listen for signals"))?;
            let sender = sender.clone();
            tokio::spawn(async move { while stream.recv().await.is_some() && sender.send(event).is_ok() {} });
        }
        Ok(Self { events })
    }

    /// The next one.
    pub async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            // Every signal is ignored: there will be none.
            None => std::future::pending().await,
        }
    }

    /// The next one that would end a program.
    pub async fn interruption(&mut self) -> u32 {
        loop {
            if let Event::Forward(signal) = self.next().await {
                return signal;
            }
        }
    }
}

fn is_ignored(which: Signal) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with a null new action sigaction(2) only writes the current one to the pointer, which is valid; all-zero bytes
    // are a valid `sigaction`, so it is initialised even if the call fails.
    let action = unsafe {
        libc::sigaction(which as i32, std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_becomes_an_event() {
        crate::engine::runtime().unwrap().block_on(async {
            let mut signals = Signals::listen().unwrap();
            nix::sys::signal::raise(Signal::SIGWINCH).unwrap();
            assert_eq!(signals.next().await, Event::Resized);
            nix::sys::signal::raise(Signal::SIGWINCH).unwrap();
            nix::sys::signal::raise(Signal::SIGUSR2).unwrap();
            assert_eq!(signals.interruption().await, 12);
        });
    }

    #[test]
    fn an_ignored_signal_is_seen_as_ignored() {
        // Rust's runtime ignores SIGPIPE.
        assert!(is_ignored(Signal::SIGPIPE));
        assert!(!is_ignored(Signal::SIGTERM));
    }
}
