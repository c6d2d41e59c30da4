//! What a kubelet does with a pod that runs: `kubectl exec`, `attach` and `port-forward`, probes, security contexts, limits.

use std::fs;
use std::path::Path;

use hull_tests::containerd::{Containerd, busybox};
use hull_tests::cri::*;
use hull_tests::eventually;
use hull_tests::kubelet::{Pod, mount, namespaces, some};
use hull_tests::streaming::{Channels, RESIZE, STATUS, STDERR, STDIN, STDOUT};

fn exec(pod: &Pod<'_>, id: &str, tty: bool, script: &str) -> Channels {
    let cmd = ["sh", "-c", script].map(str::to_owned).into();
    let mut request = ExecRequest { container_id: id.into(), cmd, tty, ..ExecRequest::default() };
    (request.stdin, request.stdout, request.stderr) = (true, true, !tty);
    let there: UrlResponse = pod.cri.ok("Exec", &request);
    Channels::connect(&there.url)
}

fn attach(pod: &Pod<'_>, id: &str, tty: bool) -> Channels {
    let mut request = AttachRequest { container_id: id.into(), tty, ..AttachRequest::default() };
    (request.stdin, request.stdout, request.stderr) = (true, true, !tty);
    let there: UrlResponse = pod.cri.ok("Attach", &request);
    Channels::connect(&there.url)
}

fn forward(pod: &Pod<'_>, port: u16) -> Channels {
    let request = PortForwardRequest {
        pod_sandbox_id: pod.id.clone(),
        port: vec![port.into()],
        ..PortForwardRequest::default()
    };
    let there: UrlResponse = pod.cri.ok("PortForward", &request);
    let mut channels = Channels::connect(&there.url);
    // Each channel begins with the port.
    channels.until_length(DATA, 2);
    assert_eq!(channels.received(DATA), port.to_le_bytes());
    channels
}

/// Of a forwarded port.
const DATA: u8 = 0;

