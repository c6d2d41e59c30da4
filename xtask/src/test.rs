//! `make test`: the four layers of tests, one after the other, and what they add up to.
//!
//! Unit tests, devices against their driver in memory, and micro-guests on `/dev/kvm` run where we are. What needs a
//! Linux guest runs in the test host, or here when this machine's KVM can.

mod end_to_end;
mod engines;
mod jobs;
pub mod oci;
mod programs;
mod runner;
pub mod soak;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use clap::ValueEnum;

use crate::packages;
use crate::shell::{Error, cargo, root, run, say};
use crate::{build, run as container};
use engines::Engines;
use jobs::{Hosts, Job, Shown, names_of};
use programs::Programs;
use runner::{Count, watch};

/// How often a test is tried where the host is emulated.
const EMULATED_ATTEMPTS: u32 = 3;

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

/// Runs `only`, or everything, to the end whatever fails; then says how much passed.
pub fn all(only: &[Layer], filter: Option<&str>) -> Result<ExitCode, Error> {
    let wanted = |layer| only.is_empty() || only.contains(&layer);
    packages::install(&[])?;
    // While cargo has the processors.
    let fetching = wanted(Layer::E2e).then(|| std::thread::spawn(fetch));
    if wanted(Layer::Lint) {
        lint()?;
    }
    build::all()?;
    let mut total = Count::default();
    if wanted(Layer::Unit) {
        say("unit tests, devices, micro-guests");
        nextest()?;
        // These wait more than they work.
        let at_once = 2 * std::thread::available_parallelism().map_or(1, usize::from);
        total += count(
            cargo()
                .args(["nextest", "run", "--workspace", "--all-features", "--no-fail-fast"])
                .args(["-E", "not binary(=e2e) and not binary(=oci)"])
                .args(["--test-threads", &at_once.to_string()]),
        )?;
    }
    let mut left_out = Vec::new();
    if wanted(Layer::Host) || wanted(Layer::E2e) {
        let (place, programs) = (Place::find()?, Programs::of_tests()?);
        let mut jobs = Vec::new();
        if wanted(Layer::Host) {
            jobs.extend(host_jobs(place, &programs)?);
        }
        if let Some(fetching) = fetching {
            let _ = fetching.join();
            let (end_to_end, without) = end_to_end::jobs(place, &programs, filter)?;
            jobs.extend(end_to_end);
            left_out = without;
        }
        say("what needs a Linux guest or every cgroup controller, each part in a host of its own");
        total += jobs::run_all(place.hosts(), Shown::WhenDone, jobs)?;
    }
    left_out.iter().for_each(|what| say(&format!("left out: {what}")));
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

/// The benchmarks' tables: of the monitor, from this machine's own `/dev/kvm`, which runs small guests even where it cannot
/// run Linux; then of containers, from the test host or from here. `peer` is a Firecracker.
pub fn bench(peer: Option<&Path>) -> Result<ExitCode, Error> {
    packages::install(&[])?;
    build::all()?;
    let binary = built(&["build", "--package", "hull-tests", "--bin", "hull-bench"], "tests", "hull-bench")?;
    let mut monitor = Command::new(&binary);
    run(monitor.arg("monitor").args(peer.iter().flat_map(|peer| [Path::new("--peer"), peer])))?;
    fixtures()?;
    run(Place::find()?.beside_a_registry(&[], 7200, "4096").arg(binary))?;
    oci::bench()?;
    Ok(ExitCode::SUCCESS)
}

/// Where Linux guests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// On this machine's own KVM.
    Here,
    /// In the emulated test host.
    Emulated,
}

impl Place {
    fn find() -> Result<Self, Error> {
        Ok(if container::kvm_is_usable()? { Self::Here } else { Self::Emulated })
    }

    /// On one machine one job runs at a time: each looks for what the others might leave behind.
    fn hosts(self) -> Hosts {
        match self {
            Self::Here => Hosts { at_once: 1, attempts: 1 },
            Self::Emulated => Hosts {
                at_once: std::thread::available_parallelism().map_or(1, usize::from),
                attempts: EMULATED_ATTEMPTS,
            },
        }
    }

    /// A command line to which a program is appended that runs as root on a host whose KVM runs Linux guests.
    fn host(self, timeout_seconds: u32, memory_mib: &str) -> Command {
        self.host_with(&[], timeout_seconds, memory_mib)
    }

    /// [`Self::host`], with options that an emulated one needs.
    fn host_with(self, options: &[&str], timeout_seconds: u32, memory_mib: &str) -> Command {
        let mut host = Command::new(root().join("tests/host/run"));
        match self {
            Self::Here => host.arg("--native"),
            Self::Emulated => host.args(options).args(["--mem", memory_mib]),
        };
        host.args(["--timeout", &timeout_seconds.to_string(), "--"]).current_dir(root());
        host
    }

