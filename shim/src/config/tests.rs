//! The configuration's files.

use super::file::Absence;
use super::*;

fn read(main: &str, drop_ins: &[(&str, &str)]) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    std::fs::write(&path, main).unwrap();
    std::fs::create_dir(folder.path().join("config.d")).unwrap();
    for (name, text) in drop_ins {
        std::fs::write(folder.path().join("config.d").join(name), text).unwrap();
    }
    Config::read(&path, Absence::Error).map_err(|error| error.to_string())
}

#[test]
fn nothing_said_is_the_defaults() {
    assert_eq!(read("", &[]).unwrap(), Config::default());
    let nowhere = Path::new("/no/such/config.toml");
    assert_eq!(Config::read(nowhere, Absence::Allowed).unwrap(), Config::default());
    let error = Config::read(nowhere, Absence::Error).unwrap_err().to_string();
    assert!(error.contains("/no/such/config.toml"), "{error}");
}

#[test]
fn every_key_is_understood() {
    let config = read(
        r#"
        [vm]
        vcpus = 2
        vcpus_max = 8
        cpu = "v2"
        memory_mib = 1024
        memory_mib_max = 65536
        overhead_mib = 64
        free_memory = "return"
        resize = "allow"
        boot_timeout_seconds = 30
        kernel = "/opt/vmlinux"
        initramfs = "/opt/initramfs.img"
        [disk]
        mib_per_second = 200
        operations_per_second = 5000
        [network]
        mib_per_second = 100
        packets_per_second = 7
        vhost = "allow"
        [monitor]
        path = "/opt/hull-vmm"
        broker_path = "/opt/hull-fsd"
        jail = "unprivileged"
        [annotations]
        allow = ["dev.hull.vm.vcpus"]
        [debug]
        console = true
        [log]
        level = "debug"
        [trace]
        file = "/var/log/hull/traces.jsonl"
        "#,
        &[],
    )
    .unwrap();
    let vm = VmDefaults {
        vcpus: 2,
        vcpus_max: 8,
        cpu: CpuTemplate::V2,
        memory_mib: 1024,
        memory_mib_max: 65536,
        overhead_mib: 64,
        free_memory: FreeMemory::Return,
        resize: Resize::Allow,
        boot_timeout: Duration::from_secs(30),
    };
    assert_eq!(config.vm, vm);
    let bucket = |tokens: u64| {
        let refill_ms = NonZeroU32::new(1000).unwrap();
        Some(TokenBucket { size: NonZeroU64::new(tokens).unwrap(), refill_ms, one_time_burst: 0 })
    };
    let each_way = RateLimits { bandwidth: bucket(100 << 20), operations: bucket(7) };
    let limits = DeviceLimits {
        disk: RateLimits { bandwidth: bucket(200 << 20), operations: bucket(5000) },
        network: NetworkLimits { to_guest: each_way, from_guest: each_way },
    };
    assert_eq!(config.limits, limits);
    assert_eq!(config.vhost, Vhost::Allow);
    assert_eq!(config.artifacts.vmm.as_ref().unwrap().path, Path::new("/opt/hull-vmm"));
    assert_eq!(config.artifacts.initramfs.as_ref().unwrap().path, Path::new("/opt/initramfs.img"));
    assert_eq!(config.jail, Some(JailChoice::Unprivileged));
    assert_eq!(config.allowed_annotations.iter().collect::<Vec<_>>(), ["dev.hull.vm.vcpus"]);
    assert_eq!(config.debug_console, DebugConsole::On);
    assert_eq!(config.log, LogLevel::Debug);
    assert_eq!(config.trace_file.as_deref(), Some(Path::new("/var/log/hull/traces.jsonl")));
}

