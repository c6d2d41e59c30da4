//! Disks and interfaces: programs in a container beside the same programs on the host.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use hull_tests::bridge::{self, GATEWAY, Server};
use hull_tests::hull::{Hull, image, shared_store};
use serde_json::Value;

use crate::Table;

const NAMESPACE: &str = "hull-bench";
/// Of the disk or file that is read.
const SIZE: &str = "16M";

/// Rows about disks, then those about interfaces.
pub fn rows(table: &mut Table) {
    disks(table);
    interfaces(table);
}

/// The largest file below a folder: the blob of the image's largest layer.
fn largest(folder: &Path) -> (u64, PathBuf) {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let sized = entries.map(|entry| match entry.metadata().unwrap() {
        data if data.is_dir() => largest(&entry.path()),
        data => (data.len(), entry.path()),
    });
    sized.max().unwrap_or_default()
}

fn disks(table: &mut Table) {
    let hull = Hull::new();
    let options = ["--privileged", "-v", "/usr:/usr:ro"];
    hull.ok(["pull", "-q", &image("big")]);
    let id = hull.detached(&options, "debian:12", &["sleep", "3600"]);
    let blob = File::open(largest(&shared_store()).1).unwrap();
    let here = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&blob));
    let cases = [
        (
            "4 KiB reads in random order, one at a time, in a second",
            "iops",
            "--rw=randread --bs=4k --io_size=8M",
        ),
        ("sequential reads of 1 MiB, KiB/s", "bw", "--rw=read --bs=1M"),
    ];
    for (what, figure, job) in cases {
        // The guest's own cache is passed by; what the monitor reads from is the host's, as for the peer.
        let fio = |file: &str, direct: &str| {
            let words = format!(
                "fio --output-format=json --name=read --readonly --ioengine=psync --thread --size={SIZE} --filename={file} {direct} {job}"
            );
            words.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        let of = |report: &str| -> f64 {
            let report: Value = serde_json::from_str(report).unwrap();
            report["jobs"][0]["read"][figure].as_f64().unwrap()
        };
        let guest =
            of(&hull.ok([vec!["exec".to_owned(), id.clone()], fio("/dev/vda", "--direct=1")].concat()));
        let words = fio(&here, "--direct=0");
        let host = Command::new(&words[0]).args(&words[1..]).output().unwrap();
        let host = of(&String::from_utf8_lossy(&host.stdout));
        table.row(
            &format!("{what}: a disk in the guest, beside a file on the host"),
            &format!("{guest:.0}"),
            &format!("{host:.0}"),
            &format!("{:.2}", guest / host),
        );
    }
    hull.ok(["rm", "-f", &id]);
    hull.left_nothing();
}

/// A network namespace on the bridge by a veth pair: what a container without a VM has.
struct Veth;

impl Veth {
    fn new() -> Self {
        shell(&format!(
            "ip netns add {NAMESPACE}
            ip link add hull-bench0 type veth peer name eth0 netns {NAMESPACE}
            ip link set hull-bench0 master hull0 up
            ip -n {NAMESPACE} addr add 10.87.255.253/16 dev eth0
            ip -n {NAMESPACE} link set eth0 up"
        ));
        Self
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        shell(&format!("ip netns del {NAMESPACE}"));
    }
}

fn shell(script: &str) {
    assert!(Command::new("sh").args(["-euc", script]).status().unwrap().success(), "{script}");
}

fn interfaces(table: &mut Table) {
    bridge::set_up();
    // Its mount is there before anything is compared.
    let _veth = Veth::new();
    let hull = Hull::new();
    let id = hull.detached(&["-v", "/usr:/usr:ro", "--network", "bridge"], "debian:12", &["sleep", "3600"]);
    let both = |words: &[&str]| {
        let guest = hull.ok([&["exec", &id], words].concat());
        let host = Command::new("ip").args([&["netns", "exec", NAMESPACE], words].concat()).output().unwrap();
        assert!(host.status.success(), "{words:?}: {}", String::from_utf8_lossy(&host.stderr));
        (guest, String::from_utf8_lossy(&host.stdout).into_owned())
    };
    let mut row = |what: &str, (guest, host): (f64, f64)| {
        let what = format!("{what}: a guest, beside a network namespace on a veth pair");
        table.row(&what, &format!("{guest:.0}"), &format!("{host:.0}"), &format!("{:.2}", guest / host));
    };
    let iperf = Server::iperf();
    for (way, more) in [("to the host", &[][..]), ("from the host", &["-R"][..])] {
        let words = [&["iperf3", "-J", "-t", "4", "-c", GATEWAY, "-p", &iperf.port], more].concat();
        let megabits = |report: &str| -> f64 {
            let report: Value = serde_json::from_str(report).unwrap();
            report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap() / 1e6
        };
        let (guest, host) = both(&words);
        row(&format!("TCP {way}, Mbit/s"), (megabits(&guest), megabits(&host)));
    }
    drop(iperf);
    let redis = Server::redis();
    let benchmark =
        ["redis-benchmark", "-h", GATEWAY, "-p", &redis.port, "-n", "2000", "-c", "1", "-t", "get", "--csv"];
    let rate = |csv: &str| -> f64 {
        let line = csv.lines().find(|line| line.starts_with("\"GET\"")).unwrap_or_else(|| panic!("{csv}"));
        line.split(',').nth(1).unwrap().trim_matches('"').parse().unwrap()
    };
    let (guest, host) = both(&benchmark);
    row("requests and answers over TCP, one at a time, in a second", (rate(&guest), rate(&host)));
    drop(redis);
    hull.ok(["rm", "-f", &id]);
    hull.left_nothing();
}
