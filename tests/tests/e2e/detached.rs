//! Containers that live on their own, watched and handled from other shells.

use std::io::{BufRead, BufReader};
use std::time::Instant;

use hull_tests::eventually;
use hull_tests::hull::{Hull, image};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn a_container_in_the_background_is_listed_entered_read_and_stopped() {
    let hull = Hull::new();
    let script = "trap 'echo bye; exit 0' TERM; i=0; while :; do echo line $((i+=1)); sleep 0.2; done";
    let id = hull.detached(&["--name", "web", "-e", "A=b"], "busybox", &["sh", "-c", script]);
    assert_eq!(id.len(), 64, "{id}");

    let listed = hull.ok(["ps"]);
    assert!(listed.contains("web") && listed.contains(&id[..12]) && listed.contains("Up"), "{listed}");

    assert_eq!(hull.ok(["exec", "web", "sh", "-c", "echo $A; cat /proc/1/comm"]), "b\nsh\n");
    assert_eq!(hull.run(["exec", "web", "sh", "-c", "exit 9"]).code, 9);
    hull.run(["exec", "web", "no-such"]).failed(127, &["no-such", "not found"]);
    assert_eq!(
        hull.ok([
            "exec",
            "-u",
            "1000:29",
            "-w",
            "/tmp",
            "-e",
            "B=c",
            "web",
            "sh",
            "-c",
            "id -u; id -g; pwd; echo $B"
        ]),
        "1000\n29\n/tmp\nc\n"
    );
    let output = hull.with_input(["exec", "-i", "web", "wc", "-c"], &[b'x'; 100_000]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "100000");

    let mut follower = hull.piped(["logs", "-f", "web"]);
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "line 1");
    assert_eq!(lines.next().unwrap().unwrap(), "line 2");

    let start = Instant::now();
    hull.ok(["stop", "web"]);
    assert!(start.elapsed().as_secs() < 9, "SIGTERM was enough: nobody had to wait for SIGKILL");
    // The follower sees the end and ends.
    assert_eq!(lines.map(Result::unwrap).last().as_deref(), Some("bye"));
    assert!(follower.wait().unwrap().success());

    assert!(!hull.ok(["ps"]).contains("web"));
    assert!(hull.ok(["ps", "-a"]).contains("Exited (0)"));
    assert!(hull.ok(["logs", "web"]).ends_with("bye\n"));
    hull.ok(["rm", "web"]);
    assert_eq!(hull.ok(["ps", "-aq"]), "");
    hull.left_nothing();
}

#[test]
fn stop_kills_what_does_not_listen() {
    let hull = Hull::new();
    let id = hull.detached(&[], "busybox", &["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"]);
    hull.ok(["stop", "-t", "1", &id]);
    assert_eq!(hull.inspect(&id)["State"]["ExitCode"], 137);
    hull.ok(["rm", &id]);
    hull.left_nothing();
}

#[test]
fn rm_takes_itself_away_when_asked() {
    let hull = Hull::new();
    let id = hull.detached(&["--rm"], "busybox", &["sleep", "1"]);
    eventually("the container has removed itself", || hull.ok(["ps", "-aq"]).is_empty().then_some(()));
    hull.run(["inspect", &id]).failed(1, &["no such"]);
    hull.left_nothing();
}

#[test]
fn a_running_container_is_not_removed_by_mistake() {
    let hull = Hull::new();
    let id = hull.detached(&["--name", "busy"], "busybox", &["sleep", "600"]);
    hull.run(["rm", "busy"]).failed(1, &["busy", "running"]);
    hull.run(["run", "--name", "busy", &image("busybox"), "true"]).failed(125, &["busy", "in use"]);
    assert_eq!(hull.inspect(&id)["State"]["Running"], true);
    hull.ok(["rm", "-f", "busy"]);
    hull.left_nothing();
}

#[test]
fn a_killed_monitor_is_exit_137_and_nothing_more() {
    let hull = Hull::new();
    let id = hull.detached(&["--name", "victim"], "busybox", &["sleep", "600"]);
    let mut waiter = hull.piped(["wait", "victim"]);
    let monitor = hull.shim_record(&id)["vmm_pid"].as_i64().unwrap();
    kill(Pid::from_raw(monitor.try_into().unwrap()), Signal::SIGKILL).unwrap();
    eventually("ps shows the end", || hull.ok(["ps", "-a"]).contains("Exited (137)").then_some(()));
    let status = eventually("wait ends", || waiter.try_wait().unwrap());
    assert!(status.success());
    assert_eq!(hull_tests::hull::drain(waiter.stdout.take()).trim(), "137");
    hull.run(["exec", "victim", "true"]).failed(1, &["victim", "not running"]);
    hull.ok(["rm", "victim"]);
    hull.left_nothing();
}

#[test]
fn a_killed_shim_is_found_out_and_cleaned_up() {
    let hull = Hull::new();
    let id = hull.detached(&["--name", "orphan"], "busybox", &["sleep", "600"]);
    let shim = hull.shim_record(&id)["shim_pid"].as_i64().unwrap();
    kill(Pid::from_raw(shim.try_into().unwrap()), Signal::SIGKILL).unwrap();
    eventually("ps shows the end", || hull.ok(["ps", "-a"]).contains("Exited (137)").then_some(()));
    hull.ok(["rm", "orphan"]);
    hull.left_nothing();
}

#[test]
fn a_monitor_killed_under_a_foreground_run_ends_it() {
    let hull = Hull::new();
    let mut child =
        hull.piped(["run", "--rm", "--name", "front", &image("busybox"), "sh", "-c", "echo up; sleep 600"]);
    let mut up = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
    let id = hull.inspect("front")["Id"].as_str().unwrap().to_owned();
    let monitor = hull.shim_record(&id)["vmm_pid"].as_i64().unwrap();
    kill(Pid::from_raw(monitor.try_into().unwrap()), Signal::SIGKILL).unwrap();
    let status = eventually("hull ends with its VM", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(137));
    hull.left_nothing();
}

#[test]
fn a_background_child_does_not_hold_up_the_exit() {
    let hull = Hull::new();
    let id = hull.detached(&[], "busybox", &["sleep", "600"]);
    let start = Instant::now();
    assert_eq!(hull.ok(["exec", &id, "sh", "-c", "sleep 500 & echo done"]), "done\n");
    assert!(start.elapsed().as_secs() < 30);
    hull.ok(["rm", "-f", &id]);
    hull.left_nothing();
}

#[test]
fn thirty_execs_leave_no_trace_in_the_shim() {
    let hull = Hull::new();
    let id = hull.detached(&[], "busybox", &["sleep", "600"]);
    let shim = hull.shim_record(&id)["shim_pid"].as_i64().unwrap();
    let count = || std::fs::read_dir(format!("/proc/{shim}/fd")).unwrap().count();
    hull.ok(["exec", &id, "true"]);
    let before = count();
    for _ in 0..30 {
        hull.ok(["exec", &id, "true"]);
    }
    eventually("the shim's descriptors are as before", || (count() <= before).then_some(()));
    hull.ok(["rm", "-f", &id]);
    hull.left_nothing();
}
