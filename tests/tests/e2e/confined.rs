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

/// As docker's users expect it, but for the devices: those are the VM's.
#[test]
fn a_privileged_container_owns_its_vm() {
    let hull = Hull::new();
    let script = "set -e
        grep -E '^(CapEff|CapBnd|Seccomp):' /proc/self/status | tr -d '\\t'
        mkdir /m; mount -t tmpfs none /m; echo mounted
        echo 1 > /proc/sys/vm/overcommit_memory; cat /proc/sys/vm/overcommit_memory
        grep -cE '^[^ ]+ (/sys|/sys/fs/cgroup) [^ ]+ rw' /proc/mounts
        mkdir /sys/fs/cgroup/below; rmdir /sys/fs/cgroup/below
        # Its own root file system's disk, byte by byte: the first superblock of EROFS.
        dd if=/dev/vda bs=1 skip=1024 count=4 2> /dev/null | od -An -tx1
        ls -d /dev/kmsg /dev/ptmx
        ls -d /dev/kvm 2> /dev/null || echo no kvm";
    let id = hull.detached(&["--privileged"], "busybox", &["sleep", "1000"]);
    let said = hull.run(["exec", &id, "sh", "-c", script]);
    let expected = "CapEff:000001ffffffffff\nCapBnd:000001ffffffffff\nSeccomp:0\nmounted\n1\n2\n e2 e1 f5 e0\n\
                    /dev/kmsg\n/dev/ptmx\nno kvm\n";
    assert_eq!((said.code, said.out.as_str()), (0, expected), "{said:?}");
    assert_eq!(hull.inspect(&id)["HostConfig"]["Privileged"], true);
    // The image itself cannot be written: it is mounted, and the disk is read-only where it comes from.
    let said = hull.run(["exec", &id, "sh", "-c", "echo x > /dev/vda"]);
    assert!(said.code != 0 && said.err.contains("busy"), "{said:?}");
    // Every device that the guest has, and no other.
    let here =
        "ls /sys/dev/char /sys/dev/block | grep -c :; find /dev -type c -o -type b | grep -vc '^/dev/pts/'";
    let said = hull.ok(["exec", &id, "sh", "-c", here]);
    let counts: Vec<u32> = said.lines().map(|line| line.parse().unwrap()).collect();
    assert!(counts[0] > 10 && counts[1] <= counts[0] && counts[1] + 4 >= counts[0], "{counts:?}");
    hull.ok(["rm", "-f", &id]);
    // What docker lets one say beside it: a profile holds, a user is no root; what is dropped is not.
    let busybox = image("busybox");
    let options = ["--privileged", "--cap-drop", "ALL", "-u", "1000", "--security-opt", "seccomp=builtin"];
    let script = "grep -E '^(CapEff|CapBnd|Seccomp):' /proc/self/status | tr -d '\\t'";
    let said = hull.ok([&["run", "--rm"], &options[..], &[busybox.as_str(), "sh", "-c", script]].concat());
    assert_eq!(said, "CapEff:0000000000000000\nCapBnd:000001ffffffffff\nSeccomp:2\n");
    hull.left_nothing();
}

/// As with docker: the capabilities, and nothing else. The filter, the read-only paths and the devices are the container's.
#[test]
fn a_privileged_exec_has_the_capabilities_alone() {
    let hull = Hull::new();
    let id = hull.detached(&["--cap-drop", "ALL"], "busybox", &["sleep", "1000"]);
    let says = |options: &[&str], script: &str| {
        hull.run([&["exec"], options, &[id.as_str(), "sh", "-c", script]].concat())
    };
    const SETS: &str = "grep -E '^(CapEff|CapBnd|Seccomp):' /proc/self/status | tr -d '\\t'";
    let all = "CapBnd:000001ffffffffff\nSeccomp:2\n";
    assert_eq!(says(&[], SETS).out, "CapEff:0000000000000000\nCapBnd:0000000000000000\nSeccomp:2\n");
    assert_eq!(says(&["--privileged"], SETS).out, format!("CapEff:000001ffffffffff\n{all}"));
    assert_eq!(says(&["--privileged", "-u", "1000"], SETS).out, format!("CapEff:0000000000000000\n{all}"));
    // What the capabilities are for, where nothing else stands in the way.
    let link = "ip link add hull0 type dummy && ip link del hull0 && echo made";
    assert_ne!(says(&[], link).code, 0);
    assert_eq!(says(&["--privileged"], link).out, "made\n");
    let said = says(&["--privileged"], "mount -t tmpfs none /tmp");
    assert!(said.code != 0 && said.err.contains("permission denied"), "{said:?}");
    let said = says(&["--privileged"], "echo 1 > /proc/sys/vm/overcommit_memory");
    assert!(said.code != 0 && said.err.contains("Read-only file system"), "{said:?}");
    // The next exec has what the container has.
    assert_eq!(says(&[], SETS).out, "CapEff:0000000000000000\nCapBnd:0000000000000000\nSeccomp:2\n");
    hull.ok(["rm", "-f", &id]);
    hull.left_nothing();
}
