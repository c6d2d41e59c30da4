//! What cannot work is refused with one reason, and nothing stays behind.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::Command;

use hull_tests::craft::{Entry, EntryKind, layer, layout};
use hull_tests::hull::{Hull, binaries, image, said};
use hull_tests::peers::{Parrot, Registry};
use tempfile::TempDir;

/// A store of the test's own, empty before and after.
struct Empty {
    store: TempDir,
    hull: Hull,
}

impl Empty {
    fn new() -> Self {
        let store = TempDir::with_prefix("hull-e2e-").unwrap();
        Self { hull: Hull::over(store.path()), store }
    }

    #[track_caller]
    fn left_nothing(self) {
        assert_eq!(self.hull.ok(["images", "-q"]), "");
        let kept = content(self.store.path());
        assert!(kept.is_empty(), "left in the store: {kept:?}");
        self.hull.left_nothing();
    }
}

/// Files that hold something: locks are empty.
fn content(folder: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            all.extend(content(&entry.path()));
        } else if entry.metadata().unwrap().len() > 0 {
            all.push(entry.path().display().to_string());
        }
    }
    all
}

/// A pushed image of one layer; gives the digests of its layer.
fn pushed(registry: &Registry, name: &str, entries: &[Entry<'_>]) -> Vec<String> {
    let folder = TempDir::with_prefix("hull-e2e-").unwrap();
    layout(folder.path(), &[layer(entries)]);
    registry.push(folder.path(), name);
    let raw = Command::new("skopeo")
        .args(["inspect", "--raw", "--tls-verify=false", &format!("docker://{}", registry.image(name))])
        .output()
        .unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&raw.stdout).unwrap();
    manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["digest"].as_str().unwrap().to_owned())
        .collect()
}

const HARMLESS: &[Entry<'_>] = &[Entry { name: "file", kind: EntryKind::File(&[b'x'; 100_000]) }];

#[test]
fn a_registry_that_is_not_there() {
    let empty = Empty::new();
    // Port 1 is nobody's.
    empty.hull.run(["run", "--rm", "127.0.0.1:1/image", "true"]).failed(125, &["127.0.0.1:1", "refused"]);
    empty
        .hull
        .run(["run", "--rm", "no-such-host.invalid/image", "true"])
        .failed(125, &["no-such-host.invalid"]);
    empty.left_nothing();
}

#[test]
fn an_image_that_is_not_there() {
    let empty = Empty::new();
    empty
        .hull
        .run(["run", "--rm", &image("nothing:here"), "true"])
        .failed(125, &["nothing:here", "not found"]);
    empty.hull.run(["run", "--rm", "--pull", "never", &image("busybox"), "true"]).failed(125, &["busybox"]);
    empty.hull.run(["run", "--rm", "Not/A/Name", "true"]).failed(125, &["Not/A/Name"]);
    empty.left_nothing();
}

#[test]
fn a_registry_that_wants_to_know_who_asks() {
    let empty = Empty::new();
    let registry = Registry::locked();
    empty.hull.run(["pull", &registry.image("image")]).failed(1, &["log in"]);
    drop(registry);
    empty.left_nothing();
}

#[test]
fn an_answer_that_is_no_registrys() {
    let empty = Empty::new();
    for answer in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"[..],
        &b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\nConnection: close\r\n\r\n{\"schemaVersion\""[..],
        &b"nonsense\r\n\r\n"[..],
        &b""[..],
    ] {
        let parrot = Parrot::saying(answer.to_vec());
        empty.hull.run(["pull", &parrot.image("image")]).failed(1, &[]);
    }
    empty.left_nothing();
}

#[test]
fn a_manifest_that_lies_about_a_layer() {
    let empty = Empty::new();
    let registry = Registry::start();
    let digests = pushed(&registry, "liar", HARMLESS);
    let blob = registry.blob(&digests[0]);
    let mut bytes = fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&blob, bytes).unwrap();
    empty.hull.run(["pull", &registry.image("liar")]).failed(1, &["digest"]);
    drop(registry);
    empty.left_nothing();
}

#[test]
fn a_layer_that_stops_in_the_middle() {
    let empty = Empty::new();
    let registry = Registry::start();
    let digests = pushed(&registry, "short", HARMLESS);
    let blob = OpenOptions::new().write(true).open(registry.blob(&digests[0])).unwrap();
    blob.set_len(blob.metadata().unwrap().len() / 2).unwrap();
    empty.hull.run(["pull", &registry.image("short")]).failed(1, &[]);
    drop(registry);
    empty.left_nothing();
}

