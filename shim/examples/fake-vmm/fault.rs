//! What goes wrong, and when. Everything the shim asks for is a step, whether of the monitor or of the agent; their names are
//! noted in the order in which they come.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, exit};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};

/// Every step's name.
const STEPS: [&str; 32] = [
    "hello",
    "jail",
    "machine",
    "disk",
    "network",
    "vsock",
    "fs",
    "entropy",
    "boot",
    "stats",
    "plug",
    "unplug",
    "info",
    "configure-pod",
    "configure-network",
    "bind",
    "unbind",
    "create",
    "exec",
    "start",
    "signal",
    "wait",
    "resize",
    "delete-exec",
    "delete",
    "pause",
    "resume",
    "update",
    "revert",
    "usage",
    "stream",
    "shutdown",
];

/// What the greedy take, in bytes.
const GREED: usize = 256 << 20;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static AGENT: OnceLock<UnixStream> = OnceLock::new();

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The monitor dies at the first step of this name.
    DieAt(&'static str),
    /// Somebody dies at a step, counted from 1.
    Strike(Victim, usize),
    /// The boot is refused.
    RefuseBoot,
    /// The guest panics instead of coming up.
    Panic,
    /// The guest never comes up.
    Silent,
    /// The guest tells of events as fast as it can, most of them nonsense.
    Flood,
    /// Once asked what a container uses, this process takes more memory than a test would allow it.
    Greedy,
}

/// Who dies, or what goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// This process, and the guest with it.
    Monitor,
    /// The agent: its connection breaks, the VM goes on.
    Agent,
    /// The shim.
    Shim,
    /// The file broker.
    Broker,
    /// The room on the disk in the folder `disk`.
    Room,
    /// The network namespaces that are named in the file `netns`.
    Namespace,
}

impl Fault {
    /// From the command line.
    pub fn parse(word: Option<&str>) -> Self {
        let word = word.unwrap_or_default();
        if let Some((victim, step)) = word.split_once('@') {
            let victim = match victim {
                "monitor" => Victim::Monitor,
                "agent" => Victim::Agent,
                "shim" => Victim::Shim,
                "broker" => Victim::Broker,
                "room" => Victim::Room,
                "namespace" => Victim::Namespace,
                other => panic!("{other} cannot die"),
            };
            return Self::Strike(victim, step.parse().unwrap());
        }
        match word {
            "" => Self::None,
            "refuse-boot" => Self::RefuseBoot,
            "panic" => Self::Panic,
            "silent" => Self::Silent,
            "flood" => Self::Flood,
            "greedy" => Self::Greedy,
            other => Self::DieAt(known(other)),
        }
    }

    /// A step: what is to go wrong now, does.
    pub fn at(self, step: &str) {
        let number = COUNT.fetch_add(1, Ordering::SeqCst) + 1;
        note("steps", step);
        match self {
            Self::DieAt(name) if name == known(step) => exit(9),
            Self::Strike(victim, when) if when == number => victim.strike(),
            Self::Greedy if step == "usage" => {
                // Every page is written to. Where nothing holds it, it ends all the same.
                let taken = vec![1_u8; GREED];
                exit(if std::hint::black_box(taken).is_empty() { 0 } else { 9 });
            }
            _ => {}
        }
    }
}

impl Victim {
    fn strike(self) {
        match self {
            Self::Monitor => exit(9),
            Self::Agent => {
                if let Some(connection) = AGENT.get() {
                    connection.shutdown(std::net::Shutdown::Both).unwrap();
                }
            }
            Self::Shim => kill(getppid(), Signal::SIGKILL).unwrap(),
            Self::Room => {
                // Until there is neither room nor a name for another file.
                let ballast = |number: u32| folder().join("disk").join(format!("ballast-{number}"));
                let write = |number: &u32| fs::write(ballast(*number), [0; 4096]).is_ok();
                let full = (0..).find(|number| !write(number)).unwrap();
                (full + 1..).find(|number| fs::File::create(ballast(*number)).is_err()).unwrap();
            }
            Self::Namespace => {
                for name in fs::read_to_string(folder().join("netns")).unwrap().lines() {
                    let deleted = Command::new("ip").args(["netns", "del", name]).status().unwrap();
                    assert!(deleted.success());
                }
            }
            Self::Broker => {
                let mark = format!("broker\0{}", folder().display());
                let numbers = fs::read_dir("/proc").unwrap().flatten();
                for pid in numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
                    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                    if String::from_utf8_lossy(&line).contains(&mark) {
                        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
                    }
                }
            }
        }
    }
}

/// The agent's end of its connection, to be broken.
pub fn agent_connection(connection: &UnixStream) {
    AGENT.set(connection.try_clone().unwrap()).unwrap();
}

/// Tells the test something: a line in a file in its folder.
pub fn note(file: &str, line: &str) {
    use std::io::Write;
    let path = folder().join(file);
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    writeln!(file, "{line}").unwrap();
}

/// A number that the test has told, in a file in its folder.
pub fn told(file: &str) -> Option<u32> {
    fs::read_to_string(folder().join(file)).ok()?.trim().parse().ok()
}

fn folder() -> PathBuf {
    std::env::args().nth(2).unwrap().into()
}

fn known(step: &str) -> &'static str {
    STEPS.into_iter().find(|known| *known == step).unwrap_or_else(|| panic!("no step is called {step}"))
}
