//! Starts the real `hull-fsd` and speaks to it as the shim and the monitor do.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use hull_protocol::fs::{
    BrokerChannel, Control, ControlReply, ExportAccess, Name, NodeId, ROOT, Reply, Request, VERSION,
};
use hull_protocol::vmm::Channel;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use tempfile::TempDir;

use super::control::hand_over;

/// A running broker. Dropped, it is killed.
pub struct Broker {
    pub process: Child,
    /// The shim's end.
    pub control: Channel,
    /// The monitor's end.
    pub monitor: BrokerChannel,
    /// What it shares as `x`, to be written.
    pub folder: TempDir,
}

impl Broker {
    /// One that shares an empty folder.
    pub fn start() -> Self {
        Self::sharing(tempfile::tempdir().unwrap())
    }

    /// One that shares this folder.
    pub fn sharing(folder: TempDir) -> Self {
        let (control, theirs) = Channel::pair().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_hull-fsd"));
        command.stdin(Stdio::null()).env_clear();
        let theirs = OwnedFd::from(theirs);
        hand_over(&mut command, &theirs);
        let process = command.spawn().unwrap();
        drop(theirs);
        let (monitor, broker) = BrokerChannel::pair().unwrap();
        let this = Self { process, control, monitor, folder };
        this.say(&Control::Hello { version: VERSION }, None);
        this.say(&Control::Serve, Some(&broker.into()));
        let root = open(this.folder.path(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        let name = "x".to_owned();
        this.say(&Control::AddExport { name, access: ExportAccess::ReadWrite }, Some(&root));
        this
    }

    /// Tells it something as the shim does.
    pub fn say(&self, control: &Control, fd: Option<&OwnedFd>) {
        let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
        self.control.send(control, &fds).unwrap();
        let reply = self.control.receive::<ControlReply>().unwrap().unwrap().message;
        assert_eq!(reply, ControlReply::Done, "{control:?}");
    }

    /// Asks it something as the monitor does.
    pub fn ask(&mut self, request: &Request) -> (Reply, Option<OwnedFd>) {
        self.monitor.send(request, None).unwrap();
        self.monitor.receive().unwrap()
    }

    /// The shared folder.
    pub fn root(&mut self) -> NodeId {
        self.look_up(ROOT, "x").unwrap()
    }

    /// A name in a folder, or the error.
    pub fn look_up(&mut self, parent: NodeId, text: &str) -> Result<NodeId, i32> {
        match self.ask(&Request::Lookup { parent, name: name(text) }).0 {
            Reply::Entry(entry) => Ok(entry.node),
            Reply::Error(errno) => Err(errno),
            other => panic!("{other:?}"),
        }
    }

    /// Whether it has not ended.
    pub fn lives(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// What the kernel says of its process.
    pub fn status(&self) -> String {
        fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Where a test has failed, the process is of no further interest.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A name.
pub fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}
