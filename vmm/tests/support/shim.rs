//! Starts the real `hull-vmm` and speaks to it as the shim does.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};

use hull_protocol::vmm::{
    Channel, CpuTemplate, ExitReason, FailureCode, JailConfig, JailNetwork, MachineConfig, Message, Request,
    VERSION, VmStats,
};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::control::hand_over;

/// Longer than anything takes, so that a hang is a failure.
const PATIENCE_SECONDS: i64 = 60;

/// A running monitor. Dropped before its end was awaited, it is killed.
pub struct Vmm {
    child: Child,
    channel: Option<Channel>,
    log: File,
}

pub fn machine(vcpus: u8) -> MachineConfig {
    MachineConfig {
        vcpus,
        online_vcpus: None,
        cpu: CpuTemplate::Host,
        memory_mib: 64,
        kernel_args: String::new(),
        console_limit_bytes: 1 << 20,
    }
}

/// A file without a name that holds these bytes.
pub fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

pub fn kvm() -> File {
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    kvm.expect("these tests need a usable /dev/kvm: load the kvm module, or run them where there is one")
}

impl Vmm {
    /// A monitor that has said nothing and heard nothing.
    pub fn spawn() -> Self {
        Self::spawn_binary(env!("CARGO_BIN_EXE_hull-vmm"))
    }

    pub fn spawn_binary(binary: &str) -> Self {
        let (ours, theirs) = Channel::pair().unwrap();
        setsockopt(&ours, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE_SECONDS, 0)).unwrap();
        let theirs = OwnedFd::from(theirs);
        let mut command = Command::new(binary);
        command.stdin(Stdio::null());
        hand_over(&mut command, &theirs);
        let child = command.spawn().unwrap();
        Self { child, channel: Some(ours), log: tempfile::tempfile().unwrap() }
    }

    /// A monitor that was greeted and is jailed.
    pub fn greeted() -> Self {
        let vmm = Self::spawn();
        vmm.done(&Request::Hello { version: VERSION }, &[]);
        vmm.done(&Request::Jail(vmm.jail()), &[]);
        vmm
    }

    /// The tightest jail that the tests may ask for.
    pub fn jail(&self) -> JailConfig {
        if nix::unistd::geteuid().is_root() {
            JailConfig::Full { uid: self.someone(), gid: self.someone(), network: JailNetwork::Empty }
        } else {
            JailConfig::Unprivileged
        }
    }

    /// A user and group that nobody else is.
    pub fn someone(&self) -> u32 {
        0x7000_0000 + self.pid()
    }

    /// A monitor with a machine that will boot this kernel.
    pub fn with_machine(config: MachineConfig, kernel: &[u8]) -> Self {
        let vmm = Self::greeted();
        vmm.describe(config, kernel, b"initramfs");
        vmm
    }

    /// A VM that runs this kernel.
    pub fn boot(config: MachineConfig, kernel: &[u8]) -> Self {
        let vmm = Self::with_machine(config, kernel);
        vmm.done(&Request::Boot, &[]);
        vmm
    }

    pub fn describe(&self, config: MachineConfig, kernel: &[u8], initramfs: &[u8]) {
        let (kvm, kernel, initramfs) = (kvm(), file(kernel), file(initramfs));
        let fds = [kvm.as_fd(), kernel.as_fd(), initramfs.as_fd(), self.log.as_fd()];
        self.done(&Request::Machine(config), &fds);
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn channel(&self) -> &Channel {
        self.channel.as_ref().unwrap()
    }

    pub fn receive(&self) -> Message {
        self.channel().receive().unwrap().expect("the monitor closed its socket").message
    }

    pub fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Message {
        self.channel().send(request, fds).unwrap();
        self.receive()
    }

    /// Sends something that is no request.
    pub fn ask_nonsense(&self) -> Message {
        self.channel().send(&"nonsense", &[]).unwrap();
        self.receive()
    }

    pub fn done(&self, request: &Request, fds: &[BorrowedFd<'_>]) {
        assert_eq!(self.ask(request, fds), Message::Done, "{request:?}");
    }

    /// Asks for what must fail, and returns the message.
    pub fn refused(&self, request: &Request, fds: &[BorrowedFd<'_>], code: FailureCode) -> String {
        match self.ask(request, fds) {
            Message::Failed(failure) => {
                assert_eq!(failure.code, code, "{}", failure.message);
                failure.message
            }
            other => panic!("{request:?} was answered with {other:?}"),
        }
    }

    pub fn stats(&self) -> VmStats {
        match self.ask(&Request::Stats, &[]) {
            Message::Stats(stats) => stats,
            other => panic!("no statistics but {other:?}"),
        }
    }

    /// Waits for the end: reason, console, exit status.
    pub fn end(mut self) -> (ExitReason, Vec<u8>, i32) {
        let reason = match self.receive() {
            Message::Exited(reason) => reason,
            other => panic!("not an end: {other:?}"),
        };
        assert!(self.channel().receive::<Message>().unwrap().is_none(), "Exited is the last message");
        let status = self.child.wait().unwrap();
        (reason, self.console(), status.code().expect("killed by a signal"))
    }

    /// Closes the socket and waits.
    pub fn hang_up(mut self) -> ExitStatus {
        drop(self.channel.take());
        self.child.wait().unwrap()
    }

    /// What is in the console log so far.
    pub fn console(&mut self) -> Vec<u8> {
        let mut text = Vec::new();
        self.log.rewind().unwrap();
        self.log.read_to_end(&mut text).unwrap();
        text
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // It has ended already in a test that went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
