//! What an administrator has chosen reaches the VM.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use hull_tests::bridge::{self, GATEWAY};
use hull_tests::eventually;
use hull_tests::hull::{Hull, finished, image, said};
use tempfile::NamedTempFile;

/// What a container takes and frees, in MiB.
const TAKEN: u64 = 128;
/// What of it must come back: the guest's kernel reports large pieces only, and not while they are wanted.
const BACK: u64 = 96;

/// A configuration for the commands that get it.
pub(super) fn choose(text: &str) -> NamedTempFile {
    let file = NamedTempFile::with_prefix("hull-e2e-").unwrap();
    fs::write(file.path(), text).unwrap();
    file
}

/// Resident memory of a process in MiB.
fn resident(pid: u64) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[test]
fn what_a_container_frees_goes_back_to_the_host() {
    let hull = Hull::new();
    let config = choose("[vm]\nfree_memory = \"return\"\n");
    let mut run = hull.command(["run", "-d", &image("busybox"), "sleep", "600"]);
    let run = said(&finished(run.env("HULL_CONFIG", config.path())));
    assert_eq!(run.code, 0, "{run:?}");
    let id = run.out.trim();
    let monitor = hull.shim_record(id)["vmm_pid"].as_u64().unwrap();
    let before = resident(monitor);
    // The writable layer is a tmpfs: a file there is memory until it is removed.
    let fill = format!("dd if=/dev/zero of=/fill bs=1M count={TAKEN}");
    hull.ok(["exec", id, "sh", "-c", &fill]);
    let full = resident(monitor);
    assert!(full >= before + TAKEN - 16, "{before} MiB, then {full}");
    hull.ok(["exec", id, "rm", "/fill"]);
    let freed = Instant::now();
    eventually("the memory is back", || (resident(monitor) + BACK <= full).then_some(()));
    println!("{before} MiB, {full} full, {} after {:.1} s", resident(monitor), freed.elapsed().as_secs_f64());
    // It can be had again.
    hull.ok(["exec", id, "sh", "-c", &fill]);
    assert!(resident(monitor) + 16 >= full);
    hull.ok(["rm", "-f", id]);
    hull.left_nothing();
}

#[test]
fn a_processor_that_cannot_be_had_is_refused() {
    let hull = Hull::new();
    // One that no release has, and what to do about it.
    let config = choose("[vm]\ncpu = \"v9\"\n");
    let mut run = hull.command(["run", "--rm", &image("busybox"), "true"]);
    let run = said(&finished(run.env("HULL_CONFIG", config.path())));
    assert!(run.code != 0 && run.err.contains("line 2") && run.err.contains("v9"), "{run:?}");
    // One that has what this host's has not, as the emulated one's.
    if !fs::read_to_string("/proc/cpuinfo").unwrap().contains(" cx16") {
        let config = choose("[vm]\ncpu = \"v2\"\n");
        let mut run = hull.command(["run", "--rm", &image("busybox"), "true"]);
        let run = said(&finished(run.env("HULL_CONFIG", config.path())));
        assert!(run.code == 125 && run.err.contains("it lacks cx16"), "{run:?}");
    }
    hull.left_nothing();
}

/// A container under a configuration, detached; its id.
pub(super) fn under(hull: &Hull, config: &NamedTempFile, options: &[&str], image_name: &str) -> String {
    let image = image(image_name);
    let words = [&["run", "-d"], options, &[&image, "sleep", "600"]].concat();
    let run = said(&finished(hull.command(words).env("HULL_CONFIG", config.path())));
    assert_eq!(run.code, 0, "{run:?}");
    run.out.trim().to_owned()
}

#[test]
fn a_disk_is_no_faster_than_chosen() {
    let hull = Hull::new();
    // Each of these files has 64 KiB that are nowhere else, and is read by itself. A second's worth may come at once.
    let cases = [
        ("mib_per_second = 1", "cat /big/1/1?? | wc -c", Duration::from_millis(5_250)),
        ("operations_per_second = 10", "cat /big/2/[1-6]? | wc -c", Duration::from_millis(5_000)),
    ];
    for (limit, read, least) in cases {
        let id = under(&hull, &choose(&format!("[disk]\n{limit}\n")), &[], "big");
        let begun = Instant::now();
        let bytes = hull.ok(["exec", &id, "sh", "-c", read]);
        let took = begun.elapsed();
        println!("{limit}: {} bytes in {took:?}", bytes.trim());
        assert!(took >= least, "{limit}: {} bytes in {took:?}", bytes.trim());
        hull.ok(["rm", "-f", &id]);
    }
    hull.left_nothing();
}

#[test]
fn an_interface_is_no_faster_than_chosen() {
    const LENGTH: usize = 6 << 20;
    // A second's worth may come at once, and a little lies in sockets when the clock is looked at.
    const LEAST: Duration = Duration::from_millis(4_500);
    bridge::set_up();
    let hull = Hull::new();
    let id = under(&hull, &choose("[network]\nmib_per_second = 1\n"), &["--network", "bridge"], "busybox");
    let listener = TcpListener::bind((GATEWAY, 0)).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();

    let out = format!("head -c {LENGTH} /dev/zero | nc {GATEWAY} {port}");
    let mut sender = hull.command(["exec", &id, "sh", "-c", &out]).spawn().unwrap();
    let mut connection = listener.accept().unwrap().0;
    let begun = Instant::now();
    connection.read_exact(&mut vec![0; LENGTH]).unwrap();
    let took = begun.elapsed();
    println!("out: {took:?}");
    assert!(took >= LEAST, "{LENGTH} bytes out in {took:?}");
    drop(connection);
    sender.wait().unwrap();

    let into = format!("nc {GATEWAY} {port} </dev/null | head -c {LENGTH} | wc -c");
    let receiver = hull.piped(["exec", &id, "sh", "-c", &into]);
    let mut connection = listener.accept().unwrap().0;
    let begun = Instant::now();
    connection.write_all(&vec![0; LENGTH]).unwrap();
    // nc goes on until its peer has ended.
    drop(connection);
    let counted = receiver.wait_with_output().unwrap();
    let took = begun.elapsed();
    println!("in: {took:?}");
    assert_eq!(String::from_utf8_lossy(&counted.stdout).trim(), LENGTH.to_string());
    assert!(took >= LEAST, "{LENGTH} bytes in after {took:?}");
    hull.ok(["rm", "-f", &id]);
    hull.left_nothing();
}
