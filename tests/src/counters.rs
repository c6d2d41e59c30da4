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
    /// Memory that only it has, and has written to, in KiB; 0 of the host. Pages of its program are not counted: they are its own
    /// or not, as others run the same.
    pub written_kib: u64,
}

impl Counters {
    /// Of a process.
    pub fn of(pid: u32) -> Self {
        let count = |folder: &str| fs::read_dir(format!("/proc/{pid}/{folder}")).unwrap().count();
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let written = rollup.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
        let written_kib = written.trim().trim_end_matches(" kB").parse().unwrap();
        Self { descriptors: count("fd"), threads: count("task"), written_kib }
    }

    /// Of the whole host: open files and tasks.
    pub fn of_host() -> Self {
        let first = |file: &str, word: usize| {
            let text = fs::read_to_string(file).unwrap();
            text.split([' ', '\t', '/']).nth(word).unwrap().trim().parse::<usize>().unwrap()
        };
        let (descriptors, threads) = (first("/proc/sys/fs/file-nr", 0), first("/proc/loadavg", 4));
        Self { descriptors, threads, written_kib: 0 }
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { descriptors, threads, written_kib } = self;
        write!(f, "{descriptors} descriptors, {threads} threads, {written_kib} KiB written")
    }
}
