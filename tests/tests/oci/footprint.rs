//! How much of every guest's memory the agent takes: its program, as shipped, and its resident memory when it has nothing to do.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use hull_tests::oci::Runtime;
use tempfile::TempDir;

/// Megabytes of the decimal kind.
const PROGRAM_MAX: u64 = 2_500_000;
const RESIDENT_MAX_KIB: u64 = 3 << 10;

#[test]
fn the_program_is_small() {
    let size = std::fs::metadata(Runtime::hull().program()).unwrap().len();
    assert!(size <= PROGRAM_MAX, "{size} bytes");
}

#[test]
fn an_idle_agent_takes_little_memory() {
    let folder = TempDir::with_prefix("hull-oci-").unwrap();
    let disks = folder.path().join("disks");
    std::fs::create_dir(&disks).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"]).arg(Runtime::hull().program());
    command.arg("serve").arg(folder.path()).arg(disks).arg("hull-footprint");
    let mut parent = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "listening\n");
    let id = parent.id();
    let agent = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.trim())).unwrap();
    parent.kill().unwrap();
    parent.wait().unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident: u64 = line.split_whitespace().next().unwrap().parse().unwrap();
    assert!(resident <= RESIDENT_MAX_KIB, "{resident} KiB");
}
