//! Registries of our own, true and false ones.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// Distribution's registry over a folder of its own. Ends with its value.
pub struct Registry {
    folder: TempDir,
    child: Child,
    address: SocketAddr,
}

impl Registry {
    /// An empty registry.
    pub fn start() -> Self {
        Self::with(TempDir::with_prefix("hull-e2e-registry-").unwrap(), "")
    }

    /// An empty registry that lets nobody in.
    pub fn locked() -> Self {
        let folder = TempDir::with_prefix("hull-e2e-registry-").unwrap();
        let users = folder.path().join("users");
        // A user whose password nobody knows.
        std::fs::write(&users, "u:$2y$05$Zbw0ZkXyq4RDeWcWgGyDzOZcQf2rTHFQ0JQ0aWwBxX5u2Yq9c0m6a\n").unwrap();
        let auth = format!("auth: {{htpasswd: {{realm: closed, path: {}}}}}\n", users.display());
        Self::with(folder, &auth)
    }

    fn with(folder: TempDir, more: &str) -> Self {
        // The port is free now; a registry that finds it taken ends, and the connection below says so.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = folder.path().join("config.yml");
        let storage = folder.path().join("storage");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}'}}\n{more}",
                storage.display()
            ),
        )
        .unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the package docker-registry is installed");
        crate::eventually("the registry answers", || TcpStream::connect(address).ok());
        Self { folder, child, address }
    }

    /// The full name of an image here.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Pushes the layout's image `latest`.
    pub fn push(&self, layout: &Path, name: &str) {
        let status = Command::new("skopeo")
            .args(["copy", "--quiet", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:latest", layout.display()))
            .arg(format!("docker://{}", self.image(name)))
            .status()
            .expect("the package skopeo is installed");
        assert!(status.success());
    }

    /// Where the registry keeps a blob, for whoever wants to spoil it.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        self.folder
            .path()
            .join("storage/docker/registry/v2/blobs/sha256")
            .join(&hex[..2])
            .join(hex)
            .join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// An HTTP server that gives every request the same answer. Ends with its value.
pub struct Parrot {
    address: SocketAddr,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Parrot {
    /// Answers with these bytes and closes the connection.
    pub fn saying(answer: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = stop.clone();
        std::thread::spawn(move || {
            while let Ok((mut client, _)) = listener.accept() {
                if stopped.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                let mut request = [0; 4096];
                // What was asked does not matter, nor whether the answer is read to its end.
                let _ = client.read(&mut request);
                let _ = client.write_all(&answer);
            }
        });
        Self { address, stop }
    }

    /// The full name of an image here.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }
}

impl Drop for Parrot {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        // Wakes the accept above.
        let _ = TcpStream::connect(self.address);
    }
}
