//! Properties that every generated specification has.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

fn image(json: &str) -> ImageConfiguration {
    let text = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{json},"rootfs":{{"type":"layers","diff_ids":[]}}}}"#
    );
    serde_json::from_str(&text).unwrap()
}

fn root() -> Identity {
    Identity { uid: 0, gid: 0, groups: vec![0], home: "/root".to_owned() }
}

fn request<'a>(image: &'a ImageConfiguration, command: &'a [String]) -> ContainerRequest<'a> {
    ContainerRequest {
        id: "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        image,
        entrypoint: None,
        command,
        identity: root(),
        environment: Vec::new(),
        workdir: None,
        terminal: Terminal::None,
        hostname: None,
        memory: None,
        cpus: None,
        pids: PidsLimit::DEFAULT,
        root: RootAccess::ReadWrite,
        shm_size: Bytes(64 << 20),
        tmpfs: &[],
        network: None,
        files: &[],
        binds: &[],
        devices: &[],
        rlimits: &[],
        privileges: Privileges::Usual,
        capabilities: CapabilitySet::resolve(&[], &[]).unwrap(),
        security: &[],
        seccomp: &Seccomp::Default,
        vm: VmSize { vcpus: 1, memory_mib: 512 },
        lifecycle: Lifecycle::Managed,
    }
}

fn json(spec: &Spec) -> serde_json::Value {
    serde_json::to_value(spec).unwrap()
}

