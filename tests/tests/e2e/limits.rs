//! Limits hold, and what hits them is told so.

use hull_tests::eventually;
use hull_tests::hull::{Hull, image, metric};

#[test]
fn too_much_memory_is_an_oom_kill_and_says_so() {
    let hull = Hull::new();
    // One block, all of it in memory.
    let greedy = ["dd", "if=/dev/zero", "of=/dev/null", "bs=128M", "count=1"];
    let busybox = image("busybox");
    let said = hull.run([&["run", "--name", "greedy", "-m", "64m", &busybox], &greedy[..]].concat());
    assert_eq!(said.code, 137, "{said:?}");
    assert!(said.err.to_lowercase().contains("out of memory"), "{said:?}");
    let inspected = hull.inspect("greedy");
    assert_eq!(inspected["State"]["OOMKilled"], true, "{inspected:#}");
    hull.ok(["rm", "greedy"]);
    // The same program within its limit is left alone.
    let said = hull.run([&["run", "--rm", "-m", "256m", &busybox], &greedy[..]].concat());
    assert_eq!(said.code, 0, "{}", said.err);
    hull.left_nothing();
}

fn shim_log(hull: &Hull, id: &str) -> String {
    std::fs::read_to_string(hull.state().join("containers").join(id).join("shim.log")).unwrap()
}

/// Without a limit of its own a container has what all may have together: who took too much of it is killed, the agent and the
/// container go on, and it is told at once.
#[test]
fn a_vm_without_memory_kills_the_greedy_one_and_goes_on() {
    let hull = Hull::new();
    let greedy = "dd if=/dev/zero of=/dev/null bs=300M count=9";
    let script = format!("{greedy} & {greedy} & {greedy} & wait; echo over; exec sleep 1000");
    let id = hull.detached(&[], "busybox", &["sh", "-c", &script]);
    eventually("somebody is killed", || {
        shim_log(&hull, &id).contains("out of memory: a process was killed").then_some(())
    });
    assert_eq!(hull.ok(["exec", &id, "echo", "alive"]), "alive\n");
    eventually("the others are over", || hull.ok(["logs", &id]).contains("over").then_some(()));
    assert_eq!(hull.inspect(&id)["State"]["Running"], true);
    hull.ok(["rm", "-f", &id]);
    hull.left_nothing();
}

/// A privileged container may divide its own cgroup, which is a certain way to make processes wait for memory.
#[test]
fn memory_that_runs_short_is_logged_with_figures() {
    let hull = Hull::new();
    let script = "set -e
        cd /sys/fs/cgroup; mkdir all low
        # One of them is cat, which is gone.
        for process in $(cat cgroup.procs); do echo $process > all/cgroup.procs || true; done
        echo +memory > cgroup.subtree_control; echo 4M > low/memory.high
        for i in 1 2 3; do sh -c 'echo $$ > low/cgroup.procs; exec dd if=/dev/zero of=/dev/null bs=32M count=1'; done; echo over
        exec sleep 1000";
    let id = hull.detached(&["--privileged"], "busybox", &["sh", "-c", script]);
    let short = "the guest is short of memory";
    let line = eventually("pressure", || {
        let log = shim_log(&hull, &id);
        let line = log.lines().find_map(|line| line.split('"').find(|part| part.starts_with(short)));
        line.map(str::to_owned)
    });
    // processes waited for it N % of ten seconds, all at once N %, N ms since the boot; N of N MiB are available; ...
    let numbers: Vec<f64> = line
        .split(|c: char| !c.is_ascii_digit() && c != '.')
        .filter_map(|number| number.parse().ok())
        .collect();
    let [_, _, stalled, available, total, containers, limit] = numbers[..] else { panic!("{line}") };
    assert!(stalled >= 200.0 && available < total && containers < limit && limit < total, "{line}");
    hull.ok(["rm", "-f", &id]);
    hull.left_nothing();
}

/// What the guest's kernel takes grows with its memory, and so does the VM.
#[test]
fn a_container_may_have_its_whole_limit() {
    for mib in [64, 512, 2048, 4096] {
        let hull = Hull::new();
        let id = hull.detached(&["-m", &format!("{mib}m")], "busybox", &["sleep", "1000"]);
        let bound = eventually("the guest tells of its memory", || {
            metric(&hull.ok(["metrics"]), "hull_guest_containers_memory_bytes", &[&id])
        });
        println!("{mib} MiB: all containers may have {:.0} MiB", bound / f64::from(1 << 20));
        assert!(bound >= f64::from(mib) * f64::from(1 << 20), "{mib} MiB, and {bound} bytes");
        hull.ok(["rm", "-f", &id]);
        hull.left_nothing();
    }
}

#[test]
fn limits_are_cgroup_values() {
    let hull = Hull::new();
    let script = "cd /sys/fs/cgroup && cat cpu.max memory.max memory.swap.max && cat pids.max";
    let said = hull.run(["run", "--rm", "--cpus", "0.5", "-m", "64m", &image("busybox"), "sh", "-c", script]);
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(lines.first(), Some(&"50000 100000"), "{said:?}");
    assert_eq!(lines.get(1), Some(&"67108864"), "{said:?}");
    let pids: u64 = lines.last().unwrap().parse().expect("a limit of processes");
    assert!(pids > 0);
    hull.left_nothing();
}

#[test]
fn a_fork_bomb_stays_inside() {
    let hull = Hull::new();
    let id = hull.detached(&["--name", "bomb"], "busybox", &["sh", "-c", "b() { b | b & }; b; sleep 600"]);
    // Others go on meanwhile, and the bomb can be ended.
    assert_eq!(hull.ok(["run", "--rm", &image("busybox"), "echo", "fine"]), "fine\n");
    assert_eq!(hull.inspect(&id)["State"]["Running"], true);
    hull.ok(["kill", "bomb"]);
    eventually("the bomb is over", || (hull.inspect("bomb")["State"]["Running"] == false).then_some(()));
    hull.ok(["rm", "bomb"]);
    hull.left_nothing();
}
