//! The programs that these tests need, and a registry that ends with its test.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Runs a program to its end and returns its output. The Debian package has the program's name.
pub fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = match Command::new(program).args(arguments).stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            panic!("this test needs {program}: apt-get install {program}")
        }
        Err(e) => panic!("{program}: {e}"),
    };
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {complaint}", arguments.join(" "));
    output.stdout
}

/// Who may use a registry.
#[derive(Clone, Copy)]
pub enum Access {
    /// Everybody.
    Open,
    /// Only `hull` with the password `secret`.
    Password,
}

/// A running docker-registry; ended when dropped.
pub struct Registry {
    /// `host:port`
    pub name: String,
    child: Child,
}

/// A line of htpasswd for `hull:secret`; bcrypt is the only kind that the registry takes.
const HTPASSWD: &str = "hull:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

impl Registry {
    /// Starts a registry that keeps its data below `folder`, on a port that the system picks.
    pub fn start(folder: &Path, access: Access) -> Self {
        let (config, htpasswd) = (folder.join("registry.yml"), folder.join("htpasswd"));
        fs::write(&htpasswd, HTPASSWD).unwrap();
        let auth = match access {
            Access::Open => String::new(),
            Access::Password => {
                format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", htpasswd.display())
            }
        };
        let storage = folder.join("registry");
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:0'}}\n{auth}",
            storage.display()
        );
        fs::write(&config, text).unwrap();
        let spawned = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                panic!("this test needs docker-registry: apt-get install docker-registry")
            }
            Err(e) => panic!("docker-registry: {e}"),
        };
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut seen = Vec::new();
        let name = log.by_ref().map_while(Result::ok).find_map(|line| {
            let found =
                line.split_once("listening on ").map(|(_, rest)| rest.split('"').next().unwrap().to_owned());
            seen.push(line);
            found
        });
        let name = name.unwrap_or_else(|| panic!("docker-registry did not start:\n{}", seen.join("\n")));
        // Its log must be read on, or it would stop when the pipe is full.
        std::thread::spawn(move || log.count());
        Self { name, child }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
