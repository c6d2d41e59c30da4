//! `make test`: the four layers of tests, one after the other, and what they add up to.
//!
//! Unit tests, devices against their driver in memory, and micro-guests on `/dev/kvm` run where we are. What needs a
//! Linux guest runs in the test host, or here when this machine's KVM can.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};

use clap::ValueEnum;

use crate::packages;
use crate::shell::{Error, cargo, output, root, run, say};
use crate::{build, run as container};

/// How long one module of the end-to-end tests may take: twice what the longest needs.
const E2E_SECONDS: u32 = 420;
/// How often a test is tried where the host is emulated.
const EMULATED_ATTEMPTS: u32 = 4;

/// A part of the tests that can be run alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Layer {
    /// Formatting, lints, licences.
    Lint,
    /// Everything that needs no Linux guest.
    Unit,
    /// The test host's own test.
    Host,
    /// End to end, with real images in real microVMs.
    E2e,
}

/// What a runner's closing line said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
}

/// Runs `only`, or everything, to the end whatever fails; then says how much passed.
pub fn all(only: &[Layer], filter: Option<&str>) -> Result<ExitCode, Error> {
    let wanted = |layer| only.is_empty() || only.contains(&layer);
    packages::install(&[])?;
    if wanted(Layer::Lint) {
        lint()?;
    }
    build::all()?;
    let mut total = Count::default();
    if wanted(Layer::Unit) {
        say("unit tests, devices, micro-guests");
        nextest()?;
        total += counted(cargo().args([
            "nextest",
            "run",
            "--workspace",
            "-E",
            "not binary(=e2e)",
            "--all-features",
            "--no-fail-fast",
        ]))?;
    }
    if wanted(Layer::Host) {
        say("the test host");
        total += counted(&mut Command::new(root().join("tests/host/selftest")))?;
        say("the agent's containers under every cgroup controller");
        total += agent()?;
        say("devices that come and go in a real guest");
        total += hotplug()?;
    }
    if wanted(Layer::E2e) {
        say("end to end");
        total += end_to_end(filter)?;
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    // Nothing run is nothing shown to work.
    Ok(if total.failed == 0 && total.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Formatting, clippy and cargo-deny, each without a warning.
pub fn lint() -> Result<(), Error> {
    say("formatting and lints");
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args([
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--",
        "-D",
        "warnings",
    ]))?;
    installed("cargo-deny")?;
    run(cargo().args([
        "deny",
        "--all-features",
        "--log-level",
        "error",
        "check",
        "bans",
        "licenses",
        "sources",
    ]))
}

/// The benchmarks' table, from the test host or from here.
pub fn bench() -> Result<ExitCode, Error> {
    packages::install(&[])?;
    build::all()?;
    let binary = built(&["build", "--package", "hull-tests", "--bin", "hull-bench"], "tests", "hull-bench")?;
    run(beside_a_registry(7200, "4096")?.arg(binary))?;
    Ok(ExitCode::SUCCESS)
}

/// The agent's own tests once more, where the limits are real: a machine whose cgroups are of version 1 has none.
fn agent() -> Result<Count, Error> {
    let mut count = Count::default();
    for name in ["hostile", "life_cycle", "inside", "namespaces", "resources", "seccomp", "streams"] {
        let mut host = where_guests_run(600, "2048")?;
        count += counted(host.arg(executable("agent", name)?))?;
    }
    Ok(count)
}

/// Devices that come and go in a real guest: the shim's unit test that needs one.
fn hotplug() -> Result<Count, Error> {
    let tests = built(&["test", "--workspace", "--all-features", "--no-run", "--lib"], "shim", "hull_shim")?;
    let names = vec!["pod::hotplug::tests::a_disk_comes_and_goes_in_a_real_guest".to_owned()];
    attempted(attempts()?, names, |names| {
        let mut host = where_guests_run(180, "2048")?;
        host.arg("env");
        for (variable, path) in [
            ("HULL_VMM", build::target().join("release/hull-vmm")),
            ("HULL_KERNEL", build::guest().join("vmlinux")),
            ("HULL_INITRAMFS", build::guest().join("initramfs.img")),
        ] {
            host.arg(format!("{variable}={}", path.display()));
        }
        watched(host.arg(&tests).args(["--ignored", "--exact"]).args(names))
    })
}

/// Each module of the end-to-end tests in a host of its own.
fn end_to_end(filter: Option<&str>) -> Result<Count, Error> {
    let binary = executable("tests", "e2e")?;
    let listed = output(Command::new(&binary).args(["--list", "--format", "terse"]).args(filter))?;
    let mut modules: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for name in listed.lines().filter_map(|line| line.strip_suffix(": test")) {
        modules.entry(name.split("::").next().unwrap_or(name)).or_default().push(name.to_owned());
    }
    let attempts = attempts()?;
    let mut total = Count::default();
    for (module, names) in modules {
        say(&format!("end to end: {module}"));
        total += attempted(attempts, names, |names| {
            let mut host = beside_a_registry(E2E_SECONDS, "6144")?;
            watched(host.arg(&binary).args(["--test-threads", "1", "--exact"]).args(names))
        })?;
    }
    Ok(total)
}

/// How often a test that needs a guest is tried here.
fn attempts() -> Result<u32, Error> {
    Ok(if container::kvm_is_usable()? { 1 } else { EMULATED_ATTEMPTS })
}

/// Runs tests, and those that have not passed again, at most so often. QEMU's emulation of a processor loses a guest now
/// and then, or hangs as a whole (tests/host/README.md): what fails in each of several fresh hosts is a failure.
fn attempted(
    attempts: u32,
    mut left: Vec<String>,
    run: impl Fn(&[String]) -> Result<Watched, Error>,
) -> Result<Count, Error> {
    let all = left.len() as u64;
    for attempt in 1..=attempts {
        let seen = run(&left)?;
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

/// [`where_guests_run`], beside a registry with the fixtures.
fn beside_a_registry(timeout_seconds: u32, memory_mib: &str) -> Result<Command, Error> {
    // Built here, where the cache is kept; the test host forgets what it writes.
    run(Command::new(root().join("tests/fixtures/build")).arg("all").stdout(Stdio::null()))?;
    let mut host = where_guests_run(timeout_seconds, memory_mib)?;
    host.arg(root().join("tests/fixtures/registry")).args(["all", "--"]);
    Ok(host)
}

/// A command line to which a program is appended that runs as root on a host whose KVM runs Linux guests.
fn where_guests_run(timeout_seconds: u32, memory_mib: &str) -> Result<Command, Error> {
    let mut host = Command::new(root().join("tests/host/run"));
    if container::kvm_is_usable()? {
        host.arg("--native");
    } else {
        host.args(["--mem", memory_mib]);
    }
    host.args(["--timeout", &timeout_seconds.to_string(), "--"]).current_dir(root());
    Ok(host)
}

/// Builds a test program and says where it is: there is no cargo in the test host's path. The packages and features are
/// those of the unit tests, so that nothing is built twice.
fn executable(folder: &str, test: &str) -> Result<String, Error> {
    built(&["test", "--workspace", "--all-features", "--no-run", "--test", test], folder, test)
}

/// Runs a cargo command; finds the program `name` of the crate in `folder` among what it built.
fn built(build: &[&str], folder: &str, name: &str) -> Result<String, Error> {
    let messages = output(cargo().args(build).args(["--message-format", "json"]))?;
    let manifest = format!("/{folder}/Cargo.toml");
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .filter(|message| message["manifest_path"].as_str().is_some_and(|path| path.ends_with(&manifest)))
        .find_map(|message| message["executable"].as_str().map(str::to_owned))
        .ok_or_else(|| Error::Other(format!("cargo did not build {name}")))
}

fn nextest() -> Result<(), Error> {
    installed("cargo-nextest")
}

/// A cargo subcommand that a fresh machine lacks.
fn installed(tool: &str) -> Result<(), Error> {
    let found = cargo()
        .args([tool.trim_start_matches("cargo-"), "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if found.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    say(&format!("installing {tool}"));
    run(cargo().args(["install", "--quiet", "--locked", tool]))
}

/// What was read from a test program's output.
#[derive(Debug, Default)]
struct Watched {
    count: Count,
    /// The tests that libtest says have passed.
    passes: Vec<String>,
}

fn counted(command: &mut Command) -> Result<Count, Error> {
    Ok(watched(command)?.count)
}

/// Runs a test program, passes its output on, and reads its closing line. One that fails without a count is one failure.
fn watched(command: &mut Command) -> Result<Watched, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let spawned = |source| Error::Spawn { program: program.clone(), source };
    // nextest closes on stderr, libtest and our scripts on stdout: one pipe takes both, in order.
    let (reader, writer) = std::io::pipe().map_err(spawned)?;
    let mut child =
        { command.stdout(writer.try_clone().map_err(spawned)?).stderr(writer).spawn().map_err(spawned)? };
    // The command holds the write ends; without this the pipe would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut seen = Watched::default();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.map_err(spawned)?;
        let mut out = std::io::stdout().lock();
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

/// Understands nextest's summary, libtest's result and the plain `N passed, N failed`.
fn closing_line(line: &str) -> Option<Count> {
    let line = strip_colours(line);
    let line = line.trim();
    let is_closing = line.starts_with("Summary [")
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

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
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
                Ok(Watched { passes, ..Watched::default() })
            }
        };
        assert_eq!(attempted(3, names(), run(&["a", "b", "c"])).unwrap(), Count { passed: 3, failed: 0 });
        assert_eq!(rounds.take(), [names()]);
        assert_eq!(attempted(3, names(), run(&["b"])).unwrap(), Count { passed: 1, failed: 2 });
        assert_eq!(rounds.take(), [names(), vec!["a".into(), "c".into()], vec!["a".into(), "c".into()]]);
        assert_eq!(attempted(1, names(), run(&[])).unwrap(), Count { passed: 0, failed: 3 });
    }

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
        assert_eq!(closing_line("test vm::a ... ok"), None);
        assert_eq!(closing_line("I have passed, you have not"), None);
    }
}
