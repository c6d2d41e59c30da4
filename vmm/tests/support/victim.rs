//! A monitor whose guest is hostile: it must live, answer its control socket in time, and hold no more memory than before.

use std::any::Any;
use std::fs;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use hull_protocol::vmm::{
    DiskAccess, DiskConfig, DiskDiscard, DiskExtent, ExitReason, RateLimits, Request, VmStats,
};

use super::shim::{Vmm, file};

/// The monitor answers within this, however much the guest asks of it: a bound against starvation, not a speed.
const DEADLINE: Duration = Duration::from_secs(5);
/// Longer than any guest here takes for its next sign of life.
const PATIENCE: Duration = Duration::from_secs(60);
/// What its disk holds.
pub const DISK: u8 = 0x5a;
/// What the monitor may hold more than when its guest began, in KiB.
const GROWTH: u64 = 1024;

/// A VM that a hostile guest runs in, and what the other ends of its devices are.
pub struct Victim {
    pub vmm: Vmm,
    _host: Box<dyn Any>,
    held_at_first: u64,
}

/// Gives a VM its first device: a small disk that is [`DISK`] all over.
pub fn disk(vmm: &Vmm) {
    let config = DiskConfig {
        serial: "disk".into(),
        access: DiskAccess::ReadWrite,
        extents: vec![DiskExtent { offset: 0, length: 1 << 16 }],
        discard: DiskDiscard::On,
        limits: RateLimits::default(),
    };
    vmm.done(&Request::AddDisk(config), &[file(&[DISK; 1 << 16]).as_fd()]);
}

/// The monitor's own memory in KiB, besides the guest's. Pages of files are not its own, and those of a program that was
/// just built are dirty.
fn held(vmm: &Vmm) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/smaps", vmm.pid())).unwrap();
    let (mut sum, mut counted) = (0, false);
    for line in text.lines() {
        let first = line.split_whitespace().next().unwrap();
        if let Some((from, to)) = first.split_once('-') {
            let address = |text| u64::from_str_radix(text, 16).unwrap();
            counted = address(to) - address(from) < 32 << 20;
        } else if counted && first == "Anonymous:" {
            sum += line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
        }
    }
    sum
}

impl Victim {
    /// A monitor that has just booted.
    pub fn new(vmm: Vmm, host: impl Any) -> Self {
        let held_at_first = held(&vmm);
        Self { vmm, _host: Box::new(host), held_at_first }
    }

    /// Its figures, which must not be long in coming.
    pub fn stats(&self) -> VmStats {
        let start = Instant::now();
        let stats = self.vmm.stats();
        assert!(start.elapsed() < DEADLINE, "an answer took {:?}", start.elapsed());
        stats
    }

    /// Waits until the guest has said so much, asking all the time.
    pub fn wait_for_console(&self, bytes: u64) -> VmStats {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stats = self.stats();
            if stats.console_bytes >= bytes {
                return stats;
            }
            assert!(Instant::now() < deadline, "the guest is stuck: {stats:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it: it must not have grown. Answers what its guest has said.
    pub fn end(self) -> Vec<u8> {
        let grown = held(&self.vmm).saturating_sub(self.held_at_first);
        assert!(grown <= GROWTH, "{} KiB and {grown} more", self.held_at_first);
        self.vmm.done(&Request::Stop, &[]);
        let (reason, console, status) = self.vmm.end();
        assert_eq!((reason, status), (ExitReason::Stopped, 0));
        console
    }
}
