//! `mounts`: config.md "Mounts" and "Linux mount options".

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use super::Expect::{Holds, Is, Mount, Probe, Refused};
use super::{Row, ensure, mount, row, with_mount, with_mounts};

pub fn rows() -> Vec<Row> {
    [file_systems(), options(), binds()].into_iter().flatten().collect()
}

fn tmpfs(options: &[&str]) -> Value {
    json!({"destination": "/data", "type": "tmpfs", "source": "t", "options": options})
}

fn file_systems() -> Vec<Row> {
    vec![
        row(
            "mounts: proc, sysfs, tmpfs, devpts, mqueue, cgroup",
            json!({}),
            &[],
            vec![
                Mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
                Mount("/sys", "sysfs", &["ro"]),
                Mount("/dev", "tmpfs", &["nosuid", "size=65536k", "mode=755"]),
                Mount("/dev/pts", "devpts", &["gid=5", "mode=620", "ptmxmode=666"]),
                Mount("/dev/mqueue", "mqueue", &["nosuid"]),
                Mount("/sys/fs/cgroup", "cgroup2", &["ro"]),
            ],
        ),
        row(
            "mounts: proc with subset and hidepid",
            with_mount(
                json!({"destination": "/p", "type": "proc", "source": "proc", "options": ["subset=pid", "hidepid=2"]}),
            ),
            &["stat:/p/1/stat", "stat:/p/uptime"],
            vec![
                Mount("/p", "proc", &["subset=pid"]),
                Probe("stat:/p/uptime", json!("ENOENT")),
                Holds(|report, _| {
                    ensure(report["probes"]["stat:/p/1/stat"] != "ENOENT", || "/p/1 is missing".to_owned())
                }),
            ],
        ),
        row(
            "mounts: options of the file system",
            with_mount(tmpfs(&["size=1m", "mode=1700", "uid=5", "nr_inodes=20"])),
            &["stat:/data"],
            vec![
                Mount("/data", "tmpfs", &["size=1024k", "mode=1700", "uid=5", "nr_inodes=20"]),
                Probe("stat:/data", json!("directory 1700 5:0")),
            ],
        ),
        row(
            "mounts: an unknown file system",
            with_mount(json!({"destination": "/d", "type": "nonsense", "source": "x"})),
            &[],
            vec![Refused("mount")],
        ),
        row(
            "mounts: in order, a later one over an earlier",
            with_mounts(vec![
                tmpfs(&["size=1m"]),
                json!({"destination": "/data/in", "type": "tmpfs", "source": "u", "options": ["size=2m"]}),
            ]),
            &["create:/data/in/x"],
            vec![Mount("/data/in", "tmpfs", &["size=2048k"]), Probe("create:/data/in/x", json!("ok"))],
        ),
    ]
}

fn options() -> Vec<Row> {
    vec![
        row(
            "mount options: ro, nosuid, nodev, noexec",
            with_mount(tmpfs(&["ro", "nosuid", "nodev", "noexec"])),
            &["create:/data/x"],
            vec![
                Mount("/data", "tmpfs", &["ro", "nosuid", "nodev", "noexec"]),
                Probe("create:/data/x", json!("EROFS")),
            ],
        ),
        row(
            "mount options: of opposites the last counts",
            with_mount(tmpfs(&["ro", "rw", "nosuid", "suid"])),
            &["create:/data/x"],
            vec![
                Probe("create:/data/x", json!("ok")),
                Holds(|report, _| {
                    let options = &mount(report, "/data").unwrap()["options"];
                    ensure(!options.as_array().unwrap().contains(&json!("nosuid")), || {
                        format!("options are {options}")
                    })
                }),
            ],
        ),
        row(
            "mount options: noatime, nodiratime",
            with_mount(tmpfs(&["noatime", "nodiratime"])),
            &[],
            vec![Mount("/data", "tmpfs", &["noatime", "nodiratime"])],
        ),
        row(
            "mount options: strictatime",
            with_mount(tmpfs(&["strictatime"])),
            &[],
            vec![Holds(|report, _| {
                let options = mount(report, "/data").unwrap()["options"].as_array().unwrap();
                ensure(!options.iter().any(|option| option == "relatime" || option == "noatime"), || {
                    format!("options are {options:?}")
                })
            })],
        ),
        row(
            "mount options: nosymfollow",
            with_mount(tmpfs(&["nosymfollow"])),
            &[],
            vec![Mount("/data", "tmpfs", &["nosymfollow"])],
        ),
        row("mount options: shared", with_mount(tmpfs(&["shared"])), &[], vec![propagation("shared:")]),
        row(
            "mount options: unbindable",
            with_mount(tmpfs(&["unbindable"])),
            &[],
            vec![propagation("unbindable")],
        ),
        row(
            "mount options: tmpcopyup",
            with_mount(tmpfs(&["tmpcopyup"])),
            &["read:/data/file", "stat:/data"],
            vec![Probe("read:/data/file", json!("of the image")), Mount("/data", "tmpfs", &[])],
        )
        .prepare(|bundle| {
            let data = bundle.join("rootfs/data");
            std::fs::create_dir(&data).unwrap();
            std::fs::write(data.join("file"), "of the image\n").unwrap();
        }),
    ]
}

