//! How a container ends is how `hull run` ends.

use hull_tests::hull::{Hull, image};

#[test]
fn the_exit_code_is_the_containers() {
    let hull = Hull::new();
    for code in [0, 7] {
        let said = hull.run(["run", "--rm", &image("busybox"), "sh", "-c", &format!("exit {code}")]);
        assert_eq!((said.code, said.err.as_str()), (code, ""), "{said:?}");
    }
    hull.left_nothing();
}

#[test]
fn a_signal_is_128_and_its_number() {
    let hull = Hull::new();
    let said =
        hull.run(["run", "--rm", &image("busybox"), "sh", "-c", "kill -KILL $$; sleep 9 & kill -9 -1"]);
    // Init cannot kill itself; killing all others does not harm it: what counts is a signal from outside.
    assert_eq!(said.code, 0, "{said:?}");
    let id = hull.detached(&[], "busybox", &["sleep", "600"]);
    hull.ok(["kill", &id]);
    assert_eq!(hull.ok(["wait", &id]).trim(), "137");
    hull.ok(["rm", &id]);
    hull.left_nothing();
}

#[test]
fn what_cannot_be_run_is_said_in_one_line() {
    let hull = Hull::new();
    let busybox = image("busybox");
    hull.run(["run", "--rm", &busybox, "no-such-command"]).failed(127, &["no-such-command", "not found"]);
    hull.run(["run", "--rm", &busybox, "/no/such/file"]).failed(127, &["/no/such/file", "no such file"]);
    hull.run(["run", "--rm", &busybox, "/etc/not-executable"])
        .failed(126, &["/etc/not-executable", "permission denied"]);
    hull.run(["run", "--rm", &busybox, "/etc"]).failed(126, &["/etc"]);
    hull.left_nothing();
}

#[test]
fn debian_prints_its_own_release() {
    let hull = Hull::new();
    let said = hull.run(["run", "--rm", &image("debian:12"), "cat", "/etc/os-release"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.out.contains("PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\""), "{said:?}");
    hull.left_nothing();
}

#[test]
fn the_process_is_as_it_was_asked_for() {
    let hull = Hull::new();
    let file = tempfile::Builder::new().prefix("hull-e2e-").tempfile().unwrap();
    std::fs::write(file.path(), "# comment\nFROM_FILE=yes\n").unwrap();
    let script = "id -u; id -g; id -G; pwd; echo $A $FROM_FILE; hostname; cat /proc/1/comm; echo $HOME";
    let said = hull.run([
        "run",
        "--rm",
        "--user",
        "web",
        "--workdir",
        "/tmp/made/here",
        "--env",
        "A=1",
        "--env-file",
        file.path().to_str().unwrap(),
        "--hostname",
        "box",
        &image("busybox"),
        "sh",
        "-c",
        script,
    ]);
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(lines, ["1000", "1000", "1000 29", "/tmp/made/here", "1 yes", "box", "sh", "/"], "{said:?}");
    // The entry point replaces the image's, and its words come before the others.
    assert_eq!(hull.ok(["run", "--rm", "--entrypoint", "echo", &image("busybox"), "a", "b"]), "a b\n");
    hull.left_nothing();
}

#[test]
fn the_root_is_writable_unless_it_is_not() {
    let hull = Hull::new();
    let write = "echo x >/new && cat /new";
    assert_eq!(hull.ok(["run", "--rm", &image("busybox"), "sh", "-c", write]), "x\n");
    let said = hull.run(["run", "--rm", "--read-only", &image("busybox"), "sh", "-c", write]);
    assert_ne!(said.code, 0);
    assert!(said.err.contains("Read-only file system"), "{said:?}");
    // What one container wrote, the next does not see.
    assert_eq!(hull.run(["run", "--rm", &image("busybox"), "test", "-e", "/new"]).code, 1);
    hull.left_nothing();
}

#[test]
fn a_workload_is_no_more_than_its_capabilities() {
    let hull = Hull::new();
    let script = "grep -E '^(CapEff|NoNewPrivs)' /proc/self/status; mknod /tmp/x b 254 0; echo $?; \
                  mount -t tmpfs x /mnt 2>/dev/null || echo refused; cat /proc/kcore 2>/dev/null | wc -c; \
                  echo 1 2>/dev/null >/proc/sys/kernel/panic || echo read-only; ls /proc/self/fd | wc -l";
    let said = hull.run(["run", "--rm", &image("busybox"), "sh", "-c", script]);
    assert!(said.out.contains("CapEff:\t00000000a80425fb"), "{said:?}");
    assert!(said.out.contains("refused"), "{said:?}");
    assert!(said.out.contains("read-only"), "{said:?}");
    // Three streams and the folder that `ls` reads.
    assert_eq!(said.out.lines().last(), Some("4"), "{said:?}");
    hull.left_nothing();
}
