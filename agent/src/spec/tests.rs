mod anything;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn minimal() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {"args": ["true"], "cwd": "/"},
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "uts"}]}
    })
}

/// The minimal spec with `pointer` set to `value`.
fn with(pointer: &str, value: Value) -> Value {
    let mut spec = minimal();
    let mut at = &mut spec;
    for key in pointer.split('.') {
        at = at.as_object_mut().unwrap().entry(key).or_insert_with(|| json!({}));
    }
    *at = value;
    spec
}

fn parse(spec: &Value) -> Result<ContainerSpec, SpecError> {
    ContainerSpec::from_json(spec.to_string().as_bytes(), None, &Statements::default()).map(|(spec, _)| spec)
}

fn filesystem(mount: &MountSpec) -> &Filesystem {
    match &mount.source {
        Source::New(filesystem) => filesystem,
        other => panic!("{other:?} is none"),
    }
}

#[test]
fn volumes_are_named_and_never_have_devices() {
    use crate::sys::mount::{ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY};
    let volume = |source: &str, options: Value| {
        let mount =
            json!({"destination": "/data", "type": "hull-volume", "source": source, "options": options});
        parse(&with("mounts", json!([mount])))
    };
    let spec = volume("0", json!(["ro", "nosuid", "dev", "rprivate"])).unwrap();
    assert!(spec.uses_volumes());
    assert!(matches!(&spec.mounts[0].source, Source::Volume(name) if name.as_c_str() == c"0"));
    assert_eq!(spec.mounts[0].attributes.set, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV);
    for bad in ["", ".", "..", "a/b", "/", "../0"] {
        let error = volume(bad, json!([])).unwrap_err().to_string();
        assert!(error.contains("mounts") && error.contains("volume"), "{error}");
    }
    assert!(volume("0", json!(["size=4"])).unwrap_err().to_string().contains("size"));
}

#[test]
fn what_is_left_out_has_its_default() {
    let spec = parse(&minimal()).unwrap();
    assert_eq!(
        (&spec.namespaces.network, &spec.namespaces.ipc, &spec.namespaces.uts),
        (&Origin::Guest, &Origin::Guest, &Origin::Own)
    );
    assert_eq!(spec.process.credentials.umask, 0o022);
    assert_eq!(spec.process.console, Console::Pipes);
    assert!(spec.process.capabilities.is_none() && spec.mounts.is_empty() && !spec.root_readonly);
}

#[test]
fn a_seccomp_filter_has_the_shape_of_one() {
    let instruction = [6, 0, 0, 0, 0, 0, 0xff, 0x7f];
    let filter = SeccompFilter::from_bytes(&[instruction, instruction].concat(), 0b110).unwrap();
    let [first, _] = filter.program.as_slice() else { panic!("{filter:?}") };
    assert_eq!((first.code, first.jt, first.jf, first.k, filter.flags), (6, 0, 0, 0x7fff_0000, 6));
    for bytes in [&[][..], &instruction[..7], &[0; 9], &[0; 4097 * 8]] {
        assert!(matches!(SeccompFilter::from_bytes(bytes, 0), Err(SpecError::Invalid { .. })));
    }
    assert!(matches!(SeccompFilter::from_bytes(&instruction, 8), Err(SpecError::Unsupported { .. })));
}

#[test]
fn unknown_properties_are_ignored() {
    assert!(parse(&with("somethingNew", json!([1]))).is_ok());
    assert!(parse(&with("linux.somethingNew", json!({"a": 1}))).is_ok());
}

