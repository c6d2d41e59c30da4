//! The numbers of docs/benchmarks.md: Hull beside its peers on the same host in the same run.
//!
//! Prints a Markdown table. Times say little where the host is emulated: read the ratios and the counts.

// A test that cannot go on is a test that failed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hull_tests::hull::{Hull, finished, image, said};
use hull_tests::memory;
use tempfile::{NamedTempFile, TempDir};

#[path = "../../vmm/tests/support/control.rs"]
mod control;
mod io;
mod monitor;
mod pods;
#[path = "../../vmm/tests/support/tap.rs"]
mod tap;

/// Counted runs of each side, after one that is not counted.
const ROUNDS: usize = 7;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => containers(),
        ["idle"] => {
            let (hull, mut table) = (Hull::new(), Table::default());
            hull.ok(["pull", "-q", &image("busybox")]);
            idle(&hull, &mut table);
            table.print();
        }
        ["memory"] => {
            let mut table = Table::default();
            returned(&Hull::new(), &mut table);
            table.print();
        }
        ["io"] => {
            let mut table = Table::default();
            io::rows(&mut table);
            table.print();
        }
        ["pods", ref counts @ ..] => {
            let mut table = Table::default();
            pods::rows(&mut table, pods::Size::of(counts));
            table.print();
        }
        ["monitor"] => monitor::run(None),
        ["monitor", "--peer", program] => monitor::run(Some(Path::new(program))),
        _ => panic!(
            "usage: hull-bench [idle | memory | io | pods [CONTAINERS [RUNNING]] | monitor [--peer FIRECRACKER]]"
        ),
    }
}

/// Containers beside runc, pulls beside skopeo.
fn containers() {
    let hull = Hull::new();
    hull.ok(["pull", "-q", &image("busybox")]);
    let mut table = Table::default();
    start(&hull, &mut table);
    idle(&hull, &mut table);
    returned(&hull, &mut table);
    hull.left_nothing();
    io::rows(&mut table);
    pods::rows(&mut table, pods::Size::of(&[]));
    // runc changes how the host's cgroups are mounted: from here on the host is not what it was.
    beside_runc(&Hull::new(), &mut table);
    pull(&mut table);
    table.print();
}

#[derive(Default)]
struct Table(Vec<[String; 4]>);

impl Table {
    fn row(
        &mut self,
        what: &str,
        hull: &dyn std::fmt::Display,
        peer: &dyn std::fmt::Display,
        ratio: &dyn std::fmt::Display,
    ) {
        self.0.push([what.to_owned(), hull.to_string(), peer.to_string(), ratio.to_string()]);
    }

    fn alone(&mut self, what: &str, hull: impl std::fmt::Display) {
        self.row(what, &hull, &"", &"");
    }

    fn beside(&mut self, what: &str, hull: Duration, peer: Duration) {
        let ratio = format!("{:.2}", hull.as_secs_f64() / peer.as_secs_f64());
        self.row(what, &millis(hull), &millis(peer), &ratio);
    }

