//! Containers by the dozen through containerd, each Hull's in a VM of its own, beside runc's: how many in a minute, and what one costs
//! while others run.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hull_tests::containerd::{Containerd, RUNTIME, busybox};
use hull_tests::kubelet::Pod;
use hull_tests::memory;

use crate::{Table, median, timed};

const RUNC: &str = "io.containerd.runc.v2";
/// Its name among the handlers of pods.
const RUNC_HANDLER: &str = "runc";
/// Boots are slow where so many share an emulated processor.
const CHOSEN: &str = "[vm]\nboot_timeout_seconds = 600\n";
/// How many are alive at the same time in each of the first rows.
const AT_ONCE: [usize; 3] = [1, 5, 20];
/// Of a container that goes on running, in bytes: its VM has the overhead more.
const LIMIT: u64 = 64 << 20;
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

/// All rows.
pub fn rows(table: &mut Table, size: Size) {
    let containerd = Containerd::for_pods_as(CHOSEN);
    for runtime in [RUNTIME, RUNC] {
        // The first of each reads its programs from the disk.
        life(&containerd, runtime, "first");
    }
    for at_once in AT_ONCE {
        let all = size.containers.max(at_once);
        let [hull, runc] = [RUNTIME, RUNC].map(|runtime| in_a_minute(&containerd, runtime, at_once, all));
        table.row(
            &format!(
                "containers of `true` in a minute, {at_once} at a time, from `ctr run` until they are gone"
            ),
            &format!("{hull:.1}"),
            &format!("{runc:.1}"),
            &format!("{:.2}", hull / runc),
        );
    }
    let idle = [RUNTIME, RUNC].map(|runtime| one_more(&containerd, runtime, size));
    table.beside("`ctr run --rm` of `true`, while nothing else runs", idle[0], idle[1]);
    let execs = [RUNTIME, RUNC].map(|runtime| exec(&containerd, runtime, size));
    table.beside("`ctr task exec` of `true`", execs[0], execs[1]);
    let ready = [containerd.handler(), RUNC_HANDLER].map(|handler| ready(&containerd, handler, size));
    table.beside("`RunPodSandbox`, until the sandbox is ready", ready[0], ready[1]);
    let busy = [RUNTIME, RUNC].map(|runtime| beside_others(&containerd, runtime, size, table));
    table.beside(&format!("the same, while {} others run", size.running), busy[0], busy[1]);
    let slower = |side: usize| format!("{:.2}", busy[side].as_secs_f64() / idle[side].as_secs_f64());
    table.row("the second of these beside the first", &slower(0), &slower(1), &"");
    // runc leaves the cgroups of containerd's namespaces; they are empty, or the last line says so.
    for namespace in ["default", "k8s.io"] {
        let _ = std::fs::remove_dir(format!("/sys/fs/cgroup/{namespace}"));
    }
    std::fs::remove_dir_all(containerd.file("hull-logs")).unwrap();
    containerd.left_nothing();
}

/// A container from its creation until nothing of it is left.
fn life(containerd: &Containerd, runtime: &str, id: &str) -> Duration {
    timed(&mut containerd.ctr(["run", "--rm", "--runtime", runtime, &busybox(), id, "true"]))
}

/// How many lives fit in a minute.
fn in_a_minute(containerd: &Containerd, runtime: &str, at_once: usize, all: usize) -> f64 {
    let next = AtomicUsize::new(0);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let number = next.fetch_add(1, Ordering::SeqCst)
                    && number < all
                {
                    life(containerd, runtime, &format!("life-{number}"));
                }
            });
        }
    });
    60.0 * all as f64 / begun.elapsed().as_secs_f64()
}

fn one_more(containerd: &Containerd, runtime: &str, size: Size) -> Duration {
    median((0..size.containers).map(|number| life(containerd, runtime, &format!("more-{number}"))).collect())
}

/// A program more in a container that runs.
fn exec(containerd: &Containerd, runtime: &str, size: Size) -> Duration {
    let words = ["run", "-d", "--runtime", runtime, &busybox(), "execs", "sleep", "100000"];
    timed(&mut containerd.ctr(words));
    let times = (0..size.containers).map(|number| {
        timed(&mut containerd.ctr(["task", "exec", "--exec-id", &format!("e{number}"), "execs", "true"]))
    });
    let took = median(times.collect());
    containerd.remove("execs");
    took
}

/// Pods of Kubernetes, one after the other, their network included. What stands for one of runc's ends at once; it was started.
fn ready(containerd: &Containerd, handler: &str, size: Size) -> Duration {
    let times = (0..size.containers).map(|number| {
        let pod = Pod::try_run_by(containerd, handler, &format!("ready-{number}"), |_| {}).unwrap();
        pod.take_down();
        pod.ready_after
    });
    median(times.collect())
}

/// The cost of one more, while others run that do nothing; rows about these.
fn beside_others(containerd: &Containerd, runtime: &str, size: Size, table: &mut Table) -> Duration {
    let names: Vec<String> = (0..size.running).map(|number| format!("other-{number}")).collect();
    let available = available_kib();
    for name in &names {
        let limit = LIMIT.to_string();
        let words = [
            "run",
            "-d",
            "--runtime",
            runtime,
            "--memory-limit",
            &limit,
            &busybox(),
            name,
            "sleep",
            "100000",
        ];
        timed(&mut containerd.ctr(words));
    }
    let taken = available.saturating_sub(available_kib()) / names.len() as u64;
    if runtime == RUNTIME {
        table.alone(
            &format!("memory that the host has less for each of {} idle ones", names.len()),
            format!("{taken} KiB"),
        );
        let pss = names.iter().map(|name| {
            let record = containerd.shim_record(name);
            let pid = |key: &str| record[key].as_u64().unwrap();
            memory::whole(pid("shim_pid")).pss + memory::split(pid("vmm_pid"), GUEST_BYTES).0.pss
        });
        let pss = pss.sum::<u64>() / names.len() as u64;
        table.alone(
            &format!("PSS of shim and hull-vmm besides guest memory, each of {}", names.len()),
            format!("{pss} KiB"),
        );
    }
    let took = one_more(containerd, runtime, size);
    for name in &names {
        containerd.remove(name);
    }
    took
}

/// What the host could still give away.
fn available_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