fn exec_and_attach_are_streams(containerd: Containerd) {
    let pod = Pod::run(&containerd, "streams", NamespaceMode::CONTAINER);
    let script = "echo begun; while read line; do echo \"heard $line\"; [ $line = end ] && exit 4; done";
    let reader = pod.container_with("reader", script, |config| config.stdin = true);
    let shell = pod.container_with("shell", "echo begun; exec sh", |config| {
        (config.stdin, config.tty) = (true, true);
    });

    let mut plain = exec(&pod, &reader, false, "read a; echo \"out $a\"; echo err >&2; exit 3");
    plain.send(STDIN, b"word\n");
    plain.end();
    assert_eq!((&*plain.text(STDOUT), &*plain.text(STDERR)), ("out word\n", "err\n"));
    let status: serde_json::Value = serde_json::from_str(&plain.text(STATUS)).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "3", "{status}");

    let mut terminal = exec(&pod, &reader, true, "test -t 0 && echo terminal; read a; stty size; exit 0");
    terminal.until(STDOUT, "terminal\r\n");
    terminal.send(RESIZE, br#"{"Width":91,"Height":17}"#);
    eventually("the size", || pod.says(&reader, "stty size </dev/pts/0").contains("17 91").then_some(()));
    terminal.send(STDIN, b"go\n");
    terminal.end();
    assert!(terminal.text(STDOUT).contains("17 91\r\n"), "{:?}", terminal.text(STDOUT));
    assert!(terminal.text(STATUS).contains("Success"), "{:?}", terminal.text(STATUS));

    let mut first = attach(&pod, &reader, false);
    first.send(STDIN, b"one\n");
    first.until(STDOUT, "heard one\n");
    // One who goes ends nothing.
    drop(first);
    let mut second = attach(&pod, &reader, false);
    second.send(STDIN, b"end\n");
    second.end();
    assert_eq!(pod.exited(&reader), 4);

    let mut attached = attach(&pod, &shell, true);
    attached.send(STDIN, b"echo $((40+2))-$(stty size)\n");
    attached.until(STDOUT, "42-");
    attached.send(RESIZE, br#"{"Width":77,"Height":33}"#);
    eventually("the size", || pod.says(&shell, "stty size </dev/console").contains("33 77").then_some(()));
    attached.send(STDIN, b"exit 6\n");
    attached.end();
    assert_eq!(pod.exited(&shell), 6);
    pod.end();
    containerd.left_nothing();
}

fn ports_are_forwarded_also_those_on_the_guests_loopback(containerd: Containerd) {
    let pod = Pod::run(&containerd, "ports", NamespaceMode::CONTAINER);
    let web =
        "mkdir /web; echo page >/web/index.html; httpd -h /web -p 127.0.0.1:8080; exec nc -ll -p 9000 -e cat";
    let id = pod.container("web", 0, web, &[]);
    eventually("the servers", || pod.says(&id, "netstat -tln").contains(":9000").then_some(()));

    for _ in 0..3 {
        let mut page = forward(&pod, 8080);
        page.send(DATA, b"GET / HTTP/1.0\r\n\r\n");
        page.until(DATA, "page\n");
    }
    let mut echo = forward(&pod, 9000);
    let data: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
    // Less than what fits between here and there: nobody reads while this sends.
    for (sent, part) in data.chunks(16 << 10).enumerate() {
        echo.send(DATA, part);
        echo.until_length(DATA, 2 + (sent << 14) + part.len());
    }
    assert!(echo.received(DATA)[2..] == data, "the bytes differ");
    // Nobody listens there, and the next one is served all the same.
    forward(&pod, 9).end();
    let mut page = forward(&pod, 8080);
    page.send(DATA, b"GET / HTTP/1.0\r\n\r\n");
    page.until(DATA, "page\n");
    // What is still connected ends with the pod.
    pod.end();
    containerd.left_nothing();
}

fn security_contexts_hold(containerd: Containerd) {
    let pod = Pod::try_run(&containerd, "secure", |config| {
        config.linux.mut_or_insert_default().security_context.mut_or_insert_default().privileged = true;
    })
    .unwrap();
    let with = |name: &str, change: &dyn Fn(&mut LinuxContainerSecurityContext)| {
        pod.container_with(name, "sleep 1000", |config| {
            change(config.linux.mut_or_insert_default().security_context.mut_or_insert_default());
        })
    };
    let number = |value| some(Int64Value { value, ..Int64Value::default() });

    let user = with("user", &|context| {
        (context.run_as_user, context.run_as_group) = (number(1234), number(2345));
        context.supplemental_groups = vec![3456, 4567];
        context.no_new_privs = true;
        context.readonly_rootfs = true;
        context.capabilities =
            some(Capability { drop_capabilities: vec!["ALL".into()], ..Capability::default() });
        context.seccomp = some(SecurityProfile::default());
    });
    assert_eq!(pod.says(&user, "id -u; id -g; id -G"), "1234\n2345\n2345 3456 4567\n");
    let status = "grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status";
    assert_eq!(pod.says(&user, status), "CapBnd:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n");
    assert_eq!(pod.says(&user, "touch /file 2>&1 || true"), "touch: /file: Read-only file system\n");

    let profile = containerd.file("hull-seccomp.json");
    let rules = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}"#;
    fs::write(&profile, rules).unwrap();
    let local = with("local", &|context| {
        context.seccomp = some(SecurityProfile {
            profile_type: security_profile::ProfileType::Localhost.into(),
            localhost_ref: profile.display().to_string(),
            ..SecurityProfile::default()
        });
        context.capabilities =
            some(Capability { add_capabilities: vec!["NET_ADMIN".into()], ..Capability::default() });
    });
    assert_eq!(
        pod.says(&local, "mkdir /x 2>&1 || true"),
        "mkdir: can't create directory '/x': Operation not permitted\n"
    );
    let bounding = pod.says(&local, "grep CapBnd /proc/self/status");
    let bounding = u64::from_str_radix(bounding.trim().rsplit('\t').next().unwrap(), 16).unwrap();
    assert_eq!(bounding >> 12 & 1, 1, "CAP_NET_ADMIN in {bounding:x}");

    let privileged = with("privileged", &|context| context.privileged = true);
    assert_eq!(pod.says(&privileged, "mkdir /m && mount -t tmpfs none /m && echo mounted"), "mounted\n");
    // Its VM's devices, not the host's.
    assert_eq!(pod.says(&privileged, "ls /dev/kvm 2>/dev/null || echo none"), "none\n");
    fs::remove_file(profile).unwrap();
    pod.end();
    containerd.left_nothing();
}

