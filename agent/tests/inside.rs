//! What a process sees and may do inside a container.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod guest;

use guest::{refusal, spec, with_guest};
use serde_json::json;
use ttrpc::Code;

#[test]
fn environment_directory_and_user_are_those_of_the_spec() {
    with_guest(|guest| async {
        let mut user = spec(&["sh", "-c", "echo $GREETING; pwd; id -u; id -g; id -G; umask; touch f 2>&1"]);
        user["process"]["env"].as_array_mut().unwrap().push(json!("GREETING=hello there"));
        user["process"]["cwd"] = json!("/made/for/it");
        user["process"]["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 63});
        let output = guest.run(&user).await;
        assert_eq!(
            output.stdout,
            "hello there\n/made/for/it\n1000\n1001\n1001 5 6\n0077\ntouch: f: Permission denied\n"
        );
        guest
    });
}

#[test]
fn it_has_its_own_pids_host_name_and_process_group() {
    with_guest(|guest| async {
        let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let output = guest.shell("echo $$; hostname; echo /proc/[0-9]*; hostname changed").await;
        // Without SYS_ADMIN the name cannot be changed.
        assert_eq!(output.stdout, "1\ntesthost\n/proc/1\n");
        assert_ne!(output.code, 0);
        assert_eq!(std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), own);
        guest
    });
}

#[test]
fn the_loopback_interface_is_up_and_the_only_one() {
    with_guest(|guest| async {
        let output = guest
            .shell("cat /proc/net/dev | tail -n +3 | cut -d: -f1; ip addr show lo | grep -c 127.0.0.1")
            .await;
        assert_eq!(output.stdout.split_whitespace().collect::<Vec<_>>(), ["lo", "1"]);
        guest
    });
}

#[test]
fn masked_paths_are_hidden_and_read_only_paths_cannot_be_written() {
    with_guest(|guest| async {
        let mut masked = spec(&[
            "sh",
            "-c",
            "
            wc -c < /proc/version; wc -c < /secret/file; ls /hidden | wc -l; touch /hidden/x 2>&1
            echo 1 2>&1 > /proc/sys/kernel/panic; echo x 2>&1 > /fixed/file; cat /fixed/file
            chmod 777 /proc/version 2>&1; echo still > /free",
        ]);
        for (directory, file) in [("secret", "file"), ("hidden", "inside"), ("fixed", "file")] {
            std::fs::create_dir(guest.disk().join(directory)).unwrap();
            std::fs::write(guest.disk().join(directory).join(file), "content\n").unwrap();
        }
        masked["linux"]["maskedPaths"] = json!(["/proc/version", "/secret/file", "/hidden", "/not/there"]);
        masked["linux"]["readonlyPaths"] = json!(["/proc/sys", "/fixed", "/not/there"]);
        let output = guest.run(&masked).await;
        assert_eq!(
            output.stdout,
            "0\n0\n0\ntouch: /hidden/x: Read-only file system\n\
             sh: can't create /proc/sys/kernel/panic: Read-only file system\n\
             sh: can't create /fixed/file: Read-only file system\ncontent\n\
             chmod: /proc/version: Read-only file system\n"
        );
        assert_eq!(output.code, 0);
        guest
    });
}

#[test]
fn the_root_is_writable_or_read_only_as_asked() {
    with_guest(|guest| async {
        let script = "touch /x && echo written; touch /dev/shm/y && echo shm";
        assert_eq!(guest.shell(script).await.stdout, "written\nshm\n");
        assert!(!guest.disk().join("x").exists(), "a write went through to the lower layer");

        let mut read_only = spec(&["sh", "-c", script]);
        read_only["root"]["readonly"] = json!(true);
        let output = guest.run(&read_only).await;
        assert_eq!(
            (output.stdout.as_str(), output.stderr.as_str()),
            ("shm\n", "touch: /x: Read-only file system\n")
        );
        guest
    });
}

