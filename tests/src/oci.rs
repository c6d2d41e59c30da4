//! OCI bundles, and the command lines of runtimes that run them: Hull's agent, and runc and crun beside it.

use std::ffi::OsStr;
use std::io::{IoSliceMut, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::hull::{Said, binaries, finished, said};

/// What docker lets a container keep.
pub const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Every capability of Linux 6.1.
pub fn all_capabilities() -> Vec<String> {
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
     NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
     SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
     MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
        .split_whitespace()
        .map(|name| format!("CAP_{name}"))
        .collect()
}

/// docker's default profile for a container with docker's default capabilities.
pub fn default_seccomp() -> Value {
    let mut profile: Value =
        serde_json::from_str(include_str!("../../cli/src/spec/seccomp/default.json")).unwrap();
    let among = |rule: &Value, condition: &str| -> Vec<bool> {
        let capabilities = rule[condition]["caps"].as_array().cloned().unwrap_or_default();
        capabilities.iter().map(|name| CAPABILITIES.contains(&name.as_str().unwrap())).collect()
    };
    profile["syscalls"].as_array_mut().unwrap().retain(|rule| {
        among(rule, "includes").iter().all(|has| *has) && !among(rule, "excludes").iter().any(|has| *has)
    });
    profile
}

/// What docker gives a container by default, but for the seccomp profile.
pub fn default_config() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/checker"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
            "noNewPrivileges": false
        },
        "root": {"path": "rootfs"},
        "hostname": "container",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["ro", "nosuid", "noexec", "nodev"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]}
        ],
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "network"}, {"type": "uts"}, {"type": "pid"}, {"type": "ipc"},
                           {"type": "cgroup"}],
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
                            "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
                            "/sys/devices/virtual/powercap", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}

/// RFC 7386: objects are merged, `null` removes, anything else replaces.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(members) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in members {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}

/// A folder with a root file system that has the checker in it, and a place for config.json.
pub struct Bundle {
    folder: TempDir,
}

impl Bundle {
    /// A root file system with nothing but the checker, and no config.json yet.
    pub fn new() -> Self {
        let bundle = Self::empty();
        std::fs::copy(checker(), bundle.root().join("checker")).unwrap();
        bundle
    }

    /// A root file system with a few directories, and no config.json yet.
    pub fn empty() -> Self {
        let folder = TempDir::with_prefix("hull-oci-").unwrap();
        for directory in ["", "tmp", "mnt", "etc"] {
            std::fs::create_dir(folder.path().join("rootfs").join(directory)).unwrap();
        }
        Self { folder }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The root file system.
    pub fn root(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    /// Writes config.json.
    pub fn write(&self, config: &Value) {
        std::fs::write(self.path().join("config.json"), config.to_string()).unwrap();
    }
}

impl Default for Bundle {
    fn default() -> Self {
        Self::new()
    }
}

/// The checker, linked statically: `make test` builds it and says where.
pub fn checker() -> PathBuf {
    PathBuf::from(
        std::env::var_os("HULL_CHECKER").expect("HULL_CHECKER names the checker: run by `make test`"),
    )
}

/// A runtime's command line, with a place for what it remembers.
pub struct Runtime {
    /// For messages.
    pub name: &'static str,
    program: PathBuf,
    root: TempDir,
}

impl Runtime {
    /// The agent's: `HULL_AGENT`, or the one that is shipped.
    pub fn hull() -> Self {
        let shipped = || binaries().join("hull-agent");
        Self::new("hull", std::env::var_os("HULL_AGENT").map_or_else(shipped, PathBuf::from))
    }

    /// Debian's runc.
    pub fn runc() -> Self {
        Self::new("runc", "runc".into())
    }

    /// Debian's crun.
    pub fn crun() -> Self {
        Self::new("crun", "crun".into())
    }

    fn new(name: &'static str, program: PathBuf) -> Self {
        Self { name, program, root: TempDir::with_prefix("hull-oci-root-").unwrap() }
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Where it keeps what it remembers.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// A command, not yet started.
    pub fn command<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.root.path()).args(words).stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Said {
        said(&finished(&mut self.command(words)))
    }

    /// Runs a command that must succeed, and gives its output.
    #[track_caller]
    pub fn ok<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> String {
        let mut command = self.command(words);
        let said = said(&finished(&mut command));
        assert_eq!(said.code, 0, "{command:?}\nstdout: {}\nstderr: {}", said.out, said.err);
        said.out
    }

    /// Creates with output to nowhere: what a created container holds open must not be a pipe that is read here.
    pub fn create(&self, id: &str, bundle: &Bundle) -> Said {
        let log = self.root.path().join(format!("{id}.err"));
        let mut command = self.command(["create", "--bundle", &bundle.path().to_string_lossy(), id]);
        command.stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
        let status = command.status().unwrap();
        let err = std::fs::read_to_string(log).unwrap();
        Said { code: status.code().unwrap_or(-1), out: String::new(), err }
    }

    /// The container's `status`, or nothing where there is no container.
    pub fn status(&self, id: &str) -> Option<String> {
        let said = self.run(["state", id]);
        let state: Value = serde_json::from_str(&said.out).ok()?;
        state["status"].as_str().map(str::to_owned)
    }

    /// Runs a bundle whose process has a terminal, and gives what it wrote.
    pub fn run_with_terminal(&self, id: &str, bundle: &Bundle) -> Result<String, String> {
        let socket = bundle.path().join("console.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let path = bundle.path().to_string_lossy().into_owned();
        let log = bundle.path().join("create.err");
        let mut command =
            self.command(["create", "--bundle", &path, "--console-socket", &socket.to_string_lossy(), id]);
        command.stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
        let created = command.status().unwrap();
        std::fs::remove_file(&socket).unwrap();
        if !created.success() {
            return Err(std::fs::read_to_string(log).unwrap());
        }
        let mut master = std::fs::File::from(received(&listener));
        self.ok(["start", id]);
        let mut output = Vec::new();
        let mut chunk = [0u8; 4096];
        // The end of a terminal without processes is an error.
        while let Ok(count @ 1..) = master.read(&mut chunk) {
            output.extend_from_slice(&chunk[..count]);
        }
        crate::eventually("the container stops", || (self.status(id)? == "stopped").then_some(()));
        self.ok(["delete", id]);
        Ok(String::from_utf8_lossy(&output).into_owned())
    }
}

/// The descriptor that comes over the first connection.
fn received(listener: &UnixListener) -> OwnedFd {
    let (stream, _) = listener.accept().unwrap();
    let mut buffer = [0u8; 256];
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let message =
        recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
    for control in message.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            // SAFETY: the kernel has just made this descriptor for us.
            return unsafe { OwnedFd::from_raw_fd(descriptors[0]) };
        }
    }
    panic!("no descriptor came over the console socket");
}
