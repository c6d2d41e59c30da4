//! Block devices of the host: which of them a container brings into its VM, and how they leave it. Needs root, and loop devices.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use hull_shim::client::{Code, Process, Reach};
use serde_json::{Value, json};
use support::{Pod, soon};

/// A file as a block device.
struct Loop(PathBuf);

impl Loop {
    fn of(pod: &Pod, name: &str, options: &[&str]) -> Self {
        let file = pod.file(name);
        fs::write(&file, vec![7; 1 << 20]).unwrap();
        let output =
            Command::new("losetup").args(["--find", "--show"]).args(options).arg(&file).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        Self(String::from_utf8(output.stdout).unwrap().trim().into())
    }

    fn numbers(&self) -> (u32, u32) {
        let device = fs::metadata(&self.0).unwrap().rdev();
        (libc::major(device), libc::minor(device))
    }

    fn serial(&self) -> String {
        let (major, minor) = self.numbers();
        format!("dev-{major}-{minor}")
    }

    /// `linux` of a container that has it.
    fn linux(&self, access: &str) -> Value {
        let (major, minor) = self.numbers();
        json!({
            "namespaces": [{"type": "network"}],
            "devices": [{"type": "b", "path": "/dev/xvda", "major": major, "minor": minor}],
            "resources": {"devices": [
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "b", "major": major, "minor": minor, "access": access}
            ]}
        })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

fn noted(pod: &Pod) -> Vec<String> {
    let text = fs::read_to_string(pod.file("disks")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_container_alone_has_its_device_from_the_start() {
    for (access, options, wanted) in [
        ("rwm", &[][..], "ReadWrite for writing"),
        ("rm", &[][..], "ReadOnly for reading"),
        // As on the host: one that is read-only itself can be read.
        ("rwm", &["--read-only"][..], "ReadOnly for reading"),
    ] {
        let mut pod = Pod::new("web", &["true"]);
        let device = Loop::of(&pod, "device", options);
        pod.config["linux"] = device.linux(access);
        let client = pod.connect().await;
        soon(client.create(&pod.request)).await.unwrap();
        let (serial, (major, minor)) = (device.serial(), device.numbers());
        let lines = noted(&pod);
        assert_eq!(lines[1..], [format!("disk {serial} {wanted}"), format!("{serial} is {major}:{minor}")]);
        let web = Process::init("web");
        soon(client.start(web)).await.unwrap();
        soon(client.wait(web)).await.unwrap();
        soon(client.delete(web)).await.unwrap();
        soon(client.shutdown("web")).await.unwrap();
        pod.assert_nothing_left();
    }
}

#[tokio::test]
async fn containers_of_a_pod_share_a_device_until_the_last_of_them_is_deleted() {
    let mut pod = Pod::sandbox("pod");
    let device = Loop::of(&pod, "device", &[]);
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    let sandbox = Process::init("pod");
    soon(client.start(sandbox)).await.unwrap();
    pod.config["linux"] = device.linux("rwm");
    for id in ["one", "two"] {
        soon(client.create(&pod.member(id, &["sleep", "1000"]))).await.unwrap();
    }
    // With other rights it would be another disk, and each would have its own idea of what is on it.
    pod.config["linux"] = device.linux("rm");
    let refused = pod.member("three", &["sleep", "1000"]);
    let error = soon(client.create(&refused)).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::FAILED_PRECONDITION));
    assert!(error.to_string().contains("writable, and cannot be read-only"), "{error}");
    let (serial, (major, minor)) = (device.serial(), device.numbers());
    let told = format!("{serial} is {major}:{minor}");
    let plugged = format!("plugged {serial} ReadWrite for writing");
    assert_eq!(noted(&pod), [plugged.clone(), told.clone(), told.clone()]);
    soon(client.delete(Process::init("one"))).await.unwrap();
    assert_eq!(noted(&pod).len(), 3, "the other still has it");
    soon(client.delete(Process::init("two"))).await.unwrap();
    let unplugged = format!("unplugged blk-{serial}");
    assert_eq!(noted(&pod)[3..].join(" "), unplugged);
    // And the one that was refused may have it now.
    soon(client.create(&refused)).await.unwrap();
    soon(client.delete(Process::init("three"))).await.unwrap();
    assert_eq!(noted(&pod)[4..], [format!("plugged {serial} ReadOnly for reading"), told, unplugged]);
    client.kill(sandbox, 9, Reach::Process).await.unwrap();
    soon(client.wait(sandbox)).await.unwrap();
    soon(client.delete(sandbox)).await.unwrap();
    soon(client.shutdown("pod")).await.unwrap();
    pod.assert_nothing_left();
}

#[tokio::test]
async fn a_device_that_is_not_there_is_named_and_leaves_nothing() {
    let mut pod = Pod::new("web", &["true"]);
    pod.config["linux"] = json!({
        "namespaces": [{"type": "network"}],
        "devices": [{"type": "b", "path": "/dev/xvda", "major": 4000, "minor": 7}],
        "resources": {"devices": [{"allow": true, "type": "b", "major": 4000, "minor": 7, "access": "rw"}]}
    });
    let client = pod.connect().await;
    let error = soon(client.create(&pod.request)).await.unwrap_err();
    assert!(error.to_string().contains("block device 4000:7"), "{error}");
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
}
