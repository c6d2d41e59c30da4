//! Running `hull` as a person in a shell does.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Once;
use std::sync::mpsc::channel;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use tempfile::TempDir;

use crate::leaks::Snapshot;

/// After this long a command does not end, however slow the host.
const NEVER: Duration = Duration::from_secs(240);

/// The folder with the shipped binaries, from `HULL_BIN_DIR` or where `make build` puts them.
pub fn binaries() -> PathBuf {
    std::env::var_os("HULL_BIN_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release"), PathBuf::from)
}

/// `HOST:PORT` of the registry with the fixtures.
pub fn registry() -> String {
    std::env::var("HULL_TEST_REGISTRY").expect("run these tests through tests/fixtures/registry")
}

/// The full name of a fixture.
pub fn image(name: &str) -> String {
    format!("{}/{name}", registry())
}

/// A folder that is removed after the last test.
pub fn scratch() -> PathBuf {
    std::env::var_os("HULL_TEST_SCRATCH").expect("run these tests through tests/fixtures/registry").into()
}

/// The store that tests share, so that an image is pulled once.
pub fn shared_store() -> PathBuf {
    scratch().join("store")
}

/// A place where Hull's state lives, and what the machine looked like before.
pub struct Hull {
    state: TempDir,
    data: PathBuf,
    before: Snapshot,
}

/// What a finished command said.
#[derive(Debug)]
pub struct Said {
    /// As a shell gives it: 128 + n when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Hull {
    /// A fresh state folder over the shared store, which has the smallest fixture.
    pub fn new() -> Self {
        static PULLED: Once = Once::new();
        let hull = Self::over(&shared_store());
        PULLED.call_once(|| drop(hull.ok(["pull", "-q", &image("busybox")])));
        hull
    }

    /// A fresh state folder over a store of the caller's.
    pub fn over(data: &Path) -> Self {
        // Leftovers of the harness itself, the shared store, must not count.
        let state = TempDir::with_prefix("hull-e2e-").unwrap();
        Self { before: Snapshot::take(state.path()), data: data.to_owned(), state }
    }

    /// The state folder.
    pub fn state(&self) -> &Path {
        self.state.path()
    }

    /// A command with the folders set, not yet started.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(binaries().join("hull"));
        command.args(args).stdin(Stdio::null());
        self.settings(&mut command);
        command
    }

    /// Gives a command the environment that `hull` runs in here.
    pub fn settings(&self, command: &mut Command) {
        command.env("HULL_STATE_DIR", self.state.path()).env("HULL_DATA_DIR", &self.data);
        // The plugins take long on an emulated host; tests of the network say so.
        command.env("HULL_NETWORK", "none");
    }

    /// Runs to the end with no input.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Said {
        said(&finished(&mut self.command(args)))
    }

    /// Runs to the end and expects exit code 0.
    pub fn ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        let mut command = self.command(args);
        let said = said(&finished(&mut command));
        assert_eq!(said.code, 0, "{command:?}\nstdout: {}\nstderr: {}", said.out, said.err);
        said.out
    }

    /// Runs to the end with `input`, giving the raw output. The input is written while the output is read.
    pub fn with_input<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>, input: &[u8]) -> Output {
        let mut child = self.piped(args);
        let mut stdin = child.stdin.take().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // The command may end without reading all: that is for the test to judge.
                let _ = stdin.write_all(input);
            });
            child.wait_with_output().unwrap()
        })
    }

    /// Starts with all three streams piped.
    pub fn piped<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Child {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Starts a container in the background and returns its id.
    pub fn detached(&self, options: &[&str], image: &str, words: &[&str]) -> String {
        let image = crate::hull::image(image);
        let args = [&["run", "-d"], options, &[&image], words].concat();
        self.ok(args).trim().to_owned()
    }

    /// What `inspect` says of one container or image.
    pub fn inspect(&self, name: &str) -> serde_json::Value {
        let all: serde_json::Value = serde_json::from_str(&self.ok(["inspect", name])).unwrap();
        all[0].clone()
    }

    /// What the shim wrote down about a running container.
    pub fn shim_record(&self, id: &str) -> serde_json::Value {
        let path = self.state().join("containers").join(id).join("shim.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    /// Fails unless the machine is again as it was before this value was made.
    pub fn left_nothing(self) {
        self.before.assert_unchanged(self.state.path());
    }
}

impl Default for Hull {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Hull {
    fn drop(&mut self) {
        // A failed test must not make the next one fail: end what it left, by what Hull itself knows of it.
        if std::thread::panicking() {
            let listed = said(&self.command(["ps", "-aq", "--no-trunc"]).output().unwrap());
            for id in listed.out.split_whitespace() {
                let console = self.state().join("containers").join(id).join("console.log");
                let console = std::fs::read(console).unwrap_or_default();
                let tail = console.len().saturating_sub(2000);
                eprintln!("console of {id}:\n{}", String::from_utf8_lossy(&console[tail..]));
                let log = self.state().join("containers").join(id).join("shim.log");
                eprintln!("shim of {id}:\n{}", std::fs::read_to_string(log).unwrap_or_default());
                let _ = self.command(["rm", "-f", id]).output();
            }
        }
    }
}

/// Runs a command to its end; one that does not come to it is ended and fails the test.
pub fn finished(command: &mut Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    let (sender, receiver) = channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    match receiver.recv_timeout(NEVER) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            kill(pid, Signal::SIGKILL).unwrap();
            panic!("{command:?} does not end");
        }
    }
}

/// What a finished process said.
pub fn said(output: &Output) -> Said {
    let code = output.status.code().or(output.status.signal().map(|signal| 128 + signal)).unwrap();
    Said {
        code,
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Said {
    /// The reason must be one line that starts with `hull: ` and contains each of `words`.
    #[track_caller]
    pub fn failed(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.out, self.err);
        let reasons: Vec<&str> = self.err.lines().filter(|line| line.starts_with("hull: ")).collect();
        assert_eq!(reasons.len(), 1, "one reason, not {}:\n{}", reasons.len(), self.err);
        let reason = reasons[0].to_lowercase();
        for word in words {
            assert!(reason.contains(&word.to_lowercase()), "{word:?} is not in {:?}", reasons[0]);
        }
    }
}

/// Reads everything that is left.
pub fn drain(from: Option<impl Read>) -> String {
    let mut text = String::new();
    if let Some(mut from) = from {
        from.read_to_string(&mut text).unwrap();
    }
    text
}

/// The value in what `hull metrics` says, of the metric with these words in its line.
pub fn metric(text: &str, name: &str, words: &[&str]) -> Option<f64> {
    let line = text.lines().find(|line| {
        line.starts_with(&format!("{name}{{")) && words.iter().all(|word| line.contains(word))
    })?;
    line.rsplit(' ').next()?.parse().ok()
}
