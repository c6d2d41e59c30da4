//! `hull debug`: with the key the guest answers, without it nobody does.

use std::fs;

use hull_tests::containerd::{Containerd, RUNTIME, busybox};
use hull_tests::cri::NamespaceMode;
use hull_tests::kubelet::Pod;

#[test]
fn a_guest_tells_of_itself_where_the_key_says_so() {
    let containerd = Containerd::for_pods_as("[debug]\nconsole = true\n");
    let pod = Pod::run(&containerd, "asked", NamespaceMode::CONTAINER);
    let id = pod.container("web", 0, "echo told >/etc/said; exec sleep 1234", &[]);
    let ask = |words: &[&str]| {
        let said = containerd.hull([&["debug", &id[..20]], words].concat());
        assert_eq!(said.code, 0, "{words:?}: {said:?}");
        said.out
    };
    let processes = ask(&["ps"]);
    assert!(
        processes.contains("sleep 1234") && processes.contains(&format!("/containers/{id}")),
        "{processes}"
    );
    assert!(processes.lines().any(|line| line.trim_start().starts_with("1 ")), "{processes}");
    assert!(ask(&["cgroups"]).contains(&id));
    assert!(ask(&["mounts"]).contains("/run/hull/containers"));
    assert!(ask(&["net"]).contains("eth0"));
    assert!(ask(&["dmesg"]).contains("Linux version"));
    assert!(ask(&["ls", "/run/hull"]).contains("containers"));
    assert_eq!(ask(&["cat", &format!("/run/hull/containers/{id}/rootfs/etc/said")]), "told\n");
    assert!(ask(&["cat", "/no/such/file"]).contains("No such file"));
    assert!(ask(&["help"]).contains("dmesg"));
    // What has no end is cut; what would wait does not; the agent goes on.
    assert!(ask(&["cat", "/dev/zero"]).ends_with("(there is more)\n"));
    ask(&["cat", "/dev/console"]);
    for words in [&["sh"][..], &["ps", "aux"], &["cat", "relative"]] {
        let said = containerd.hull([&["debug", &pod.id], words].concat());
        assert!(said.code != 0 && said.err.contains("help lists them"), "{said:?}");
    }
    assert_eq!(pod.says(&id, "echo well"), "well\n");

    let said = containerd.hull(["debug", "nobody", "ps"]);
    assert!(said.code != 0 && said.err.contains("nobody"), "{said:?}");
    pod.end();
    containerd.left_nothing();
}

#[test]
fn without_the_key_there_is_no_way_in() {
    let containerd = Containerd::for_pods();
    let pod = Pod::run(&containerd, "closed", NamespaceMode::CONTAINER);
    let id = pod.container("web", 0, "sleep 1000", &[]);
    let said = containerd.hull(["debug", &id, "ps"]);
    assert!(said.code != 0 && said.err.contains("debug.console = true in /etc/hull/config.toml"), "{said:?}");
    // Not even with the key set afterwards: the guest's kernel was not told of it.
    assert!(!pod.says(&id, "cat /proc/cmdline").contains("debug_console"));
    pod.end();
    let words = ["run", "--rm", "--privileged", "--runtime", RUNTIME];
    let image = busybox();
    let words = [&words[..], &[image.as_str(), "own", "cat", "/proc/cmdline"]].concat();
    assert!(!containerd.ok(words).contains("debug_console"));
    let _ = fs::remove_dir_all(containerd.file("hull-logs"));
    containerd.left_nothing();
}
