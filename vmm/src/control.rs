//! The control server: requests in, answers out, from the first greeting to the last word.
//!
//! It owns the order of requests ([`Phase`]) and turns errors into answers; what is described is checked in
//! [`description`], and what a running VM does is in [`running`]. A request that cannot be understood or obeyed is answered and changes nothing. After a boot that
//! failed only [`Request::Stop`] is left.

pub mod description;
mod running;
#[cfg(feature = "testing")]
pub mod testing;

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use hull_protocol::vmm::{
    Channel, ChannelError, ExitReason, Failure, FailureCode, JailConfig, Message, Received, Request, VERSION,
};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::devices::SlotError;
use crate::error::chain;
use crate::event_loop::{self, Watch};
use crate::jail;
use crate::machine::{BootError, Machine, Plan};
use description::Description;

/// How far the conversation has come.
enum Phase {
    /// Nobody has said hello.
    New,
    /// The jail is open.
    Free,
    /// The VM is being described.
    Describing(Box<Description>),
    /// The jail did not close.
    Unsafe,
    /// The boot failed.
    Spent,
}

/// What a request leads to before the VM runs.
enum Step {
    /// An answer; the conversation goes on in this phase.
    Answer(Phase, Message),
    /// Boot this.
    Boot(Plan),
    /// The end.
    Stop,
}

/// Serves one conversation and the VM that comes of it. `start` is when the process started. Returns how it ended,
/// after having said so to the other end.
pub fn serve(channel: &Channel, start: Instant) -> ExitReason {
    let reason = converse(channel, start).unwrap_or_else(|closed| match closed {
        Closed::ByPeer => ExitReason::Stopped,
        Closed::Failed(error) => ExitReason::MonitorError { detail: chain(&error) },
    });
    if let Err(error) = channel.send(&Message::Exited(reason.clone()), &[]) {
        // Nobody is left to hear it where the socket's closing was the reason.
        log::debug!("cannot report the end: {}", chain(&error));
    }
    reason
}

/// Why the conversation cannot go on.
enum Closed {
    /// The other end has closed, or no longer listens.
    ByPeer,
    /// The socket failed.
    Failed(ChannelError),
}

fn converse(channel: &Channel, start: Instant) -> Result<ExitReason, Closed> {
    let mut phase = Phase::New;
    loop {
        let step = match receive(channel)? {
            Ok(received) => phase.take(received.message, received.fds),
            Err(failure) => Step::Answer(phase, Message::Failed(failure)),
        };
        match step {
            Step::Answer(next, message) => {
                phase = next;
                send(channel, &message)?;
            }
            Step::Stop => {
                send(channel, &Message::Done)?;
                return Ok(ExitReason::Stopped);
            }
            Step::Boot(plan) => match Machine::boot(plan, start) {
                Ok(machine) => return watch(channel, machine),
                Err(error) => {
                    phase = Phase::Spent;
                    send(channel, &Message::Failed(boot_failure(&error)))?;
                }
            },
        }
    }
}

impl Phase {
    fn take(self, request: Request, fds: Vec<OwnedFd>) -> Step {
        if matches!(request, Request::Stop) && fds.is_empty() {
            return Step::Stop;
        }
        match (self, request) {
            (Self::New, Request::Hello { version }) => match check_hello(version, &fds) {
                Ok(()) => Step::Answer(Self::Free, Message::Done),
                Err(failure) => Step::Answer(Self::New, Message::Failed(failure)),
            },
            (Self::New, _) => refuse(Self::New, "say hello first"),
            (Self::Free, Request::Jail(config)) => close_jail(config, &fds),
            (Self::Free, Request::Hello { .. }) => refuse(Self::Free, "hello was said already"),
            (Self::Free, _) => refuse(Self::Free, "close the jail first"),
            (Self::Unsafe, _) => {
                refuse(Self::Unsafe, "the jail did not close: this monitor can only be stopped")
            }
            (Self::Spent, _) => refuse(Self::Spent, "the boot failed: this monitor can only be stopped"),
            (Self::Describing(description), request) => describe(description, request, fds),
        }
    }
}

fn close_jail(config: JailConfig, fds: &[OwnedFd]) -> Step {
    if let Err(failure) = no_descriptors(fds) {
        return Step::Answer(Phase::Free, Message::Failed(failure));
    }
    match jail::enter(config).and_then(|()| jail::forbid()) {
        Ok(()) => Step::Answer(Phase::Describing(Box::default()), Message::Done),
        // Some of it may be done: there is no way back to before.
        Err(error) => {
            let failure = Failure { code: FailureCode::Jail, message: chain(&error) };
            Step::Answer(Phase::Unsafe, Message::Failed(failure))
        }
    }
}