#[test]
fn what_cannot_be_honoured_is_an_error_that_names_the_field() {
    let joined = json!([{"type": "pid", "path": "/proc/1/ns/pid"}, {"type": "mount"}]);
    for (pointer, value, field) in [
        ("linux.seccomp", json!({"defaultAction": "SCMP_ACT_ERRNO"}), "linux.seccomp"),
        ("linux.namespaces", joined, "linux.namespaces"),
        ("linux.namespaces", json!([{"type": "mount"}]), "linux.namespaces"),
        ("linux.personality", json!({"domain": "LINUX", "flags": ["X"]}), "linux.personality"),
        ("mounts", json!([{"destination": "/d", "type": "bind", "source": "/s"}]), "mounts"),
        ("mounts", json!([{"destination": "/d", "source": "/s", "options": ["rbind"]}]), "mounts"),
        ("mounts", json!([{"destination": "/d", "type": "nfs"}]), "mounts"),
        ("mounts", json!([{"destination": "/d", "type": "tmpfs", "options": ["remount"]}]), "mounts"),
        ("ociVersion", json!("2.0.0"), "ociVersion"),
    ] {
        let error = parse(&with(pointer, value)).unwrap_err();
        assert!(
            matches!(&error, SpecError::Unsupported { field: named, .. } if *named == field),
            "{pointer}: {error}"
        );
    }
}

