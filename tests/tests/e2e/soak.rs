//! Pods, execs, containers and output by the thousand: `cargo xtask soak`, not a part of `make test`. Each prints what it counted.
//!
//! `HULL_SOAK` says how much, as a percentage of what the names of the tests say; `HULL_SOAK_AT_ONCE` how many pods at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hull_tests::containerd::Containerd;
use hull_tests::counters::Counters;
use hull_tests::craft::hex;
use hull_tests::cri::NamespaceMode;
use hull_tests::kubelet::Pod;
use sha2::{Digest, Sha256};

/// What a process's memory may grow by after the first tenth, in KiB.
const SLACK: u64 = 512;

/// The same of a guest, whose kernel takes pages that it has not had before while it has some.
const GUEST_SLACK: u64 = 2048;

/// How often a container is asked for whose creation comes too late: twenty guests on one emulated processor come close to what a
/// request may take.
const ATTEMPTS: u32 = 3;

/// gRPC's status code of what came too late.
const DEADLINE_EXCEEDED: u32 = 4;

fn number(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).map_or(otherwise, |value| value.parse().unwrap())
}

/// So many, or the part of it that was asked for; at least ten.
fn part_of(many: usize) -> usize {
    (many * number("HULL_SOAK", 100) / 100).max(10)
}

/// Looks at processes after each tenth; fails if they hold more at the end than after the first.
struct Watch<'a> {
    named: &'a [(&'a str, u32)],
    first: Vec<Counters>,
}

impl<'a> Watch<'a> {
    fn new(named: &'a [(&'a str, u32)]) -> Self {
        Self { named, first: Vec::new() }
    }

    fn round(&mut self, done: usize, all: usize) {
        if !done.is_multiple_of(all / 10) {
            return;
        }
        let now: Vec<Counters> = self.named.iter().map(|(_, pid)| Counters::of(*pid)).collect();
        for ((name, _), now) in self.named.iter().zip(&now) {
            println!("after {done}: {name}: {now}");
        }
        if self.first.is_empty() {
            self.first = now;
        } else if done == all {
            for (first, last) in self.first.iter().zip(now) {
                assert_eq!(last.descriptors, first.descriptors);
                assert!(last.threads <= first.threads);
                assert!(last.written_kib <= first.written_kib + SLACK, "{first} {last}");
                assert!(last.guest_kib <= first.guest_kib + GUEST_SLACK, "{first} {last}");
            }
        }
    }
}

fn pids(record: &serde_json::Value) -> [(&'static str, u32); 2] {
    let pid = |key: &str| u32::try_from(record[key].as_u64().unwrap()).unwrap();
    [("shim", pid("shim_pid")), ("monitor", pid("vmm_pid"))]
}

#[test]
#[ignore = "hours: cargo xtask soak"]
fn a_thousand_pods_twenty_at_a_time() {
    let (all, at_once) = (part_of(1000), number("HULL_SOAK_AT_ONCE", 20));
    // Twenty guests that boot on one emulated processor take their time.
    let containerd = Containerd::for_pods_as("[vm]\nboot_timeout_seconds = 600\n");
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (lost, times) = (Mutex::new(BTreeSet::new()), Times::default());
    let (begun, daemon) = (Instant::now(), containerd.pid());
    let before = Counters::of_host();
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let number = next.fetch_add(1, Ordering::SeqCst)
                    && number < all
                {
                    if let Err(id) = one_pod(&containerd, &format!("soak-{number}"), &times) {
                        lost.lock().unwrap().insert(id);
                    }
                    let done = done.fetch_add(1, Ordering::SeqCst) + 1;
                    if done.is_multiple_of(all / 10) {
                        let took = begun.elapsed().as_secs();
                        println!("after {done}: {took} s, containerd: {}", Counters::of(daemon));
                    }
                }
            });
        }
    });
    println!("the host before: {before}\nthe host after: {}\n{times}", Counters::of_host());
    std::fs::remove_dir_all(containerd.file("hull-logs")).unwrap();
    let lost = lost.into_inner().unwrap();
    for pod in &lost {
        println!("lost: {pod}");
    }
    // What is left tells of those that were lost, too.
    containerd.left_nothing();
    assert!(lost.is_empty(), "{} of {all} were lost", lost.len());
}