#[test]
fn a_plain_container() {
    let image = image(r#"{"Cmd":["bash"],"Env":["PATH=/bin","LANG=C"],"WorkingDir":"/srv"}"#);
    let spec = json(&container(&request(&image, &[])).unwrap());
    assert_eq!(spec["process"]["args"], serde_json::json!(["bash"]));
    assert_eq!(spec["process"]["cwd"], "/srv");
    assert_eq!(
        spec["process"]["env"],
        serde_json::json!(["PATH=/bin", "HOSTNAME=0123456789ab", "LANG=C", "HOME=/root"])
    );
    assert_eq!(spec["hostname"], "0123456789ab");
    assert_eq!(spec["root"], serde_json::json!({"path": "rootfs", "readonly": false}));
    assert_eq!(spec["process"]["terminal"], false);
    assert_eq!(spec["process"].get("rlimits"), None);
    assert_eq!(spec["process"]["noNewPrivileges"], false);
    assert_eq!(spec["linux"]["resources"]["pids"]["limit"], 4096);
    assert_eq!(spec["linux"]["resources"].get("memory"), None);
    assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    assert_eq!(spec["annotations"]["dev.hull.lifecycle"], "managed");
    assert_eq!(spec["annotations"]["dev.hull.vm.memory-mib"], "512");
    let kinds: HashSet<_> =
        spec["linux"]["namespaces"].as_array().unwrap().iter().map(|n| n["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, HashSet::from(["pid", "ipc", "uts", "mount", "cgroup", "network"]));
    let rules = spec["linux"]["resources"]["devices"].as_array().unwrap();
    assert_eq!(rules[0]["allow"], false, "everything is denied first");
    assert!(spec["linux"]["maskedPaths"].as_array().unwrap().contains(&"/proc/kcore".into()));
}

#[test]
fn every_flag_has_its_place() {
    let image = image(r#"{"Entrypoint":["entry"],"Cmd":["cmd"],"Env":["GONE=1","KEPT=1"]}"#);
    let command = ["a".to_owned()];
    let tmpfs = ["/run:size=1m".parse().unwrap(), "/dev/shm:size=2m".parse().unwrap()];
    let rlimits = ["nofile=10:20".parse().unwrap()];
    let mut request = request(&image, &command);
    request.environment = vec![Change::Remove("GONE".into()), Change::Set("HOME=/else".into())];
    request.workdir = Some("/work");
    request.terminal = Terminal::Sized(Some(WindowSize { rows: 24, columns: 80 }));
    request.hostname = Some("box.example");
    request.memory = Some(Bytes(64 << 20));
    request.cpus = Some("1.5".parse().unwrap());
    request.pids = PidsLimit::Unlimited;
    request.root = RootAccess::ReadOnly;
    request.tmpfs = &tmpfs;
    request.rlimits = &rlimits;
    request.security = &[SecurityOption::NoNewPrivileges];
    request.lifecycle = Lifecycle::Remove;
    let spec = json(&container(&request).unwrap());
    let process = &spec["process"];
    assert_eq!(process["args"], serde_json::json!(["entry", "a"]));
    assert_eq!(process["cwd"], "/work");
    assert_eq!(process["terminal"], true);
    assert_eq!(process["consoleSize"], serde_json::json!({"height": 24, "width": 80}));
    let variables = process["env"].as_array().unwrap();
    assert!(variables.contains(&"TERM=xterm".into()) && variables.contains(&"HOME=/else".into()));
    assert!(
        variables.contains(&"KEPT=1".into())
            && !variables.iter().any(|v| v.as_str().unwrap().starts_with("GONE"))
    );
    assert_eq!(process["rlimits"], serde_json::json!([{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}]));
    assert_eq!(process["noNewPrivileges"], true);
    assert_eq!(spec["hostname"], "box.example");
    assert_eq!(spec["root"]["readonly"], true);
    let resources = &spec["linux"]["resources"];
    assert_eq!(resources["memory"], serde_json::json!({"limit": 64 << 20, "swap": 64 << 20}));
    assert_eq!(resources["cpu"], serde_json::json!({"quota": 150_000, "period": 100_000}));
    assert_eq!(resources["pids"]["limit"], -1);
    assert_eq!(spec["annotations"]["dev.hull.lifecycle"], "remove");
    let shm: Vec<_> =
        spec["mounts"].as_array().unwrap().iter().filter(|m| m["destination"] == "/dev/shm").collect();
    assert_eq!(shm.len(), 1, "a tmpfs takes the place of a default mount");
    assert!(shm[0]["options"].as_array().unwrap().contains(&"size=2m".into()));
}

#[test]
fn with_every_privilege_nothing_is_hidden_or_read_only() {
    let image = image(r#"{"Cmd":["x"]}"#);
    let mut request = request(&image, &[]);
    request.privileges = Privileges::All;
    request.capabilities = CapabilitySet::all();
    request.seccomp = &Seccomp::Unconfined;
    let spec = json(&container(&request).unwrap());
    let linux = &spec["linux"];
    assert_eq!(linux["maskedPaths"], serde_json::json!([]));
    assert_eq!(linux["readonlyPaths"], serde_json::json!([]));
    assert_eq!(linux.get("seccomp"), None);
    let rules = serde_json::json!([{"allow": true, "type": "a", "access": "rwm"}]);
    assert_eq!(linux["resources"]["devices"], rules);
    // The guest's own are added in the guest.
    assert_eq!(linux.get("devices"), None);
    assert_eq!(spec["annotations"]["dev.hull.devices"], "guest");
    for set in ["bounding", "effective", "permitted"] {
        assert_eq!(spec["process"]["capabilities"][set].as_array().unwrap().len(), 41, "{set}");
    }
    assert_eq!(spec["process"]["noNewPrivileges"], false);
    let read_only = |mount: &&serde_json::Value| mount["options"].as_array().unwrap().contains(&"ro".into());
    assert_eq!(spec["mounts"].as_array().unwrap().iter().find(read_only), None);
}

#[test]
fn a_block_device_is_listed_with_the_rule_that_lets_it_be_used() {
    let image = image(r#"{"Cmd":["x"]}"#);
    let mut request = request(&image, &[]);
    let flag = "/dev/sdb:/dev/xvdb:r".parse().unwrap();
    let devices = [Device { flag, number: (8, 16), mode: 0o660, owner: (0, 6) }];
    request.devices = &devices;
    let linux = json(&container(&request).unwrap())["linux"].clone();
    let node = serde_json::json!({
        "path": "/dev/xvdb", "type": "b", "major": 8, "minor": 16, "fileMode": 0o660, "uid": 0, "gid": 6
    });
    assert_eq!(linux["devices"], serde_json::json!([node]));
    let rule = serde_json::json!({"allow": true, "type": "b", "major": 8, "minor": 16, "access": "r"});
    assert_eq!(linux["resources"]["devices"].as_array().unwrap().last().unwrap(), &rule);
}

#[test]
fn wrong_requests() {
    let image = image(r#"{"Cmd":["x"]}"#);
    let with = |change: &dyn Fn(&mut ContainerRequest<'_>)| {
        let mut request = request(&image, &[]);
        change(&mut request);
        container(&request).unwrap_err()
    };
    assert!(matches!(with(&|r| r.workdir = Some("rel")), SpecError::WorkingDirectory(_)));
    assert!(matches!(with(&|r| r.hostname = Some("a b")), SpecError::Hostname(_)));
    assert!(matches!(with(&|r| r.hostname = Some("")), SpecError::Hostname(_)));
    assert!(matches!(with(&|r| r.memory = Some(Bytes(1 << 20))), SpecError::LittleMemory));
    assert!(matches!(with(&|r| r.entrypoint = Some("")), SpecError::NoCommand(_)));
    assert!(matches!(with(&|r| r.entrypoint = Some("a\0b")), SpecError::Nul));
}

#[test]
fn exec_inherits_and_changes() {
    let image = image(r#"{"Cmd":["x"],"Env":["A=1"],"WorkingDir":"/srv"}"#);
    let spec = container(&request(&image, &[])).unwrap();
    let first = spec.process().as_ref().unwrap();
    let plain = ExecRequest {
        args: vec!["ls".to_owned()],
        identity: None,
        environment: vec![Change::Set("B=2".into())],
        workdir: None,
        terminal: Terminal::None,
        privileges: Privileges::Usual,
    };
    let process = exec(first, plain.clone()).unwrap();
    assert_eq!(process.args().as_ref().unwrap(), &["ls"]);
    assert_eq!(process.cwd().to_str(), Some("/srv"));
    assert!(process.env().as_ref().unwrap().contains(&"A=1".to_owned()));
    assert!(process.env().as_ref().unwrap().contains(&"B=2".to_owned()));
    assert_eq!(process.capabilities(), first.capabilities());

    let user = Identity { uid: 1000, gid: 7, groups: vec![7], home: "/home/u".to_owned() };
    let process = exec(
        first,
        ExecRequest {
            identity: Some(user.clone()),
            workdir: Some("/tmp"),
            terminal: Terminal::Sized(None),
            ..plain.clone()
        },
    )
    .unwrap();
    assert_eq!((process.user().uid(), process.user().gid()), (1000, 7));
    assert_eq!(process.terminal(), Some(true));
    assert!(process.env().as_ref().unwrap().contains(&"HOME=/home/u".to_owned()));
    let capabilities = process.capabilities().as_ref().unwrap();
    assert!(capabilities.effective().as_ref().unwrap().is_empty());
    assert_eq!(capabilities.bounding(), first.capabilities().as_ref().unwrap().bounding());

    // Root holds every capability, another user may come to; what else bounds the container bounds this process.
    let privileged = ExecRequest { privileges: Privileges::All, ..plain };
    for (identity, held) in [(None, 41), (Some(user), 0)] {
        let process = exec(first, ExecRequest { identity, ..privileged.clone() }).unwrap();
        let capabilities = process.capabilities().as_ref().unwrap();
        assert_eq!(capabilities.bounding().as_ref().unwrap().len(), 41);
        assert_eq!(capabilities.effective().as_ref().unwrap().len(), held);
        assert_eq!(process.no_new_privileges(), first.no_new_privileges());
    }
}

proptest! {
    #[test]
    fn a_specification_survives_its_file(
        args in prop::collection::vec("[^\0]{1,12}", 1..5),
        variables in prop::collection::vec("[A-Z]{1,4}=[^\0]{0,8}", 0..5),
        uid in 0_u32..70000,
    ) {
        let image = image("{}");
        let mut request = request(&image, &args);
        request.environment = variables.into_iter().map(Change::Set).collect();
        request.identity.uid = uid;
        let spec = container(&request).unwrap();
        let text = serde_json::to_string(&spec).unwrap();
        let again: Spec = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(&spec, &again);
        prop_assert_eq!(again.process().as_ref().unwrap().args().as_ref().unwrap(), &args);
        prop_assert_eq!(again.process().as_ref().unwrap().user().uid(), uid);
    }
}
