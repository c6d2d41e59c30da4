//! What root in a container tries, and what comes of it: docker's default container, and its `--privileged` one.
//!
//! The table of docs/security.md. Only attempts that do no harm where they succeed: some hosts of these tests are real.

use std::process::Stdio;

use hull_tests::document::{self, Section, outcome};
use hull_tests::oci::{Bundle, Runtime, all_capabilities, default_config, default_seccomp, merge};
use serde_json::{Value, json};

const DOCUMENT: &str = "docs/security.md";

/// One attempt: what it is, in words, the probe, and what stands in the way.
type Attempt = (&'static str, &'static str, &'static str);

const ATTEMPTS: [Attempt; 44] = [
    ("find a descriptor of the agent's", "stat:/proc/self/fd/3", "none is left open"),
    ("set a parameter of the kernel", "open-write:/proc/sys/kernel/core_pattern", "read-only /proc/sys"),
    ("... of its memory management", "open-write:/proc/sys/vm/panic_on_oom", "read-only /proc/sys"),
    ("... of its modules", "open-write:/proc/sys/kernel/modprobe", "read-only /proc/sys"),
    ("... of an interrupt", "open-write:/proc/irq/default_smp_affinity", "read-only /proc/irq"),
    ("press a magic key", "open-write:/proc/sysrq-trigger", "read-only path"),
    ("read the kernel's memory", "peek:/proc/kcore", "masked path: it reads as empty"),
    ("write to sysfs", "open-write:/sys/kernel/profiling", "read-only sysfs"),
    ("... make it writable first", "remount-write:/sys", "no CAP_SYS_ADMIN"),
    ("make /proc/sys writable", "remount-write:/proc/sys", "no CAP_SYS_ADMIN"),
    ("unmount what makes it read-only", "unmount:/proc/sys", "no CAP_SYS_ADMIN"),
    ("unmount what masks a path", "unmount:/proc/keys", "no CAP_SYS_ADMIN"),
    ("mount a second procfs", "mount:proc=/mnt", "no CAP_SYS_ADMIN"),
    ("mount a tmpfs", "mount:tmpfs=/mnt", "no CAP_SYS_ADMIN"),
    ("mount the cgroup hierarchy", "mount:cgroup2=/mnt", "no CAP_SYS_ADMIN"),
    ("make a child cgroup", "mkdir:/sys/fs/cgroup/below", "read-only cgroupfs"),
    ("raise its own memory limit", "open-write:/sys/fs/cgroup/memory.max", "read-only cgroupfs"),
    (
        "leave its cgroup upwards",
        "open-write:/sys/fs/cgroup/../cgroup.procs",
        "a cgroup namespace: there is nothing above",
    ),
    ("make the node of the memory device", "mknod:/tmp/mem=c,1,1", "nothing: CAP_MKNOD is docker's default"),
    ("... and read it", "open:/tmp/mem", "device filter"),
    ("make the node of the kernel's log", "mknod:/tmp/kmsg=c,1,11", "nothing"),
    ("... and write to it", "open-write:/tmp/kmsg", "device filter"),
    ("make the node of a disk", "mknod:/tmp/disk=b,7,0", "nothing"),
    ("... and read it", "open:/tmp/disk", "device filter"),
    ("make a namespace of users", "unshare:user", "docker's filter"),
    ("make a mount namespace", "unshare:mount", "no CAP_SYS_ADMIN, docker's filter"),
    ("leave by chroot", "chroot-escape", "the root was pivoted into: there is nothing above"),
    ("open a file by its handle", "syscall:304", "no CAP_DAC_READ_SEARCH, docker's filter"),
    ("load a BPF program", "syscall:321", "docker's filter"),
    ("load a module", "syscall:175", "no CAP_SYS_MODULE, docker's filter"),
    ("open a performance counter", "syscall:298", "docker's filter"),
    ("use the kernel's keys", "syscall:250", "docker's filter"),
    ("handle page faults of others", "syscall:323", "docker's filter"),
    ("reboot", "syscall:169", "no CAP_SYS_BOOT, docker's filter"),
    ("use I/O ports", "iopl", "no CAP_SYS_RAWIO, docker's filter"),
    ("set the clock", "syscall:164", "no CAP_SYS_TIME, docker's filter"),
    ("make a vsock socket", "socket:40,1", "docker's filter"),
    (
        "make a raw packet socket",
        "socket:17,3",
        "nothing: CAP_NET_RAW is docker's default, on its own network",
    ),
    ("make a socket of the kernel's ciphers", "socket:38,5", "nothing: docker's filter lets it pass"),
    ("see processes outside", "open:/proc/2/status", "its own process ids"),
    ("signal processes outside", "kill:2", "its own process ids"),
    ("write to the program that runs", "open-write:/proc/self/exe", "it is busy"),
    ("join the namespaces of init's parent", "open:/proc/0/ns/mnt", "its own process ids"),
    ("read another container's files", "list:/run/hull", "its own root"),
];

/// docker's `--privileged`, without the host's devices.
fn privileged() -> Value {
    let all = all_capabilities();
    let mut config = default_config();
    merge(
        &mut config,
        &json!({
            "process": {"capabilities": {"bounding": all, "effective": all, "permitted": all}},
            "linux": {"maskedPaths": null, "readonlyPaths": null, "seccomp": null,
                      "resources": {"devices": [{"allow": true, "access": "rwm"}]}}
        }),
    );
    for mount in config["mounts"].as_array_mut().unwrap() {
        mount["options"].as_array_mut().unwrap().retain(|option| option != "ro");
    }
    config
}

fn default() -> Value {
    let mut config = default_config();
    config["linux"]["seccomp"] = default_seccomp();
    config
}

/// CVE-2019-5736: a process that is run in the container runs `/proc/self/exe`, which is the agent's program, and waits there for root
/// in the container to write to it.
const OVERWRITE: (&str, &str) =
    ("overwrite the agent's program", "it is run from a read-only mount; in a VM it is busy besides");

/// What comes of [`OVERWRITE`].
fn overwritten(runtime: &Runtime, mut config: Value) -> String {
    let bundle = Bundle::new();
    // What the program reads when it is asked about this container never comes.
    std::fs::create_dir_all(bundle.root().join("asked/for")).unwrap();
    let file = bundle.root().join("asked/for/state.json");
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    config["process"]["args"] = json!(["/checker", "sleep:600000"]);
    bundle.write(&config);
    let before = std::fs::read(runtime.program()).unwrap();
    assert_eq!(runtime.create("hostile", &bundle).code, 0);
    runtime.ok(["start", "hostile"]);
    // As long as the runtime itself runs, its program cannot be written by anybody: so it does not stay.
    let answer = bundle.path().join("answer");
    let exec = |output: Stdio, words: &[&str]| {
        let mut command = runtime.command(["exec", "--detach", "hostile"]);
        let status = command.args(words).stdout(output).stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "{words:?}: {status}");
    };
    exec(Stdio::null(), &["/proc/self/exe", "--root", "/asked", "state", "for"]);
    exec(std::fs::File::create(&answer).unwrap().into(), &["/checker", "seize"]);
    let report: Value = hull_tests::eventually("the checker's report", || {
        serde_json::from_str(&std::fs::read_to_string(&answer).unwrap()).ok()
    });
    runtime.ok(["delete", "--force", "hostile"]);
    let answer = &report["probes"]["seize"];
    assert_ne!(answer, "no other program", "the agent's program did not run in the container");
    assert_eq!(std::fs::read(runtime.program()).unwrap(), before);
    outcome(answer)
}

