//! Standard streams: nothing lost, nothing blocked, whoever reads late, leaves or never comes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};

use hull_shim::client::{Process, Reach};
use support::{Pod, reader, soon};

const INIT: Process<'static> = Process { container: "web", exec: "" };

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from((i ^ (i >> 8) ^ (i >> 16)) & 0xff).unwrap()).collect()
}

#[tokio::test]
async fn ten_megabytes_there_and_back() {
    let mut pod = Pod::new("web", &["cat"]);
    pod.request.stdin = pod.fifo("in");
    pod.request.stdout = pod.fifo("out");
    let output = reader(&pod.request.stdout);
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    soon(client.start(INIT)).await.unwrap();
    let input = pattern(10 << 20);
    let bytes = input.clone();
    let mut stdin = OpenOptions::new().write(true).open(&pod.request.stdin).unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&bytes));
    // The end of input is what is queued, not what was queued when it was asked for.
    soon(client.close_io(INIT)).await.unwrap();
    assert_eq!(soon(client.wait(INIT)).await.unwrap().exit_status, 0);
    writer.join().unwrap().unwrap();
    assert!(output.finish() == input, "every byte arrives in order");
    soon(client.delete(INIT)).await.unwrap();
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
}

#[tokio::test]
async fn input_stays_open_until_it_is_closed() {
    let mut pod = Pod::new("web", &["cat"]);
    pod.request.stdin = pod.fifo("in");
    pod.request.stdout = pod.fifo("out");
    let client = pod.connect().await;
    let output = reader(&pod.request.stdout);
    soon(client.create(&pod.request)).await.unwrap();
    soon(client.start(INIT)).await.unwrap();
    for part in ["one ", "two"] {
        // Each writer closes, as a client that detaches does.
        OpenOptions::new().write(true).open(&pod.request.stdin).unwrap().write_all(part.as_bytes()).unwrap();
    }
    soon(client.close_io(INIT)).await.unwrap();
    soon(client.close_io(INIT)).await.unwrap();
    soon(client.wait(INIT)).await.unwrap();
    assert_eq!(output.finish(), b"one two");
    soon(client.delete(INIT)).await.unwrap();
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
}

#[tokio::test]
async fn a_reader_may_come_after_the_exit() {
    let mut pod = Pod::new("web", &["echo", "early"]);
    pod.request.stdout = pod.fifo("out");
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    soon(client.start(INIT)).await.unwrap();
    soon(client.wait(INIT)).await.unwrap();
    let flags = nix::fcntl::OFlag::O_NONBLOCK;
    use std::os::unix::fs::OpenOptionsExt;
    let mut late =
        OpenOptions::new().read(true).custom_flags(flags.bits()).open(&pod.request.stdout).unwrap();
    let mut text = String::new();
    late.read_to_string(&mut text).unwrap();
    assert_eq!(text, "early\n");
    soon(client.delete(INIT)).await.unwrap();
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
}

#[tokio::test]
async fn a_reader_may_go_and_another_come() {
    let mut pod = Pod::new("web", &["sh", "-c", "echo first; read x; echo second"]);
    pod.request.stdin = pod.fifo("in");
    pod.request.stdout = pod.fifo("out");
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    soon(client.start(INIT)).await.unwrap();
    let mut first = [0; 6];
    fs::File::open(&pod.request.stdout).unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"first\n");
    let second = reader(&pod.request.stdout);
    OpenOptions::new().write(true).open(&pod.request.stdin).unwrap().write_all(b"go\n").unwrap();
    assert_eq!(soon(client.wait(INIT)).await.unwrap().exit_status, 0, "no EPIPE reaches the process");
    assert_eq!(second.finish(), b"second\n");
    soon(client.delete(INIT)).await.unwrap();
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
}

#[tokio::test]
async fn output_that_nobody_reads_does_not_outlive_a_kill() {
    let mut pod =
        Pod::new("web", &["sh", "-c", "while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done"]);
    pod.request.stdout = pod.fifo("out");
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    soon(client.start(INIT)).await.unwrap();
    soon(client.state(INIT)).await.expect("a full fifo does not block the shim");
    client.kill(INIT, 9, Reach::Process).await.unwrap();
    assert_eq!(soon(client.wait(INIT)).await.unwrap().exit_status, 137);
    soon(client.delete(INIT)).await.unwrap();
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
}

#[tokio::test]
async fn an_exec_has_streams_of_its_own() {
    let mut pod = Pod::new("web", &["sleep", "1000"]);
    pod.request.stdout = format!("file://{}", pod.file("log").display());
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    soon(client.start(INIT)).await.unwrap();
    for n in 0..20 {
        let id = format!("e{n}");
        let exec = Process::exec("web", &id);
        let mut request = pod.exec_request(&id, &["sh", "-c", "cat; exit 5"]);
        request.stdin = pod.fifo(&format!("{id}in"));
        request.stdout = pod.fifo(&format!("{id}out"));
        let output = reader(&request.stdout);
        soon(client.exec(&request)).await.unwrap();
        OpenOptions::new().read(true).write(true).open(&request.stdin).unwrap().write_all(b"hi").unwrap();
        soon(client.close_io(exec)).await.unwrap();
        soon(client.start(exec)).await.unwrap();
        assert_eq!(soon(client.wait(exec)).await.unwrap().exit_status, 5);
        soon(client.delete(exec)).await.unwrap();
        assert_eq!(output.finish(), b"", "what was written before anybody held the fifo is gone");
    }
    let shim = client.connect_task("web").await.unwrap().shim_pid;
    let fds = fs::read_dir(format!("/proc/{shim}/fd")).unwrap().count();
    assert!(fds < 30, "{fds} descriptors are open after 20 execs");
    soon(client.shutdown_now("web")).await.unwrap();
    pod.assert_nothing_left();
}

