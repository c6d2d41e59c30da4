//! A file that takes lines up to a limit and never harms who writes to it: it does not block, and what cannot be
//! written is dropped.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// What is held back until a line ends, in bytes. Below `PIPE_BUF`, so that a pipe that polls writable takes it whole.
const LINE_MAX: usize = 512;

/// A bounded log.
#[derive(Debug)]
pub struct LogFile {
    file: File,
    line: Vec<u8>,
    limit: u64,
    room: Room,
}

/// How much more is written.
#[derive(Debug)]
enum Room {
    Left(u64),
    /// The limit was reached, and the last line says so.
    Full,
}

impl LogFile {
    /// A log that takes `limit` bytes, then one line of its own that says that it is full.
    pub fn new(file: File, limit: u64) -> Self {
        Self { file, line: Vec::with_capacity(LINE_MAX), limit, room: Room::Left(limit) }
    }

    /// Takes bytes; they reach the file when their line ends or grows long.
    pub fn write(&mut self, bytes: &[u8]) {
        let Room::Left(left) = &mut self.room else { return };
        for byte in bytes {
            let Some(less) = left.checked_sub(1) else {
                self.fill_up();
                return;
            };
            *left = less;
            self.line.push(*byte);
            if *byte == b'\n' || self.line.len() == LINE_MAX {
                put(&mut self.file, &mut self.line);
            }
        }
    }

    /// Writes the beginning of a line.
    pub fn flush(&mut self) {
        put(&mut self.file, &mut self.line);
    }

    fn fill_up(&mut self) {
        self.room = Room::Full;
        put(&mut self.file, &mut self.line);
        let note = format!(
            "\n[hull: the console's limit of {} bytes is reached; the rest is dropped]\n",
            self.limit
        );
        self.line.extend(note.bytes());
        put(&mut self.file, &mut self.line);
    }
}

/// Writes and forgets a line. Where the file cannot take it now (a full disk, a pipe that nobody reads) it is lost: the
/// guest must not wait for its log.
fn put(file: &mut File, line: &mut Vec<u8>) {
    if !line.is_empty() && is_writable(file) {
        let _lost_when_it_fails = file.write_all(line);
    }
    line.clear();
}

fn is_writable(file: &File) -> bool {
    let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(ready) => ready > 0,
        Err(error) => error == Errno::EINTR,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use super::*;

    fn written(limit: u64, parts: &[&[u8]]) -> String {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut log = LogFile::new(File::from(OwnedFd::from(writer)), limit);
        for part in parts {
            log.write(part);
        }
        log.flush();
        drop(log);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn lines_arrive_and_so_does_an_unfinished_one() {
        assert_eq!(written(100, &[b"one\ntw", b"o\nthree"]), "one\ntwo\nthree");
        let long = "x".repeat(3 * LINE_MAX + 1);
        assert_eq!(written(10_000, &[long.as_bytes()]), long);
    }

    #[test]
    fn the_limit_is_exact_and_announced_once() {
        assert_eq!(written(4, &[b"abcd"]), "abcd");
        let note = "\n[hull: the console's limit of 4 bytes is reached; the rest is dropped]\n";
        assert_eq!(written(4, &[b"abcde", b"f", b"g\n"]), format!("abcd{note}"));
        assert_eq!(written(0, &[b"a"]), note.replace('4', "0"));
    }

    #[test]
    fn a_pipe_that_nobody_reads_does_not_block() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut log = LogFile::new(File::from(OwnedFd::from(writer)), u64::MAX);
        let line = [b"y".repeat(99), b"\n".to_vec()].concat();
        for _ in 0..10_000 {
            log.write(&line);
        }
        drop(reader);
        log.write(&line);
    }

    #[test]
    fn a_full_disk_does_no_harm() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut log = LogFile::new(full, 1000);
        log.write(b"lost\n");
        log.write(b"lost as well");
        log.flush();
    }
}
