//! Containers by the dozen through containerd, each Hull's in a VM of its own, beside runc's and, where it is installed, gVisor's
//! (`runsc`): what one costs, and how many there are in a minute, alone and while others run.

use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hull_tests::containerd::{Containerd, RUNTIME, busybox};
use hull_tests::kubelet::Pod;
use hull_tests::memory;

use crate::{Table, median, millis};

/// Boots are slow where so many share an emulated processor.
const CHOSEN: &str = "[vm]\nboot_timeout_seconds = 600\n";
/// How many are alive at the same time in each of the rows about a minute.
const AT_ONCE: [usize; 3] = [1, 5, 20];
/// Of a container that goes on running, in bytes: its VM has the overhead more.
const LIMIT: &str = "67108864";
/// The size of such a VM's memory as a mapping is above this.
const GUEST_BYTES: u64 = 128 << 20;

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Containers of each row, and as many as run at once at the least.
    pub containers: usize,
    /// Those that run on while another is measured.
    pub running: usize,
}

impl Size {
    /// From words of the command line, what they leave out being small.
    pub fn of(words: &[&str]) -> Self {
        let number =
            |place: usize, otherwise| words.get(place).map_or(otherwise, |word| word.parse().unwrap());
        Self { containers: number(0, 4).max(1), running: number(1, 8).max(1) }
    }
}

/// Who runs the containers.
struct Side {
    name: &'static str,
    /// How `ctr run` is told.
    words: &'static [&'static str],
    /// Its name among the handlers of pods.
    handler: Option<&'static str>,
}

const HULL: Side = Side { name: "Hull", words: &["--runtime", RUNTIME], handler: Some("hull") };
const RUNC: Side =
    Side { name: "runc", words: &["--runtime", "io.containerd.runc.v2"], handler: Some("runc") };
const RUNSC: Side = Side {
    name: "runsc",
    words: &["--runtime", "io.containerd.runc.v2", "--runc-binary", "runsc"],
    handler: None,
};

/// What containers cost.
struct Costs {
    /// How many lives fit in a minute, so many at a time.
    a_minute: [f64; AT_ONCE.len()],
    /// A life, while nothing else begins.
    life: Duration,
    /// A program more in a container that runs.
    exec: Duration,
    /// A pod, until it is ready.
    ready: Option<Duration>,
}

/// A side's costs, and what those that run on hold.
struct Measured {
    alone: Costs,
    beside: Costs,
    /// What the host has less for each, in KiB.
    taken_kib: u64,
    /// Of it, what is not the guest's memory; Hull's only.
    pss_kib: Option<u64>,
}

/// All rows.
pub fn rows(table: &mut Table, size: Size) {
    let containerd = Containerd::for_pods_as(CHOSEN);
    let hull = measure(&containerd, &HULL, size);
    for peer in [RUNC, RUNSC] {
        if Command::new(peer.name).arg("--version").output().is_ok() {
            compare(table, size, &hull, peer.name, &measure(&containerd, &peer, size));
        }
    }
    if let Some(pss) = hull.pss_kib {
        table.alone(
            &format!("PSS of shim and hull-vmm besides guest memory, each of {}", size.running),
            format!("{pss} KiB"),
        );
    }
    // runc leaves the cgroups of containerd's namespaces; they are empty, or the last line says so.
    for namespace in ["default", "k8s.io"] {
        let _ = std::fs::remove_dir(format!("/sys/fs/cgroup/{namespace}"));
    }
    std::fs::remove_dir_all(containerd.file("hull-logs")).unwrap();
    containerd.left_nothing();
}

/// The rows of Hull beside another.
fn compare(table: &mut Table, size: Size, hull: &Measured, peer: &str, theirs: &Measured) {
    let others = format!(", while {} others run", size.running);
    for (when, hull, theirs) in [("", &hull.alone, &theirs.alone), (&others, &hull.beside, &theirs.beside)] {
        for (place, at_once) in AT_ONCE.iter().enumerate() {
            let (hull, theirs) = (hull.a_minute[place], theirs.a_minute[place]);
            let what = format!("containers of `true` in a minute, {at_once} at a time{when}, beside {peer}");
            table.row(
                &what,
                &format!("{hull:.1}"),
                &format!("{theirs:.1}"),
                &format!("{:.2}", hull / theirs),
            );
        }
        let mut beside = |what: &str, hull: Duration, theirs: Duration| {
            table.beside(&format!("{what}{when}, beside {peer}"), hull, theirs);
        };
        beside("`ctr run --rm` of `true`", hull.life, theirs.life);
        beside("`ctr task exec` of `true`", hull.exec, theirs.exec);
        if let (Some(hull), Some(theirs)) = (hull.ready, theirs.ready) {
            beside("`RunPodSandbox`, until the sandbox is ready", hull, theirs);
        }
    }
    table.row(
        &format!("memory that the host has less for each of {} idle ones, beside {peer}", size.running),
        &format!("{} KiB", hull.taken_kib),
        &format!("{} KiB", theirs.taken_kib),
        &format!("{:.2}", hull.taken_kib as f64 / theirs.taken_kib as f64),
    );
}