    /// [`Self::host_with`], beside a registry with the [`fixtures`].
    fn beside_a_registry(self, options: &[&str], timeout_seconds: u32, memory_mib: &str) -> Command {
        let mut host = self.host_with(options, timeout_seconds, memory_mib);
        host.arg(root().join("tests/fixtures/registry")).args(["all", "--"]);
        host
    }
}

/// The test host's own test; the agent's tests once more, where the limits are real: a machine whose cgroups are of
/// version 1 has none; and the shim's unit tests that need a real guest.
fn host_jobs(place: Place, programs: &Programs) -> Result<Vec<Job>, Error> {
    let mut jobs = vec![Job::script("the test host", || Command::new(root().join("tests/host/selftest")))];
    for name in [
        "deadlines",
        "decoding",
        "hooks",
        "hostile",
        "life_cycle",
        "inside",
        "mounts",
        "namespaces",
        "network",
        "resources",
        "robustness",
        "rounds",
        "seccomp",
        "streams",
    ] {
        let binary = programs.path("agent", name)?;
        let names = names_of(&binary, None)?;
        jobs.push(Job::tests(&format!("agent: {name}"), names, move |names| {
            let mut host = place.host(600, "2048");
            host.arg(&binary).arg("--exact").args(names);
            host
        }));
    }
    jobs.push(oci::job(place, programs)?);
    let tests = programs.path("shim", "hull_shim")?;
    let names = [
        "hotplug::tests::a_disk_comes_and_goes",
        "hotplug::tests::shared_files_come_and_go",
        "rounds::containers_come_and_go",
    ]
    .map(|name| format!("pod::{name}_in_a_real_guest"))
    .into_iter()
    .chain([soak::PLUG.to_owned()])
    .collect();
    jobs.push(Job::tests("devices that come and go", names, move |names| {
        let mut host = place.host(600, "2048");
        host.env("HULL_SOAK", "1");
        with_vhost(place, with_artifacts(&mut host)).arg(&tests).args(["--ignored", "--exact"]).args(names);
        host
    }));
    let tests = programs.path("vmm", "hull_vmm")?;
    let names = names_of(&tests, Some("virtio::net::tests::vhost"))?;
    jobs.push(Job::tests("interfaces that the kernel serves", names, move |names| {
        let mut host = place.host(300, "2048");
        with_vhost(place, &mut host).arg(&tests).arg("--exact").args(names);
        host
    }));
    Ok(jobs)
}

/// Where the shim finds what it starts, outside an installation.
fn artifacts() -> [(&'static str, PathBuf); 4] {
    [
        ("HULL_VMM", build::target().join("release/hull-vmm")),
        ("HULL_FSD", build::target().join("release/hull-fsd")),
        ("HULL_KERNEL", build::guest().join("vmlinux")),
        ("HULL_INITRAMFS", build::guest().join("initramfs.img")),
    ]
}

/// The same as words of a command line.
fn with_artifacts(host: &mut Command) -> &mut Command {
    host.arg("env");
    host.args(artifacts().map(|(variable, path)| format!("{variable}={}", path.display())))
}

/// Words of a command line that see to it that the kernel has vhost-net. Without, tests are skipped, which is no reason to
/// fail on somebody's own machine.
fn with_vhost(place: Place, host: &mut Command) -> &mut Command {
    let load = match place {
        Place::Here => "modprobe vhost_net || true",
        Place::Emulated => "modprobe vhost_net; test -c /dev/vhost-net",
    };
    host.args(["sh", "-ec", &format!("{load}; exec \"$@\""), "sh"])
}

/// Has in the caches what the end-to-end tests need of the network. What fails is asked for again where it is needed, and told of
/// there.
fn fetch() {
    let _ = fixtures();
    Engines::default().fetch_all();
}

/// Builds the images of the tests here, where the cache is kept; the test host forgets what it writes.
fn fixtures() -> Result<(), Error> {
    run(Command::new(root().join("tests/fixtures/build")).arg("all").stdout(Stdio::null()))
}

/// Runs a cargo command; finds the program `name` of the crate in `folder` among what it built.
fn built(build: &[&str], folder: &str, name: &str) -> Result<String, Error> {
    Programs::of(build)?.path(folder, name)
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
    // It runs for seconds; to optimize it takes minutes.
    run(cargo().args(["install", "--quiet", "--locked", "--debug", tool]))
}

/// Runs one test program where we are.
fn count(command: &mut Command) -> Result<Count, Error> {
    Ok(watch(command, &mut std::io::stdout())?.count)
}