/// How long each step of a pod took.
#[derive(Default)]
struct Times(Mutex<BTreeMap<&'static str, Vec<Duration>>>);

impl Times {
    fn of<T>(&self, step: &'static str, make: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let made = make();
        self.0.lock().unwrap().entry(step).or_default().push(begun.elapsed());
        made
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (step, times) in &mut *self.0.lock().unwrap() {
            times.sort_unstable();
            let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64();
            writeln!(
                f,
                "{step}: median {:.1} s, 99 of 100 {:.1} s, longest {:.1} s",
                at(50),
                at(99),
                at(100)
            )?;
        }
        Ok(())
    }
}

/// A pod that is made, used and taken down. One that is lost on the way is taken down too, and told by its name.
fn one_pod(containerd: &Containerd, name: &str, times: &Times) -> Result<(), String> {
    let lost = |_| name.to_owned();
    let run = || times.of("pod", || Pod::run(containerd, name, NamespaceMode::CONTAINER));
    let pod = catch_unwind(AssertUnwindSafe(run)).map_err(lost)?;
    let used = catch_unwind(AssertUnwindSafe(|| use_pod(&pod, name, times))).map_err(lost);
    times.of("take down", || pod.take_down());
    used
}

fn use_pod(pod: &Pod<'_>, name: &str, times: &Times) {
    let (id, log) = times.of("container", || container(pod, name));
    assert_eq!(times.of("exec", || pod.says(&id, "hostname")), format!("{name}\n"));
    times.of("stop", || pod.stop(&id, 0));
    assert_eq!(pod.status(&id).exit_code, 137);
    pod.remove(&id);
    assert_eq!(pod.log(&log), ["stdout F begun"]);
}

/// A container, and the name of its log. One whose creation came too late is followed by another, as a kubelet does; each that comes
/// too late is told of.
fn container(pod: &Pod<'_>, name: &str) -> (String, String) {
    for attempt in 0..ATTEMPTS {
        match pod.attempt(name, attempt, "echo begun; exec sleep 1000", &[]) {
            Ok(id) => return (id, format!("{name}-{attempt}.log")),
            Err(late) if late.code == DEADLINE_EXCEEDED => println!("{name}: once more: {}", late.message),
            Err(refused) => panic!("{name}: {refused:?}"),
        }
    }
    panic!("{name}: {ATTEMPTS} containers came too late");
}

#[test]
#[ignore = "hours: cargo xtask soak"]
fn a_thousand_execs_in_one_pod() {
    let all = part_of(1000);
    let containerd = Containerd::for_pods();
    let pod = Pod::run(&containerd, "execs", NamespaceMode::CONTAINER);
    let id = pod.container("web", 0, "sleep 1000000", &[]);
    let named = pids(&pod.shim_record());
    let mut watch = Watch::new(&named);
    let processes = pod.says(&id, "ps | wc -l");
    for round in 1..=all {
        assert_eq!(pod.says(&id, &format!("echo {round}")), format!("{round}\n"));
        watch.round(round, all);
    }
    assert_eq!(pod.says(&id, "ps | wc -l"), processes, "nothing is left in the guest");
    pod.end();
    containerd.left_nothing();
}

#[test]
#[ignore = "hours: cargo xtask soak"]
fn a_thousand_trues_and_their_events() {
    let all = part_of(1000);
    let containerd = Containerd::start();
    let mut events = containerd.events();
    for round in 1..=all {
        let id = format!("true-{round}");
        let said = containerd.run_container(&["--rm"], &id, &["true"]);
        assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (0, "", ""), "{id}");
        assert_eq!(events.until("/tasks/delete", &id), ["create", "start", "exit", "delete"], "{id}");
        if round.is_multiple_of(all / 10) {
            println!("after {round}: every event in its place");
        }
    }
    drop(events);
    containerd.left_nothing();
}

#[test]
#[ignore = "hours: cargo xtask soak"]
fn a_hundred_megabytes_a_hundred_times() {
    const BYTES: usize = 100_000_000;
    let all = part_of(100);
    let mut lines = Vec::with_capacity(BYTES + 16);
    for number in 0.. {
        writeln!(lines, "{number}").unwrap();
        if lines.len() >= BYTES {
            break;
        }
    }
    let wanted = hex(&Sha256::digest(&lines[..BYTES]));
    let containerd = Containerd::start();
    containerd.detached(&["--mount", "type=tmpfs,src=tmpfs,dst=/data"], "web", &["sleep", "1000000"]);
    let named = pids(&containerd.shim_record("web"));
    let mut watch = Watch::new(&named);
    // Made once: what is looked at is the way out.
    let script = format!("seq 0 99999999 | head -c {BYTES} > /data/lines");
    containerd.ok(["task", "exec", "--exec-id", "lines", "web", "sh", "-c", &script]);
    for round in 1..=all {
        let exec = format!("e{round}");
        let mut child = containerd
            .ctr(["task", "exec", "--exec-id", &exec, "web", "cat", "/data/lines"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut hash = Sha256::new();
        let mut output = child.stdout.take().unwrap();
        let mut piece = vec![0; 1 << 20];
        loop {
            match output.read(&mut piece).unwrap() {
                0 => break,
                length => hash.update(&piece[..length]),
            }
        }
        assert_eq!(child.wait().unwrap().code(), Some(0));
        assert_eq!(hex(&hash.finalize()), wanted, "round {round}");
        watch.round(round, all);
    }
    containerd.remove("web");
    containerd.left_nothing();
}
