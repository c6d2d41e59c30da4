//! A program of the client's that takes a process's output: containerd's logging protocol (containerd, docs/runtime-v2.md
//! "Logging").
//!
//! It has `CONTAINER_ID` and `CONTAINER_NAMESPACE` and nothing else in its environment, the output on descriptors 3 and 4, and
//! says that it is ready on descriptor 5, by a byte or by closing it. Standard input and output are not its business.
//!
//! It sees the end of the output before anybody asks it to end, and gets time to write what it has.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

/// The first of the descriptors that it is given: output, errors, readiness.
const FIRST_FD: RawFd = 3;
const FDS: usize = 3;
/// How long it may take to be ready.
const READY_DEADLINE: Duration = Duration::from_secs(30);
/// How long it may take to end by itself once it has seen the end of the output.
const END_DEADLINE: Duration = Duration::from_secs(2);
/// How long it may take to end once it was asked to, as with containerd's own shim.
const TERMINATE_DEADLINE: Duration = Duration::from_secs(12);

/// How a logger says that it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadySign {
    /// It writes a byte or closes the descriptor (`binary://`).
    ByteOrEnd,
    /// It writes a byte: an end without one is a failure (`binary-v2://`).
    Byte,
}

/// Which program, and how it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggerCommand {
    /// The executable, absolute.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// How it says that it is ready.
    pub sign: ReadySign,
}

/// For which process a logger runs.
#[derive(Clone, Copy, Debug)]
pub struct LoggedProcess<'a> {
    /// Namespace of the container's id.
    pub namespace: &'a str,
    /// The container's id, or the exec's for an exec, as with containerd's own shim.
    pub id: &'a str,
}

/// A logger that runs. It is killed when dropped before its [`end`](Self::end).
pub struct Logger {
    child: Child,
    program: PathBuf,
}

/// The descriptors that it is given.
struct LoggerEnds {
    stdout: OwnedFd,
    stderr: OwnedFd,
    ready: OwnedFd,
}

impl Logger {
    /// Starts a logger and waits until it is ready. Returns it, and where its two streams are written, without blocking.
    pub async fn start(
        command: &LoggerCommand,
        process: LoggedProcess<'_>,
    ) -> io::Result<(Self, [pipe::Sender; 2])> {
        let [(stdout, out), (stderr, err), (ready, told)] = [new_pipe()?, new_pipe()?, new_pipe()?];
        let child = spawn(command, process, &LoggerEnds { stdout, stderr, ready: told })?;
        // Only the logger holds its ends from here on: who closes one is seen.
        let logger = Self { child, program: command.program.clone() };
        let mut ready = pipe::Receiver::from_owned_fd(ready)?;
        let mut byte = [0];
        let said = tokio::time::timeout(READY_DEADLINE, ready.read(&mut byte)).await;
        match (said, command.sign) {
            (Err(_elapsed), _) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not get ready"));
            }
            (Ok(Ok(0)), ReadySign::Byte) => return Err(io::Error::other("it ended before it was ready")),
            (Ok(said), _) => said?,
        };
        Ok((logger, [pipe::Sender::from_owned_fd(out)?, pipe::Sender::from_owned_fd(err)?]))
    }

    /// Ends it. Its streams must have been closed.
    pub async fn end(mut self) {
        let ended = self.finish().await;
        let program = self.program.display();
        match ended {
            Ok(status) if status.success() => {}
            Ok(status) => log::info!("the logger {program} ended: {status}"),
            Err(error) => log::warn!("the logger {program} cannot be ended: {error}"),
        }
    }

    async fn finish(&mut self) -> io::Result<ExitStatus> {
        if let Ok(ended) = tokio::time::timeout(END_DEADLINE, self.child.wait()).await {
            return ended;
        }
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid {
            // Our child, and not reaped: the number is its own.
            kill(Pid::from_raw(pid), Signal::SIGTERM)?;
        }
        if let Ok(ended) = tokio::time::timeout(TERMINATE_DEADLINE, self.child.wait()).await {
            return ended;
        }
        self.child.start_kill()?;
        self.child.wait().await
    }
}

/// A pipe, reading end first.
fn new_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe2(OFlag::O_CLOEXEC)?)
}

