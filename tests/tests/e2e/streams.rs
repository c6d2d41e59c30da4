//! Bytes go in and come out, all of them and in order.

use std::io::{Read, Write};
use std::process::Command;

use hull_tests::craft::hex;
use hull_tests::hull::{Hull, finished, image, said};
use sha2::{Digest, Sha256};

use super::images::Mounted;

/// Runs what ends in `sha256sum`; gives how it ended, the sum, and what was complained about.
fn summed(command: &mut Command) -> (i32, String, String) {
    let said = said(&finished(command));
    (said.code, said.out.split(' ').next().unwrap_or_default().to_owned(), said.err)
}

/// 103 MB that do not repeat, in 1,200 files.
const ALL: &str = "cat /big/*/*";

/// Has `command` write [`ALL`] ten times over; each time every byte must come out.
fn whole_ten_times(command: &Command) {
    let mounted = Mounted::new(&image("big"));
    let tree = mounted.tree().display();
    let expected = summed(
        Command::new("bash").args(["-c", &format!("cat {tree}/big/*/* | sha256sum")]).env("LC_ALL", "C"),
    );
    for round in 0..10 {
        let mut piped = Command::new("bash");
        piped.args(["-c", "set -o pipefail; \"$@\" | sha256sum", "sh"]);
        piped.arg(command.get_program()).args(command.get_args());
        piped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        assert_eq!(summed(&mut piped), expected, "round {round}");
    }
}

#[test]
fn a_hundred_megabytes_come_out_whole_of_ten_vms() {
    let hull = Hull::new();
    hull.ok(["pull", "-q", &image("big")]);
    whole_ten_times(&hull.command(["run", "--rm", &image("big"), "sh", "-c", ALL]));
    hull.left_nothing();
}

#[test]
fn a_hundred_megabytes_come_out_whole_of_ten_processes_of_one_vm() {
    let hull = Hull::new();
    hull.ok(["pull", "-q", &image("big")]);
    let id = hull.detached(&[], "big", &["sleep", "1000"]);
    whole_ten_times(&hull.command(["exec", &id, "sh", "-c", ALL]));
    hull.ok(["rm", "-f", &id]);
    hull.left_nothing();
}

#[test]
fn ten_megabytes_go_in_whole() {
    let hull = Hull::new();
    let input: Vec<u8> =
        (0..10_000_000_u32).map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect();
    let output = hull.with_input(["run", "-i", "--rm", &image("busybox"), "sha256sum"], &input);
    let said = said(&output);
    assert_eq!(said.out.split(' ').next().unwrap(), hex(&Sha256::digest(&input)), "{said:?}");
    // And back again, while it still goes in.
    let output = hull.with_input(["run", "-i", "--rm", &image("busybox"), "cat"], &input);
    assert_eq!(hex(&Sha256::digest(&output.stdout)), hex(&Sha256::digest(&input)), "{:?}", output.status);
    hull.left_nothing();
}

#[test]
fn the_two_outputs_stay_apart() {
    let hull = Hull::new();
    let said = hull.run(["run", "--rm", &image("busybox"), "sh", "-c", "echo out; echo err >&2"]);
    assert_eq!((said.out.as_str(), said.err.as_str()), ("out\n", "err\n"));
    hull.left_nothing();
}

#[test]
fn without_i_there_is_no_input() {
    let hull = Hull::new();
    let output = hull.with_input(["run", "--rm", &image("busybox"), "cat"], b"not for you");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b""[..]));
    hull.left_nothing();
}

#[test]
fn a_reader_that_leaves_ends_the_writer() {
    let hull = Hull::new();
    let mut child = hull.piped(["run", "--rm", &image("busybox"), "yes"]);
    let mut first = [0; 2];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"y\n");
    drop(child.stdout.take());
    let status = hull_tests::eventually("hull ends when nobody reads", || child.try_wait().unwrap());
    assert!(!status.success());
    hull.left_nothing();
}

#[test]
fn a_conversation_is_not_held_back() {
    let hull = Hull::new();
    let mut child = hull.piped(["run", "-i", "--rm", &image("busybox"), "sh"]);
    let mut input = child.stdin.take().unwrap();
    let mut output = child.stdout.take().unwrap();
    for word in ["one", "two", "three"] {
        writeln!(input, "echo {word}").unwrap();
        let mut answer = vec![0; word.len() + 1];
        output.read_exact(&mut answer).unwrap();
        assert_eq!(answer, format!("{word}\n").as_bytes());
    }
    drop(input);
    assert_eq!(said(&child.wait_with_output().unwrap()).code, 0);
    hull.left_nothing();
}
