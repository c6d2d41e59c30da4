//! `linux` without its resources, and hooks: config-linux.md, config.md.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use super::Expect::{Holds, Is, Mount, Probe, Refused};
use super::{Row, ensure, row, with_namespace};

pub fn rows() -> Vec<Row> {
    [namespaces(), devices(), paths(), seccomp(), others(), hooks()].into_iter().flatten().collect()
}

/// So that root of a mapping from 100000 owns the root file system.
pub fn give_to_mapped_root(bundle: &Path) {
    std::fs::set_permissions(bundle, std::fs::Permissions::from_mode(0o755)).unwrap();
    for entry in [bundle.join("rootfs"), bundle.join("rootfs/tmp"), bundle.join("rootfs/checker")] {
        std::os::unix::fs::chown(entry, Some(100_000), Some(100_000)).unwrap();
    }
}

/// Whether the checker's namespaces of these kinds are others than this test's.
fn own(report: &Value, kinds: &[&str]) -> Result<(), String> {
    for kind in kinds {
        let ours = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        ensure(report["namespaces"][kind] != json!(ours), || format!("{kind} is the host's"))?;
    }
    Ok(())
}

fn namespaces() -> Vec<Row> {
    vec![
        row(
            "linux.namespaces: pid, mount, network, ipc, uts, cgroup",
            json!({}),
            &[],
            vec![
                Is("/pid", json!(1)),
                Is("/interfaces", json!(["lo"])),
                Is("/cgroup", json!("0::/")),
                Holds(|report, _| own(report, &["pid", "mnt", "net", "ipc", "uts", "cgroup"])),
            ],
        ),
        row(
            "linux.namespaces: network and ipc left out: those of the runtime",
            json!({"linux": {"namespaces": [{"type": "mount"}, {"type": "uts"}, {"type": "pid"}, {"type": "cgroup"}]}}),
            &[],
            vec![Holds(|report, _| ensure(own(report, &["net"]).is_err() && own(report, &["ipc"]).is_err(), || "they are others".to_owned()))],
        ),
        row(
            "linux.namespaces: path of a network namespace",
            json!({"linux": {"namespaces": with_namespace(json!({"type": "network", "path": "/proc/self/ns/net"}))}}),
            &[],
            vec![Holds(|report, _| ensure(own(report, &["net"]).is_err(), || "it is another one".to_owned()))],
        ),
        row(
            "linux.namespaces: one twice",
            json!({"linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "pid"}]}}),
            &[],
            vec![Refused("pid")],
        )
        .remark("runc 1.1 says \"malformed\" without a name"),
        row(
            "linux.namespaces: user; uidMappings, gidMappings",
            json!({"linux": {
                "namespaces": with_namespace(json!({"type": "user"})),
                "uidMappings": [{"containerID": 0, "hostID": 100_000, "size": 1000}, {"containerID": 1000, "hostID": 300_000, "size": 10}],
                "gidMappings": [{"containerID": 0, "hostID": 100_000, "size": 1000}]}}),
            &["create:/tmp/x", "stat:/tmp/x"],
            vec![
                Is("/uidMap", json!(["0", "100000", "1000", "1000", "300000", "10"])),
                Is("/gidMap", json!(["0", "100000", "1000"])),
                Is("/status/Uid", json!("0 0 0 0")),
                Probe("stat:/tmp/x", json!("file 644 0:0")),
                Holds(|report, _| own(report, &["user"])),
            ],
        )
        .prepare(give_to_mapped_root),
        row(
            "linux.namespaces: time; timeOffsets",
            json!({"linux": {"namespaces": with_namespace(json!({"type": "time"})),
                "timeOffsets": {"boottime": {"secs": 2_000_000_000, "nanosecs": 5}, "monotonic": {"secs": 2_000_000_000}}}}),
            &[],
            vec![Holds(|report, _| {
                let uptime: f64 = report["uptime"].as_str().unwrap().split(' ').next().unwrap().parse().unwrap();
                ensure(uptime > 2e9, || format!("up for {uptime} s"))
            })],
        ),
        row(
            "linux.netDevices",
            json!({"linux": {"netDevices": {"hullrow0": {"name": "eth7"}}}}),
            &[],
            vec![Is("/interfaces", json!(["lo", "eth7"]))],
        )
        .prepare(|_| {
            // Of an earlier runtime that left it here it is as good.
            let _ = std::process::Command::new("ip").args(["link", "add", "hullrow0", "type", "dummy"]).output();
        })
        .remark("refused: a network device of the host cannot move into a VM; one in the pod's network namespace is joined to it. runc before 1.4 ignores the field"),
    ]
}

fn devices() -> Vec<Row> {
    vec![
        row(
            "default devices and links",
            json!({}),
            &[],
            vec![
                Is("/dev/null", json!("c 1:3 666 0:0")),
                Is("/dev/zero", json!("c 1:5 666 0:0")),
                Is("/dev/full", json!("c 1:7 666 0:0")),
                Is("/dev/random", json!("c 1:8 666 0:0")),
                Is("/dev/urandom", json!("c 1:9 666 0:0")),
                Is("/dev/tty", json!("c 5:0 666 0:0")),
                Is("/dev/ptmx", json!("-> pts/ptmx")),
                Is("/dev/fd", json!("-> /proc/self/fd")),
                Is("/dev/stdin", json!("-> /proc/self/fd/0")),
                Is("/dev/stdout", json!("-> /proc/self/fd/1")),
                Is("/dev/stderr", json!("-> /proc/self/fd/2")),
            ],
        ),
        row(
            "linux.devices: c, b, u, p",
            json!({"linux": {"devices": [
                {"type": "c", "path": "/dev/fuse", "major": 10, "minor": 229, "fileMode": 0o600, "uid": 3, "gid": 4},
                {"type": "u", "path": "/dev/unbuffered", "major": 1, "minor": 5, "fileMode": 0o640},
                {"type": "b", "path": "/dev/disk", "major": 7, "minor": 0, "fileMode": 0o660},
                {"type": "p", "path": "/dev/pipe", "fileMode": 0o620}]}}),
            &[],
            vec![
                Is("/dev/fuse", json!("c 10:229 600 3:4")),
                Is("/dev/unbuffered", json!("c 1:5 640 0:0")),
                Is("/dev/disk", json!("b 7:0 660 0:0")),
                Is("/dev/pipe", json!("p 620 0:0")),
            ],
        ),
        row(
            "linux.resources.devices",
            json!({"linux": {"resources": {"devices": [
                {"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
                {"allow": false, "type": "c", "major": 10, "minor": 229, "access": "w"}]}}}),
            &[
                "mknod:/tmp/fuse=c,10,229",
                "mknod:/tmp/mem=c,1,1",
                "open-write:/tmp/fuse",
                "open:/tmp/mem",
                "open:/dev/zero",
            ],
            vec![
                Probe("mknod:/tmp/fuse=c,10,229", json!("ok")),
                Probe("open-write:/tmp/fuse", json!("EPERM")),
                Probe("open:/tmp/mem", json!("EPERM")),
                Probe("open:/dev/zero", json!("ok")),
            ],
        ),
    ]
}

fn paths() -> Vec<Row> {
    vec![
        row(
            "linux.maskedPaths",
            json!({"linux": {"maskedPaths": ["/proc/version", "/hidden", "/missing"]}}),
            &["read:/proc/version", "list:/hidden", "create:/hidden/x", "stat:/missing"],
            vec![
                Probe("read:/proc/version", json!("")),
                Probe("list:/hidden", json!([])),
                Probe("create:/hidden/x", json!("EROFS")),
                Probe("stat:/missing", json!("ENOENT")),
            ],
        )
        .prepare(hidden),
        row(
            "linux.readonlyPaths",
            json!({"linux": {"readonlyPaths": ["/proc/sys", "/hidden", "/missing"]}}),
            &["write:/proc/sys/kernel/hostname=x", "create:/hidden/x", "read:/hidden/file"],
            vec![
                Probe("write:/proc/sys/kernel/hostname=x", json!("EROFS")),
                Probe("create:/hidden/x", json!("EROFS")),
                Probe("read:/hidden/file", json!("secret")),
            ],
        )
        .prepare(hidden),
        row(
            "linux.rootfsPropagation: slave",
            json!({"linux": {"rootfsPropagation": "slave"}}),
            &[],
            vec![Holds(|report, _| {
                let root = super::mount(report, "/").ok_or("no root")?;
                let words = root["propagation"].as_array().unwrap();
                ensure(words.iter().all(|word| !word.as_str().unwrap().starts_with("shared")), || {
                    format!("it is {words:?}")
                })
            })],
        ),
        row(
            "linux.rootfsPropagation: shared",
            json!({"linux": {"rootfsPropagation": "shared"}}),
            &[],
            vec![Holds(|report, _| {
                let root = super::mount(report, "/").ok_or("no root")?;
                let words = root["propagation"].as_array().unwrap();
                ensure(words.iter().any(|word| word.as_str().unwrap().starts_with("shared")), || {
                    format!("it is {words:?}")
                })
            })],
        ),
        row(
            "linux.rootfsPropagation: nonsense",
            json!({"linux": {"rootfsPropagation": "nonsense"}}),
            &[],
            vec![Refused("nonsense")],
        ),
    ]
}

fn hidden(bundle: &Path) {
    let hidden = bundle.join("rootfs/hidden");
    std::fs::create_dir(&hidden).unwrap();
    std::fs::write(hidden.join("file"), "secret\n").unwrap();
}

fn seccomp() -> Vec<Row> {
    // By number: 169 reboot, 170 sethostname, 135 personality, 95 umask. The checker calls them with zeros.
    let profile = |rules: Value| {
        json!({"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": rules}}})
    };
    let mut default = hull_tests::oci::default_seccomp();
    default["defaultErrnoRet"] = json!(28);
    default["syscalls"].as_array_mut().unwrap().retain(|rule| rule["action"] == "SCMP_ACT_ALLOW");
    vec![
        row(
            "linux.seccomp: errno values",
            profile(
                json!([{"names": ["reboot"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}, {"names": ["umask"], "action": "SCMP_ACT_ERRNO"}]),
            ),
            &["syscall:169", "syscall:95"],
            vec![
                Is("/status/Seccomp", json!("2")),
                Probe("syscall:169", json!("ENOSPC")),
                Probe("syscall:95", json!("EPERM")),
            ],
        ),
        row(
            "linux.seccomp: conditions on arguments",
            profile(json!([
                {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28, "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]},
                {"names": ["umask"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28, "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_GT"}]}])),
            &["syscall:135", "syscall:95"],
            vec![Probe("syscall:135", json!("ENOSPC")), Probe("syscall:95", json!("ok"))],
        ),
        row(
            "linux.seccomp: names that no kernel has",
            profile(
                json!([{"names": ["nonsense_call", "reboot"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]),
            ),
            &["syscall:169"],
            vec![Probe("syscall:169", json!("ENOSPC"))],
        )
        .remark("skipped"),
        row(
            "linux.seccomp.defaultErrnoRet",
            json!({"linux": {"seccomp": default}}),
            &["syscall:169"],
            vec![Probe("syscall:169", json!("ENOSPC"))],
        )
        .remark("an error where the default action takes no errno value"),
        row(
            "linux.seccomp: docker's default profile",
            json!({"linux": {"seccomp": hull_tests::oci::default_seccomp()}}),
            &["unshare:mount", "socket:40,1", "syscall:169", "socket:2,1"],
            vec![
                Is("/status/Seccomp", json!("2")),
                Probe("unshare:mount", json!("EPERM")),
                Probe("socket:40,1", json!("EPERM")),
                Probe("syscall:169", json!("EPERM")),
                Probe("socket:2,1", json!("ok")),
            ],
        ),
        row(
            "linux.seccomp: flags",
            json!({"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
                "syscalls": [{"names": ["reboot"], "action": "SCMP_ACT_ERRNO"}]}}}),
            &[],
            vec![Is("/status/Seccomp", json!("2"))],
        ),
        row(
            "linux.seccomp: SCMP_ACT_NOTIFY",
            profile(json!([{"names": ["reboot"], "action": "SCMP_ACT_NOTIFY"}])),
            &[],
            vec![Refused("NOTIFY")],
        )
        .remark("refused: who would be notified is on the host"),
    ]
}

fn others() -> Vec<Row> {
    vec![
        row(
            "linux.sysctl of own namespaces",
            json!({"linux": {"sysctl": {"net.ipv4.ip_unprivileged_port_start": "7", "kernel.shmmni": "99", "net/ipv4/ping_group_range": "0 5"}}}),
            &[
                "read:/proc/sys/net/ipv4/ip_unprivileged_port_start",
                "read:/proc/sys/kernel/shmmni",
                "read:/proc/sys/net/ipv4/ping_group_range",
            ],
            vec![
                Probe("read:/proc/sys/net/ipv4/ip_unprivileged_port_start", json!("7")),
                Probe("read:/proc/sys/kernel/shmmni", json!("99")),
                Probe("read:/proc/sys/net/ipv4/ping_group_range", json!("0\t5")),
            ],
        ),
        row(
            "linux.sysctl of the whole kernel",
            json!({"linux": {"sysctl": {"kernel.panic": "1"}}}),
            &[],
            vec![Refused("kernel.panic")],
        ),
        row(
            "linux.sysctl without the namespace",
            json!({"linux": {"sysctl": {"net.ipv4.ip_forward": "1"}, "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "uts"}]}}),
            &[],
            vec![Refused("net.ipv4.ip_forward")],
        ),
        row(
            "linux.personality",
            json!({"linux": {"personality": {"domain": "LINUX32"}}}),
            &[],
            vec![Is("/machine", json!("i686")), Is("/personality", json!(8))],
        ),
        row(
            "linux.intelRdt",
            json!({"linux": {"intelRdt": {"closID": "x", "l3CacheSchema": "L3:0=f"}}}),
            &[],
            vec![],
        )
        .remark("ignored, with a line in the log: it concerns the host's processor"),
        row(
            "linux.memoryPolicy",
            json!({"linux": {"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0"}}}),
            &[],
            vec![Is("/mempolicy", json!([2, 1]))],
        ),
        row(
            "windows, solaris, zos, freebsd",
            json!({"windows": {"layerFolders": ["c:"]}, "solaris": {"milestone": "x"}, "zos": {}, "freebsd": {"jail": {}}}),
            &[],
            vec![],
        )
        .remark("ignored: of other platforms"),
        row("vm, hooks left empty", json!({"vm": {"kernel": {"path": "/x"}}, "hooks": {}}), &[], vec![])
            .remark("the shim chooses kernel and hypervisor"),
        row(
            "linux.cgroupsPath",
            json!({"linux": {"cgroupsPath": "/hull-row/inner"}}),
            &[],
            vec![Mount("/sys/fs/cgroup", "cgroup2", &["ro"]), Is("/cgroup", json!("0::/"))],
        )
        .remark("in a VM every container has its own below the agent's"),
    ]
}

/// A hook that writes what it sees into a file below its own root.
fn hook(path: &str, log: &str) -> Value {
    json!([{"path": path, "args": ["sh", "-c", format!("cat > {log}")], "env": ["PATH=/bin"]}])
}

fn hooks() -> Vec<Row> {
    vec![
        row(
            "hooks: prestart, createRuntime",
            json!({"hooks": {"createRuntime": [{"path": "/bin/true"}], "prestart": [{"path": "/bin/true"}]}}),
            &[],
            vec![],
        )
        .remark("run by the command line; in a VM they are the shim's, on the host"),
        row(
            "hooks: a failing createRuntime",
            json!({"hooks": {"createRuntime": [{"path": "/bin/false"}]}}),
            &[],
            vec![Refused("hook")],
        ),
        row(
            "hooks: startContainer",
            json!({"hooks": {"startContainer": hook("/busybox", "/tmp/hook")}}),
            &["read:/tmp/hook"],
            vec![saw_state()],
        )
        .prepare(busybox),
        row(
            "hooks: createContainer",
            json!({"hooks": {"createContainer": hook("/bin/busybox", "/tmp/hull-hook-row")}}),
            &[],
            vec![Holds(|_, _| {
                let found = std::fs::read_to_string("/tmp/hull-hook-row").unwrap_or_default();
                // The next runtime must write it anew.
                let _ = std::fs::remove_file("/tmp/hull-hook-row");
                ensure(found.contains("\"status\""), || format!("it saw {found:?}"))
            })],
        ),
    ]
}

fn busybox(bundle: &Path) {
    std::fs::copy("/bin/busybox", bundle.join("rootfs/busybox")).unwrap();
}

fn saw_state() -> super::Expect {
    Holds(|report, _| {
        let found = report["probes"]["read:/tmp/hook"].as_str().unwrap_or_default();
        ensure(found.contains("\"status\""), || format!("it saw {found:?}"))
    })
}