fn limits_hold_are_changed_and_tell(containerd: Containerd) {
    let pod = Pod::run(&containerd, "limits", NamespaceMode::CONTAINER);
    let limited = |name: &str, bytes: i64, script: &str| {
        pod.container_with(name, script, |config| {
            config.linux.mut_or_insert_default().resources =
                some(LinuxContainerResources { memory_limit_in_bytes: bytes, ..Default::default() });
        })
    };
    let id = limited("changed", 32 << 20, "sleep 1000");
    assert_eq!(pod.says(&id, "cat /sys/fs/cgroup/memory.max"), "33554432\n");
    let linux = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        memory_limit_in_bytes: 48 << 20,
        ..LinuxContainerResources::default()
    };
    let request = UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: some(linux),
        ..UpdateContainerResourcesRequest::default()
    };
    let _: Empty = pod.cri.ok("UpdateContainerResources", &request);
    assert_eq!(
        pod.says(&id, "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max"),
        "50331648\n50000 100000\n"
    );
    // 200 MB in one process's memory.
    let greedy = limited("greedy", 24 << 20, "exec tail -c 200m /dev/zero");
    assert_eq!(pod.exited(&greedy), 137);
    assert_eq!(pod.status(&greedy).reason, "OOMKilled");
    assert_eq!(pod.says(&id, "echo alive"), "alive\n");
    pod.end();
    containerd.left_nothing();
}

/// No limit holds the greedy one: what runs out is the memory of the guest.
fn memory_that_runs_out_costs_the_one_that_took_it(containerd: Containerd) {
    // It takes a while to fill much.
    containerd.choose("vm.memory_mib = 192\n");
    let pod = Pod::run(&containerd, "eater", NamespaceMode::CONTAINER);
    let other = pod.container("other", 0, "sleep 1000", &[]);
    // More than containers may have together, and less than the kernel refuses at once.
    let eat = "exec dd if=/dev/zero of=/dev/null bs=145M count=1";
    for attempt in 0..2 {
        let greedy = pod.container("greedy", attempt, eat, &[]);
        assert_eq!(pod.exited(&greedy), 137, "attempt {attempt}");
        assert_eq!(pod.status(&greedy).reason, "OOMKilled", "attempt {attempt}");
        // The agent makes processes and containers as before.
        assert_eq!(pod.says(&other, "echo alive"), "alive\n");
    }
    pod.end();
    containerd.left_nothing();
}

fn a_debugging_container_sees_its_targets_processes(containerd: Containerd) {
    let pod = Pod::run(&containerd, "debug", NamespaceMode::CONTAINER);
    let target = pod.container("target", 0, "exec sleep 4321", &[]);
    let other = pod.container("other", 0, "exec sleep 1234", &[]);
    let debugger = pod.container_with("debugger", "exec sleep 1000", |config| {
        let mut options = namespaces(NamespaceMode::TARGET);
        options.mut_or_insert_default().target_id.clone_from(&target);
        config.linux.mut_or_insert_default().security_context.mut_or_insert_default().namespace_options =
            options;
    });
    let seen = pod.says(&debugger, "ps");
    assert!(seen.contains("sleep 4321") && !seen.contains("sleep 1234"), "{seen}");
    assert!(pod.says(&target, "ps").contains("sleep 1000"));
    assert!(!pod.says(&other, "ps").contains("sleep 1000"));
    // The target's process 1 takes it along.
    pod.stop(&target, 0);
    pod.exited(&debugger);
    assert_eq!(pod.says(&other, "echo alive"), "alive\n");
    pod.end();
    containerd.left_nothing();
}

// By the sandbox API containerd 2.1.9 itself dies of such a pod, before it asks the shim (containerd's issue 12983).
#[test]
fn the_hosts_network_is_refused_and_nothing_is_left() {
    refuses_the_hosts_network(Containerd::for_pods());
}

