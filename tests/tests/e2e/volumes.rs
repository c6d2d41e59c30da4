//! Files of the host in a container: a real Linux guest reads and writes them through virtio-fs.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use hull_tests::hull::{Hull, image};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// Runs a script in a container with these options. `refused COMMAND` says so where the command succeeds.
#[track_caller]
fn script(hull: &Hull, options: &[&str], text: &str) -> String {
    let busybox = image("busybox");
    let text = format!("refused() {{ if \"$@\" 2>/dev/null; then echo \"not refused: $*\"; fi; }}\n{text}");
    hull.ok([&["run", "--rm"], options, &[busybox.as_str(), "sh", "-euc", &text]].concat())
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_folder_is_read_and_written() {
    let folder = TempDir::new().unwrap();
    let hull = Hull::new();
    let content: Vec<u8> = (0..5_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(folder.path().join("from-host"), &content).unwrap();
    let volume = format!("{}:/data", folder.path().display());
    let text = "
        cd /data
        sha256sum from-host | cut -d' ' -f1
        mkdir -p a/b && echo nested >a/b/f && cp from-host copy && sync
        ln -s f a/b/soft && ln a/b/f hard && cat a/b/soft
        mv a/b/f moved
        mkfifo fifo && (echo through >fifo & cat fifo) && rm fifo
        refused mknod device c 1 3
        chown 1234:567 moved && chmod 751 moved
        echo one >log && echo two >>log
        dd if=/dev/zero of=sparse bs=1 count=1 seek=1000000 2>/dev/null
        exec 3<>open && rm open && echo unlinked >&3 && echo still open
        for i in $(seq 300); do : >file-$i; done && ls | grep -c file- && rm file-*
        find . -type f | sort | tr '\\n' ' '
    ";
    let out = script(&hull, &["-v", &volume], text);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], hash(&content), "{out}");
    assert_eq!(lines[1..5], ["nested", "through", "still open", "300"], "{out}");
    assert_eq!(lines[5].trim(), "./copy ./from-host ./hard ./log ./moved ./sparse");

    let host = |name: &str| folder.path().join(name);
    assert!(fs::read(host("copy")).unwrap() == content, "what was copied is not what was there");
    assert_eq!(fs::read_to_string(host("log")).unwrap(), "one\ntwo\n");
    let moved = fs::metadata(host("moved")).unwrap();
    assert_eq!((moved.uid(), moved.gid(), moved.permissions().mode() & 0o7777), (1234, 567, 0o751));
    assert_eq!(moved.ino(), fs::metadata(host("hard")).unwrap().ino());
    let sparse = fs::metadata(host("sparse")).unwrap();
    assert!(sparse.len() == 1_000_001 && sparse.blocks() * 512 < 100_000, "{sparse:?}");
    assert!(!host("fifo").exists() && !host("open").exists());
    hull.left_nothing();
}

#[test]
fn users_of_the_container_own_what_they_make() {
    let folder = TempDir::new().unwrap();
    let hull = Hull::new();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(folder.path().join("private"), "of root").unwrap();
    fs::set_permissions(folder.path().join("private"), fs::Permissions::from_mode(0o600)).unwrap();
    let volume = format!("{}:/data", folder.path().display());
    let text =
        "cd /data; mkdir d; echo mine >f; refused cat private; refused chown 0 f; refused chmod 666 private";
    assert_eq!(script(&hull, &["-v", &volume, "-u", "1000:1001"], text), "");
    for name in ["d", "f"] {
        let meta = fs::metadata(folder.path().join(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (1000, 1001), "{name}");
    }
    hull.left_nothing();
}

#[test]
fn read_only_is_read_only_and_files_can_be_mounted_alone() {
    let folder = TempDir::new().unwrap();
    let hull = Hull::new();
    fs::write(folder.path().join("config"), "setting\n").unwrap();
    fs::write(folder.path().join("sibling"), "secret\n").unwrap();
    let read_only = format!("{}:/ro:ro", folder.path().display());
    let file = format!("type=bind,source={}/config,target=/etc/app/config,readonly", folder.path().display());
    let text = "
        cat /etc/app/config && ls /etc/app
        refused touch /ro/new
        refused rm /ro/config
        refused sh -c 'echo x >/ro/config'
        refused sh -c 'echo x >/etc/app/config'
        cat /ro/sibling
    ";
    let out = script(&hull, &["-v", &read_only, "--mount", &file], text);
    assert_eq!(out, "setting\nconfig\nsecret\n");
    assert_eq!(fs::read_to_string(folder.path().join("config")).unwrap(), "setting\n");
    // Root in the container may remount as it likes: the host still refuses.
    let text = "mount -o remount,bind,rw none /ro; grep -c ' /ro rw' /proc/self/mountinfo; touch /ro/new 2>&1 || true";
    let out = script(&hull, &["--cap-add", "SYS_ADMIN", "-v", &read_only], text);
    assert!(out.starts_with("1\n") && out.contains("Read-only file system"), "{out}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    hull.left_nothing();
}

#[test]
fn links_lead_into_the_container_and_not_to_the_host() {
    let (folder, outside) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let hull = Hull::new();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink(outside.path(), folder.path().join("out")).unwrap();
    std::os::unix::fs::symlink("/etc/hostname-of-the-host", folder.path().join("name")).unwrap();
    let volume = format!("{}:/data", folder.path().display());
    let out =
        script(&hull, &["-v", &volume], "refused cat /data/out/secret; refused cat /data/name; ls /data");
    assert_eq!(out, "name\nout\n");
    hull.left_nothing();
}

#[test]
fn a_missing_folder_is_made_for_v_and_the_broker_ends_with_the_pod() {
    let folder = TempDir::new().unwrap();
    let hull = Hull::new();
    let new = folder.path().join("new");
    let volume = format!("{}:/data", new.display());
    let id = hull.detached(&["-v", &volume], "busybox", &["sh", "-c", "echo up >/data/f; sleep 600"]);
    hull_tests::eventually("the file", || {
        fs::read_to_string(new.join("f")).ok().filter(|text| text == "up\n")
    });
    let brokers = || Command::new("pgrep").args(["-x", "hull-fsd"]).output().unwrap().stdout;
    assert!(!brokers().is_empty());
    hull.ok(["rm", "-f", &id]);
    assert!(brokers().is_empty(), "the file broker outlives its pod");
    hull.left_nothing();
}
