//! The debug console: a few questions about the guest that the host's administrator may ask. It only reads.
//!
//! It is there where the kernel's command line says so, which is the host's to write, and nowhere else. What is read may hang or
//! have no end, so a child reads it, for a time and up to a length.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use hull_protocol::agent::DEBUG_ARGUMENT;

use crate::error::Error;
use crate::helper::{self, HelperError, Output};
use crate::reap::Children;

/// The longest answer, in bytes.
const ANSWER_MAX: u64 = 1 << 20;
/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// The longest record of the kernel's log (Linux: CONSOLE_EXT_LOG_MAX).
const RECORD_MAX: usize = 8192;
/// Processes and cgroups that are shown.
const ENTRIES_MAX: usize = 4096;

const HELP: &str = "\
ps            processes
cgroups       containers' cgroups: memory, processes, processor time
mounts        the agent's mounts
net           links, addresses, routes
dmesg         the kernel's log
ls DIRECTORY  names of files
cat FILE      a file; those of a container are below /run/hull/containers/ID/rootfs
";

/// What is read for `net`.
const NET: [&str; 5] =
    ["/proc/net/dev", "/proc/net/route", "/proc/net/fib_trie", "/proc/net/if_inet6", "/proc/net/ipv6_route"];

/// Whether there is a debug console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Console {
    /// There is none.
    #[default]
    Off,
    /// The host may ask.
    On,
}

impl Console {
    /// What the kernel's command line says.
    pub fn of_kernel() -> Self {
        Self::of(&fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }

    fn of(line: &str) -> Self {
        if line.split_ascii_whitespace().any(|word| word == DEBUG_ARGUMENT) { Self::On } else { Self::Off }
    }
}

/// A question.
#[derive(Debug, PartialEq, Eq)]
enum Question<'a> {
    Help,
    Processes,
    Cgroups,
    Mounts,
    Network,
    Log,
    List(&'a Path),
    Show(&'a Path),
}

impl<'a> Question<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let path = Path::new(rest.trim());
        Some(match word {
            "ls" if path.is_absolute() => Self::List(path),
            "cat" if path.is_absolute() => Self::Show(path),
            _ if !rest.is_empty() => return None,
            "help" => Self::Help,
            "ps" => Self::Processes,
            "cgroups" => Self::Cgroups,
            "mounts" => Self::Mounts,
            "net" => Self::Network,
            "dmesg" => Self::Log,
            _ => return None,
        })
    }

    fn answer(&self, to: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Help => to.write_all(HELP.as_bytes()),
            Self::Processes => processes(to),
            Self::Cgroups => cgroups(Path::new("/sys/fs/cgroup"), to),
            Self::Mounts => show(Path::new("/proc/self/mountinfo"), to),
            Self::Network => NET.iter().try_for_each(|file| {
                writeln!(to, "{file}:")?;
                // A kernel without a protocol has no file for it.
                show(Path::new(file), to).or_else(|error| writeln!(to, "{error}"))
            }),
            Self::Log => log(to),
            Self::List(path) => list(path, to),
            Self::Show(path) => show(path, to),
        }
    }
}

/// Answers one line. What goes wrong with a file is part of the answer.
pub async fn ask(console: Console, children: &Children, line: &str) -> Result<Output, Error> {
    if console == Console::Off {
        return Err(Error::NoConsole);
    }
    let question = Question::parse(line).ok_or(Error::NoCommand)?;
    let answer = |to: &mut io::PipeWriter| {
        if let Err(error) = question.answer(to) {
            // Who asks is gone, if this fails too.
            let _ = writeln!(to, "{error}");
        }
    };
    match tokio::time::timeout(DEADLINE, helper::output(children, ANSWER_MAX, answer)).await {
        Ok(output) => output.map_err(|error: HelperError| Error::system("answer")(io::Error::other(error))),
        Err(_elapsed) => Err(Error::Deadline("the answer")),
    }
}

