//! Limits hold, and what hits them is told so.

use hull_tests::eventually;
use hull_tests::hull::{Hull, image};

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