fn describe(mut description: Box<Description>, request: Request, fds: Vec<OwnedFd>) -> Step {
    let result = match request {
        Request::Machine(config) => description.set_machine(config, fds),
        Request::AddDisk(config) => description.add_disk(&config, fds),
        Request::AddNetwork(config) => description.add_network(&config, fds),
        Request::AddVsock(config) => description.add_vsock(&config, fds),
        Request::AddFs(config) => description.add_fs(&config, fds),
        Request::AddEntropy => no_descriptors(&fds).and_then(|()| description.add_entropy()),
        Request::AddHotplugMemory { mib } => {
            no_descriptors(&fds).and_then(|()| description.add_hotplug_memory(mib))
        }
        Request::ReserveHotplugMemory { mib } => {
            no_descriptors(&fds).and_then(|()| description.reserve_hotplug_memory(mib))
        }
        Request::AddPmem(config) => description.add_pmem(&config, fds),
        Request::AddBalloon => no_descriptors(&fds).and_then(|()| description.add_balloon()),
        Request::Boot => match no_descriptors(&fds).and_then(|()| description.plan()) {
            Ok(plan) => return Step::Boot(plan),
            Err(failure) => Err(failure),
        },
        Request::Hello { .. } => Err(wrong_state("hello was said already")),
        Request::Jail(_) => Err(wrong_state("the jail is closed already")),
        Request::Stats
        | Request::SetBalloon { .. }
        | Request::SetHotplugMemory { .. }
        | Request::PlugHotplugMemory
        | Request::Unplug { .. }
        | Request::Pause
        | Request::Resume => Err(wrong_state("the VM does not run yet")),
        Request::Stop => no_descriptors(&fds),
    };
    let message = result.map_or_else(Message::Failed, |()| Message::Done);
    Step::Answer(Phase::Describing(description), message)
}

/// Serves the running VM to its end.
fn watch(channel: &Channel, mut machine: Machine) -> Result<ExitReason, Closed> {
    let served = send(channel, &Message::Done)
        .and_then(|()| do_not_block(channel).map_err(|error| Closed::Failed(ChannelError::Io(error))))
        .map(|()| {
            Watch::new(&machine, channel.as_raw_fd())
                .and_then(|watch| {
                    event_loop::run(&machine, &watch, || converse_running(channel, &machine, &watch))
                })
                .unwrap_or_else(|error| ExitReason::MonitorError {
                    detail: format!("the event loop failed: {}", chain(&error)),
                })
        });
    machine.take_down();
    served
}

fn converse_running(channel: &Channel, machine: &Machine, watch: &Watch) -> ControlFlow<ExitReason> {
    let (message, then) = match receive(channel) {
        Ok(Ok(Received { message, fds })) => running::obey(machine, watch, message, fds),
        Ok(Err(failure)) => (Message::Failed(failure), ControlFlow::Continue(())),
        Err(Closed::Failed(error)) if error.is_would_block() => return ControlFlow::Continue(()),
        Err(closed) => return ControlFlow::Break(reason_of(closed)),
    };
    match send(channel, &message) {
        Ok(()) => then,
        Err(closed) => ControlFlow::Break(reason_of(closed)),
    }
}

fn reason_of(closed: Closed) -> ExitReason {
    match closed {
        Closed::ByPeer => ExitReason::Stopped,
        Closed::Failed(error) => ExitReason::MonitorError { detail: chain(&error) },
    }
}

/// The next request, or what to answer to something that is none.
fn receive(channel: &Channel) -> Result<Result<Received<Request>, Failure>, Closed> {
    match channel.receive() {
        Ok(Some(received)) => Ok(Ok(received)),
        Ok(None) => Err(Closed::ByPeer),
        Err(ChannelError::Io(error)) if error.kind() == io::ErrorKind::ConnectionReset => Err(Closed::ByPeer),
        Err(error @ ChannelError::Io(_)) => Err(Closed::Failed(error)),
        Err(error @ (ChannelError::Malformed(_) | ChannelError::TooLarge)) => Ok(Err(invalid(chain(&error)))),
    }
}

/// Sends an answer. A peer that asks without reading the answers is as good as gone.
fn send(channel: &Channel, message: &Message) -> Result<(), Closed> {
    channel.send(message, &[]).map_err(|error| match error {
        ChannelError::Io(io)
            if matches!(io.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
        {
            Closed::ByPeer
        }
        error => Closed::Failed(error),
    })
}

fn do_not_block(channel: &Channel) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(channel, FcntlArg::F_GETFL)?);
    fcntl(channel, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn check_hello(version: u32, fds: &[OwnedFd]) -> Result<(), Failure> {
    no_descriptors(fds)?;
    if version == VERSION {
        return Ok(());
    }
    Err(invalid(format!("version {version} is not known; this monitor speaks version {VERSION}")))
}

fn no_descriptors(fds: &[OwnedFd]) -> Result<(), Failure> {
    match fds.len() {
        0 => Ok(()),
        count => Err(invalid(format!("the request takes no file descriptors, but came with {count}"))),
    }
}

fn refuse(phase: Phase, message: &str) -> Step {
    Step::Answer(phase, Message::Failed(wrong_state(message)))
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure { code: FailureCode::InvalidRequest, message: message.into() }
}

fn wrong_state(message: impl Into<String>) -> Failure {
    Failure { code: FailureCode::WrongState, message: message.into() }
}

fn slot_failure(error: &SlotError) -> Failure {
    let code = match error {
        SlotError::Kvm(_) => FailureCode::Kvm,
        SlotError::Full | SlotError::Transport { .. } => FailureCode::Resources,
        SlotError::Duplicate(_) | SlotError::InUse(_) | SlotError::Busy(_) => FailureCode::WrongState,
        SlotError::NotThere(_) => FailureCode::NotFound,
    };
    Failure { code, message: chain(error) }
}

fn boot_failure(error: &BootError) -> Failure {
    let code = match error {
        BootError::Slot(error) => return slot_failure(error),
        BootError::Kvm(_) => FailureCode::Kvm,
        BootError::Kernel(_) | BootError::StartInfo(_) | BootError::MpTable(_) => FailureCode::Kernel,
        BootError::Cmdline(_) => FailureCode::InvalidRequest,
        BootError::Filter(_) => FailureCode::Jail,
        BootError::Memory(_) | BootError::Event(_) | BootError::Signal(_) | BootError::Thread(_) => {
            FailureCode::Resources
        }
    };
    Failure { code, message: chain(error) }
}
