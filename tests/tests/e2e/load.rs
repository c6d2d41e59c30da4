//! Well-known programs put load on disks, shared files and interfaces, and nobody complains: neither they, nor the guest's kernel.
//!
//! The programs are the host's, seen through a volume: fio with direct I/O and io_uring, iperf3, redis-benchmark. What is fast
//! enough is not asked here.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::process::Command;

use hull_tests::bridge::{self, GATEWAY, Server, is_listened_to};
use hull_tests::containerd::Containerd;
use hull_tests::eventually;
use hull_tests::hull::Hull;
use serde_json::Value;

use super::configured::{choose, under};
use super::containerd::ThinPool;

/// Docker's filter of system calls has no io_uring, and a privileged container has its VM's disks and kernel log.
const OWNER: [&str; 3] = ["--privileged", "-v", "/usr:/usr:ro"];
/// What no load may make a kernel say.
const COMPLAINTS: [&str; 9] = [
    "BUG",
    "WARNING",
    "Oops",
    "Call Trace",
    "I/O error",
    "corrupt",
    "EXT4-fs error",
    "timed out",
    "virtio: ",
];

/// Lines of a kernel's log that complain.
fn complaints(log: &str) -> Vec<&str> {
    log.lines().filter(|line| COMPLAINTS.iter().any(|word| line.contains(word))).collect()
}

/// A guest's kernel log, whole.
fn log(hull: &Hull, id: &str) -> String {
    let log = hull.ok(["exec", id, "dmesg"]);
    assert!(log.contains("Linux version"), "{log}");
    log
}

/// Panics if a guest's kernel has complained since it said `before`.
fn said_nothing_since(hull: &Hull, id: &str, before: &str) {
    let now = log(hull, id);
    assert_eq!(complaints(now.strip_prefix(before).unwrap()), Vec::<&str>::new());
}

/// What fio is told, one job after the other, each against what is left of the shell's words.
fn fio(jobs: &[&str]) -> String {
    let common = "fio --minimal --thread --group_reporting --bs=16k --size=16M --invalidate=1";
    let one = |job: &&str| {
        format!("{common} --name={job} \"$@\" >/tmp/fio 2>&1 || {{ cat /tmp/fio; exit 1; }}; echo done")
    };
    format!("set -e\n{}", jobs.iter().map(one).collect::<Vec<_>>().join("\n"))
}

#[test]
fn fio_reads_a_disk_and_writes_shared_files() {
    let hull = Hull::new();
    let folder = tempfile::TempDir::with_prefix("hull-e2e-").unwrap();
    let shared = format!("{}:/shared", folder.path().display());
    let id = hull.detached(&[&OWNER[..], &["-v", &shared]].concat(), "debian:12", &["sleep", "3600"]);
    let before = log(&hull, &id);
    let read = fio(&[
        "sequential --rw=read --direct=1 --ioengine=io_uring --iodepth=8 --bs=256k",
        "random --rw=randread --direct=1 --ioengine=io_uring --iodepth=16 --bs=4k --io_size=2M",
        "buffered --rw=randread --ioengine=psync --numjobs=2 --io_size=2M",
    ]);
    let said = hull.ok(["exec", &id, "sh", "-c", &read, "fio", "--filename=/dev/vda", "--readonly"]);
    assert_eq!(said, "done\ndone\ndone\n");
    // Written, and read again with the sums of what was written.
    let written = fio(&[
        "sequential --rw=write --direct=1 --ioengine=io_uring --iodepth=8 --bs=256k --verify=crc32c",
        "random --rw=randwrite --direct=1 --ioengine=io_uring --iodepth=16 --io_size=4M --verify=crc32c",
        "synced --rw=randwrite --ioengine=psync --fsync=16 --size=2M --verify=crc32c",
    ]);
    let said = hull.ok(["exec", &id, "sh", "-c", &written, "fio", "--directory=/shared"]);
    assert_eq!(said, "done\ndone\ndone\n");
    // The sums hold on the host as well, where the files are.
    let here = "fio --minimal --thread --name=sequential --bs=256k --size=16M --rw=write --verify=crc32c --verify_only >&2";
    let checked = Command::new("sh").args(["-euc", here]).current_dir(folder.path()).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    said_nothing_since(&hull, &id, &before);
    hull.ok(["rm", "-f", &id]);
    hull.left_nothing();
}