/// Of a pod that asks for it nothing is left, whoever makes the pods.
pub fn refuses_the_hosts_network(containerd: Containerd) {
    let refused = Pod::try_run(&containerd, "host", |config| {
        let options = &mut config.linux.mut_or_insert_default().security_context.mut_or_insert_default();
        options.namespace_options.mut_or_insert_default().network = NamespaceMode::NODE.into();
    });
    let error = refused.err().expect("it was not refused");
    assert!(error.message.contains("hostNetwork is not supported"), "{error:?}");
    fs::remove_dir_all(containerd.file("hull-logs")).unwrap();
    containerd.left_nothing();
}

fn an_image_is_a_volume_where_the_engine_can_do_that(containerd: Containerd) {
    let pod = Pod::run(&containerd, "image", NamespaceMode::CONTAINER);
    let image = some(ImageSpec { image: busybox(), ..ImageSpec::default() });
    let volume = Mount { image, ..mount(Path::new(""), "/image", true) };
    if containerd.version() >= (2, 1) {
        let id = pod.container("app", 0, "sleep 1000", &[volume]);
        assert_eq!(pod.says(&id, "/image/bin/busybox echo from the image"), "from the image\n");
        assert_eq!(pod.says(&id, "touch /image/x 2>/dev/null || echo refused"), "refused\n");
    } else {
        // The engine takes it for a bind mount of nothing.
        let error = pod.try_container("app", "true", |config| config.mounts = vec![volume]).unwrap_err();
        assert_ne!(error.message, "");
    }
    pod.end();
    containerd.left_nothing();
}

fn probes_and_volumes_of_every_kind(containerd: Containerd) {
    let pod = Pod::run(&containerd, "kinds", NamespaceMode::CONTAINER);
    let (disk, whole) = (containerd.file("hull-empty"), containerd.file("hull-whole"));
    fs::create_dir(&disk).unwrap();
    fs::create_dir_all(whole.join("sub/inner")).unwrap();
    fs::write(whole.join("secret"), "beside").unwrap();
    fs::write(whole.join("sub/inner/file"), "below").unwrap();
    let memory = containerd.file("hull-memory");
    fs::create_dir(&memory).unwrap();
    // As a kubelet makes an emptyDir in memory.
    let tmpfs = |words: &[&str]| {
        assert!(std::process::Command::new(words[0]).args(&words[1..]).status().unwrap().success());
    };
    tmpfs(&["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", memory.to_str().unwrap()]);

    let mounts = [
        mount(&disk, "/disk", false),
        mount(&memory, "/memory", false),
        mount(&whole.join("sub"), "/sub", true),
    ];
    let one = pod.container("one", 0, "sleep 1000", &mounts);
    let two = pod.container("two", 0, "sleep 1000", &mounts);
    assert_eq!(pod.says(&one, "echo a >/disk/x; echo b >/memory/x; cat /sub/inner/file"), "below");
    assert_eq!(
        pod.says(&two, "cat /disk/x /memory/x; ls /sub/..").lines().take(2).collect::<Vec<_>>(),
        ["a", "b"]
    );
    assert_eq!(pod.says(&two, "ls /sub/; ls / | grep -c secret || true"), "inner\n0\n");
    assert_eq!(
        pod.says(&one, "head -c 2m /dev/zero >/memory/big 2>/dev/null || echo full; rm /memory/big"),
        "full\n"
    );

    for round in 0..40 {
        let said = pod.exec(&one, &["sh", "-c", "echo probe; exit 0"], 60).unwrap();
        assert_eq!((said.exit_code, &*said.stdout), (0, &b"probe\n"[..]), "round {round}");
    }
    pod.end();
    tmpfs(&["umount", memory.to_str().unwrap()]);
    for path in [disk, whole, memory] {
        fs::remove_dir_all(path).unwrap();
    }
    containerd.left_nothing();
}

crate::in_pods_of_both_kinds!(
    exec_and_attach_are_streams,
    ports_are_forwarded_also_those_on_the_guests_loopback,
    security_contexts_hold,
    limits_hold_are_changed_and_tell,
    memory_that_runs_out_costs_the_one_that_took_it,
    a_debugging_container_sees_its_targets_processes,
    an_image_is_a_volume_where_the_engine_can_do_that,
    probes_and_volumes_of_every_kind,
);
