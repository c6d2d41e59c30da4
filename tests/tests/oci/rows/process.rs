//! `process`, `root`, `hostname`: config.md.

use hull_tests::oci::{CAPABILITIES, default_seccomp};
use serde_json::json;

use super::Expect::{Holds, Is, Probe, Refused};
use super::{Row, Through, ensure, row};

pub fn rows() -> Vec<Row> {
    [general(), process(), rights(), scheduling(), exec()].into_iter().flatten().collect()
}

fn general() -> Vec<Row> {
    vec![
        row(
            "ociVersion, annotations, unknown properties",
            json!({"annotations": {"a": "b"}, "nonsense": {"x": 1}}),
            &[],
            vec![],
        ),
        row(
            "ociVersion of another major version",
            json!({"ociVersion": "2.0.0"}),
            &[],
            vec![Refused("ersion")],
        ),
        row(
            "root.readonly",
            json!({"root": {"readonly": true}}),
            &["create:/x"],
            vec![Probe("create:/x", json!("EROFS"))],
        ),
        row("hostname", json!({"hostname": "somebody"}), &[], vec![Is("/hostname", json!("somebody"))]),
        row(
            "domainname",
            json!({"domainname": "example.org"}),
            &[],
            vec![Is("/domainname", json!("example.org"))],
        ),
    ]
}

fn process() -> Vec<Row> {
    vec![
        row(
            "process.args, env",
            json!({"process": {"args": ["/checker", "read:/nothing"], "env": ["A=b", "C=d e"]}}),
            &[],
            vec![Is("/args/1", json!("read:/nothing")), Is("/env", json!(["A=b", "C=d e"]))],
        ),
        row(
            "process.cwd, made if it is missing",
            json!({"process": {"cwd": "/made/for/it"}}),
            &[],
            vec![Is("/cwd", json!("/made/for/it"))],
        ),
        row(
            "process.user: uid, gid, additionalGids",
            json!({"process": {"user": {"uid": 1000, "gid": 1001, "additionalGids": [5, 6]}}}),
            &[],
            vec![
                Is("/status/Uid", json!("1000 1000 1000 1000")),
                Is("/status/Gid", json!("1001 1001 1001 1001")),
                Holds(|report, _| {
                    let mut groups: Vec<_> =
                        report["status"]["Groups"].as_str().unwrap_or_default().split(' ').collect();
                    groups.retain(|group| *group != "1001");
                    ensure(groups == ["5", "6"], || format!("groups are {groups:?}"))
                }),
            ],
        ),
        row(
            "process.user.umask",
            json!({"process": {"user": {"umask": 0o027}}}),
            &[],
            vec![Is("/umask", json!("0027"))],
        ),
        row(
            "process.terminal, consoleSize",
            json!({"process": {"terminal": true, "consoleSize": {"width": 132, "height": 43}}}),
            &["stat:/dev/console"],
            vec![
                Is("/terminal", json!([132, 43])),
                Is("/files/0", json!("/dev/pts/0")),
                Holds(|report, _| {
                    let console = report["probes"]["stat:/dev/console"].as_str().unwrap_or_default();
                    ensure(console.starts_with("c 136:0"), || format!("/dev/console is {console}"))
                }),
            ],
        )
        .through(Through::Terminal),
        row(
            "standard streams belong to the user",
            json!({"process": {"user": {"uid": 7}}}),
            &[],
            vec![Is("/streams/1", json!(7))],
        ),
        row(
            "no descriptor but the standard streams",
            json!({}),
            &[],
            vec![Holds(|report, _| {
                let files = report["files"].as_object().unwrap();
                ensure(files.len() == 3, || format!("open are {files:?}"))
            })],
        ),
    ]
}

