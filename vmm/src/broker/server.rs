//! The broker's loop: the shim's socket and the monitor's, one message at a time, until the shim's end closes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use hull_protocol::fs::{
    BrokerChannel, ChannelError, Control, ControlReply, HandleId, REVOKED_MAX, Reply, Request, VERSION,
};
use hull_protocol::vmm::{Channel, ChannelError as ControlError, Received};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Broker;
use crate::error::chain;

/// Why the broker cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The shim's socket failed.
    #[error("the shim's socket failed")]
    Control(#[from] ControlError),
    /// Waiting failed.
    #[error("cannot wait for messages")]
    Wait(#[from] Errno),
}

/// A broker and who it talks to.
#[derive(Debug)]
pub struct Server {
    broker: Broker,
    control: Channel,
    monitor: Monitor,
    greeted: Greeted,
}

#[derive(Debug)]
enum Monitor {
    /// None was given yet.
    Expected,
    Connected(BrokerChannel),
    /// It has ended; there is no second one.
    Gone,
}

#[derive(Debug, PartialEq, Eq)]
enum Greeted {
    Not,
    Yes,
}

impl Server {
    /// A server without monitor or exports.
    pub fn new(broker: Broker, control: Channel) -> Self {
        Self { broker, control, monitor: Monitor::Expected, greeted: Greeted::Not }
    }

    /// Serves until the shim's end closes.
    pub fn run(mut self) -> Result<(), ServerError> {
        loop {
            let (control, monitor) = self.wait()?;
            if control && !self.control()? {
                return Ok(());
            }
            if monitor {
                self.monitor();
            }
        }
    }

    /// Which of the two has something to say.
    fn wait(&self) -> Result<(bool, bool), Errno> {
        let mut fds = vec![PollFd::new(self.control.as_fd(), PollFlags::POLLIN)];
        if let Monitor::Connected(channel) = &self.monitor {
            fds.push(PollFd::new(channel.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let ready = |fd: Option<&PollFd<'_>>| fd.is_some_and(|fd| fd.any().unwrap_or(true));
        Ok((ready(fds.first()), ready(fds.get(1))))
    }

    /// One message of the shim; false at the end.
    fn control(&mut self) -> Result<bool, ServerError> {
        let reply = match self.control.receive() {
            Ok(Some(Received { message, fds })) => match self.obey(message, fds) {
                Ok(()) => ControlReply::Done,
                Err(message) => ControlReply::Failed(message),
            },
            Ok(None) => return Ok(false),
            Err(ControlError::Io(error)) if is_gone(&error) => return Ok(false),
            Err(error @ ControlError::Io(_)) => return Err(error.into()),
            Err(error @ (ControlError::Malformed(_) | ControlError::TooLarge)) => {
                ControlReply::Failed(chain(&error))
            }
        };
        match self.control.send(&reply, &[]) {
            Ok(()) => Ok(true),
            Err(ControlError::Io(error)) if is_gone(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn obey(&mut self, control: Control, fds: Vec<OwnedFd>) -> Result<(), String> {
        let wanted = match &control {
            Control::Hello { .. } | Control::RemoveExport { .. } => 0,
            Control::Serve | Control::AddExport { .. } => 1,
        };
        if fds.len() != wanted {
            return Err(format!("the request takes {wanted} file descriptors, but came with {}", fds.len()));
        }
        let fd = fds.into_iter().next();
        match (control, fd) {
            (Control::Hello { version }, _) if version != VERSION => {
                Err(format!("version {version} is not known; this file broker speaks version {VERSION}"))
            }
            (Control::Hello { .. }, _) => {
                self.greeted = Greeted::Yes;
                Ok(())
            }
            _ if self.greeted == Greeted::Not => Err("say hello first".into()),
            (Control::Serve, Some(socket)) => self.serve(socket),
            (Control::AddExport { name, access }, Some(root)) => {
                self.broker.exports_mut().add(&name, access, root).map_err(|error| chain(&error))
            }
            (Control::RemoveExport { name }, _) => match self.broker.remove_export(&name) {
                Some(files) => {
                    self.revoke(&files);
                    Ok(())
                }
                None => Err(format!("there is no export {name}")),
            },
            (Control::Serve | Control::AddExport { .. }, None) => Err("a file descriptor is missing".into()),
        }
    }

    fn serve(&mut self, socket: OwnedFd) -> Result<(), String> {
        use nix::sys::socket::{SockType, getsockopt, sockopt};
        if !matches!(self.monitor, Monitor::Expected) {
            return Err("there is a monitor already".into());
        }
        if getsockopt(&socket, sockopt::SockType) != Ok(SockType::SeqPacket) {
            return Err("the monitor's socket must be a SOCK_SEQPACKET socket".into());
        }
        self.monitor = Monitor::Connected(socket.into());
        Ok(())
    }

    /// One request of the monitor. Whatever is wrong with it, only its own socket suffers.
    fn monitor(&mut self) {
        let Monitor::Connected(channel) = &mut self.monitor else { return };
        let reply = match channel.receive::<Request>() {
            // No request has a descriptor: one that came is closed here.
            Ok((request, _)) => self.broker.answer(request),
            Err(ChannelError::Malformed) => Some(Reply::Error(libc::EINVAL)),
            Err(ChannelError::TooLarge) => Some(Reply::Error(libc::EMSGSIZE)),
            Err(ChannelError::Closed | ChannelError::Io(_)) => return self.monitor_gone(),
        };
        let Some(reply) = reply else { return };
        // One that asks without reading the answers is as good as gone: nobody else is to wait for it.
        if channel.send_at_once(&reply, self.broker.descriptor(&reply)).is_err() {
            self.monitor_gone();
        }
    }

    /// Tells the monitor to close files.
    fn revoke(&mut self, files: &[HandleId]) {
        let Monitor::Connected(channel) = &self.monitor else { return };
        let notices = files.chunks(REVOKED_MAX).map(|files| Reply::Revoked(files.to_vec()));
        if notices.into_iter().any(|notice| channel.send_at_once(&notice, None).is_err()) {
            self.monitor_gone();
        }
    }

    fn monitor_gone(&mut self) {
        self.monitor = Monitor::Gone;
        self.broker.answer(Request::Init { version: VERSION });
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}
