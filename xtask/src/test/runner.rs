//! Running a test program and reading what it says: its closing line, and which tests have passed.

use std::io::{BufRead, BufReader, Write};
use std::ops::AddAssign;
use std::process::{Command, Stdio};

use crate::shell::Error;

/// What a runner's closing line said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub passed: u64,
    pub failed: u64,
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// What was read from a test program's output.
#[derive(Debug, Default)]
pub struct Seen {
    pub count: Count,
    /// The tests that libtest says have passed.
    pub passes: Vec<String>,
}

/// Runs a test program, passes its output on to `out` as it comes, and reads it. One that fails without a count is one
/// failure.
pub fn watch(command: &mut Command, out: &mut dyn Write) -> Result<Seen, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let spawned = |source| Error::Spawn { program: program.clone(), source };
    // nextest closes on stderr, libtest and our scripts on stdout: one pipe takes both, in order.
    let (reader, writer) = std::io::pipe().map_err(spawned)?;
    let mut child =
        { command.stdout(writer.try_clone().map_err(spawned)?).stderr(writer).spawn().map_err(spawned)? };
    // The command holds the write ends; without this the pipe would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut seen = Seen::default();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.map_err(spawned)?;
        out.write_all(&line).and_then(|()| out.write_all(b"\n")).map_err(spawned)?;
        let text = String::from_utf8_lossy(&line);
        if let Some(closing) = closing_line(&text) {
            seen.count += closing;
        }
        let passed = text.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... ok"));
        seen.passes.extend(passed.map(str::to_owned));
    }
    let status = child.wait().map_err(spawned)?;
    if !status.success() && seen.count.failed == 0 {
        seen.count.failed = 1;
    }
    Ok(seen)
}

/// Understands nextest's summary, libtest's result and the plain `N passed, N failed`. nextest shows the output of a test that
/// failed with an indent: what is said there has been counted.
fn closing_line(line: &str) -> Option<Count> {
    let line = strip_colours(line);
    let line = line.trim_end();
    let is_closing = line.trim_start().starts_with("Summary [")
        || line.starts_with("test result:")
        || line.split(' ').nth(1).is_some_and(|word| word == "passed,");
    if !is_closing {
        return None;
    }
    let mut count = Count::default();
    let mut before = "";
    for word in line.split([' ', ',', ';', '.']).filter(|word| !word.is_empty()) {
        match word {
            "passed" => count.passed = before.parse().ok()?,
            "failed" => count.failed += before.parse::<u64>().ok()?,
            "timed" => count.failed += before.parse::<u64>().ok()?,
            _ => {}
        }
        before = word;
    }
    Some(count)
}

/// Removes terminal escapes, which nextest writes when it is told to colour.
fn strip_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(escape) = rest.find("\u{1b}[") {
        plain.push_str(&rest[..escape]);
        rest = rest[escape..].find('m').map_or("", |end| &rest[escape + end + 1..]);
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_of_each_runner() {
        let count = |passed, failed| Some(Count { passed, failed });
        assert_eq!(
            closing_line("     Summary [   1.2s] 5 tests run: 4 passed, 1 failed, 2 skipped"),
            count(4, 1)
        );
        assert_eq!(
            closing_line("     Summary [   1.2s] 5 tests run: 3 passed (1 slow), 1 failed, 1 timed out"),
            count(3, 2)
        );
        assert_eq!(
            closing_line("\u{1b}[32m     Summary\u{1b}[0m [   9s] 7 tests run: 7 passed, 0 skipped"),
            count(7, 0)
        );
        assert_eq!(
            closing_line("test result: FAILED. 8 passed; 2 failed; 0 ignored; 0 measured"),
            count(8, 2)
        );
        assert_eq!(closing_line("12 passed, 0 failed"), count(12, 0));
        assert_eq!(closing_line("    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured"), None);
        assert_eq!(closing_line("test vm::a ... ok"), None);
        assert_eq!(closing_line("I have passed, you have not"), None);
    }

    #[test]
    fn a_program_that_fails_without_a_count_is_a_failure() {
        let mut out = Vec::new();
        let seen =
            watch(Command::new("sh").args(["-c", "echo 'test a::b ... ok'; exit 3"]), &mut out).unwrap();
        assert_eq!(seen.count, Count { passed: 0, failed: 1 });
        assert_eq!(seen.passes, ["a::b"]);
        assert_eq!(out, b"test a::b ... ok\n");
    }
}
