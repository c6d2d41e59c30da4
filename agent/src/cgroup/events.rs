//! Waiting for a value in cgroup.events without polling: the kernel signals each change of the file as EPOLLPRI.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Returns once line `key` of the cgroup.events file `fd` says `value`.
pub async fn wait(fd: OwnedFd, key: &str, value: &str) -> io::Result<()> {
    let watched = crate::sys::ready::watch(fd, Interest::PRIORITY)?;
    loop {
        // Reading also tells the kernel what we have seen, so it comes before every wait.
        if says(&watched, key, value)? {
            return Ok(());
        }
        watched.ready(Interest::PRIORITY).await?.clear_ready();
    }
}

fn says(fd: &AsyncFd<OwnedFd>, key: &str, value: &str) -> io::Result<bool> {
    let mut buffer = [0u8; 256];
    // SAFETY: the buffer and its length belong together.
    let count = unsafe { libc::pread(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    let Ok(count) = usize::try_from(count) else {
        let error = io::Error::last_os_error();
        // The cgroup is gone, and with it everything that was in it.
        return if error.raw_os_error() == Some(libc::ENODEV) { Ok(true) } else { Err(error) };
    };
    let text = String::from_utf8_lossy(&buffer[..count]);
    Ok(text.lines().any(|line| line.split_once(' ') == Some((key, value))))
}
