//! What a guest wrote to its console, for errors and the log: bounded and printable. The monitor writes the file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use super::printable;

/// The last `count` lines of a console that are not empty, of its last `bytes` bytes.
pub fn last_lines(path: &Path, bytes: u64, count: usize) -> Vec<String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
        let mut read = Vec::new();
        file.take(bytes).read_to_end(&mut read)?;
        Ok(read)
    };
    let bytes = read().unwrap_or_else(|error| format!("(unreadable: {error})").into_bytes());
    let mut lines: Vec<String> = String::from_utf8_lossy(&bytes)
        .lines()
        .rev()
        .map(printable)
        .filter(|line| !line.trim().is_empty())
        .take(count)
        .collect();
    lines.reverse();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_short_printable_and_not_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        std::fs::write(&path, "far too early\none\r\n\n  \n\x1b[2Jtwo\nthree \u{fffd}\n").unwrap();
        assert_eq!(last_lines(&path, 30, 2), [" [2Jtwo", "three \u{fffd}"]);
        assert_eq!(last_lines(&path, 1 << 10, 100).len(), 4);
        assert_eq!(last_lines(&path, 3, 100).len(), 1);
        let missing = last_lines(&folder.path().join("none"), 10, 10);
        assert!(missing[0].starts_with("(unreadable: No such file"), "{missing:?}");
    }
}
