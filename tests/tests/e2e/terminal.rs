//! `-t` gives a terminal like any other.

use hull_tests::hull::{Hull, image};
use hull_tests::terminal::Terminal;

#[test]
fn a_terminal_has_a_size_and_follows_it() {
    let hull = Hull::new();
    let mut terminal = Terminal::run(hull.command(["run", "-it", "--rm", &image("busybox"), "sh"]), 101, 33);
    // What is typed is echoed: the answers are words that were not typed.
    terminal.send("PS1=; tty && stty size && echo rea''dy\r");
    let shown = terminal.expect("ready\r\n");
    assert!(shown.contains("33 101"), "{shown:?}");
    assert!(shown.contains("/dev/"), "{shown:?}");
    terminal.resize(77, 22);
    terminal.send("while [ \"$(stty size)\" != '22 77' ]; do sleep 0.1; done; echo fol''lowed\r");
    terminal.expect("followed");
    terminal.send("exit 5\r");
    assert_eq!(terminal.wait().code(), Some(5));
    assert!(terminal.is_sane());
    hull.left_nothing();
}

#[test]
fn control_c_reaches_the_process() {
    let hull = Hull::new();
    let script = "trap 'echo cau''ght; exit 3' INT; echo rea''dy; while :; do sleep 0.1; done";
    let mut terminal =
        Terminal::run(hull.command(["run", "-it", "--rm", &image("busybox"), "sh", "-c", script]), 80, 24);
    terminal.expect("ready");
    terminal.send("\u{3}");
    terminal.expect("caught");
    assert_eq!(terminal.wait().code(), Some(3));
    assert!(terminal.is_sane());
    hull.left_nothing();
}

#[test]
fn without_a_terminal_the_signal_is_passed_on() {
    let hull = Hull::new();
    let script = "trap 'exit 3' INT; echo ready; while :; do sleep 0.1; done";
    let mut child = hull.piped(["run", "--rm", &image("busybox"), "sh", "-c", script]);
    let mut ready = [0; 6];
    if std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).is_err() {
        panic!("{:?}", hull_tests::hull::said(&child.wait_with_output().unwrap()));
    }
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let status = hull_tests::eventually("hull ends after SIGINT", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(3));
    hull.left_nothing();
}

#[test]
fn exec_has_a_terminal_of_its_own() {
    let hull = Hull::new();
    let id = hull.detached(&[], "busybox", &["sleep", "600"]);
    let mut terminal = Terminal::run(hull.command(["exec", "-it", &id, "sh"]), 90, 30);
    terminal.send("PS1=; stty size; echo rea''dy\r");
    assert!(terminal.expect("ready").contains("30 90"));
    terminal.send("exit 4\r");
    assert_eq!(terminal.wait().code(), Some(4));
    hull.ok(["rm", "-f", &id]);
    hull.left_nothing();
}