#[test]
fn drop_ins_go_over_the_file_in_the_order_of_their_names() {
    let config = read(
        "[vm]\nvcpus = 2\nmemory_mib = 100\n",
        &[
            ("20-late.toml", "[vm]\nvcpus = 4\n"),
            ("10-early.toml", "[vm]\nvcpus = 3\noverhead_mib = 50\n"),
            ("README", "no configuration"),
        ],
    )
    .unwrap();
    assert_eq!((config.vm.vcpus, config.vm.memory_mib, config.vm.overhead_mib), (4, 100, 50));
}

#[test]
fn what_cannot_be_right_is_named_with_its_file_and_line() {
    for (text, words) in [
        ("[vm]\nvcpu = 2\n", &["config.toml", "line 2", "vcpu", "vcpus"][..]),
        ("[vms]\n", &["vms"]),
        ("[vm]\nvcpus = 33\n", &["line 2", "33", "from 1 to 32"]),
        ("[vm]\nvcpus = 0\n", &["0", "from 1 to 32"]),
        ("[vm]\ncpu = \"v4\"\n", &["v4", "host", "v2", "v3"]),
        ("[vm]\nfree_memory = true\n", &["line 2", "free_memory"]),
        ("[disk]\nmib_per_second = 0\n", &["line 2", "0", "from 1 to 1048576"]),
        ("[network]\noperations_per_second = 5\n", &["operations_per_second", "packets_per_second"]),
        ("[network]\nvhost = true\n", &["line 2", "vhost"]),
        ("[network]\nvhost = \"always\"\n", &["always", "never", "allow"]),
        ("[vm]\nmemory_mib = -1\n", &["-1", "from 64"]),
        ("[vm]\nkernel = \"vmlinux\"\n", &["vmlinux", "absolute"]),
        ("[monitor]\njail = \"none\"\n", &["none", "full", "unprivileged"]),
        ("[annotations]\nallow = [\"dev.hull.lifecycle\"]\n", &["dev.hull.lifecycle", "dev.hull.vm.vcpus"]),
        ("[vm]\nvcpus = 4\nvcpus_max = 2\n", &["vm.vcpus", "4", "vm.vcpus_max", "2"]),
        ("vm = \n", &["line 1"]),
    ] {
        let error = read(text, &[]).unwrap_err();
        for word in words {
            assert!(error.contains(word), "{text}: {error} lacks {word}");
        }
    }
    let error = read("", &[("x.toml", "[log]\nlevel = \"loud\"\n")]).unwrap_err();
    assert!(error.contains("x.toml") && error.contains("loud"), "{error}");
}

#[test]
fn the_environment_goes_before_the_files() {
    let config = || read("[monitor]\npath = \"/a\"\nbroker_path = \"/b\"\njail = \"full\"\n", &[]).unwrap();
    let with = |pairs: &'static [(&'static str, &'static str)]| {
        move |name| pairs.iter().find(|(other, _)| *other == name).map(|(_, value)| OsString::from(value))
    };
    let changed = config()
        .overridden_by(with(&[
            (VMM_VARIABLE, "/c"),
            (JAIL_VARIABLE, "unprivileged"),
            (BOOT_TIMEOUT_VARIABLE, "7"),
        ]))
        .unwrap();
    assert_eq!(changed.artifacts.vmm.unwrap(), Named { path: "/c".into(), by: VMM_VARIABLE });
    assert_eq!(changed.artifacts.broker.unwrap().path, Path::new("/b"));
    assert_eq!(changed.jail, Some(JailChoice::Unprivileged));
    assert_eq!(changed.vm.boot_timeout, Duration::from_secs(7));
    for (pairs, words) in [
        (&[(JAIL_VARIABLE, "none")], "HULL_JAIL is \"none\", not full or unprivileged"),
        (&[(BOOT_TIMEOUT_VARIABLE, "0")], "HULL_BOOT_TIMEOUT_SECS is \"0\", not a number of seconds"),
    ] {
        let error = config().overridden_by(with(pairs)).unwrap_err().to_string();
        assert!(error.starts_with(words), "{error}");
    }
}
