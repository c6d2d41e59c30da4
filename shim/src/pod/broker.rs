//! The file broker process: started for a pod with volumes, told what to give out, and ended with the pod.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use hull_protocol::fs::{BrokerChannel, Control, ControlReply, ExportAccess, VERSION};
use hull_protocol::vmm::{Channel, ChannelError};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use tokio::process::Child;

use super::monitor::{AsyncChannel, spawn_with_control};
use crate::spec::{Volume, VolumeAccess};

/// Why the guest cannot reach the host's files.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The process could not be started.
    #[error("cannot start {path}: {source}")]
    Spawn {
        /// The executable.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A volume cannot be opened.
    #[error("cannot share {path} with the VM: {source}")]
    Open {
        /// Its path.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The broker refused a volume.
    #[error("cannot share {path} with the VM: {reason}")]
    Refused {
        /// Its path.
        path: String,
        /// The broker's words.
        reason: String,
    },
    /// The broker refused to begin.
    #[error("the file broker cannot be used: {0}")]
    Unusable(String),
    /// The conversation failed.
    #[error("the conversation with the file broker failed: {0}")]
    Channel(#[from] ChannelError),
    /// No answer in time.
    #[error("the file broker does not answer")]
    Silent,
}

/// A running broker. When it is dropped, it ends.
pub struct Broker {
    control: AsyncChannel,
    child: Child,
}

impl Broker {
    /// Starts the broker with its control socket. It dies with this process.
    pub fn spawn(path: &Path) -> Result<Self, BrokerError> {
        let failed = |source| BrokerError::Spawn { path: path.display().to_string(), source };
        let (ours, theirs) = Channel::pair().map_err(failed)?;
        let child = spawn_with_control(path, &theirs, None).map_err(failed)?;
        Ok(Self { control: AsyncChannel::new(ours)?, child })
    }

    /// Gives the volumes out. Returns what the monitor is to speak over.
    pub async fn share(&mut self, volumes: &[Volume]) -> Result<OwnedFd, BrokerError> {
        let (monitor, broker) = BrokerChannel::pair().map_err(ChannelError::from)?;
        let (monitor, broker) = (OwnedFd::from(monitor), OwnedFd::from(broker));
        let unusable = |refused: Result<(), String>| refused.map_err(BrokerError::Unusable);
        unusable(self.say(&Control::Hello { version: VERSION }, &[]).await?)?;
        unusable(self.say(&Control::Serve, &[broker.as_fd()]).await?)?;
        for volume in volumes {
            let path = || volume.source.display().to_string();
            // Whatever it is, it is not opened, only named: the broker looks what it is.
            let root = open(&volume.source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(|errno| BrokerError::Open { path: path(), source: errno.into() })?;
            let access = match volume.access {
                VolumeAccess::ReadOnly => ExportAccess::ReadOnly,
                VolumeAccess::ReadWrite => ExportAccess::ReadWrite,
            };
            let export = Control::AddExport { name: volume.name.clone(), access };
            self.say(&export, &[root.as_fd()])
                .await?
                .map_err(|reason| BrokerError::Refused { path: path(), reason })?;
        }
        Ok(monitor)
    }

    /// Ends the process and waits for it.
    pub async fn end(mut self) {
        if let Err(error) = self.child.kill().await {
            log::warn!("cannot end the file broker {:?}: {error}", self.child.id());
        }
    }

    async fn say(
        &self,
        control: &Control,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Result<(), String>, ChannelError> {
        self.control.send(control, fds).await?;
        match self.control.receive::<ControlReply>().await? {
            Some(received) => match received.message {
                ControlReply::Done => Ok(Ok(())),
                ControlReply::Failed(reason) => Ok(Err(reason)),
            },
            None => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
    }
}
