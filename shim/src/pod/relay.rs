//! What the monitor and the broker write to standard error, line by line into the shim's log: it names the pod, and it bounds
//! what a program that a guest has taken over could write to the host's disk.

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::task::JoinHandle;

/// The longest part of a line that is kept, in bytes.
const LINE_MAX: u64 = 1024;
/// The most lines of one program. Its own bound is lower; more is read, so that it is not held up, and dropped.
const LINES_MAX: usize = 200;

/// Ends when a program's last words are in the log. Dropped, they get there all the same.
pub type Words = JoinHandle<()>;

/// Logs what a program of the pod's says, to the end.
pub fn relay(program: &'static str, output: impl AsyncRead + Send + Unpin + 'static) -> Words {
    tokio::spawn(each_line(output, move |line| log::warn!(of = program; "{line}")))
}

async fn each_line(output: impl AsyncRead + Unpin, mut log: impl FnMut(&str)) {
    let mut output = BufReader::with_capacity(256, output);
    let mut logged = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut output).take(LINE_MAX).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) if logged < LINES_MAX => {
                log(String::from_utf8_lossy(&line).trim_end());
                logged += 1;
            }
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn lines_are_bounded_in_length_and_number() {
        let said =
            [b"one\n".to_vec(), vec![b'x'; 1500], b"\n\xff\n".to_vec(), b"again\n".repeat(1000)].concat();
        let mut lines = Vec::new();
        each_line(said.as_slice(), |line| lines.push(line.to_owned())).await;
        assert_eq!(lines.len(), LINES_MAX);
        assert_eq!((lines[0].as_str(), lines[1].len(), lines[2].len()), ("one", 1024, 1500 - 1024));
        assert_eq!((lines[3].as_str(), lines[4].as_str()), ("\u{fffd}", "again"));
    }
}
