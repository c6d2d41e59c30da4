//! containerd is restarted, or killed, in the middle of what `ctr` does: containers, and what was begun in them, go on.

use std::fs;
use std::io::Read;
use std::process::Stdio;

use hull_tests::containerd::{Containerd, RUNTIME, busybox};
use hull_tests::eventually;
use hull_tests::terminal::Terminal;
use nix::sys::signal::Signal;

#[test]
fn containerd_comes_back_to_what_it_left() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut containerd = Containerd::start();
        let log = containerd.file("hull-test.log");
        let log_uri = format!("file://{}", log.display());
        let script = "i=0; while [ $i -lt 20 ]; do i=$((i+1)); echo line $i; sleep 1; done; exec sleep 1000";
        containerd.detached(&["--log-uri", &log_uri], "web", &["sh", "-c", script]);
        eventually("the first lines", || {
            fs::read_to_string(&log).ok().filter(|text| text.contains("line 3\n"))
        });
        containerd.restart(signal);
        assert_eq!(containerd.status("web"), "RUNNING", "{signal}");
        assert_eq!(containerd.ok(["task", "exec", "--exec-id", "e", "web", "echo", "still"]), "still\n");
        let wanted: String = (1..=20).map(|n| format!("line {n}\n")).collect();
        eventually("the last line", || {
            fs::read_to_string(&log).ok().filter(|text| text.contains("line 20\n"))
        });
        assert!(fs::read_to_string(&log).unwrap() == wanted, "output is lost");
        let mut events = containerd.events();
        containerd.ok(["task", "kill", "-s", "SIGKILL", "web"]);
        containerd.becomes("web", "STOPPED");
        assert_eq!(containerd.exit_code("web"), 137);
        assert_eq!(events.until("/tasks/delete", "web"), ["exit", "delete"]);
        drop(events);
        containerd.ok(["container", "rm", "web"]);
        fs::remove_file(&log).unwrap();
        containerd.left_nothing();
    }
}

#[test]
fn an_exec_and_a_pause_outlive_containerd() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut containerd = Containerd::start();
        containerd.detached(&[], "web", &["sleep", "1000"]);
        let begin = |id: &str, script: &str| {
            let words = ["task", "exec", "--exec-id", id, "web", "sh", "-c", script];
            let mut exec = containerd.ctr(words).stdout(Stdio::piped()).spawn().unwrap();
            exec.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
            exec
        };
        let mut waiting = begin("e0", "echo up; sleep 1000");
        let mut gone =
            begin("e1", "echo up; until [ -e /go ]; do sleep 0.2; done; echo went >/went; sleep 1000");
        // Some ctr, when they have lost their containerd, end what they ran at the next one.
        gone.kill().unwrap();
        gone.wait().unwrap();
        containerd.restart(signal);
        assert!(!waiting.wait().unwrap().success(), "{signal}");
        assert_eq!(containerd.status("web"), "RUNNING", "{signal}");
        let script = "touch /go; until [ -s /went ]; do sleep 0.2; done; cat /went";
        let said = containerd.ok(["task", "exec", "--exec-id", "e2", "web", "sh", "-c", script]);
        assert_eq!(said, "went\n", "{signal}");
        assert!(containerd.ok(["task", "ps", "web"]).contains("e1"), "{signal}");

        containerd.ok(["task", "pause", "web"]);
        containerd.restart(signal);
        assert_eq!(containerd.status("web"), "PAUSED", "{signal}");
        containerd.ok(["task", "resume", "web"]);
        assert_eq!(containerd.ok(["task", "exec", "--exec-id", "e3", "web", "echo", "still"]), "still\n");
        let metrics = containerd.ok(["task", "metrics", "--format", "json", "web"]);
        assert!(metrics.contains("\"usage\":"), "{metrics}");
        containerd.remove("web");
        containerd.left_nothing();
    }
}

#[test]
fn a_terminal_is_attached_to_again() {
    let mut containerd = Containerd::start();
    let image = busybox();
    let command = containerd.ctr(["run", "--runtime", RUNTIME, "-d", "-t", &image, "tty", "sh"]);
    assert!(Terminal::run(command, 80, 25).wait().success());
    for (round, signal) in [Signal::SIGTERM, Signal::SIGKILL].into_iter().enumerate() {
        let mut attached = Terminal::run(containerd.ctr(["task", "attach", "tty"]), 80, 25);
        attached.send(&format!("echo attached $((6 * 7 + {round}))\n"));
        attached.expect(&format!("attached {}", 42 + round));
        // One that sees its containerd go removes the fifos when it ends.
        attached.kill();
        containerd.restart(signal);
        assert_eq!(containerd.status("tty"), "RUNNING", "{signal}");
    }
    let mut attached = Terminal::run(containerd.ctr(["task", "attach", "tty"]), 80, 25);
    attached.send("echo for the last $((1 + 2))\n");
    attached.expect("for the last 3");
    containerd.restart(Signal::SIGKILL);
    assert!(!attached.wait().success());
    assert_eq!(containerd.ok(["task", "exec", "--exec-id", "e", "tty", "echo", "still"]), "still\n");
    containerd.remove("tty");
    containerd.left_nothing();
}

#[test]
fn what_ends_without_containerd_is_told_to_the_next_one() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut containerd = Containerd::start();
        let log = containerd.file("hull-test.log");
        let log_uri = format!("file://{}", log.display());
        let script = "until [ -e /go ]; do sleep 0.1; done; sleep 2; echo end; exit 5";
        containerd.detached(&["--log-uri", &log_uri], "web", &["sh", "-c", script]);
        containerd.ok(["task", "exec", "--exec-id", "e", "web", "touch", "/go"]);
        containerd.stop(signal);
        eventually("its last word", || fs::read_to_string(&log).ok().filter(|text| text == "end\n"));
        containerd.run_daemon();
        containerd.becomes("web", "STOPPED");
        assert_eq!(containerd.exit_code("web"), 5, "{signal}");
        containerd.ok(["container", "rm", "web"]);
        fs::remove_file(&log).unwrap();
        containerd.left_nothing();
    }
}
