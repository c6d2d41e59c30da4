//! The built program, as far as it goes without a VM: usage errors, exit statuses, empty hosts, images, the host check.

// A test that cannot go on is a test that failed.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

struct Hull {
    folder: TempDir,
}

struct Said {
    status: i32,
    out: String,
    err: String,
}

impl Hull {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap() }
    }

    fn run(&self, args: &[&str]) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hull"));
        command.args(args).stdin(Stdio::null());
        command.env("HULL_STATE_DIR", self.folder.path().join("state"));
        command.env("HULL_DATA_DIR", self.folder.path().join("data"));
        // No test here leaves a bridge on the machine.
        command.env("HULL_NETWORK", "none");
        command.env_remove("HULL_INSECURE_REGISTRIES").env_remove("DOCKER_DEFAULT_PLATFORM");
        let Output { status, stdout, stderr } = command.output().unwrap();
        Said {
            status: status.code().unwrap(),
            out: String::from_utf8(stdout).unwrap(),
            err: String::from_utf8(stderr).unwrap(),
        }
    }

    #[track_caller]
    fn fails(&self, args: &[&str], status: i32, words: &[&str]) {
        let said = self.run(args);
        assert_eq!(said.status, status, "{args:?}: {}", said.err);
        assert!(said.out.is_empty(), "{args:?}: stdout: {}", said.out);
        let last = said.err.lines().last().unwrap_or_default();
        assert!(last.starts_with("hull: "), "{args:?}: {}", said.err);
        for word in words {
            assert!(last.contains(word), "{args:?}: {word:?} is not in: {last}");
        }
    }

    fn containers(&self) -> usize {
        let folder = self.folder.path().join("state/containers");
        fs::read_dir(folder).map_or(0, Iterator::count)
    }
}

#[test]
fn wrong_command_lines() {
    let hull = Hull::new();
    for (args, words) in [
        (&["run"][..], &["IMAGE"][..]),
        (&["run", "--frobnicate", "x"], &["--frobnicate"]),
        (&["exec", "x"], &["COMMAND"]),
        (&["frobnicate"], &["frobnicate"]),
        (&["run", "-m", "lots", "x"], &["lots"]),
        (&["run", "--cpus", "0", "x"], &["0"]),
        (&["run", "--pull", "sometimes", "x"], &["sometimes"]),
        (&["run", "--ulimit", "wings=1", "x"], &["wings"]),
        (&["run", "-v", "name:/data", "x"], &["name", "named volume"]),
        (&["run", "-v", "/tmp:data", "x"], &["data", "absolute"]),
        (&["run", "--mount", "type=volume,src=a,dst=/b", "x"], &["type=volume"]),
        (&["ps", "--format", "{{.ID}}"], &["--format"]),
    ] {
        hull.fails(args, 125, words);
    }
    assert_eq!(hull.run(&["run", "--help"]).status, 0);
    assert_eq!(hull.run(&["--version"]).status, 0);
}

#[test]
fn dockers_flags_that_are_missing_are_named() {
    let hull = Hull::new();
    for (flag, value, name) in [
        ("--ip", Some("10.0.0.1"), "--ip"),
        ("--network-alias", Some("db"), "--network-alias"),
        ("--init", None, "--init"),
        ("--restart", Some("always"), "--restart"),
        ("--gpus", Some("all"), "--gpus"),
    ] {
        let args: Vec<&str> = ["run", flag].into_iter().chain(value).chain(["image"]).collect();
        hull.fails(&args, 125, &[name, "is not supported yet"]);
    }
}

#[test]
fn wrong_values_are_found_before_anything_is_pulled() {
    let hull = Hull::new();
    for (args, words) in [
        (&["run", "--name", "a/b", "x"][..], &["a/b"][..]),
        (&["run", "--cap-add", "FLY", "x"], &["FLY"]),
        (&["run", "--stop-signal", "NOPE", "x"], &["NOPE"]),
        (&["run", "--env-file", "/no/such/file", "x"], &["/no/such/file"]),
        (&["run", "-e", "=x", "x"], &["=x"]),
        (&["run", "--cpus", "31.5", "x"], &["CPUs"]),
        (&["run", "-it", "x"], &["terminal"]),
        (&["run", "--mount", "type=bind,src=/no/such/folder,dst=/b", "x"], &["/no/such/folder"]),
        (&["run", "--pull", "never", "x"], &["no such image: x"]),
        (&["run", "UPPER/Case"], &["lower case"]),
    ] {
        hull.fails(args, 125, words);
    }
    assert_eq!(hull.containers(), 0);
}

#[test]
fn a_registry_that_is_not_there() {
    let hull = Hull::new();
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let image = format!("127.0.0.1:{port}/nobody/home:1");
    hull.fails(&["run", "--rm", &image, "true"], 125, &["127.0.0.1"]);
    hull.fails(&["pull", &image], 1, &["127.0.0.1"]);
    assert_eq!(hull.containers(), 0);
}

#[test]
fn an_empty_host() {
    let hull = Hull::new();
    let said = hull.run(&["ps", "-a"]);
    assert_eq!((said.status, said.err.as_str()), (0, ""));
    assert_eq!(said.out, "CONTAINER ID   IMAGE   COMMAND   CREATED   STATUS   PORTS   NAMES\n");
    assert_eq!(hull.run(&["ps", "-aq"]).out, "");
    assert_eq!(hull.run(&["images"]).out, "REPOSITORY   TAG   IMAGE ID   CREATED   SIZE\n");
    assert_eq!(hull.run(&["images", "--format", "json"]).out, "");
}

