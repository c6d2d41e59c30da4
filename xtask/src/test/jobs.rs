//! Test programs that each run in a test host of their own, several hosts at once.
//!
//! An emulated host has one processor (tests/host/README.md says why), so that as many run as this machine has
//! processors. What a job prints comes out in one piece, when it is done.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::io::Write;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::runner::{Count, Seen, watch};
use crate::shell::{Error, output, say};

/// A test program and the command lines that run it.
pub struct Job {
    name: String,
    work: Work,
}

enum Work {
    /// A script that counts for itself.
    Script(Box<dyn Fn() -> Command + Send + Sync>),
    /// A libtest program: some of its tests, by name.
    Tests { names: Vec<String>, command: CommandFor },
}

/// The command line that runs the tests it is given.
type CommandFor = Box<dyn Fn(&[String]) -> Command + Send + Sync>;

/// Where the hosts of the jobs come from.
#[derive(Clone, Copy, Debug)]
pub struct Hosts {
    /// How many run at once.
    pub at_once: usize,
    /// How often a test is tried.
    pub attempts: u32,
}

impl Job {
    /// A script that ends with `N passed, N failed`.
    pub fn script(name: &str, command: impl Fn() -> Command + Send + Sync + 'static) -> Self {
        Self { name: name.to_owned(), work: Work::Script(Box::new(command)) }
    }

    /// The tests `names` of a libtest program; `command` makes the command line that runs those that it is given.
    pub fn tests(
        name: &str,
        names: Vec<String>,
        command: impl Fn(&[String]) -> Command + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.to_owned(), work: Work::Tests { names, command: Box::new(command) } }
    }

    /// How many tests it has; a script is taken to have many.
    fn size(&self) -> usize {
        match &self.work {
            Work::Script(_) => usize::MAX,
            Work::Tests { names, .. } => names.len(),
        }
    }

    fn run(&self, attempts: u32, out: &mut dyn Write) -> Result<Count, Error> {
        match &self.work {
            Work::Script(command) => Ok(watch(&mut command(), out)?.count),
            Work::Tests { names, command } => {
                attempted(attempts, names.clone(), |left| watch(&mut command(left), out))
            }
        }
    }
}

/// The names of a libtest program's tests that contain `filter`, those marked to be ignored left out.
pub fn names_of(binary: &str, filter: Option<&str>) -> Result<Vec<String>, Error> {
    let list = |more: &[&str]| {
        output(Command::new(binary).args(["--list", "--format", "terse"]).args(more).args(filter))
    };
    let ignored = list(&["--ignored"])?;
    let name = |line: &str| line.strip_suffix(": test").map(str::to_owned);
    Ok(list(&[])?
        .lines()
        .filter(|line| !ignored.lines().any(|other| other == *line))
        .filter_map(name)
        .collect())
}

/// When what a job prints is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// In one piece, when it is done.
    WhenDone,
    /// Line by line, each with the job's name before it.
    AsItComes,
}

/// Lines with a name before each.
struct Named<'a, W: Write> {
    name: &'a str,
    line: Vec<u8>,
    out: W,
}

impl<W: Write> Write for Named<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let line = [self.name.as_bytes(), b": ", &self.line].concat();
                self.line.clear();
                self.out.write_all(&line)?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// Runs all jobs to their end, whatever fails: those with the most tests first, so that the last ones are short and all hosts end