fn propagation(word: &'static str) -> super::Expect {
    // The judge is a plain function, so each word has its own.
    match word {
        "shared:" => Holds(|report, _| has_propagation(report, "shared:")),
        _ => Holds(|report, _| has_propagation(report, "unbindable")),
    }
}

fn has_propagation(report: &Value, word: &str) -> Result<(), String> {
    let mount = mount(report, "/data").ok_or("nothing is mounted")?;
    let has = mount["propagation"]
        .as_array()
        .unwrap()
        .iter()
        .any(|found| found.as_str().unwrap().starts_with(word));
    ensure(has, || format!("propagation is {}", mount["propagation"]))
}

/// A bind mount of `<bundle>/source`: relative sources are the bundle's.
fn bind(options: &[&str]) -> Value {
    with_mount(json!({"destination": "/data", "type": "bind", "source": "source", "options": options}))
}

fn source(bundle: &std::path::Path) {
    let source = bundle.join("source");
    std::fs::create_dir_all(source.join("below")).unwrap();
    std::fs::set_permissions(&source, std::fs::Permissions::from_mode(0o777)).unwrap();
    std::fs::write(source.join("file"), "of the host\n").unwrap();
}

fn binds() -> Vec<Row> {
    vec![
        row("mounts: bind of a directory", bind(&["bind"]), &["read:/data/file", "create:/data/x"], vec![
            Probe("read:/data/file", json!("of the host")),
            Probe("create:/data/x", json!("ok")),
        ])
        .prepare(source)
        .remark("in a VM by virtio-fs"),
        row("mounts: bind, read-only", bind(&["bind", "ro", "nosuid"]), &["create:/data/x"], vec![Probe("create:/data/x", json!("EROFS"))]).prepare(source),
        row(
            "mounts: bind of a file",
            with_mount(json!({"destination": "/etc/a-file", "type": "bind", "source": "source/file", "options": ["bind"]})),
            &["read:/etc/a-file"],
            vec![Probe("read:/etc/a-file", json!("of the host"))],
        )
        .prepare(source),
        row(
            "mounts: rbind, and rro over all of it",
            with_mount(json!({"destination": "/data", "type": "bind", "source": "/dev", "options": ["rbind", "rro"]})),
            &["create:/data/x", "create:/data/shm/x"],
            vec![Probe("create:/data/x", json!("EROFS")), Probe("create:/data/shm/x", json!("EROFS")), Mount("/data/shm", "tmpfs", &["ro"])],
        )
        .remark("a file system mounted below the source comes along"),
        row(
            "mounts: uidMappings, gidMappings (id-mapped)",
            with_mount(json!({"destination": "/data", "type": "bind", "source": "source", "options": ["bind"],
                "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
                "gidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}]})),
            &["stat:/data/file"],
            vec![Probe("stat:/data/file", json!("file 644 1000:1000")), Is("/uidMap", json!(["0", "0", "4294967295"]))],
        )
        .prepare(source)
        .remark("refused by Linux 6.1, which cannot do it on the tmpfs of this test; the guest's kernel can"),
        row("mounts: a source that is missing", bind(&["bind"]), &[], vec![Refused("source")]),
    ]
}
