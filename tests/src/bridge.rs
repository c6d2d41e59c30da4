//! The network of `hull run --network bridge`, seen from the host, and well-known servers on it.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use crate::eventually;
use crate::hull::{Hull, image};

/// The host on the bridge.
pub const GATEWAY: &str = "10.87.0.1";

/// Has the bridge made, which stays when its last container goes, as docker's does: to be called before anything is compared.
pub fn set_up() {
    Hull::new().ok(["run", "--rm", "--network", "bridge", &image("busybox"), "true"]);
}

/// Whether somebody listens on a port, by what is in `/proc/net/tcp`, `/proc/net/tcp6` or both.
pub fn is_listened_to(table: &str, port: &str) -> bool {
    const LISTENING: &str = "0A";
    let port = format!(":{:04X}", port.parse::<u16>().unwrap());
    table.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next().is_some_and(|local| local.ends_with(&port)) && words.nth(1) == Some(LISTENING)
    })
}

/// A server on the host, ended when it is dropped.
pub struct Server {
    process: Child,
    /// Where it listens on [`GATEWAY`].
    pub port: String,
}

impl Server {
    /// iperf3.
    pub fn iperf() -> Self {
        Self::start("iperf3", "iperf3", &["-s", "-B", GATEWAY, "-p"], &[])
    }

    /// redis, which keeps nothing.
    pub fn redis() -> Self {
        // One program is both, by the name that it is called by.
        let words = ["--protected-mode", "no", "--save", ""];
        Self::start("redis-server", "redis-check-rdb", &["--bind", GATEWAY, "--port"], &words)
    }

    /// A free port comes between the words. Returns once somebody listens there.
    fn start(name: &str, program: &str, before: &[&str], after: &[&str]) -> Self {
        let port = TcpListener::bind((GATEWAY, 0)).unwrap().local_addr().unwrap().port().to_string();
        let mut command = Command::new(program);
        command.arg0(name).args(before).arg(&port).args(after).stdin(Stdio::null()).stdout(Stdio::null());
        let server = Self { process: command.spawn().unwrap(), port };
        let listens = || is_listened_to(&fs::read_to_string("/proc/net/tcp").unwrap(), &server.port);
        eventually(&format!("{name} listens"), || listens().then_some(()));
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _already_ended = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_told_from_connections() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let table = || fs::read_to_string("/proc/net/tcp").unwrap();
        assert!(is_listened_to(&table(), &port));
        let both = (
            std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap(),
            listener.accept().unwrap(),
        );
        drop(listener);
        assert!(!is_listened_to(&table(), &port));
        drop(both);
    }
}
