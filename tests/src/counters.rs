//! What a process, or the host, holds.

use std::fmt;
use std::fs;

/// Descriptors, threads and memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Anonymous memory: what it has allocated and written to, in KiB; 0 of the host. Pages of its program are not counted: they
    /// are its own or not, as others run the same, and dirty until somebody has written the file back. Nor are a guest's.
    pub written_kib: u64,
    /// What a monitor's guest has written to, whose memory is what is left out of core dumps.
    pub guest_kib: u64,
}

impl Counters {
    /// Of a process.
    pub fn of(pid: u32) -> Self {
        let count = |folder: &str| fs::read_dir(format!("/proc/{pid}/{folder}")).unwrap().count();
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
        let number = |text: &str| text.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        let (mut written_kib, mut guest_kib) = (0, 0);
        let (mut dirty, mut anonymous) = (0, 0);
        for line in smaps.lines() {
            match line.split_once(':') {
                Some(("Private_Dirty", kib)) => dirty = number(kib),
                Some(("Anonymous", kib)) => anonymous = number(kib),
                // The last of a mapping's lines.
                Some(("VmFlags", flags)) if flags.split_whitespace().any(|flag| flag == "dd") => {
                    guest_kib += dirty;
                }
                Some(("VmFlags", _)) => written_kib += anonymous,
                _ => {}
            }
        }
        Self { descriptors: count("fd"), threads: count("task"), written_kib, guest_kib }
    }

    /// Of the whole host: open files and tasks.
    pub fn of_host() -> Self {
        let first = |file: &str, word: usize| {
            let text = fs::read_to_string(file).unwrap();
            text.split([' ', '\t', '/']).nth(word).unwrap().trim().parse::<usize>().unwrap()
        };
        let (descriptors, threads) = (first("/proc/sys/fs/file-nr", 0), first("/proc/loadavg", 4));
        Self { descriptors, threads, written_kib: 0, guest_kib: 0 }
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { descriptors, threads, written_kib, guest_kib } = self;
        write!(f, "{descriptors} descriptors, {threads} threads, {written_kib} KiB written")?;
        if *guest_kib > 0 {
            write!(f, ", {guest_kib} by the guest")?;
        }
        Ok(())
    }
}
