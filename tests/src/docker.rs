//! A docker of the test's own: its own daemon, containerd, folders and socket, with Hull among its runtimes.
//!
//! `HULL_DOCKER_DIR` names the folder with `dockerd`, `docker` and what they start (`tests/fixtures/engines` makes one).

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::hull::{Said, binaries, finished, image, said, scratch};
use crate::leaks::Snapshot;
use crate::{eventually, served};

/// The image that is loaded, the smallest fixture.
pub const IMAGE: &str = "box:latest";

/// The daemon that a test has left as it had found it, for the next one: to start one takes longer than most tests. It ends with the
/// host.
static IDLE: Mutex<Option<Docker>> = Mutex::new(None);

fn idle() -> MutexGuard<'static, Option<Docker>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A docker daemon, and what the machine looked like before a test of it.
pub struct Docker {
    folder: TempDir,
    daemon: Child,
    before: Option<Snapshot>,
}

fn programs() -> PathBuf {
    std::env::var_os("HULL_DOCKER_DIR")
        .map(PathBuf::from)
        .expect("HULL_DOCKER_DIR names a folder with dockerd")
}

impl Docker {
    /// One that has the image and no containers.
    pub fn start() -> Self {
        let kept = idle().take();
        let mut docker = kept.unwrap_or_else(Self::begin);
        docker.before = Some(Snapshot::take(&docker.file("nowhere")));
        docker
    }

    fn begin() -> Self {
        // Nobody drops the last daemon: its folder goes with those around it.
        let folder = TempDir::with_prefix_in("d-", scratch()).unwrap();
        let file = |name: &str| folder.path().join(name);
        let configuration = json!({
            "data-root": file("data"),
            "exec-root": file("exec"),
            "pidfile": file("pid"),
            "hosts": [format!("unix://{}", file("docker.sock").display())],
            "runtimes": {"hull": {"runtimeType": "io.containerd.hull.v2"}},
            "default-runtime": "hull",
        });
        fs::write(file("daemon.json"), configuration.to_string()).unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        let log = File::create(file("log")).unwrap();
        let daemon = Command::new(programs().join("dockerd"))
            .arg("--config-file")
            .arg(file("daemon.json"))
            .env("PATH", format!("{}:{}:{path}", programs().display(), binaries().display()))
            .env("HULL_STATE_DIR", file("hull"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let docker = Self { folder, daemon, before: None };
        served(&docker.file("docker.sock"));
        eventually("dockerd answers", || docker.run(["version"]).code.eq(&0).then_some(()));
        docker.load();
        docker
    }

    fn load(&self) {
        let archive = self.file("image.tar");
        let copied = Command::new("skopeo")
            .args(["copy", "--quiet", "--src-tls-verify=false"])
            .arg(format!("docker://{}", image("busybox")))
            .arg(format!("docker-archive:{}:{IMAGE}", archive.display()))
            .status()
            .unwrap();
        assert!(copied.success());
        self.ok(["load", "--quiet", "--input", &archive.display().to_string()]);
    }

    /// A file in its folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command of `docker`, not yet started.
    pub fn command<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(programs().join("docker"));
        command
            .env("DOCKER_HOST", format!("unix://{}", self.file("docker.sock").display()))
            .env("DOCKER_CONFIG", self.file("client"))
            .args(words)
            .stdin(Stdio::null());
        command
    }

    /// Runs `docker` to its end.
    pub fn run<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Said {
        said(&finished(&mut self.command(words)))
    }

    /// Runs `docker` to its end and expects exit code 0. Returns standard output without the last line's end.
    #[track_caller]
    pub fn ok<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> String {
        let mut command = self.command(words);
        let said = said(&finished(&mut command));
        assert_eq!(said.code, 0, "{command:?}\nstdout: {}\nstderr: {}", said.out, said.err);
        said.out.trim_end().to_owned()
    }

    /// What `docker inspect` says of a container.
    #[track_caller]
    pub fn inspect(&self, name: &str) -> Value {
        let all: Value = serde_json::from_str(&self.ok(["inspect", name])).unwrap();
        all[0].clone()
    }

    /// Waits until a container is in this state.
    #[track_caller]
    pub fn becomes(&self, name: &str, status: &str) {
        eventually(&format!("{name} is {status}"), || {
            (self.inspect(name)["State"]["Status"] == status).then_some(())
        });
    }

    /// Fails unless the machine is again as it was before the test; then keeps the daemon for the next.
    #[track_caller]
    pub fn left_nothing(mut self) {
        let nowhere = self.file("nowhere");
        self.before.take().unwrap().assert_unchanged(&nowhere);
        *idle() = Some(self);
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.file("log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("the end of dockerd's log:");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
            let ids = self.run(["ps", "-aq"]).out;
            for id in ids.split_whitespace() {
                let _ = self.command(["rm", "-f", id]).output();
            }
        }
        if let Ok(pid) = self.daemon.id().try_into() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.daemon.wait();
    }
}