fn open(path: &Path) -> io::Result<fs::File> {
    // A pipe that nobody writes to is not waited for.
    fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

fn show(path: &Path, to: &mut impl Write) -> io::Result<()> {
    io::copy(&mut open(path)?, to).map(drop)
}

fn list(path: &Path, to: &mut impl Write) -> io::Result<()> {
    for entry in fs::read_dir(path)?.flatten().take(ENTRIES_MAX) {
        let name = entry.file_name();
        match entry.path().symlink_metadata() {
            Ok(meta) => {
                let (mode, uid, gid, size) = (meta.mode(), meta.uid(), meta.gid(), meta.size());
                writeln!(to, "{mode:06o} {uid:>5} {gid:>5} {size:>12} {}", name.to_string_lossy())?;
            }
            Err(error) => writeln!(to, "{} ({error})", name.to_string_lossy())?,
        }
    }
    Ok(())
}

fn processes(to: &mut impl Write) -> io::Result<()> {
    writeln!(to, "{:>7} {:>7} S {:>8} {:32} COMMAND", "PID", "PPID", "KIB", "CGROUP")?;
    let mut pids: Vec<u32> = fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .take(ENTRIES_MAX)
        .collect();
    pids.sort_unstable();
    for pid in pids {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let status = read("status");
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|rest| rest.split_ascii_whitespace().next()).unwrap_or("-").to_owned()
        };
        let command = read("cmdline").replace('\0', " ");
        let command = if command.is_empty() { format!("[{}]", value("Name:")) } else { command };
        let cgroup = read("cgroup");
        let cgroup = cgroup.trim_end().strip_prefix("0::").unwrap_or("-");
        let (parent, state, memory) = (value("PPid:"), value("State:"), value("VmRSS:"));
        writeln!(to, "{pid:>7} {parent:>7} {state} {memory:>8} {cgroup:32} {}", command.trim_end())?;
    }
    Ok(())
}

fn cgroups(root: &Path, to: &mut impl Write) -> io::Result<()> {
    writeln!(to, "{:>14} {:>14} {:>6} {:>14} CGROUP", "MEMORY", "MOST", "PIDS", "CPU USEC")?;
    let mut waiting = vec![root.to_owned()];
    let mut shown = 0;
    while let Some(folder) = waiting.pop()
        && shown < ENTRIES_MAX
    {
        let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
        let number = |file: &str| Some(read(file).trim().to_owned()).filter(|text| !text.is_empty());
        let dash = || "-".to_owned();
        let cpu = read("cpu.stat");
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap_or("-");
        let [memory, most, pids] =
            ["memory.current", "memory.max", "pids.current"].map(|file| number(file).unwrap_or_else(dash));
        writeln!(to, "{memory:>14} {most:>14} {pids:>6} {cpu:>14} {}", folder.display())?;
        shown += 1;
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        waiting.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    Ok(())
}

/// The records of /dev/kmsg: `priority,sequence,microseconds,flags;text`, and further lines with a space before them.
fn log(to: &mut impl Write) -> io::Result<()> {
    let mut file = open(Path::new("/dev/kmsg"))?;
    let mut record = [0; RECORD_MAX];
    loop {
        let length = match file.read(&mut record) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            // The end, as it is read without waiting.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // Overwritten while it was read: the next is the oldest that is left.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => continue,
            Err(error) => return Err(error),
        };
        let text = String::from_utf8_lossy(&record[..length]);
        let (head, message) = text.split_once(';').unwrap_or(("", &text));
        let micros: u64 = head.split(',').nth(2).and_then(|text| text.parse().ok()).unwrap_or_default();
        let line = message.lines().next().unwrap_or_default();
        writeln!(to, "[{:>5}.{:06}] {line}", micros / 1_000_000, micros % 1_000_000)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_command_line_decides() {
        assert_eq!(Console::of("console=ttyS0 quiet"), Console::Off);
        assert_eq!(Console::of(&format!("quiet x{DEBUG_ARGUMENT} {DEBUG_ARGUMENT}x")), Console::Off);
        assert_eq!(Console::of(&format!("quiet {DEBUG_ARGUMENT}\n")), Console::On);
    }

    #[test]
    fn questions_are_understood_or_not() {
        assert_eq!(Question::parse(" ps \n"), Some(Question::Processes));
        assert_eq!(Question::parse("cat /etc/a b"), Some(Question::Show(Path::new("/etc/a b"))));
        for line in ["", "sh", "cat", "cat relative", "ls ..", "ps aux", "rm /x", "cat\0/x"] {
            assert_eq!(Question::parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn answers_have_a_line_for_each() {
        let mut answer = Vec::new();
        processes(&mut answer).unwrap();
        let text = String::from_utf8(answer).unwrap();
        let own = std::process::id().to_string();
        assert!(text.lines().any(|line| line.split_whitespace().next() == Some(&own)), "{text}");
        let mut answer = Vec::new();
        list(Path::new("/proc/self"), &mut answer).unwrap();
        assert!(String::from_utf8(answer).unwrap().contains(" status\n"));
    }
}
