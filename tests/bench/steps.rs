//! A container's start in steps, from the request's last byte to the program's first instruction, as strace sees them.
//!
//! Two runs: in one strace stops at each system call, which counts them; in the other at those alone between which a step lies, so that
//! the time is the container's own and not strace's.

use std::time::Duration;

use tempfile::TempDir;

use crate::served::Served;

/// Containers in each run.
const CONTAINERS: usize = 9;

/// A part of a container's start.
#[derive(Debug, PartialEq)]
pub struct Step {
    pub name: &'static str,
    /// System calls, of everybody.
    pub calls: usize,
    pub time: Duration,
}

/// Who makes the call with which a step begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Agent,
    /// The container's init, as it becomes one.
    Init,
}

/// A step's name, who begins it, and the call's line: how it begins, and a word in it.
type Mark = (&'static str, Who, (&'static str, &'static str));

const MARKS: [Mark; 14] = [
    ("request decoded", Who::Agent, ("recvfrom(", "CreateContainer")),
    ("cgroup made, limits", Who::Agent, ("mkdir(", "/bench\"")),
    ("device filter", Who::Agent, ("bpf(", "PROG_LOAD")),
    ("root file system: overlay of disk and tmpfs, by a helper", Who::Agent, ("clone3(", "")),
    ("clone into the cgroup and new namespaces", Who::Agent, ("clone3(", "CLONE_NEWPID")),
    ("session, keyring, cgroup namespace", Who::Init, ("setsid(", "")),
    ("mounts", Who::Init, ("mount(", "MS_PRIVATE")),
    ("devices and links in /dev; read-only and masked paths", Who::Init, ("mknodat(", "")),
    ("pivot_root", Who::Init, ("fchdir(", "")),
    ("host name, loopback", Who::Init, ("sethostname(", "")),
    ("streams, capabilities, user; the program found", Who::Init, ("dup2(", "")),
    ("ready; the client asks for the start", Who::Init, ("sendmsg(", "")),
    ("seccomp filter", Who::Init, ("<... recvmsg resumed", "")),
    ("exec, up to the program's first call", Who::Init, ("execve(", "")),
];

/// What strace stops at in the second run: the calls above, and one that each program begins with.
const STOPS: &str =
    "trace=recvfrom,mkdir,bpf,clone3,setsid,mount,mknodat,fchdir,sethostname,dup2,sendmsg,recvmsg,execve,brk";

/// The steps of a container of `true`: numbers of calls of one of them, the middle of the times.
pub fn measure() -> Vec<Step> {
    let counted = last(traced(&[]));
    let timed = traced(&["--seccomp-bpf", "-e", STOPS]);
    let middle = |step: usize| {
        let mut times: Vec<Duration> = timed.iter().map(|container| container[step].time).collect();
        times.sort_unstable();
        times[times.len() / 2]
    };
    counted.into_iter().enumerate().map(|(number, step)| Step { time: middle(number), ..step }).collect()
}

fn last(mut containers: Vec<Vec<Step>>) -> Vec<Step> {
    containers.pop().expect("a container")
}

fn traced(options: &[&str]) -> Vec<Vec<Step>> {
    let log = TempDir::new().unwrap();
    let file = log.path().join("strace").to_string_lossy().into_owned();
    let words = [&["strace", "-f", "-ttt", "-s", "256", "-o", &file], options].concat();
    let mut served = Served::start(&words);
    for _ in 0..CONTAINERS {
        served.timed_container();
    }
    served.stop();
    let containers = split(&std::fs::read_to_string(&file).unwrap());
    assert_eq!(containers.len(), CONTAINERS, "{file}");
    containers
}

struct Line<'a> {
    pid: &'a str,
    time: f64,
    call: &'a str,
}

impl<'a> Line<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (pid, rest) = text.split_once(' ')?;
        let (time, call) = rest.trim_start().split_once(' ')?;
        Some(Self { pid, time: time.parse().ok()?, call })
    }

    fn has(&self, (begin, word): (&str, &str)) -> bool {
        self.call.starts_with(begin) && self.call.contains(word)
    }

    fn is_new(&self) -> bool {
        !self.call.starts_with("<...") && !self.call.starts_with("+++") && !self.call.starts_with("---")
    }
}