fn spawn(command: &LoggerCommand, process: LoggedProcess<'_>, ends: &LoggerEnds) -> io::Result<Child> {
    // Were one of the numbers free here, the runtime's own pipe to the child could get it and be overwritten; and what is
    // given must itself lie above them.
    let null = File::open("/dev/null")?;
    let above = FIRST_FD + RawFd::try_from(FDS).unwrap_or_default();
    let mut occupied = Vec::new();
    while occupied.last().is_none_or(|last: &OwnedFd| last.as_raw_fd() < above - 1) {
        occupied.push(duplicate_from(&null, FIRST_FD)?);
    }
    let given = [
        duplicate_from(&ends.stdout, above)?,
        duplicate_from(&ends.stderr, above)?,
        duplicate_from(&ends.ready, above)?,
    ];
    let numbers: [RawFd; FDS] = given.each_ref().map(AsRawFd::as_raw_fd);
    let mut child = Command::new(&command.program);
    child
        .args(&command.args)
        .env_clear()
        .env("CONTAINER_ID", process.id)
        .env("CONTAINER_NAMESPACE", process.namespace)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    // SAFETY: the closure runs between fork and exec and makes only async-signal-safe system calls on integers; the
    // descriptors stay open in the parent until after the spawn. dup2 leaves the copies open across the exec.
    unsafe {
        child.pre_exec(move || {
            for (target, source) in (FIRST_FD..).zip(numbers) {
                if libc::dup2(source, target) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    child.spawn()
}

fn duplicate_from(fd: &impl std::os::fd::AsFd, lowest: RawFd) -> io::Result<OwnedFd> {
    let fd = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(lowest))?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn shell(script: &str, sign: ReadySign) -> LoggerCommand {
        LoggerCommand { program: "/bin/sh".into(), args: vec!["-c".into(), script.into()], sign }
    }

    const WEB: LoggedProcess<'static> = LoggedProcess { namespace: "ns", id: "web" };

    #[tokio::test(flavor = "current_thread")]
    async fn a_logger_has_its_streams_and_an_environment_of_two() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log").display().to_string();
        let script = format!(
            "exec 5>&-; {{ /usr/bin/env; ls /proc/self/fd; cat <&3; cat <&4; }} >{file}.new; mv {file}.new {file}"
        );
        let (logger, [mut out, mut err]) =
            Logger::start(&shell(&script, ReadySign::ByteOrEnd), WEB).await.unwrap();
        out.write_all(b"out\n").await.unwrap();
        err.write_all(b"err\n").await.unwrap();
        drop((out, err));
        logger.end().await;
        let said = std::fs::read_to_string(file).unwrap();
        let (environment, rest) = said.split_at(said.find("\n0\n").unwrap() + 1);
        let mut environment: Vec<_> = environment.lines().collect();
        environment.retain(|line| {
            !line.starts_with("PWD=") && !line.starts_with("_=") && !line.starts_with("SHLVL=")
        });
        environment.sort_unstable();
        assert_eq!(environment, ["CONTAINER_ID=web", "CONTAINER_NAMESPACE=ns"]);
        // ls opens one for the folder; from 10 on they are the shell's, or whoever's runs the tests.
        let inherited = rest.lines().filter_map(|line| line.parse().ok()).filter(|fd| (3..10).contains(fd));
        assert!(inherited.eq([3, 4, 5]) && rest.ends_with("out\nerr\n"), "{rest}");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_logger_that_never_gets_ready_is_an_error() {
        let error = Logger::start(&shell("exit 3", ReadySign::Byte), WEB).await.err().unwrap();
        assert_eq!(error.to_string(), "it ended before it was ready");
        Logger::start(&shell("echo >&5; cat <&3", ReadySign::Byte), WEB).await.unwrap();
        let missing = LoggerCommand { program: "/no/such/logger".into(), ..shell("", ReadySign::ByteOrEnd) };
        assert_eq!(Logger::start(&missing, WEB).await.err().unwrap().kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn one_that_goes_on_is_asked_to_end() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log").display().to_string();
        let script =
            format!("trap 'echo asked >{file}; exit' TERM; exec 5>&-; while :; do /bin/sleep 0.1; done");
        let (logger, pipes) = Logger::start(&shell(&script, ReadySign::ByteOrEnd), WEB).await.unwrap();
        drop(pipes);
        logger.end().await;
        assert_eq!(std::fs::read_to_string(file).unwrap(), "asked\n");
    }
}