#[test]
fn what_cannot_be_right_is_an_error_that_names_the_field() {
    let twice =
        json!([{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}, {"type": "RLIMIT_CPU", "soft": 1, "hard": 1}]);
    for (pointer, value, field) in [
        ("process.args", json!([]), "process.args"),
        ("process.args", json!(["a\u{0}b"]), "process.args"),
        ("process.cwd", json!("relative"), "process.cwd"),
        ("process.env", json!(["NOVALUE"]), "process.env"),
        ("process.rlimits", twice, "process.rlimits"),
        ("process.rlimits", json!([{"type": "RLIMIT_X", "soft": 1, "hard": 1}]), "process.rlimits"),
        ("process.rlimits", json!([{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]), "process.rlimits"),
        ("process.oomScoreAdj", json!(1001), "process.oomScoreAdj"),
        ("process.terminal", json!(true), "process.terminal"),
        (
            "linux.namespaces",
            json!([{"type": "pid"}, {"type": "pid"}, {"type": "mount"}]),
            "linux.namespaces",
        ),
        ("linux.namespaces", json!([{"type": "nonsense"}]), "linux.namespaces"),
        ("linux.sysctl", json!({"kernel.panic": "1"}), "linux.sysctl"),
        ("linux.sysctl", json!({"net.ipv4.ip_forward": "1"}), "linux.sysctl"),
        ("linux.devices", json!([{"type": "x", "path": "/dev/x"}]), "linux.devices"),
        ("linux.devices", json!([{"type": "c", "path": "/dev/x", "major": -1}]), "linux.devices"),
        ("linux.rootfsPropagation", json!("sometimes"), "linux.rootfsPropagation"),
        ("process.scheduler", json!({"policy": "SCHED_NONE"}), "process.scheduler"),
        ("process.scheduler", json!({"policy": "SCHED_OTHER", "nice": 20}), "process.scheduler"),
        ("process.scheduler", json!({"policy": "SCHED_OTHER", "flags": ["F"]}), "process.scheduler"),
        ("process.ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 8}), "process.ioPriority"),
        ("process.execCPUAffinity", json!({"initial": "x"}), "process.execCPUAffinity"),
        ("linux.personality", json!({"domain": "BSD"}), "linux.personality"),
        ("linux.timeOffsets", json!({"boottime": {"secs": 5}}), "linux.timeOffsets"),
        ("linux.timeOffsets", json!({"realtime": {"secs": 5}}), "linux.timeOffsets"),
        ("mounts", json!([{"destination": "relative", "type": "tmpfs"}]), "mounts"),
        ("mounts", json!([{"destination": "/a/..", "type": "tmpfs"}]), "mounts"),
    ] {
        let error = parse(&with(pointer, value)).unwrap_err();
        assert!(
            matches!(&error, SpecError::Invalid { field: named, .. } if *named == field),
            "{pointer}: {error}"
        );
    }
    assert!(matches!(parse(&with("process.args", json!("true"))), Err(SpecError::Json(_))));
}

#[test]
fn an_error_about_the_environment_does_not_show_values() {
    let error = parse(&with("process.env", json!(["SECRET=hunter2", "BROKEN"]))).unwrap_err();
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[test]
fn of_a_repeated_variable_the_last_counts() {
    let spec = parse(&with("process.env", json!(["A=1", "B=2", "A=3"]))).unwrap();
    let env: Vec<_> = spec.process.env.iter().map(|entry| entry.to_str().unwrap()).collect();
    assert_eq!(env, ["B=2", "A=3"]);
}

#[test]
fn mount_options_are_sorted_into_attributes_and_data() {
    use crate::sys::mount::{ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY, ATTR_STRICTATIME};
    let options = json!([
        "nosuid",
        "nodev",
        "ro",
        "rw",
        "relatime",
        "strictatime",
        "size=64k",
        "nr_inodes=5",
        "flag",
        "rslave"
    ]);
    let mounts = json!([{"destination": "//a/./b/../c", "type": "tmpfs", "options": options}]);
    let spec = parse(&with("mounts", mounts)).unwrap();
    let mount = &spec.mounts[0];
    assert_eq!(mount.attributes.set, ATTR_NOSUID | ATTR_NODEV | ATTR_STRICTATIME);
    assert_eq!(mount.attributes.set & ATTR_RDONLY, 0);
    assert_eq!(mount.propagation, libc::MS_SLAVE | libc::MS_REC);
    let data: Vec<_> = filesystem(mount).options.iter().map(|(key, _)| key.to_str().unwrap()).collect();
    assert_eq!(data, ["size", "nr_inodes", "flag"]);
    let steps: Vec<_> = mount.target.steps.iter().map(|step| step.to_str().unwrap()).collect();
    assert_eq!(steps, ["a", "a/c"]);
}

#[test]
fn a_container_on_cgroup_v2_gets_cgroup2() {
    let spec = parse(&with("mounts", json!([{"destination": "/sys/fs/cgroup", "type": "cgroup"}]))).unwrap();
    assert_eq!(filesystem(&spec.mounts[0]).kind.to_str().unwrap(), "cgroup2");
}

proptest! {
    #[test]
    fn no_json_panics(json in "\\PC{0,200}") {
        let _ = ContainerSpec::from_json(json.as_bytes(), None, &Statements::default());
        let _ = ProcessSpec::from_json(json.as_bytes());
    }

    #[test]
    fn a_mount_point_never_leaves_the_root(path in "/[a-c./]{0,40}") {
        if let Ok(point) = MountPoint::parse("mounts", &path) {
            let text = point.path().to_str().unwrap().to_owned();
            prop_assert!(!text.starts_with('/') && !text.is_empty());
            prop_assert!(text.split('/').all(|part| !matches!(part, "" | "." | "..")));
            prop_assert_eq!(point.steps.len(), text.split('/').count());
        }
    }

    #[test]
    fn any_user_survives(uid: u32, gid: u32, groups in proptest::collection::vec(any::<u32>(), 0..5)) {
        let user = json!({"uid": uid, "gid": gid, "additionalGids": groups.clone()});
        let spec = parse(&with("process.user", user)).unwrap();
        prop_assert_eq!(spec.process.credentials.uid, uid);
        prop_assert_eq!(spec.process.credentials.gid, gid);
        prop_assert_eq!(spec.process.credentials.groups, groups);
    }
}

#[test]
fn a_statement_decides_where_a_namespace_comes_from() {
    use hull_protocol::agent::api::agent as api;
    let mut pod = api::Namespace::new();
    pod.mut_pod();
    let mut of_container = api::Namespace::new();
    of_container.set_container("db".to_owned());
    let namespaces = api::Namespaces {
        ipc: Some(pod.clone()).into(),
        pid: Some(of_container.clone()).into(),
        ..Default::default()
    };
    let statements = Statements::from_api(&namespaces).unwrap();
    // The path is the host's, and no longer matters.
    let listed = json!([{"type": "mount"}, {"type": "uts"}, {"type": "ipc", "path": "/proc/7/ns/ipc"}]);
    let spec = with("linux.namespaces", listed).to_string();
    let (spec, _) = ContainerSpec::from_json(spec.as_bytes(), None, &statements).unwrap();
    let found = &spec.namespaces;
    assert_eq!(
        (&found.ipc, &found.uts, &found.pid, &found.network),
        (&Origin::Pod, &Origin::Own, &Origin::Container("db".to_owned()), &Origin::Guest)
    );
    for bad in ["", "..", "a/b"] {
        of_container.set_container(bad.to_owned());
        let namespaces = api::Namespaces { uts: Some(of_container.clone()).into(), ..Default::default() };
        assert!(matches!(Statements::from_api(&namespaces), Err(SpecError::Invalid { .. })), "{bad:?}");
    }
    let namespaces = api::Namespaces { uts: Some(api::Namespace::new()).into(), ..Default::default() };
    assert!(matches!(Statements::from_api(&namespaces), Err(SpecError::Unsupported { .. })));
}

#[test]
fn a_shared_tmpfs_has_a_name_and_a_size() {
    let shared = |source: &str, options: Value| {
        let mount =
            json!({"destination": "/d", "type": "hull-shared-tmpfs", "source": source, "options": options});
        parse(&with("mounts", json!([mount])))
    };
    let spec = shared("shm", json!(["nosuid", "size=64k", "mode=1777"])).unwrap();
    let names: Vec<_> = spec.shared_tmpfs().map(|tmpfs| tmpfs.name.as_c_str()).collect();
    assert_eq!(names, [c"shm"]);
    for (name, options) in [("", json!(["size=1k"])), ("..", json!(["size=1k"])), ("a/b", json!(["size=1k"]))]
    {
        assert!(shared(name, options).unwrap_err().to_string().contains("name"));
    }
    assert!(shared("shm", json!([])).unwrap_err().to_string().contains("size"));
    assert!(shared("shm", json!(["size=1k", "huge=always"])).unwrap_err().to_string().contains("huge"));
}

#[test]
fn ids_of_a_user_namespace_are_checked() {
    let map = |inside: u32, outside: u32, count: u32| json!([{"containerID": inside, "hostID": outside, "size": count}]);
    let spec = |namespaces: Value, users: Value, groups: Value| {
        let mut spec = with("linux.namespaces", namespaces);
        spec["linux"]["uidMappings"] = users;
        spec["linux"]["gidMappings"] = groups;
        parse(&spec)
    };
    let own = || json!([{"type": "pid"}, {"type": "mount"}, {"type": "user"}]);
    let good = spec(own(), map(0, 100_000, 65536), map(0, 200_000, 10)).unwrap();
    let users = good.users.unwrap();
    assert_eq!((good.namespaces.user, users.root()), (Origin::Own, Some((100_000, 200_000))));
    assert_eq!((users.users.outside(65535), users.users.outside(65536)), (Some(165_535), None));
    assert_eq!(users.groups.lines(), "0 200000 10\n");
    let overlapping = json!([
        {"containerID": 0, "hostID": 100, "size": 10}, {"containerID": 20, "hostID": 109, "size": 10}]);
    for (namespaces, users, groups) in [
        (own(), json!([]), json!([])),
        (own(), map(0, 1, 1), json!([])),
        (own(), map(1, 1, 1), map(0, 1, 1)),
        (own(), map(0, 1, 0), map(0, 1, 1)),
        (own(), map(0, u32::MAX, 2), map(0, 1, 1)),
        (own(), overlapping, map(0, 1, 1)),
        (json!([{"type": "pid"}, {"type": "mount"}]), map(0, 1, 1), map(0, 1, 1)),
    ] {
        let error = spec(namespaces, users, groups).unwrap_err();
        assert!(matches!(error, SpecError::Invalid { field: "linux.uidMappings", .. }), "{error}");
    }
}

#[test]
fn attributes_of_a_mount_are_its_own_or_also_of_those_below() {
    use crate::sys::mount::{ATTR_ATIME_MASK, ATTR_NOATIME, ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY, Depth};
    let volume = |options: Value| {
        let mount = json!({"destination": "/d", "type": "hull-volume", "source": "0", "options": options});
        parse(&with("mounts", json!([mount]))).unwrap().mounts.remove(0)
    };
    let mount = volume(json!(["rbind", "rro", "rnosuid", "rsuid", "noatime", "rw", "rslave"]));
    assert_eq!(
        (mount.attributes.set, mount.attributes.clear),
        (ATTR_NOATIME | ATTR_NODEV, ATTR_ATIME_MASK | ATTR_RDONLY)
    );
    assert_eq!((mount.deep_attributes.set, mount.deep_attributes.clear), (ATTR_RDONLY, ATTR_NOSUID));
    assert_eq!((mount.depth, mount.propagation), (Depth::Recursive, libc::MS_SLAVE | libc::MS_REC));
    // What the host has is no device here, whatever is asked for.
    let mount = volume(json!(["dev", "rdev"]));
    assert_eq!(
        (mount.attributes.set, mount.attributes.clear, mount.deep_attributes.clear),
        (ATTR_NODEV, 0, 0)
    );
    assert_eq!(volume(json!(["ridmap"])).ids, Some(IdMapped { mappings: None, depth: Depth::Recursive }));
}

#[test]
fn hooks_of_the_host_are_passed_over_with_a_remark() {
    let spec =
        with("hooks", json!({"prestart": [{"path": "/a"}], "poststop": [{"path": "/b"}, {"path": "/c"}]}));
    let parsed = ContainerSpec::from_json(spec.to_string().as_bytes(), None, &Statements::default());
    let (spec, notes) = parsed.unwrap();
    assert!(spec.hooks.create_container.is_empty() && spec.hooks.start_container.is_empty());
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[1].contains("2 poststop hooks"), "{notes:?}");
}

#[test]
fn numbers_of_the_hosts_block_devices_become_those_of_the_disks() {
    let mut spec = minimal();
    spec["linux"]["devices"] = json!([
        {"type": "b", "path": "/dev/xvda", "major": 7, "minor": 0, "fileMode": 0o640, "uid": 3, "gid": 4},
        {"type": "b", "path": "/dev/xvdb", "major": 254, "minor": 16},
        {"type": "c", "path": "/dev/seven", "major": 7, "minor": 0}
    ]);
    let rule = |kind: &str, major: i64, minor: i64| json!({"allow": true, "type": kind, "major": major, "minor": minor, "access": "rw"});
    spec["linux"]["resources"]["devices"] =
        json!([rule("b", 7, 0), rule("b", 254, 16), rule("b", 7, -1), rule("c", 7, 0)]);
    let mut spec = parse(&spec).unwrap();
    // The guest's number of the one is the host's of the other.
    let disks =
        [BlockNumbers { host: (7, 0), guest: (254, 16) }, BlockNumbers { host: (254, 16), guest: (254, 32) }];
    spec.translate_devices(&disks);
    let devices: Vec<_> = spec.devices.iter().map(|node| node.device).collect();
    assert_eq!(devices, [libc::makedev(254, 16), libc::makedev(254, 32), libc::makedev(7, 0)]);
    let first = &spec.devices[0];
    assert_eq!((first.mode, first.uid, first.gid), (libc::S_IFBLK | 0o640, 3, 4));
    let numbers: Vec<_> = spec.device_rules.0[..4].iter().map(|rule| (rule.major, rule.minor)).collect();
    assert_eq!(numbers, [(Some(254), Some(16)), (Some(254), Some(32)), (Some(7), None), (Some(7), Some(0))]);
}