#[test]
fn without_an_upper_layer_the_root_is_the_lower_read_only() {
    with_guest(|guest| async {
        for directory in ["proc", "sys", "dev"] {
            std::fs::create_dir(guest.disk().join(directory)).unwrap();
        }
        guest.create_with("c", &spec(&["touch", "/x"]), [false, true, true], None).await.unwrap();
        let output = guest.collect("c").await;
        assert_eq!(output.stderr, "touch: /x: Read-only file system\n");
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn capabilities_are_the_ones_of_the_spec() {
    with_guest(|guest| async {
        let script = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr -d '\\t'; mount -t tmpfs t /tmp 2>&1";
        let mut limited = spec(&["sh", "-c", script]);
        limited["process"]["noNewPrivileges"] = json!(true);
        limited["process"]["capabilities"] = json!({
            "bounding": ["CAP_KILL", "CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN", "CAP_KILL"],
            "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]});
        limited["process"]["user"] = json!({"uid": 7, "gid": 7});
        let output = guest.run(&limited).await;
        // At exec a user other than root keeps the ambient capabilities alone.
        let kill = format!("{:016x}", 1 << 5);
        let both = format!("{:016x}", 1 << 5 | 1);
        assert_eq!(
            output.stdout,
            format!(
                "CapInh:{kill}\nCapPrm:{kill}\nCapEff:{kill}\nCapBnd:{both}\nCapAmb:{kill}\nNoNewPrivs:1\nSeccomp:0\n\
                 mount: permission denied (are you root?)\n"
            )
        );
        let mut none = spec(&["sh", "-c", "grep ^Cap /proc/self/status | tr -d '\\t'"]);
        none["process"]["capabilities"] = json!(null);
        let zero = "0".repeat(16);
        let expected: String =
            ["Inh", "Prm", "Eff", "Bnd", "Amb"].map(|set| format!("Cap{set}:{zero}\n")).concat();
        assert_eq!(guest.run(&none).await.stdout, expected);
        guest
    });
}

#[test]
fn limits_oom_score_and_signals_are_set_not_inherited() {
    with_guest(|guest| async {
        let mut limits = spec(&[
            "sh",
            "-c",
            "ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj; grep -E 'Sig(Blk|Ign)' /proc/self/status | tr -d '\\t'",
        ]);
        limits["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 123, "hard": 456}]);
        limits["process"]["oomScoreAdj"] = json!(300);
        let output = guest.run(&limits).await;
        let zero = "0".repeat(16);
        assert_eq!(output.stdout, format!("123\n456\n300\nSigBlk:{zero}\nSigIgn:{zero}\n"));
        guest
    });
}

#[test]
fn nothing_of_the_agent_leaks_into_a_container() {
    with_guest(|guest| async {
        let output =
            guest.shell("ls /proc/self/fd; tail -n 1 /proc/self/cgroup; readlink /proc/1/fd/0").await;
        // 3 is ls's own descriptor of the directory.
        assert_eq!(output.stdout, "0\n1\n2\n3\n0::/\n/dev/null\n");
        let mounts = guest.shell("cat /proc/self/mountinfo").await.stdout;
        let points: Vec<&str> = mounts.lines().map(|line| line.split(' ').nth(4).unwrap()).collect();
        let directory = guest.directory.path().display().to_string();
        assert!(points.iter().all(|point| !point.contains("hull")), "{mounts}");
        assert_eq!(points[0], "/");
        assert!(
            !guest.shell("cat /proc/mounts /proc/self/environ").await.stdout.contains("CARGO"),
            "{directory}"
        );
        guest
    });
}

#[test]
fn devices_and_links_are_there() {
    with_guest(|guest| async {
        let mut devices = spec(&["sh", "-c", "
            cd /dev; for d in null zero full random urandom tty; do stat -c '%n %t:%T %a' $d; done
            for l in fd stdin stdout stderr ptmx; do readlink $l; done; stat -c '%F %t:%T %a %u:%g' fuse net/tun pipe
            echo x > /dev/null && head -c 3 /dev/zero | wc -c; echo to-stdout > /dev/stdout"]);
        devices["linux"]["devices"] = json!([
            {"type": "c", "path": "/dev/fuse", "major": 10, "minor": 229, "fileMode": 0o600, "uid": 3, "gid": 4},
            {"type": "c", "path": "/dev/net/tun", "major": 10, "minor": 200},
            {"type": "p", "path": "/dev/pipe", "fileMode": 0o640}]);
        let output = guest.run(&devices).await;
        assert_eq!(
            output.stdout,
            "null 1:3 666\nzero 1:5 666\nfull 1:7 666\nrandom 1:8 666\nurandom 1:9 666\ntty 5:0 666\n\
             /proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n\
             character special file a:e5 600 3:4\ncharacter special file a:c8 666 0:0\nfifo 0:0 640 0:0\n3\nto-stdout\n"
        );
        guest
    });
}

#[test]
fn scheduling_and_personality_are_set() {
    with_guest(|guest| async {
        let script = "uname -m; ionice; grep Cpus_allowed_list /proc/self/status | tr -d '\\t'; cut -d ' ' -f 19,41 /proc/self/stat";
        let mut scheduled = spec(&["sh", "-c", script]);
        scheduled["linux"]["personality"] = json!({"domain": "LINUX32"});
        scheduled["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 7});
        scheduled["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 5});
        scheduled["process"]["execCPUAffinity"] = json!({"initial": "0-1", "final": "0"});
        let output = guest.run(&scheduled).await;
        // The last two are the nice value and the number of SCHED_BATCH.
        assert_eq!(output.stdout, "i686\nbest-effort: prio 5\nCpus_allowed_list:0\n7 3\n", "{output:?}");

        // The personality is the container's; the rest is each process's own.
        scheduled["process"]["args"] = json!(["sleep", "1000"]);
        guest.create("c", &scheduled, [false; 3]).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        let output = guest
            .exec(
                "c",
                "e",
                &spec(&[
                    "sh",
                    "-c",
                    "uname -m; [ $(cut -d ' ' -f 19 /proc/self/stat) = 7 ] && echo inherited",
                ])["process"]
                    .take(),
            )
            .await;
        assert_eq!(output.stdout, "i686\n");
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn clocks_of_an_own_time_namespace_are_ahead() {
    with_guest(|guest| async {
        let script = "cut -d. -f1 /proc/uptime; readlink /proc/self/ns/time";
        let own = guest.shell(script).await.stdout;
        let read = |text: &str| {
            let (uptime, namespace) = text.trim().split_once('\n').unwrap();
            (uptime.parse::<u64>().unwrap(), namespace.to_owned())
        };
        let (before, shared) = read(&own);
        assert!(before < 1_000_000_000);
        let mut ahead = spec(&["sh", "-c", script]);
        ahead["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
        ahead["linux"]["timeOffsets"] = json!({
            "boottime": {"secs": 2_000_000_000, "nanosecs": 5}, "monotonic": {"secs": 2_000_000_000}});
        let (uptime, namespace) = read(&guest.run(&ahead).await.stdout);
        assert!((before + 2_000_000_000..before + 2_000_001_000).contains(&uptime), "{uptime}");
        assert_ne!(namespace, shared);

        ahead["process"]["args"] = json!(["sleep", "1000"]);
        guest.create("c", &ahead, [false; 3]).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        let same = "[ $(readlink /proc/1/ns/time) = $(readlink /proc/self/ns/time) ] || echo differs; cut -d. -f1 /proc/uptime";
        let output = guest.exec("c", "e", &spec(&["sh", "-c", same])["process"].take()).await;
        assert!(output.stdout.trim().parse::<u64>().unwrap() >= 2_000_000_000, "{output:?}");
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn only_allowed_devices_can_be_used() {
    with_guest(|guest| async {
        let script = "
            cd /tmp; mknod kmsg c 1 11 && cat kmsg 2>&1; mknod mem c 1 1 && head -c 1 mem 2>&1
            mknod disk b 7 0 && head -c 1 disk 2>&1; mknod null c 1 3 && echo x > null && echo null
            for d in null zero full random urandom; do head -c 0 /dev/$d || echo $d; done; echo > /dev/null
            head -c 0 fuse 2>&1";
        let mut devices = spec(&["sh", "-c", script]);
        let refused = "cat: can't open 'kmsg': Operation not permitted\nhead: mem: Operation not permitted\n\
                       head: disk: Operation not permitted\nnull\n";
        let missing = "head: fuse: No such file or directory\n";
        // Nothing is said: nothing but the default devices.
        assert_eq!(guest.run(&devices).await.stdout, format!("{refused}{missing}"));
        devices["linux"]["resources"]["devices"] = json!([
            {"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "access": "m"}]);
        assert_eq!(guest.run(&devices).await.stdout, format!("{refused}{missing}"));
        // A rule that allows, and one after it that takes part of it back.
        let mut rules = spec(&[
            "sh",
            "-c",
            "
            cd /tmp; mknod fuse c 10 229; head -c 0 fuse && echo read; echo > fuse && echo written",
        ]);
        rules["linux"]["resources"]["devices"] = json!([
            {"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "access": "rwm"},
            {"allow": false, "type": "c", "major": 10, "minor": 229, "access": "w"}]);
        let output = guest.run(&rules).await;
        assert_eq!(
            (output.stdout.as_str(), output.stderr.as_str()),
            ("read\n", "sh: can't create fuse: Operation not permitted\n")
        );
        guest
    });
}

#[test]
fn an_exec_may_use_no_other_devices_than_its_container() {
    with_guest(|guest| async {
        guest.create("c", &spec(&["sleep", "1000"]), [false; 3]).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        let process = spec(&["sh", "-c", "mknod /tmp/mem c 1 1; head -c 1 /tmp/mem"])["process"].take();
        assert_eq!(guest.exec("c", "e", &process).await.stderr, "head: /tmp/mem: Operation not permitted\n");
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn a_user_can_reopen_its_standard_streams() {
    with_guest(|guest| async {
        let mut user = spec(&["sh", "-c", "echo again > /dev/stdout; echo error > /dev/stderr"]);
        user["process"]["user"] = json!({"uid": 1234, "gid": 1234});
        let output = guest.run(&user).await;
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("again\n", "error\n"));
        guest
    });
}

#[test]
fn kernel_parameters_of_own_namespaces_are_set() {
    with_guest(|guest| async {
        let mut sysctl =
            spec(&["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/kernel/shmmni"]);
        sysctl["linux"]["sysctl"] =
            json!({"net.ipv4.ip_unprivileged_port_start": "7", "kernel.shmmni": "99"});
        assert_eq!(guest.run(&sysctl).await.stdout, "7\n99\n");
        guest
    });
}

#[test]
fn links_in_an_image_lead_no_mount_out_of_it() {
    with_guest(|guest| async {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("file"), "outside").unwrap();
        // In the image this path exists too, and that is the one that must be meant.
        std::os::unix::fs::symlink(outside.path(), guest.disk().join("escape")).unwrap();
        std::os::unix::fs::symlink("../../../../../../../..", guest.disk().join("up")).unwrap();
        let mut mounts = spec(&["sh", "-c", "ls /; cat /proc/mounts | grep trap"]);
        mounts["mounts"].as_array_mut().unwrap().push(json!(
            {"destination": "/up/inside/deep", "type": "tmpfs", "source": "trap"}));
        let output = guest.run(&mounts).await;
        assert!(output.stdout.contains("inside"), "{}", output.stdout);
        assert!(output.stdout.contains("trap /inside/deep tmpfs"), "{}", output.stdout);
        assert!(!std::path::Path::new("/inside").exists());

        mounts["linux"]["maskedPaths"] = json!(["/escape/file"]);
        guest.run(&mounts).await;
        assert_eq!(std::fs::read_to_string(outside.path().join("file")).unwrap(), "outside");

        // Where /proc is decides what the agent's masks protect.
        std::os::unix::fs::symlink("/tmp", guest.disk().join("proc")).unwrap();
        let (code, message) = refusal(guest.create("c", &spec(&["true"]), [false; 3]).await);
        assert_eq!(code, Code::INTERNAL);
        assert!(message.contains("/proc"), "{message}");
        guest
    });
}

#[test]
fn a_mount_that_cannot_be_made_fails_the_creation_and_leaves_nothing() {
    with_guest(|guest| async {
        let before = guest.footprint();
        let mut broken = spec(&["true"]);
        broken["mounts"].as_array_mut().unwrap().push(json!(
            {"destination": "/data", "type": "tmpfs", "source": "t", "options": ["size=nonsense"]}));
        let (code, message) = refusal(guest.create("c", &broken, [true; 3]).await);
        assert_eq!(
            (code, message.as_str()),
            (Code::INTERNAL, "cannot mount /data (tmpfs): invalid argument")
        );
        broken["mounts"].as_array_mut().unwrap().last_mut().unwrap()["destination"] = json!("/etc/passwd/x");
        let (_, message) = refusal(guest.create("c", &broken, [true; 3]).await);
        assert!(message.starts_with("cannot make the mount point /etc/passwd/x"), "{message}");
        assert_eq!(guest.footprint(), before);
        let mut personality = spec(&["true"]);
        personality["linux"]["personality"] = json!({"domain": "LINUX32", "flags": ["ADDR_NO_RANDOMIZE"]});
        assert_eq!(refusal(guest.create("c", &personality, [false; 3]).await).0, Code::UNIMPLEMENTED);
        assert_eq!(guest.footprint(), before);
        guest
    });
}