/// The steps of each container in a trace.
fn split(trace: &str) -> Vec<Vec<Step>> {
    let lines: Vec<Line<'_>> = trace.lines().filter_map(Line::parse).collect();
    let mut containers = Vec::new();
    let mut from = 0;
    while let Some(begun) = lines[from..].iter().position(|line| line.has(MARKS[0].2)) {
        let (steps, end) = container(&lines, from + begun);
        containers.push(steps);
        from = end;
    }
    containers
}

/// The steps of the container that begins there, and where the last of them ends.
fn container(lines: &[Line<'_>], begun: usize) -> (Vec<Step>, usize) {
    let agent = lines[begun].pid;
    let mut init = None;
    let mut at = vec![begun];
    for (name, who, words) in MARKS.into_iter().skip(1) {
        let from = at[at.len() - 1] + 1;
        let is = |line: &Line<'_>| match who {
            Who::Agent => line.pid == agent,
            Who::Init => init.map_or(line.pid != agent, |init| line.pid == init),
        };
        let found = lines[from..].iter().position(|line| is(line) && line.has(words));
        let found = from + found.unwrap_or_else(|| panic!("no {words:?}, with which begins: {name}"));
        if who == Who::Init {
            init = Some(lines[found].pid);
        }
        at.push(found);
    }
    let exec = at[at.len() - 1];
    let first = lines[exec + 1..].iter().position(|line| Some(line.pid) == init && line.is_new());
    at.push(exec + 1 + first.expect("the program's first call"));
    let steps = MARKS.iter().zip(at.windows(2)).map(|((name, ..), ends)| Step {
        name,
        calls: lines[ends[0]..ends[1]].iter().filter(|line| line.is_new()).count(),
        time: Duration::from_secs_f64((lines[ends[1]].time - lines[ends[0]].time).max(0.0)),
    });
    (steps.collect(), at[at.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = r#"4 1.0 recvfrom(14, "...CreateContainer...", 256) = 256
4 1.5 write(4, "x", 1) = 1
4 2.0 mkdir("/cg/bench", 0777) = 0
4 3.0 bpf(BPF_PROG_LOAD, {}, 24) = 16
4 4.0 clone3({flags=CLONE_PIDFD}, 88) = 9
9 4.5 mkdirat(AT_FDCWD, "/run/bench", 0755) = 0
4 5.0 clone3({flags=CLONE_NEWPID <unfinished ...>
10 6.0 setsid( <unfinished ...>
4 6.5 <... clone3 resumed>) = 10
10 6.6 <... setsid resumed>) = 1
10 7.0 mount("none", "/", NULL, MS_REC|MS_PRIVATE, NULL) = 0
10 7.5 fsopen("proc", 0) = 3
10 8.0 mknodat(27, "null", 0) = 0
10 8.5 mknodat(27, "zero", 0) = 0
10 9.0 fchdir(24) = 0
10 9.5 pivot_root(".", ".") = 0
10 10.0 sethostname("x", 1) = 0
10 11.0 dup2(1, 2) = 2
10 12.0 sendmsg(23, {}) = 1
10 12.1 recvmsg(23,  <unfinished ...>
4 12.5 sendmsg(22, {}) = 1
10 13.0 <... recvmsg resumed>) = 1
10 13.5 seccomp(1) = 0
10 14.0 execve("/true", []) = 0
10 15.5 brk(NULL) = 1
"#;

    #[test]
    fn a_trace_is_split_at_its_marks() {
        let containers = split(&format!("{TRACE}{TRACE}"));
        assert_eq!(containers.len(), 2);
        for steps in containers {
            let of = |number: usize| (steps[number].calls, steps[number].time.as_secs_f64());
            assert_eq!(steps.len(), MARKS.len());
            assert_eq!((of(0), of(3), of(4)), ((2, 1.0), (2, 1.0), (1, 1.0)));
            assert_eq!((of(5), of(6), of(7), of(8)), ((1, 1.0), (2, 1.0), (2, 1.0), (2, 1.0)));
            assert_eq!((of(11), of(12), of(13)), ((3, 1.0), (1, 1.0), (1, 1.5)));
            let calls: usize = steps.iter().map(|step| step.calls).sum();
            assert_eq!(calls, 21);
        }
    }
}