/// at about the same time.
pub fn run_all(hosts: Hosts, shown: Shown, mut jobs: Vec<Job>) -> Result<Count, Error> {
    jobs.sort_by_key(|job| Reverse(job.size()));
    let queue = Mutex::new(VecDeque::from(jobs));
    let total = Mutex::new(Ok(Count::default()));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    std::thread::scope(|scope| {
        for _ in 0..hosts.at_once.max(1) {
            scope.spawn(|| {
                while let Some(job) = next() {
                    say(&format!("{}: begun", job.name));
                    let begun = Instant::now();
                    let mut out = Vec::new();
                    let count = match shown {
                        Shown::WhenDone => job.run(hosts.attempts, &mut out),
                        Shown::AsItComes => {
                            let (line, stdout) = (Vec::new(), std::io::stdout());
                            job.run(hosts.attempts, &mut Named { name: &job.name, line, out: stdout })
                        }
                    };
                    let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                    say(&format!("{}, in {} s:", job.name, begun.elapsed().as_secs()));
                    // Whoever reads our output may have gone.
                    let _ = std::io::stdout().write_all(&out);
                    match (count, &mut *total) {
                        (Ok(count), Ok(total)) => *total += count,
                        (Err(error), Ok(_)) => *total = Err(error),
                        (_, Err(_)) => {}
                    }
                }
            });
        }
    });
    total.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Runs tests, and those that have not passed again, at most so often. QEMU's emulation of a processor can lose a guest,
/// or hang as a whole (tests/host/README.md): what fails in each of several fresh hosts is a failure.
fn attempted(
    attempts: u32,
    mut left: Vec<String>,
    mut run: impl FnMut(&[String]) -> Result<Seen, Error>,
) -> Result<Count, Error> {
    let all = left.len() as u64;
    for attempt in 1..=attempts {
        let seen = run(&left)?;
        if seen.count == (Count { passed: left.len() as u64, failed: 0 }) {
            left.clear();
        }
        left.retain(|name| !seen.passes.contains(name));
        if left.is_empty() {
            break;
        }
        if attempt < attempts {
            say(&format!("once more, in a fresh emulated host: {}", left.join(" ")));
        }
    }
    let failed = left.len() as u64;
    Ok(Count { passed: all - failed, failed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_not_passed_is_tried_again_and_then_failed() {
        let names = || vec!["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let rounds = std::cell::RefCell::new(Vec::new());
        let run = |passes: &'static [&'static str]| {
            let rounds = &rounds;
            move |left: &[String]| {
                rounds.borrow_mut().push(left.to_vec());
                let passes = left.iter().filter(|name| passes.contains(&name.as_str())).cloned().collect();
                Ok(Seen { passes, ..Seen::default() })
            }
        };
        assert_eq!(attempted(3, names(), run(&["a", "b", "c"])).unwrap(), Count { passed: 3, failed: 0 });
        assert_eq!(rounds.take(), [names()]);
        assert_eq!(attempted(3, names(), run(&["b"])).unwrap(), Count { passed: 1, failed: 2 });
        assert_eq!(rounds.take(), [names(), vec!["a".into(), "c".into()], vec!["a".into(), "c".into()]]);
        assert_eq!(attempted(1, names(), run(&[])).unwrap(), Count { passed: 0, failed: 3 });
        // What a test writes to standard error can stand between its name and its result.
        let all = |_: &[String]| Ok(Seen { count: Count { passed: 3, failed: 0 }, passes: Vec::new() });
        assert_eq!(attempted(1, names(), all).unwrap(), Count { passed: 3, failed: 0 });
    }

    #[test]
    fn every_job_runs_and_counts_whatever_fails() {
        let shell = |script: &'static str| {
            move || {
                let mut command = Command::new("sh");
                command.args(["-c", script]);
                command
            }
        };
        let jobs = vec![
            Job::script("good", shell("echo '3 passed, 0 failed'")),
            Job::script("bad", shell("echo '1 passed, 2 failed'; exit 1")),
            Job::script("lost", shell("exit 125")),
            Job::tests("tests", vec!["a".into(), "b".into()], move |left| {
                let mut command = Command::new("sh");
                command.args(["-c", "echo test a ... ok", "tests"]).args(left);
                command
            }),
        ];
        let total = run_all(Hosts { at_once: 2, attempts: 2 }, Shown::WhenDone, jobs).unwrap();
        assert_eq!(total, Count { passed: 5, failed: 4 });
    }

    #[test]
    fn lines_have_the_jobs_name_before_them() {
        let mut out = Vec::new();
        let mut named = Named { name: "soak", line: Vec::new(), out: &mut out };
        for piece in ["a li", "ne\nanother\n", "the rest"] {
            named.write_all(piece.as_bytes()).unwrap();
        }
        assert_eq!(out, b"soak: a line\nsoak: another\n");
    }
}