#[test]
fn layers_that_reach_outside() {
    let empty = Empty::new();
    let registry = Registry::start();
    let witness = TempDir::with_prefix("hull-e2e-").unwrap();
    let outside = witness.path().join("escaped");
    let outside = outside.to_str().unwrap();
    let climb = format!("../../../../../../../../../..{outside}");
    for (name, entries) in [
        ("dotdot", vec![Entry { name: &climb, kind: EntryKind::File(b"x") }]),
        ("link-dotdot", vec![Entry { name: "a", kind: EntryKind::HardLink(&climb) }]),
        ("nested", vec![Entry { name: "a/../../b", kind: EntryKind::File(b"x") }]),
    ] {
        pushed(&registry, name, &entries);
        empty.hull.run(["pull", &registry.image(name)]).failed(1, &[".."]);
    }
    // An absolute name and a link that points out are names inside the image, no more.
    for (name, entries) in [
        ("absolute", vec![Entry { name: outside, kind: EntryKind::File(b"x") }]),
        (
            "through",
            vec![
                Entry { name: "out", kind: EntryKind::Symlink(witness.path().to_str().unwrap()) },
                Entry { name: "out/escaped", kind: EntryKind::File(b"x") },
            ],
        ),
    ] {
        pushed(&registry, name, &entries);
        let pulled = empty.hull.run(["pull", "-q", &registry.image(name)]);
        if pulled.code == 0 {
            empty.hull.ok(["rmi", &registry.image(name)]);
        }
    }
    assert!(!Path::new(outside).exists(), "nothing was written outside");
    drop(registry);
    empty.left_nothing();
}

#[test]
fn a_disk_that_is_full() {
    let small = TempDir::with_prefix("hull-e2e-").unwrap();
    let mounted = |args: &[&str]| assert!(Command::new(args[0]).args(&args[1..]).status().unwrap().success());
    let folder = small.path().to_str().unwrap();
    mounted(&["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]);
    {
        let hull = Hull::over(small.path());
        hull.run(["run", "--rm", &image("busybox"), "true"]).failed(125, &["no space left"]);
        assert_eq!(hull.ok(["images", "-q"]), "");
        assert!(content(small.path()).is_empty(), "{:?}", content(small.path()));
        hull.left_nothing();
    }
    mounted(&["umount", folder]);
}

#[test]
fn a_kernel_that_is_not_there() {
    let hull = Hull::new();
    let mut command = hull.command(["run", "--rm", &image("busybox"), "true"]);
    said(&command.env("HULL_KERNEL", "/no/such/vmlinux").output().unwrap())
        .failed(125, &["/no/such/vmlinux"]);
    let mut command = hull.command(["run", "--rm", &image("busybox"), "true"]);
    said(&command.env("HULL_KERNEL", "/etc/passwd").output().unwrap()).failed(125, &["kernel"]);
    hull.left_nothing();
}

#[test]
fn a_kvm_that_cannot() {
    let hull = Hull::new();
    // A mount of the command's own hides the device; outside nothing changes.
    let hidden = |words: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command.arg("mount --bind /dev/null /dev/kvm && exec \"$@\"").arg("sh").arg(binaries().join("hull"));
        command.args(words);
        hull.settings(&mut command);
        said(&command.output().unwrap())
    };
    hidden(&["run", "--rm", &image("busybox"), "true"]).failed(125, &["/dev/kvm", "hull check"]);
    let check = hidden(&["check"]);
    assert_eq!(check.code, 1, "{check:?}");
    assert!(check.out.contains("/dev/kvm"), "{check:?}");
    hull.left_nothing();
}

#[test]
fn a_host_that_can() {
    let hull = Hull::new();
    let check = hull.run(["check"]);
    assert_eq!(check.code, 0, "{check:?}");
    hull.left_nothing();
}

#[test]
fn options_that_make_no_sense() {
    let hull = Hull::new();
    let busybox = image("busybox");
    for (options, words) in [
        (&["-m", "lots"][..], &["lots"][..]),
        (&["--cpus", "-1"], &["-1"]),
        (&["--user", "nobody-knows", "--rm"], &["nobody-knows"]),
        (&["--name", "has/slash"], &["has/slash"]),
        (&["-v", "named:/tmp"], &["named volume"]),
        (&["-v", "/dev/null:/null"], &["/dev/null", "directory"]),
        (&["--pull", "sometimes"], &["sometimes"]),
        (&["--env-file", "/no/such/file"], &["/no/such/file"]),
    ] {
        let args = [&["run"], options, &[&busybox, "true"]].concat();
        let said = hull.run(&args);
        assert_eq!(said.code, 125, "{args:?}: {said:?}");
        for word in words {
            assert!(said.err.contains(word), "{args:?}: {said:?}");
        }
    }
    for verb in ["logs", "stop", "kill", "rm", "inspect", "wait"] {
        hull.run([verb, "nobody"]).failed(1, &["nobody", "no such"]);
    }
    hull.left_nothing();
}