/// What the attempts come to in one container.
fn tried(runtime: &Runtime, mut config: Value) -> Vec<String> {
    let bundle = Bundle::new();
    let probes: Vec<&str> = ATTEMPTS.iter().map(|(_, probe, _)| *probe).collect();
    config["process"]["args"] = std::iter::once("/checker").chain(probes.iter().copied()).collect();
    bundle.write(&config);
    let output = runtime.ok(["run", "--bundle", &bundle.path().to_string_lossy(), "hostile"]);
    let report: Value = serde_json::from_str(&output).unwrap();
    probes.iter().map(|probe| outcome(&report["probes"][probe])).collect()
}

#[test]
fn what_root_in_a_container_can_do_is_what_the_document_says() {
    let hull = Runtime::hull();
    let outcomes = |config: Value| (tried(&hull, config.clone()), overwritten(&hull, config));
    let ((default, overwritten_by_default), (privileged, overwritten_by_privileged)) =
        (outcomes(default()), outcomes(privileged()));
    let mut section = Section::default();
    for ((words, _, guard), (default, privileged)) in ATTEMPTS.iter().zip(default.into_iter().zip(privileged))
    {
        section.rows.push([(*words).to_owned(), default, privileged, (*guard).to_owned()]);
    }
    let (words, guard) = OVERWRITE;
    section.rows.push([
        words.to_owned(),
        overwritten_by_default,
        overwritten_by_privileged,
        guard.to_owned(),
    ]);
    document::check_or_write(DOCUMENT, "attempts", &section, &[0, 1, 2]);
}

/// Hull refuses at least what runc refuses, in each of the two containers.
#[test]
fn nothing_is_allowed_that_runc_refuses() {
    let (hull, runc) = (Runtime::hull(), Runtime::runc());
    for config in [default(), privileged()] {
        let (ours, theirs) = (tried(&hull, config.clone()), tried(&runc, config));
        for ((words, probe, _), (ours, theirs)) in ATTEMPTS.iter().zip(ours.iter().zip(&theirs)) {
            let weaker = ours == "allowed" && theirs != "allowed";
            assert!(!weaker, "{words} ({probe}): runc says {theirs}");
        }
    }
}