#[tokio::test]
async fn a_logger_takes_the_output_of_init_and_execs() {
    let mut pod = Pod::new("web", &["sh", "-c", "echo out; echo err >&2; read x; echo more"]);
    let program = pod.file("logger");
    // Slow to write what it has: nothing may end it before.
    let script = format!(
        "log={}.$CONTAINER_NAMESPACE.$CONTAINER_ID\necho \"$@\" >$log.args\nexec 5>&-\n\
         cat <&4 >$log.err & cat <&3 >$log.out.new; sleep 0.3; mv $log.out.new $log.out",
        program.display()
    );
    support::script(&program, &script);
    pod.request.stdin = pod.fifo("in");
    pod.request.stdout = format!("binary://{}?--tag=a%20b", program.display());
    pod.request.stderr.clone_from(&pod.request.stdout);
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    let log = |id: &str, name: &str| {
        fs::read_to_string(format!("{}.test.{id}.{name}", program.display())).unwrap_or_default()
    };
    assert_eq!(log("web", "args"), "--tag a b\n", "it is ready before the container is");
    soon(client.start(INIT)).await.unwrap();
    for n in 0..5 {
        let id = format!("e{n}");
        let mut request = pod.exec_request(&id, &["sh", "-c", "echo in exec; exit 5"]);
        request.stdout.clone_from(&pod.request.stdout);
        soon(client.exec(&request)).await.unwrap();
        soon(client.start(Process::exec("web", &id))).await.unwrap();
        assert_eq!(soon(client.wait(Process::exec("web", &id))).await.unwrap().exit_status, 5);
        soon(client.delete(Process::exec("web", &id))).await.unwrap();
        assert_eq!(log(&id, "out"), "in exec\n");
    }
    OpenOptions::new().write(true).open(&pod.request.stdin).unwrap().write_all(b"x\n").unwrap();
    assert_eq!(soon(client.wait(INIT)).await.unwrap().exit_status, 0);
    soon(client.delete(INIT)).await.unwrap();
    assert_eq!((log("web", "out").as_str(), log("web", "err").as_str()), ("out\nmore\n", "err\n"));
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
}

#[tokio::test]
async fn a_logger_that_fails_is_an_error_and_one_that_leaves_is_not_missed() {
    let mut pod = Pod::new("web", &["sh", "-c", "for i in 1 2 3 4 5; do echo $i; sleep 0.1; done"]);
    let client = pod.connect().await;
    let address = |scheme: &str, name: &str| format!("{scheme}://{}", pod.file(name).display());
    support::script(&pod.file("early"), "exit 1");
    let mut request = pod.request.clone();
    for (stdout, words) in [
        (address("binary", "missing"), "No such file"),
        (address("binary-v2", "early"), "it ended before it was ready"),
    ] {
        request.stdout = stdout;
        let error = soon(client.create(&request)).await.unwrap_err().to_string();
        assert!(error.starts_with("the logger /") && error.contains(words), "{error}");
    }
    // Its output is lost; the process is not.
    pod.request.stdout = address("binary", "early");
    soon(client.create(&pod.request)).await.unwrap();
    soon(client.start(INIT)).await.unwrap();
    assert_eq!(soon(client.wait(INIT)).await.unwrap().exit_status, 0);
    soon(client.delete(INIT)).await.unwrap();
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
}

#[tokio::test]
async fn a_guest_that_keeps_a_stream_open_holds_up_no_end() {
    let pod = Pod::sandbox("pod");
    let client = pod.connect().await;
    let (sandbox, hoarder) = (Process::init("pod"), Process::init("hoarder"));
    soon(client.create(&pod.request)).await.unwrap();
    soon(client.start(sandbox)).await.unwrap();
    let mut request = pod.member("hoarder", &["true"]);
    request.stdout = format!("file://{}", pod.file("log").display());
    soon(client.create(&request)).await.unwrap();
    // Its VM goes on.
    assert_eq!(soon(client.delete(hoarder)).await.unwrap().exit_status, 137);
    soon(client.state(sandbox)).await.unwrap();
    soon(client.kill(sandbox, 9, Reach::Process)).await.unwrap();
    soon(client.wait(sandbox)).await.unwrap();
    soon(client.delete(sandbox)).await.unwrap();
    soon(client.shutdown("pod")).await.unwrap();
    pod.assert_nothing_left();
}
