//! What a container may not do: system calls and devices.

use hull_tests::hull::{Hull, image};

const STATUS: &str = "grep ^Seccomp: /proc/self/status | tr -d '\\t'";

#[test]
fn dockers_system_call_filter_is_there_unless_told_otherwise() {
    let hull = Hull::new();
    let busybox = image("busybox");
    let run = |options: &[&str], script: &str| {
        hull.run([&["run", "--rm"], options, &[busybox.as_str(), "sh", "-c", script]].concat())
    };
    assert_eq!(run(&[], STATUS).out, "Seccomp:2\n");
    assert_eq!(run(&["--security-opt", "seccomp=unconfined"], STATUS).out, "Seccomp:0\n");
    assert_eq!(run(&["--security-opt", "no-new-privileges"], STATUS).out, "Seccomp:2\n");
    // With the capability comes what it is for.
    let admin = ["--cap-add", "SYS_ADMIN"];
    assert_eq!(run(&admin, &format!("{STATUS}; unshare -m echo apart")).out, "Seccomp:2\napart\n");

    let profile = tempfile::NamedTempFile::new().unwrap();
    let json = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["unshare"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#;
    std::fs::write(profile.path(), json).unwrap();
    let option = format!("seccomp={}", profile.path().display());
    let said = run(&["--cap-add", "SYS_ADMIN", "--security-opt", &option], "unshare -m echo apart");
    assert!(said.code != 0 && said.err.contains("No space left on device"), "{said:?}");

    // A profile that cannot be kept starts nothing.
    std::fs::write(profile.path(), r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#).unwrap();
    let said = run(&["--security-opt", &option], "echo ran");
    assert!(said.out.is_empty() && said.err.contains("SCMP_ACT_NOTIFY is not supported"), "{said:?}");
    drop(profile);
    hull.left_nothing();
}

#[test]
fn an_exec_has_the_filter_of_its_container() {
    let hull = Hull::new();
    let id = hull.detached(&["--name", "filtered"], "busybox", &["sleep", "600"]);
    assert_eq!(hull.ok(["exec", &id, "sh", "-c", STATUS]), "Seccomp:2\n");
    hull.ok(["rm", "-f", "filtered"]);
    hull.left_nothing();
}

#[test]
fn a_node_of_the_vms_disk_cannot_be_opened() {
    let hull = Hull::new();
    // The root file system is on a disk of the VM: its numbers are found, and useless.
    let script = "cd /dev; mknod disk b $(tr : ' ' < /sys/block/vda/dev) && cat disk > /dev/null";
    let said = hull.run(["run", "--rm", &image("busybox"), "sh", "-c", script]);
    assert!(said.err.contains("can't open 'disk': Operation not permitted"), "{said:?}");
    hull.left_nothing();
}