fn rights() -> Vec<Row> {
    let none = "0000000000000000";
    vec![
        row(
            "process.capabilities, five sets",
            json!({"process": {"capabilities": {
                "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"], "permitted": ["CAP_CHOWN", "CAP_KILL"],
                "inheritable": ["CAP_CHOWN"], "effective": ["CAP_CHOWN", "CAP_KILL"], "ambient": ["CAP_CHOWN"]},
                "user": {"uid": 5}}}),
            &[],
            vec![
                Is("/status/CapBnd", json!("0000000000002021")),
                Is("/status/CapInh", json!("0000000000000001")),
                Is("/status/CapAmb", json!("0000000000000001")),
                // Of a user that is not root exec keeps the ambient ones.
                Is("/status/CapPrm", json!("0000000000000001")),
                Is("/status/CapEff", json!("0000000000000001")),
            ],
        ),
        row(
            "process.capabilities absent: none",
            json!({"process": {"capabilities": null}}),
            &[],
            vec![Is("/status/CapBnd", json!(none)), Is("/status/CapEff", json!(none))],
        ),
        row(
            "process.capabilities, an unknown name",
            json!({"process": {"capabilities": {"bounding": ["CAP_CHOWN", "CAP_NONSENSE"]}}}),
            &[],
            vec![Is("/status/CapBnd", json!("0000000000000001"))],
        )
        .remark("ignored, with a line in the log"),
        row(
            "process.rlimits",
            json!({"process": {"rlimits": [
                {"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
                {"type": "RLIMIT_NPROC", "soft": 77, "hard": 88}, {"type": "RLIMIT_RTTIME", "soft": 5, "hard": 6},
                {"type": "RLIMIT_MSGQUEUE", "soft": 1, "hard": 2}]}}),
            &[],
            vec![
                Is("/limits/RLIMIT_NOFILE", json!([1024, 4096])),
                Is("/limits/RLIMIT_CORE", json!([0, 0])),
                Is("/limits/RLIMIT_NPROC", json!([77, 88])),
                Is("/limits/RLIMIT_RTTIME", json!([5, 6])),
                Is("/limits/RLIMIT_MSGQUEUE", json!([1, 2])),
            ],
        ),
        row(
            "process.rlimits, one twice",
            json!({"process": {"rlimits": [
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}, {"type": "RLIMIT_CORE", "soft": 1, "hard": 1}]}}),
            &[],
            vec![Refused("RLIMIT_CORE")],
        ),
        row(
            "process.noNewPrivileges",
            json!({"process": {"noNewPrivileges": true}}),
            &[],
            vec![Is("/status/NoNewPrivs", json!("1"))],
        ),
        row(
            "process.apparmorProfile",
            json!({"process": {"apparmorProfile": "docker-default"}}),
            &[],
            vec![],
        )
        .remark("ignored, with a line in the log: the guest has no AppArmor"),
        row(
            "process.selinuxLabel, linux.mountLabel",
            json!({"process": {"selinuxLabel": "system_u:system_r:container_t:s0"},
                   "linux": {"mountLabel": "system_u:object_r:container_file_t:s0"}}),
            &[],
            vec![],
        )
        .remark("ignored, with a line in the log: the guest has no SELinux"),
        row(
            "process.oomScoreAdj",
            json!({"process": {"oomScoreAdj": 321}}),
            &[],
            vec![Is("/oomScoreAdj", json!("321"))],
        ),
    ]
}

fn scheduling() -> Vec<Row> {
    vec![
        row(
            "process.scheduler",
            json!({"process": {"scheduler": {"policy": "SCHED_BATCH", "nice": 7}}}),
            &[],
            vec![Is("/scheduler/policy", json!(3)), Is("/scheduler/nice", json!(7))],
        ),
        row(
            "process.scheduler, real time",
            json!({"process": {"scheduler": {"policy": "SCHED_FIFO", "priority": 10, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}}}),
            &[],
            vec![
                Is("/scheduler/policy", json!(1)),
                Is("/scheduler/priority", json!(10)),
                Is("/scheduler/flags", json!(1)),
            ],
        ),
        row(
            "process.ioPriority",
            json!({"process": {"ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 5}}}),
            &[],
            vec![Is("/ioPriority", json!(2 << 13 | 5))],
        ),
        row("process.execCPUAffinity", json!({}), &[], vec![Is("/status/Cpus_allowed_list", json!("0"))])
            .through(Through::Exec(json!({"execCPUAffinity": {"initial": "0-1", "final": "0"}}))),
    ]
}

/// What an exec must inherit. The first two are what a well-known library gets wrong.
fn exec() -> Vec<Row> {
    let same = || Through::Exec(json!({}));
    vec![
        row(
            "exec: linux.seccomp",
            json!({"linux": {"seccomp": default_seccomp()}, "process": {"noNewPrivileges": true}}),
            &[],
            vec![Is("/status/Seccomp", json!("2")), Is("/status/NoNewPrivs", json!("1"))],
        )
        .through(same()),
        row(
            "exec: the user namespace",
            json!({"linux": {
                "namespaces": super::with_namespace(json!({"type": "user"})),
                "uidMappings": [{"containerID": 0, "hostID": 100_000, "size": 65536}],
                "gidMappings": [{"containerID": 0, "hostID": 100_000, "size": 65536}]}}),
            &[],
            vec![Is("/uidMap", json!(["0", "100000", "65536"]))],
        )
        .through(same())
        .prepare(super::linux::give_to_mapped_root),
        row(
            "exec: capabilities, rlimits, namespaces, cgroup, oomScoreAdj",
            json!({"process": {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}], "oomScoreAdj": 55},
                   "linux": {"resources": {"pids": {"limit": 33}}}}),
            &["read:/sys/fs/cgroup/pids.max", "read:/proc/1/comm"],
            vec![
                Is("/limits/RLIMIT_NOFILE", json!([100, 200])),
                Is("/oomScoreAdj", json!("55")),
                Is("/status/CapEff", json!("00000000a80425fb")),
                Is("/cgroup", json!("0::/")),
                Is("/hostname", json!("container")),
                Probe("read:/sys/fs/cgroup/pids.max", json!("33")),
                Probe("read:/proc/1/comm", json!("checker")),
            ],
        )
        .through(same())
        .remark("runc's soft limit of open files is the wrong one in some runs"),
        row(
            "exec: own user, fewer capabilities",
            json!({}),
            &[],
            vec![
                Is("/status/Uid", json!("9 9 9 9")),
                Is("/status/CapBnd", json!("0000000000000001")),
                Is("/cwd", json!("/tmp")),
            ],
        )
        .through(Through::Exec(json!({
            "user": {"uid": 9, "gid": 9}, "cwd": "/tmp",
            "capabilities": {"bounding": [CAPABILITIES[0]], "effective": null, "permitted": null}}))),
    ]
}