    fn print(&self) {
        println!("| what | Hull | peer | ratio |\n|---|---:|---:|---:|");
        for [what, hull, peer, ratio] in &self.0 {
            println!("| {what} | {hull} | {peer} | {ratio} |");
        }
    }
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn timed(command: &mut Command) -> Duration {
    let start = Instant::now();
    let output = command.stdin(Stdio::null()).output().unwrap();
    let took = start.elapsed();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    took
}

/// From `exec` of the monitor to the agent's word, and what it took to get there.
fn start(hull: &Hull, table: &mut Table) {
    let mut boots = Vec::new();
    for _ in 0..ROUNDS {
        let id = hull.detached(&[], "busybox", &["sleep", "600"]);
        boots.push(hull.shim_record(&id)["boot"].clone());
        hull.ok(["rm", "-f", &id]);
    }
    let microseconds = |name: &str| {
        median(boots.iter().map(|boot| Duration::from_micros(boot[name].as_u64().unwrap())).collect())
    };
    let count = |name: &str| {
        let mut counts: Vec<u64> = boots.iter().map(|boot| boot[name].as_u64().unwrap()).collect();
        counts.sort_unstable();
        counts[counts.len() / 2]
    };
    table.alone("exec of hull-vmm to the first guest instruction", millis(microseconds("first_entry_us")));
    table.alone("exec of hull-vmm to agent ready", millis(microseconds("agent_ready_us")));
    table.alone("VM exits up to agent ready, as KVM counts them", count("vm_exits"));
    table.alone("exits up to agent ready that reach the monitor", count("monitor_exits"));
    table.alone("MMIO exits up to agent ready", count("mmio_exits"));
    table.alone("interrupts injected up to agent ready, the timer's included", count("interrupts"));
    table.alone("interrupts raised by devices up to agent ready", count("device_interrupts"));
    table.alone("queue notifications up to agent ready, none of them an exit", count("notifications"));
}

/// What a container costs that does nothing.
fn idle(hull: &Hull, table: &mut Table) {
    let id = hull.detached(&["-m", "384m"], "busybox", &["sleep", "600"]);
    let record = hull.shim_record(&id);
    let (monitor, shim) = (record["vmm_pid"].as_u64().unwrap(), record["shim_pid"].as_u64().unwrap());
    let guest_bytes = 512 << 20;
    let used = hull.ok(["exec", &id, "sh", "-c", "free -k | awk '/Mem:/ { print $2 - $7 }'"]);
    let (outside, inside) = memory::split(monitor, guest_bytes);
    table.alone("private memory of hull-vmm besides guest memory", format!("{} KiB", outside.private));
    table.alone("private memory of the shim", format!("{} KiB", memory::whole(shim).private));
    // The pages of a program's file count as private while one process has them.
    let another = hull.detached(&["-m", "384m"], "busybox", &["sleep", "600"]);
    table.alone(
        "private memory of hull-vmm besides guest memory, beside another VM",
        format!("{} KiB", memory::split(monitor, guest_bytes).0.private),
    );
    table.alone(
        "private memory of the shim, beside another pod",
        format!("{} KiB", memory::whole(shim).private),
    );
    hull.ok(["rm", "-f", &another]);
    table.alone(
        "PSS of shim and hull-vmm besides guest memory",
        format!("{} KiB", outside.pss + memory::whole(shim).pss),
    );
    table.alone(
        "guest memory touched, seen from the host, of 512 MiB",
        format!("{} MiB", inside.private / 1024),
    );
    table.alone(
        "guest memory in use, seen from the guest",
        format!("{} MiB", used.trim().parse::<u64>().unwrap() / 1024),
    );
    let before = memory::wakeups(monitor) + memory::wakeups(shim);
    std::thread::sleep(Duration::from_secs(10));
    let woken = memory::wakeups(monitor) + memory::wakeups(shim) - before;
    table.alone("wake-ups of shim and hull-vmm's event loop in 10 s of idleness", woken);
    hull.ok(["rm", "-f", &id]);
}

/// From the end of the program that frees memory in a guest until the host has most of it back, where it is configured to.
fn returned(hull: &Hull, table: &mut Table) {
    const TAKEN_MIB: u64 = 128;
    let config = NamedTempFile::with_prefix("hull-e2e-").unwrap();
    fs::write(config.path(), "[vm]\nfree_memory = \"return\"\n").unwrap();
    let mut run = hull.command(["run", "-d", "-m", "384m", &image("busybox"), "sleep", "600"]);
    let run = said(&finished(run.env("HULL_CONFIG", config.path())));
    let id = run.out.trim();
    let monitor = hull.shim_record(id)["vmm_pid"].as_u64().unwrap();
    let held = || memory::split(monitor, 512 << 20).1.private / 1024;
    let fill = format!("dd if=/dev/zero of=/fill bs=1M count={TAKEN_MIB}");
    let times = (0..ROUNDS).map(|_| {
        hull.ok(["exec", id, "sh", "-c", &fill]);
        let full = held();
        hull.ok(["exec", id, "rm", "/fill"]);
        let freed = Instant::now();
        while held() + TAKEN_MIB * 3 / 4 > full {
            assert!(
                freed.elapsed() < Duration::from_secs(60),
                "{full} MiB were held, and {} still are",
                held()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        freed.elapsed()
    });
    let what =
        "from free memory in the guest to three quarters of 128 MiB back at the host (`vm.free_memory`)";
    table.alone(what, millis(median(times.collect())));
    hull.ok(["rm", "-f", id]);
}

fn beside_runc(hull: &Hull, table: &mut Table) {
    let folder = TempDir::with_prefix("hull-e2e-runc-").unwrap();
    let bundle = folder.path().join("bundle");
    let layouts = std::env::var("HULL_TEST_LAYOUTS").unwrap();
    timed(
        Command::new("umoci").args(["unpack", "--image", &format!("{layouts}/busybox:latest")]).arg(&bundle),
    );
    let config = bundle.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = serde_json::json!(["true"]);
    fs::write(&config, spec.to_string()).unwrap();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let hull = timed(&mut hull.command(["run", "--rm", &image("busybox"), "true"]));
        let runc = timed(Command::new("runc").args(["run", &format!("bench-{round}")]).current_dir(&bundle));
        if round > 0 {
            ours.push(hull);
            theirs.push(runc);
        }
    }
    table.beside(
        "`hull run --rm busybox true`, beside `runc run` of the same tree",
        median(ours),
        median(theirs),
    );
}

fn pull(table: &mut Table) {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=3 {
        let folder = TempDir::with_prefix("hull-e2e-pull-").unwrap();
        let store = folder.path().join("store");
        let hull = Hull::over(&store);
        let pulled = timed(&mut hull.command(["pull", "-q", &image("big")]));
        let copied = timed(
            Command::new("skopeo")
                .args(["copy", "--quiet", "--src-tls-verify=false", &format!("docker://{}", image("big"))])
                .arg(format!("oci:{}/layout:big", folder.path().display())),
        );
        let unpacked = timed(
            Command::new("umoci")
                .args(["unpack", "--image", &format!("{}/layout:big", folder.path().display())])
                .arg(folder.path().join("bundle")),
        );
        if round > 0 {
            ours.push(pulled);
            theirs.push(copied + unpacked);
        }
    }
    table.beside(
        "pull and convert an image of 100 MB, beside `skopeo copy` and `umoci unpack`",
        median(ours),
        median(theirs),
    );
}