/// A side alone, then beside others of its own that do nothing.
fn measure(containerd: &Containerd, side: &Side, size: Size) -> Measured {
    // The first reads its programs from the disk.
    life(containerd, side, "first");
    let alone = costs(containerd, side, size);
    let names: Vec<String> = (0..size.running).map(|number| format!("other-{number:03}")).collect();
    let available = available_kib();
    for name in &names {
        run(containerd, side, &["-d", "--memory-limit", LIMIT], name, &["sleep", "100000"]);
    }
    let taken_kib = available.saturating_sub(available_kib()) / names.len() as u64;
    println!("{}: {taken_kib} KiB less for each of {} that run on", side.name, names.len());
    let pss_kib = (side.name == HULL.name).then(|| pss_kib(containerd, &names));
    let beside = costs(containerd, side, size);
    for name in &names {
        containerd.remove(name);
    }
    Measured { alone, beside, taken_kib, pss_kib }
}

/// What each of these VMs costs the host besides its guest's memory.
fn pss_kib(containerd: &Containerd, names: &[String]) -> u64 {
    let pss = names.iter().map(|name| {
        let record = containerd.shim_record(name);
        let pid = |key: &str| record[key].as_u64().unwrap();
        memory::whole(pid("shim_pid")).pss + memory::split(pid("vmm_pid"), GUEST_BYTES).0.pss
    });
    pss.sum::<u64>() / names.len() as u64
}

fn costs(containerd: &Containerd, side: &Side, size: Size) -> Costs {
    let mut lives = Vec::new();
    let a_minute = AT_ONCE.map(|at_once| {
        let (rate, each) = in_a_minute(containerd, side, at_once, size.containers.max(at_once));
        if at_once == 1 {
            lives = each;
        }
        rate
    });
    let ready = side.handler.map(|handler| ready(containerd, handler, size));
    let costs = Costs { a_minute, life: median(lives), exec: exec(containerd, side, size), ready };
    let rates = costs.a_minute.map(|rate| format!("{rate:.1}")).join(", ");
    let [life, exec] = [costs.life, costs.exec].map(millis);
    let ready = costs.ready.map(|ready| format!(", ready {}", millis(ready))).unwrap_or_default();
    println!(
        "{}: {rates} in a minute, {AT_ONCE:?} at a time; `ctr run` {life}, exec {exec}{ready}",
        side.name
    );
    costs
}

/// A container from its creation until nothing of it is left.
fn life(containerd: &Containerd, side: &Side, id: &str) -> Duration {
    run(containerd, side, &["--rm"], id, &["true"])
}

/// How long `ctr run` takes.
fn run(containerd: &Containerd, side: &Side, options: &[&str], id: &str, words: &[&str]) -> Duration {
    let begun = Instant::now();
    let said = containerd.run([&["run"], side.words, options, &[&busybox(), id], words].concat());
    assert_eq!(said.code, 0, "{}, {id}: {said:?}", side.name);
    begun.elapsed()
}

/// How many lives fit in a minute, and how long each took.
fn in_a_minute(containerd: &Containerd, side: &Side, at_once: usize, all: usize) -> (f64, Vec<Duration>) {
    let (next, lives) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let number = next.fetch_add(1, Ordering::SeqCst)
                    && number < all
                {
                    // None is the beginning of another: runsc would not know which is meant.
                    let took = life(containerd, side, &format!("life-{number:03}"));
                    lives.lock().unwrap().push(took);
                }
            });
        }
    });
    (60.0 * all as f64 / begun.elapsed().as_secs_f64(), lives.into_inner().unwrap())
}

/// A program more in a container that runs.
fn exec(containerd: &Containerd, side: &Side, size: Size) -> Duration {
    run(containerd, side, &["-d"], "execs", &["sleep", "100000"]);
    let times = (0..size.containers).map(|number| {
        let begun = Instant::now();
        let said = containerd.run(["task", "exec", "--exec-id", &format!("e{number}"), "execs", "true"]);
        assert_eq!(said.code, 0, "{}, exec {number}: {said:?}", side.name);
        begun.elapsed()
    });
    let took = median(times.collect());
    containerd.remove("execs");
    took
}

/// Pods of Kubernetes, one after the other, their network included. What stands for one of runc's ends at once; it was started.
fn ready(containerd: &Containerd, handler: &str, size: Size) -> Duration {
    let times = (0..size.containers).map(|number| {
        let pod = Pod::try_run_by(containerd, handler, &format!("ready-{number}"), |_| {});
        let pod = pod.unwrap_or_else(|refused| panic!("{handler}: {refused:?}"));
        pod.take_down();
        pod.ready_after
    });
    median(times.collect())
}

/// What the host could still give away.
fn available_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
