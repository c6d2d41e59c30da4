//! The file broker process: started for a pod that shares files of the host, told what to give out, and ended with the
//! pod. One task owns its control socket.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hull_protocol::fs::{BrokerChannel, Control, ControlReply, ExportAccess, VERSION};
use hull_protocol::vmm::{Channel, ChannelError, DENIED_STATUS};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot};

use super::cgroup::Accounting;
use super::monitor::{AsyncChannel, spawn_with_control, was_oom_killed};
use crate::cgroup::OomKills;
use crate::spec::{Volume, VolumeAccess};

/// The broker examines what it is given; slow storage may hold it up.
const DEADLINE: Duration = Duration::from_secs(60);

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
    #[error("cannot share {path} with the VM: {source}", path = path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The broker refused a volume.
    #[error("cannot share {path} with the VM: {reason}", path = path.display())]
    Refused {
        /// Its path.
        path: PathBuf,
        /// The broker's words.
        reason: String,
    },
    /// The broker refused to begin, or something that is no volume.
    #[error("the file broker cannot be used: {0}")]
    Unusable(String),
    /// The conversation failed.
    #[error("the conversation with the file broker failed: {0}")]
    Channel(#[from] ChannelError),
    /// The process is gone.
    #[error("the file broker has ended")]
    Ended,
    /// No answer in time.
    #[error("the file broker does not answer")]
    Silent,
}

/// A folder or a file of the host, open, that the guest may reach.
#[derive(Debug)]
pub struct Export {
    /// Its name in the guest.
    pub name: String,
    /// Where it is on the host, for messages.
    pub path: PathBuf,
    /// Who may change it.
    pub access: ExportAccess,
    /// It.
    pub root: OwnedFd,
}

impl Export {
    /// Opens a volume. Whatever it is, it is not opened, only named: the broker looks what it is.
    pub fn of_volume(volume: &Volume) -> Result<Self, BrokerError> {
        let root = open(&volume.source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| BrokerError::Open { path: volume.source.clone(), source: errno.into() })?;
        let access = match volume.access {
            VolumeAccess::ReadOnly => ExportAccess::ReadOnly,
            VolumeAccess::ReadWrite => ExportAccess::ReadWrite,
        };
        Ok(Self { name: volume.name.clone(), path: volume.source.clone(), access, root })
    }
}

/// What the broker said: done, or why not.
type Answer = Result<Result<(), String>, BrokerError>;

enum Ask {
    Tell { control: Control, fd: Option<OwnedFd>, answer: oneshot::Sender<Answer> },
    End { ended: oneshot::Sender<()> },
}

/// A running broker. When every clone is dropped, it ends.
#[derive(Clone)]
pub struct Broker(mpsc::Sender<Ask>);

impl Broker {
    /// Starts the broker, counted with its VM. It dies with this process. Returns it, and what the monitor is to speak over.
    pub async fn start(path: &Path, accounting: &Accounting) -> Result<(Self, OwnedFd), BrokerError> {
        let failed = |source| BrokerError::Spawn { path: path.display().to_string(), source };
        let (ours, theirs) = Channel::pair().map_err(failed)?;
        let (child, _words) = spawn_with_control("hull-fsd", path, &theirs, None).map_err(failed)?;
        drop(theirs);
        if let Some(pid) = child.id() {
            accounting.admit("the file broker", pid);
        }
        let (asks, inbox) = mpsc::channel(8);
        tokio::spawn(converse(AsyncChannel::new(ours)?, child, inbox, accounting.oom_kills()));
        let broker = Self(asks);
        let (monitor, socket) = BrokerChannel::pair().map_err(ChannelError::from)?;
        broker.tell(Control::Hello { version: VERSION }, None).await?.map_err(BrokerError::Unusable)?;
        broker.tell(Control::Serve, Some(socket.into())).await?.map_err(BrokerError::Unusable)?;
        Ok((broker, monitor.into()))
    }

    /// Gives something out.
    pub async fn share(&self, export: Export) -> Result<(), BrokerError> {
        let Export { name, path, access, root } = export;
        let said = self.tell(Control::AddExport { name, access }, Some(root)).await?;
        said.map_err(|reason| BrokerError::Refused { path, reason })
    }

    /// Takes it back: the guest can no longer use what it holds of it.
    pub async fn take_back(&self, name: &str) -> Result<(), BrokerError> {
        let said = self.tell(Control::RemoveExport { name: name.to_owned() }, None).await?;
        said.map_err(BrokerError::Unusable)
    }

    /// Ends the process and waits for it.
    pub async fn end(&self) {
        let (ended, wait) = oneshot::channel();
        if self.0.send(Ask::End { ended }).await.is_ok() {
            // Gone without a word is gone.
            let _ = wait.await;
        }
    }

    async fn tell(&self, control: Control, fd: Option<OwnedFd>) -> Answer {
        let (answer, answered) = oneshot::channel();
        let told = async {
            self.0.send(Ask::Tell { control, fd, answer }).await.map_err(|_| BrokerError::Ended)?;
            answered.await.unwrap_or(Err(BrokerError::Ended))
        };
        tokio::time::timeout(DEADLINE, told).await.unwrap_or(Err(BrokerError::Silent))
    }
}

/// Owns the control socket and the process.
async fn converse(
    channel: AsyncChannel,
    mut child: Child,
    mut inbox: mpsc::Receiver<Ask>,
    oom_kills: Option<OomKills>,
) {
    loop {
        let ask = tokio::select! {
            ask = inbox.recv() => ask,
            status = child.wait() => {
                match status {
                    Ok(status) if status.code() == Some(DENIED_STATUS) => log::error!(
                        "the file broker made a system call that its jail denies; the log names it: the guest's files are lost"
                    ),
                    Ok(status) if was_oom_killed(status, oom_kills.as_ref()) => {
                        log::error!("the host's OOM killer ended the file broker: the guest's files are lost");
                    }
                    Ok(status) => log::error!("the file broker has ended ({status}): the guest's files are lost"),
                    Err(error) => log::error!("the file broker is lost: {error}"),
                }
                // Who asks from now on finds that out.
                return;
            }
        };
        let Some(ask) = ask else { return };
        match ask {
            Ask::Tell { control, fd, answer } => {
                // Whoever asked may have given up.
                let _ = answer.send(say(&channel, &control, fd.as_ref()).await);
            }
            Ask::End { ended } => {
                if let Err(error) = child.kill().await {
                    log::warn!("cannot end the file broker {:?}: {error}", child.id());
                }
                let _ = ended.send(());
                return;
            }
        }
    }
}

async fn say(channel: &AsyncChannel, control: &Control, fd: Option<&OwnedFd>) -> Answer {
    let fds: Vec<_> = fd.into_iter().map(AsFd::as_fd).collect();
    channel.send(control, &fds).await?;
    match channel.receive::<ControlReply>().await? {
        Some(received) => match received.message {
            ControlReply::Done => Ok(Ok(())),
            ControlReply::Failed(reason) => Ok(Err(reason)),
        },
        None => Err(BrokerError::Ended),
    }
}