#[test]
fn fio_writes_a_disk() {
    let pool = ThinPool::new();
    let containerd = Containerd::with(|_| pool.configuration("256MB"));
    let written = fio(&[
        "sequential --rw=write --direct=1 --ioengine=io_uring --iodepth=8 --bs=256k --verify=crc32c",
        "random --rw=randwrite --direct=1 --ioengine=io_uring --iodepth=16 --io_size=4M --verify=crc32c",
        "mixed --rw=randrw --ioengine=psync --fdatasync=32 --numjobs=2 --size=4M --verify=crc32c",
    ]);
    let options = [
        "--snapshotter",
        "devmapper",
        "--cap-add",
        "CAP_SYSLOG",
        "--rm",
        "--mount",
        "type=bind,src=/usr,dst=/usr,options=rbind:ro",
        "--mount",
        "type=bind,src=/usr/lib,dst=/lib,options=rbind:ro",
        "--mount",
        "type=bind,src=/usr/lib64,dst=/lib64,options=rbind:ro",
    ];
    let script = format!("dmesg -c >/dev/null; mkdir /fio\n{written}\ndmesg >&2");
    let said = containerd.run_container(&options, "disk", &["sh", "-c", &script, "fio", "--directory=/fio"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(said.out, "done\ndone\ndone\n");
    assert_eq!(complaints(&said.err), Vec::<&str>::new());
    containerd.ok(["images", "rm", "--sync", &hull_tests::containerd::busybox()]);
    containerd.left_nothing();
}

/// What iperf3 counted at the receiver's end.
fn at_the_receiver(report: &str) -> Value {
    let report: Value = serde_json::from_str(report).unwrap();
    assert_eq!(report.get("error"), None, "{report}");
    report["end"]["sum_received"].clone()
}

/// Bytes that iperf3 counted there.
fn received(report: &str) -> u64 {
    at_the_receiver(report)["bytes"].as_u64().unwrap()
}

#[test]
fn iperf_and_redis_between_guests_and_the_host() {
    const BYTES: u64 = 16 << 20;
    bridge::set_up();
    let hull = Hull::new();
    let options = [&OWNER[..], &["--network", "bridge"]].concat();
    let client = hull.detached(&options, "debian:12", &["sleep", "3600"]);
    let server = hull.detached(&options, "debian:12", &["iperf3", "-s", "-p", "5201"]);
    let address = hull.inspect(&server)["NetworkSettings"]["IPAddress"].as_str().unwrap().to_owned();
    let host = Server::iperf();
    let tables = ["exec", &server, "cat", "/proc/net/tcp", "/proc/net/tcp6"];
    eventually("the guest's iperf3 listens", || is_listened_to(&hull.ok(tables), "5201").then_some(()));
    let guests = [&client, &server].map(|id| (id, log(&hull, id)));
    let iperf = |to: &str, port: &str, more: &[&str]| {
        let bytes = BYTES.to_string();
        let words = [&["exec", &client, "iperf3", "-J", "-c", to, "-p", port, "-n", &bytes], more].concat();
        let moved = received(&hull.ok(words));
        // What is under way when the sender has sent all is not counted.
        assert!(moved >= BYTES / 2, "{to} {more:?}: {moved} of {BYTES} bytes");
    };
    iperf(GATEWAY, &host.port, &[]);
    iperf(GATEWAY, &host.port, &["-R"]);
    iperf(GATEWAY, &host.port, &["-P", "4"]);
    iperf(&address, "5201", &[]);
    iperf(&address, "5201", &["-R", "-P", "2"]);
    drop(host);

    let redis = Server::redis();
    let benchmark = [
        "redis-benchmark",
        "-h",
        GATEWAY,
        "-p",
        &redis.port,
        "-n",
        "2000",
        "-c",
        "20",
        "-d",
        "512",
        "-t",
        "set,get",
        "--csv",
    ];
    let said = hull.ok([&["exec", &client], &benchmark[..]].concat());
    assert!(said.contains("\"SET\"") && said.contains("\"GET\""), "{said}");
    drop(redis);
    for (id, before) in &guests {
        said_nothing_since(&hull, id, before);
        hull.ok(["rm", "-f", id]);
    }
    hull.left_nothing();
}

/// How often a monitor has the kernel's device for an interface open.
fn kernels_devices(hull: &Hull, id: &str) -> usize {
    let monitor = &hull.shim_record(id)["vmm_pid"];
    let links = fs::read_dir(format!("/proc/{monitor}/fd")).unwrap();
    links
        .filter_map(|link| fs::read_link(link.unwrap().path()).ok())
        .filter(|to| to.ends_with("vhost-net"))
        .count()
}

/// Runs a program of the host's.
fn ok(words: &str) {
    let mut words = words.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_kernel_moves_an_interfaces_frames() {
    const BYTES: u64 = 48 << 20;
    const TURNS: usize = 3;
    ok("modprobe vhost_net");
    bridge::set_up();
    let hull = Hull::new();
    let options = [&OWNER[..], &["--network", "bridge"]].concat();
    let config = |vhost: &str| choose(&format!("[network]\nvhost = \"{vhost}\"\n"));
    let guests = ["never", "allow"].map(|vhost| under(&hull, &config(vhost), &options, "debian:12"));
    assert_eq!(guests.each_ref().map(|id| kernels_devices(&hull, id)), [0, 1]);
    // Who limits an interface wants limits more than speed.
    let limited = choose("[network]\nvhost = \"allow\"\nmib_per_second = 100\n");
    let id = under(&hull, &limited, &options, "debian:12");
    assert_eq!(kernels_devices(&hull, &id), 0);
    hull.ok(["rm", "-f", &id]);

    let before = guests.each_ref().map(|id| log(&hull, id));
    let host = Server::iperf();
    let bytes = BYTES.to_string();
    for (way, more) in [("from the guest", &[][..]), ("to the guest", &["-R"])] {
        let mut rates = [0.0; 2];
        for _ in 0..TURNS {
            for (id, rate) in guests.iter().zip(&mut rates) {
                let words =
                    [&["exec", id, "iperf3", "-J", "-c", GATEWAY, "-p", &host.port, "-n", &bytes], more];
                let said = at_the_receiver(&hull.ok(words.concat()));
                assert!(said["bytes"].as_u64().unwrap() >= BYTES / 2, "{way}: {said}");
                *rate += said["bits_per_second"].as_f64().unwrap() / TURNS as f64 / 1e6;
            }
        }
        let [monitor, kernel] = rates;
        println!("{way}: {monitor:.0} Mbit/s, {kernel:.0} by the kernel, {:.2} times", kernel / monitor);
    }
    drop(host);

    // An interface that comes while the guest runs is the kernel's, too.
    let [_, id] = &guests;
    let monitor = hull.shim_record(id)["vmm_pid"].to_string();
    ok(&format!("ip link add hull-peer type veth peer name eth1 netns {monitor}"));
    ok("ip address add 10.99.0.1/24 dev hull-peer");
    ok("ip link set hull-peer up");
    ok(&format!("nsenter --net=/proc/{monitor}/ns/net ip address add 10.99.0.2/24 dev eth1"));
    ok(&format!("nsenter --net=/proc/{monitor}/ns/net ip link set eth1 up"));
    let addresses = ["exec", id, "cat", "/proc/net/fib_trie"];
    eventually("the guest has the address", || hull.ok(addresses).contains("10.99.0.2").then_some(()));
    assert_eq!(kernels_devices(&hull, id), 2);
    let listener = TcpListener::bind("10.99.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    hull.ok(["exec", id, "bash", "-c", &format!("echo hello >/dev/tcp/10.99.0.1/{port}")]);
    let mut heard = String::new();
    listener.accept().unwrap().0.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "hello\n");

    for (id, before) in guests.iter().zip(&before) {
        said_nothing_since(&hull, id, before);
        hull.ok(["rm", "-f", id]);
    }
    // The pair went with the pod's namespace.
    hull.left_nothing();
}