#[test]
fn names_that_nobody_has() {
    let hull = Hull::new();
    for command in ["logs", "stop", "kill", "rm", "wait"] {
        hull.fails(&[command, "ghost"], 1, &["no such container: ghost"]);
    }
    hull.fails(&["exec", "ghost", "true"], 1, &["no such container: ghost"]);
    hull.fails(&["rmi", "ghost"], 1, &["no such image: ghost"]);
    let said = hull.run(&["inspect", "ghost"]);
    assert_eq!((said.status, said.out.trim()), (1, "[]"));
    assert!(said.err.contains("no such object: ghost"), "{}", said.err);
    assert_eq!(hull.run(&["rm", "-f", "ghost"]).status, 0);
}

#[test]
fn the_host_check_agrees_with_its_exit_status() {
    let hull = Hull::new();
    let table = hull.run(&["check"]);
    let json = hull.run(&["check", "--format", "json"]);
    let checks: Vec<serde_json::Value> =
        json.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let all_ok = checks.iter().all(|check| check["Ok"] == true);
    assert_eq!(json.status, i32::from(!all_ok), "{}", json.out);
    assert_eq!(table.status, json.status);
    assert_eq!(table.out.lines().any(|line| line.starts_with("FAIL")), !all_ok, "{}", table.out);
    assert_eq!(checks[0]["Name"], "/dev/kvm");
    for check in checks.iter().filter(|check| check["Ok"] == false) {
        assert!(check["Remedy"].as_str().is_some_and(|text| !text.is_empty()), "{check}");
    }
}

/// An OCI layout with an image that has one empty layer.
fn layout(folder: &Path) {
    use std::io::Write;
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let store = |bytes: &[u8]| {
        let mut child =
            Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        let output = child.wait_with_output().unwrap();
        let hex = String::from_utf8(output.stdout).unwrap()[..64].to_owned();
        fs::write(blobs.join(&hex), bytes).unwrap();
        (format!("sha256:{hex}"), bytes.len())
    };
    let (layer, layer_size) = store(&[0; 1024]);
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": {"Cmd": ["/bin/true"], "Env": ["A=1"]},
        "rootfs": {"type": "layers", "diff_ids": [layer]},
    });
    let (config, config_size) = store(config.to_string().as_bytes());
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": layer_size}],
    });
    let (manifest, manifest_size) = store(manifest.to_string().as_bytes());
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": manifest_size,
            "annotations": {"org.opencontainers.image.ref.name": "example.com/team/tool:1.0"},
        }],
    });
    fs::write(folder.join("index.json"), index.to_string()).unwrap();
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

#[test]
fn an_image_is_loaded_listed_inspected_and_removed() {
    let hull = Hull::new();
    let folder = TempDir::new().unwrap();
    layout(folder.path());
    let loaded = hull.run(&["load", "-q", "-i", folder.path().to_str().unwrap()]);
    assert_eq!(loaded.status, 0, "{}", loaded.err);
    assert!(loaded.out.starts_with("Loaded image"), "{}", loaded.out);
    let id = hull.run(&["images", "-q", "--no-trunc"]).out.trim().to_owned();
    assert!(id.starts_with("sha256:"), "{id}");
    let inspected: serde_json::Value = serde_json::from_str(&hull.run(&["inspect", &id]).out).unwrap();
    assert_eq!(inspected[0]["Id"], id.as_str());
    assert_eq!(inspected[0]["Config"]["Cmd"], serde_json::json!(["/bin/true"]));
    hull.fails(&["run", "--user", "nobody-knows", &id], 125, &["nobody-knows"]);
    assert_eq!(hull.containers(), 0);
    let removed = hull.run(&["rmi", &id]);
    assert_eq!(removed.status, 0, "{}", removed.err);
    assert!(removed.out.contains(&format!("Deleted: {id}")), "{}", removed.out);
    assert_eq!(hull.run(&["images", "-q"]).out, "");
}

#[test]
fn a_failed_start_leaves_nothing() {
    let hull = Hull::new();
    let folder = TempDir::new().unwrap();
    layout(folder.path());
    assert_eq!(hull.run(&["load", "-q", "-i", folder.path().to_str().unwrap()]).status, 0);
    let id = hull.run(&["images", "-q"]).out.trim().to_owned();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hull"));
    command.args(["run", &id]).env("HULL_SHIM", "/no/such/shim").stdin(Stdio::null());
    command.env("HULL_STATE_DIR", hull.folder.path().join("state"));
    command.env("HULL_DATA_DIR", hull.folder.path().join("data"));
    command.env("HULL_NETWORK", "none");
    let output = command.output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{err}");
    assert!(err.contains("/no/such/shim"), "{err}");
    assert_eq!(hull.containers(), 0);
    assert_eq!(fs::read_dir(hull.folder.path().join("state/tmp")).unwrap().count(), 0);
}

#[test]
fn a_completion_script_is_printed() {
    let said = Hull::new().run(&["completion", "bash"]);
    assert_eq!(said.status, 0);
    assert!(said.out.contains("_hull"));
}
