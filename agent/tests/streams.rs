//! Standard streams and terminals.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod guest;

use std::time::Duration;

use guest::{spec, with_guest};
use hull_protocol::agent::StreamKind;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const TEN_MB: usize = 10 << 20;

/// Bytes in which every shift and loss shows.
fn pattern(length: usize) -> Vec<u8> {
    (0u32..).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).take(length).collect()
}

#[test]
fn ten_megabytes_go_in_and_come_out_unchanged() {
    with_guest(|guest| async {
        let data = pattern(TEN_MB);
        guest.create("c", &spec(&["cat"]), [true, true, false]).await.unwrap();
        let stdin = guest.attach("c", None, StreamKind::Stdin).await.unwrap();
        let mut stdout = guest.attach("c", None, StreamKind::Stdout).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        let feed = async {
            let mut stdin = stdin;
            stdin.write_all(&data).await.unwrap();
            stdin.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let (_, count) = tokio::join!(feed, stdout.read_to_end(&mut received));
        assert_eq!(count.unwrap(), TEN_MB);
        assert!(received == data, "the bytes differ");
        let status = guest.wait("c", "").await.unwrap();
        assert_eq!((status.code, status.stdout_bytes), (0, TEN_MB as u64));
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn a_reader_that_waits_holds_the_writer_and_loses_nothing() {
    with_guest(|guest| async {
        let script = format!("head -c {TEN_MB} /dev/zero; echo end >&2");
        guest.create("c", &spec(&["sh", "-c", &script]), [false, true, true]).await.unwrap();
        let mut stdout = guest.attach("c", None, StreamKind::Stdout).await.unwrap();
        let mut stderr = guest.attach("c", None, StreamKind::Stderr).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        let mut line = [0; 4];
        let early = tokio::time::timeout(Duration::from_millis(300), stderr.read_exact(&mut line)).await;
        assert!(early.is_err(), "the writer was not held");
        let mut received = Vec::new();
        stdout.read_to_end(&mut received).await.unwrap();
        assert_eq!(received.len(), TEN_MB);
        stderr.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"end\n");
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn output_waits_for_a_late_reader_and_each_stream_has_one() {
    with_guest(|guest| async {
        guest.create("c", &spec(&["echo", "late"]), [false, true, false]).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        let mut stdout = guest.attach("c", None, StreamKind::Stdout).await.unwrap();
        let mut text = String::new();
        stdout.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "late\n");
        assert_eq!(guest.wait("c", "").await.unwrap().stdout_bytes, 5);
        let again = guest.attach("c", None, StreamKind::Stdout).await.unwrap_err();
        assert_eq!(again, "ERR the stream is already attached");
        let absent = guest.attach("c", None, StreamKind::Stderr).await.unwrap_err();
        assert_eq!(absent, "ERR the process has no such stream");
        let unknown = guest.attach("nobody", None, StreamKind::Stdout).await.unwrap_err();
        assert_eq!(unknown, r#"ERR container "nobody" not found"#);
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn a_stream_that_nobody_attaches_delays_the_exit_only_if_it_holds_something() {
    with_guest(|guest| async {
        guest.create("quiet", &spec(&["true"]), [true; 3]).await.unwrap();
        guest.start_process("quiet", "").await.unwrap();
        let wait = tokio::time::timeout(Duration::from_secs(3), guest.wait("quiet", "")).await;
        assert_eq!(wait.unwrap().unwrap().code, 0);
        guest.create("loud", &spec(&["echo", "kept"]), [false, true, false]).await.unwrap();
        guest.start_process("loud", "").await.unwrap();
        let status = guest.wait("loud", "").await.unwrap();
        assert_eq!((status.code, status.stdout_bytes), (0, 0));
        let mut text = String::new();
        guest
            .attach("loud", None, StreamKind::Stdout)
            .await
            .unwrap()
            .read_to_string(&mut text)
            .await
            .unwrap();
        assert_eq!(text, "kept\n");
        guest.delete("quiet").await.unwrap();
        guest.delete("loud").await.unwrap();
        guest
    });
}

#[test]
fn a_background_child_that_keeps_the_output_does_not_hold_the_exit() {
    with_guest(|guest| async {
        guest.create("c", &spec(&["sleep", "1000"]), [false; 3]).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        let mut process = spec(&[
            "sh",
            "-c",
            "sleep 500 & while :; do echo noise; sleep 0.01; done & echo done",
        ])["process"]
            .take();
        process["cwd"] = json!("/");
        let run = tokio::time::timeout(Duration::from_secs(10), guest.exec("c", "e", &process)).await;
        let output = run.expect("the exit was held");
        assert_eq!(output.code, 0);
        assert!(output.stdout.contains("done\n"), "{}", output.stdout);
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn a_host_that_stops_reading_does_not_fail_the_process() {
    with_guest(|guest| async {
        let script = "head -c 1000000 /dev/zero; echo survived >&2";
        guest.create("c", &spec(&["sh", "-c", script]), [false, true, true]).await.unwrap();
        let mut stderr = guest.attach("c", None, StreamKind::Stderr).await.unwrap();
        drop(guest.attach("c", None, StreamKind::Stdout).await.unwrap());
        guest.start_process("c", "").await.unwrap();
        let mut text = String::new();
        stderr.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "survived\n");
        assert_eq!(guest.wait("c", "").await.unwrap().code, 0);
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn a_process_that_never_reads_is_not_fed_for_ever() {
    with_guest(|guest| async {
        guest.create("c", &spec(&["true"]), [true, false, false]).await.unwrap();
        let mut stdin = guest.attach("c", None, StreamKind::Stdin).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        assert_eq!(guest.wait("c", "").await.unwrap().code, 0);
        // The agent closes the connection: either the write or the read says so.
        let data = vec![0; TEN_MB];
        let closed = tokio::time::timeout(Duration::from_secs(5), async {
            stdin.write_all(&data).await.is_err() || stdin.read(&mut [0]).await.is_ok_and(|count| count == 0)
        });
        assert!(closed.await.unwrap());
        guest.delete("c").await.unwrap();
        guest
    });
}

fn terminal_spec(script: &str) -> Value {
    let mut terminal = spec(&["sh", "-c", script]);
    terminal["process"]["terminal"] = json!(true);
    terminal["process"]["consoleSize"] = json!({"height": 24, "width": 80});
    terminal
}

/// Reads until `text` has been seen.
async fn read_until(stream: &mut UnixStream, text: &str) -> String {
    let mut seen = String::new();
    let mut byte = [0];
    while !seen.ends_with(text) {
        let count = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut byte)).await;
        let count = count.unwrap_or_else(|_| panic!("{text:?} did not come after {seen:?}")).unwrap();
        assert_ne!(count, 0, "the stream ended after {seen:?}");
        seen.push(byte[0] as char);
    }
    seen
}

#[test]
fn a_terminal_has_a_size_that_follows() {
    with_guest(|guest| async {
        let script = "trap 'stty size; exit 3' WINCH; tty; stty size; ls -la /dev/console | cut -c1; while :; do sleep 0.05; done";
        guest.create("c", &terminal_spec(script), [true, true, true]).await.unwrap();
        assert!(guest.attach("c", None, StreamKind::Stderr).await.is_err(), "a terminal has no stderr");
        let mut stdout = guest.attach("c", None, StreamKind::Stdout).await.unwrap();
        guest.resize("c", "", 100, 30).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        assert_eq!(read_until(&mut stdout, "c\r\n").await, "/dev/pts/0\r\n30 100\r\nc\r\n");
        guest.resize("c", "", 133, 44).await.unwrap();
        assert_eq!(read_until(&mut stdout, "\n").await, "44 133\r\n");
        assert_eq!(guest.wait("c", "").await.unwrap().code, 3);
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn an_interrupt_typed_into_a_terminal_reaches_the_process() {
    with_guest(|guest| async {
        guest
            .create(
                "c",
                &terminal_spec("trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done"),
                [true, true, false],
            )
            .await
            .unwrap();
        let mut stdin = guest.attach("c", None, StreamKind::Stdin).await.unwrap();
        let mut stdout = guest.attach("c", None, StreamKind::Stdout).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        read_until(&mut stdout, "ready\r\n").await;
        stdin.write_all(b"\x03").await.unwrap();
        read_until(&mut stdout, "caught\r\n").await;
        let mut rest = Vec::new();
        stdout.read_to_end(&mut rest).await.unwrap();
        assert_eq!(guest.wait("c", "").await.unwrap().code, 9);
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn an_exec_can_have_a_terminal() {
    with_guest(|guest| async {
        guest.create("c", &spec(&["sleep", "1000"]), [false; 3]).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        let process =
            terminal_spec("stty size; test -t 0 && echo a terminal; read line; echo got $line")["process"]
                .take();
        guest.create_exec("c", "e", &process, [true, true, false]).await.unwrap();
        guest.resize("c", "e", 91, 19).await.unwrap();
        let mut stdin = guest.attach("c", Some("e"), StreamKind::Stdin).await.unwrap();
        let mut stdout = guest.attach("c", Some("e"), StreamKind::Stdout).await.unwrap();
        guest.start_process("c", "e").await.unwrap();
        assert_eq!(read_until(&mut stdout, "terminal\r\n").await, "19 91\r\na terminal\r\n");
        stdin.write_all(b"words\n").await.unwrap();
        read_until(&mut stdout, "got words\r\n").await;
        assert_eq!(guest.wait("c", "e").await.unwrap().code, 0);
        guest.delete_exec("c", "e").await.unwrap();
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn a_port_of_the_pod_is_reached_by_its_loopback() {
    with_guest(|guest| async {
        let mut server = spec(&["busybox", "nc", "-l", "-p", "7777", "-e", "cat"]);
        // In the pod's network.
        let namespaces = server["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "network");
        guest.create("c", &server, [false; 3]).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        let mut refusals = Vec::new();
        // It does not say when it listens.
        while refusals.len() < 500 {
            match guest.open("port 7777").await {
                Ok(mut port) => {
                    port.write_all(b"there and back").await.unwrap();
                    port.shutdown().await.unwrap();
                    let mut back = String::new();
                    port.read_to_string(&mut back).await.unwrap();
                    assert_eq!(back, "there and back");
                    break;
                }
                Err(refused) => refusals.push(refused),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(refusals.len() < 500, "{:?}", refusals.last());
        assert_eq!(guest.wait("c", "").await.unwrap().code, 0);
        for (line, reason) in [("port 7777", "cannot connect to port 7777"), ("port 0", "no such port")] {
            let refused = guest.open(line).await.unwrap_err();
            assert!(refused.contains(reason), "{refused}");
        }
        guest.delete("c").await.unwrap();
        guest
    });
}
