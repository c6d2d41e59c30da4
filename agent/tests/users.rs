//! Containers with users of their own: root in one of them is nobody in the guest.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod guest;

use std::os::unix::fs::MetadataExt;

use guest::{Guest, context, refusal, spec, with_guest};
use hull_protocol::agent::StreamKind;
use hull_protocol::agent::api::agent as api;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use ttrpc::Code;

const FIRST: u32 = 200_000;

/// The default spec in a user namespace.
fn mapped(args: &[&str]) -> Value {
    let mut spec = spec(args);
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    for field in ["uidMappings", "gidMappings"] {
        spec["linux"][field] = json!([{"containerID": 0, "hostID": FIRST, "size": 65536}]);
    }
    spec
}

fn of_pod() -> api::Namespace {
    let mut namespace = api::Namespace::new();
    namespace.mut_pod();
    namespace
}

fn all_of_the_pods() -> api::Namespaces {
    let pod = || Some(of_pod()).into();
    api::Namespaces { ipc: pod(), uts: pod(), pid: pod(), user: pod(), ..Default::default() }
}

async fn create(
    guest: &Guest,
    id: &str,
    spec: &Value,
    namespaces: api::Namespaces,
) -> Result<u32, ttrpc::Error> {
    let mut request = guest.create_request(id, spec, [false, true, true], Some(16 << 20));
    request.namespaces = Some(namespaces).into();
    guest.client.create_container(context(), &request).await.map(|response| response.pid)
}

fn status(pid: u32, key: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line[key.len()..].split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The machine's own number of a process that the agent numbers in its pid namespace.
fn here(guest: &Guest, pid: u32) -> u32 {
    let own_namespace = std::fs::read_link(format!("/proc/{}/ns/pid", guest.agent_pid())).unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    processes
        .filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok())
        .find(|candidate| {
            let Ok(status) = std::fs::read_to_string(format!("/proc/{candidate}/status")) else {
                return false;
            };
            let mut numbers = status
                .lines()
                .find(|line| line.starts_with("NSpid:"))
                .unwrap_or_default()
                .split_whitespace()
                .skip(2);
            let parent =
                status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap_or_default().trim();
            numbers.next() == Some(&pid.to_string())
                && (parent == guest.agent_pid().to_string()
                    || std::fs::read_link(format!("/proc/{candidate}/ns/pid")).ok()
                        == Some(own_namespace.clone()))
        })
        .unwrap()
}

#[test]
fn root_of_the_container_is_nobody_in_the_guest() {
    with_guest(|guest| async {
        let script = "id -u; id -g; cat /proc/self/uid_map /proc/self/setgroups | tr -s ' '; stat -c '%u:%g' / /etc/passwd
            touch /made; chown 7:8 /made; stat -c '%u:%g' /made; stat -c '%u:%g' /dev/shm /dev/pts /proc/1 /proc/sys
            grep ^CapEff /proc/self/status | tr -d '\\t'; hostname; sleep 1000";
        std::fs::write(guest.disk().join("etc/passwd"), "x").unwrap();
        guest.create("c", &mapped(&["sh", "-c", script]), [false, true, true]).await.unwrap();
        let mut stdout = guest.attach("c", None, StreamKind::Stdout).await.unwrap();
        let pid = here(&guest, guest.start_process("c", "").await.unwrap());
        let expected = format!(
            "0\n0\n 0 {FIRST} 65536\nallow\n0:0\n0:0\n7:8\n0:0\n0:0\n0:0\n65534:65534\nCapEff:00000000a80425fb\ntesthost\n"
        );
        let mut text = vec![0; expected.len()];
        stdout.read_exact(&mut text).await.unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), expected);
        let first = FIRST.to_string();
        assert_eq!(
            (status(pid, "Uid:"), status(pid, "Gid:"), status(pid, "Groups:")),
            ([first.as_str(); 4].join(" "), [first.as_str(); 4].join(" "), String::new())
        );
        // The file that it made belongs to the guest's user of that number, and the image's files stay as they were.
        let made = std::fs::metadata(format!("/proc/{pid}/root/made")).unwrap();
        assert_eq!((made.uid(), made.gid()), (FIRST + 7, FIRST + 8));
        assert_eq!(std::fs::metadata(guest.disk().join("etc/passwd")).unwrap().uid(), 0);
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn a_container_with_its_own_users_has_all_that_others_have() {
    with_guest(|guest| async {
        let mut all = mapped(&["sh", "-c", "
            pwd; cd /dev; for d in null zero full random urandom tty; do stat -c '%n %t:%T' $d; done
            echo x > null && head -c 3 zero | wc -c; stat -c '%t:%T %a %u:%g' fuse; stat -c %F pipe; readlink ptmx
            cat /proc/version | wc -c; ls /sys/firmware | wc -l; echo 1 2>&1 > /proc/sys/kernel/panic; cat /proc/sys/kernel/shmmni
            : > /dev/mqueue/q && ls /dev/mqueue; tail -n 1 /proc/self/cgroup; ls /sys/class/net | tr '\\n' ' '
            ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj; cut -d ' ' -f 19,41 /proc/self/stat; id -u; umask
            echo again > /dev/stdout; grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'"]);
        all["linux"]["devices"] = json!([
            {"type": "c", "path": "/dev/fuse", "major": 10, "minor": 229, "fileMode": 0o600, "uid": 3, "gid": 4},
            {"type": "p", "path": "/dev/pipe", "fileMode": 0o640}]);
        all["linux"]["maskedPaths"] = json!(["/proc/version", "/sys/firmware"]);
        all["linux"]["sysctl"] = json!({"kernel.shmmni": "99"});
        all["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 20, "hard": 10000}]);
        all["process"]["oomScoreAdj"] = json!(10);
        all["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 3});
        all["process"]["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5], "umask": 63});
        all["process"]["cwd"] = json!("/made/for/it");
        all["process"]["noNewPrivileges"] = json!(true);
        all["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["swapoff"], "action": "SCMP_ACT_ERRNO"}]});
        let output = guest.run(&all).await;
        assert_eq!(
            output.stdout,
            "/made/for/it\nnull 1:3\nzero 1:5\nfull 1:7\nrandom 1:8\nurandom 1:9\ntty 5:0\n3\na:e5 600 3:4\nfifo\npts/ptmx\n0\n0\n\
             sh: can't create /proc/sys/kernel/panic: Read-only file system\n99\n\
             q\n0::/\nlo 20\n10000\n10\n3 3\n1000\n0077\nagain\nNoNewPrivs:1\nSeccomp:2\n",
            "{output:?}"
        );
        guest
    });
}

/// A spec with all that an exec must inherit.
fn confined(mut spec: Value) -> Value {
    spec["process"]["noNewPrivileges"] = json!(true);
    spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 99, "hard": 99}]);
    spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["swapoff"], "action": "SCMP_ACT_ERRNO"}]});
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
    spec["linux"]["timeOffsets"] = json!({"boottime": {"secs": 2_000_000_000}});
    spec
}

/// Compares an exec in container `c` with its init, as the kernel describes both. Returns its process.
async fn compare(guest: &Guest) -> Value {
    let script = "for n in user pid mnt ipc uts net cgroup time; do readlink /proc/$P/ns/$n; done
        cat /proc/$P/uid_map; grep -E '^(Cap|NoNew|Seccomp:)' /proc/$P/status; cat /proc/$P/cgroup
        grep 'open files' /proc/$P/limits";
    let process = spec(&[
        "sh",
        "-c",
        &format!(
            "f() {{ {script}; }}; P=1 f > /tmp/1; P=self f > /tmp/2; cmp /tmp/1 /tmp/2 && wc -l < /tmp/1; id -u; id -G"
        ),
    ]);
    let mut process = process["process"].clone();
    // What is left out is as the container has it.
    process.as_object_mut().unwrap().remove("capabilities");
    let output = guest.exec("c", "e", &process).await;
    let lines = output.stdout.lines().collect::<Vec<_>>();
    assert_eq!((output.code, lines.len(), lines.last()), (0, 3, Some(&"0")), "{output:?}");
    assert!(lines[0].parse::<u32>().unwrap() >= 17, "{output:?}");
    process
}

#[test]
fn an_exec_inherits_all_that_confines_its_container() {
    with_guest(|guest| async {
        guest.create("c", &confined(spec(&["sleep", "1000"])), [false; 3]).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        compare(&guest).await;
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn an_exec_is_in_the_same_user_namespace_with_all_that_confines_it() {
    with_guest(|guest| async {
        let sleeper = confined(mapped(&["sleep", "1000"]));
        guest.create("c", &sleeper, [false; 3]).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        let mut process = compare(&guest).await;

        // With a terminal and another user.
        process["terminal"] = json!(true);
        process["user"] = json!({"uid": 12, "gid": 13});
        process["args"] = json!(["sh", "-c", "tty; stat -c %u $(tty); id -u; read line; echo got $line"]);
        guest.create_exec("c", "t", &process, [true, true, false]).await.unwrap();
        let mut stdin = guest.attach("c", Some("t"), StreamKind::Stdin).await.unwrap();
        let mut stdout = guest.attach("c", Some("t"), StreamKind::Stdout).await.unwrap();
        guest.start_process("c", "t").await.unwrap();
        stdin.write_all(b"line\n").await.unwrap();
        let mut text = String::new();
        stdout.read_to_string(&mut text).await.unwrap();
        assert!(text.contains("12\r\n12\r\n") && text.contains("got line"), "{text}");
        guest.wait("c", "t").await.unwrap();

        process["user"] = json!({"uid": 70000, "gid": 0});
        guest.create_exec("c", "u", &process, [false; 3]).await.unwrap();
        let (code, message) = refusal(guest.start_process("c", "u").await);
        assert_eq!(
            (code, message.as_str()),
            (Code::INVALID_ARGUMENT, "user 70000 is not mapped in the container's user namespace")
        );
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn a_terminal_belongs_to_its_user() {
    with_guest(|guest| async {
        let mut terminal = mapped(&[
            "sh",
            "-c",
            "tty; stat -c '%u %a' $(tty) /dev/console; grep -c ' /dev/console ' /proc/self/mountinfo",
        ]);
        terminal["process"]["terminal"] = json!(true);
        terminal["process"]["user"] = json!({"uid": 12, "gid": 13});
        guest.create("c", &terminal, [false, true, false]).await.unwrap();
        let mut stdout = guest.attach("c", None, StreamKind::Stdout).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        let mut text = String::new();
        stdout.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "/dev/pts/0\r\n12 620\r\n12 620\r\n1\r\n");
        guest.wait("c", "").await.unwrap();
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn capabilities_reach_no_further_than_the_container() {
    with_guest(|guest| async {
        let script = "
            mknod /tmp/mem c 1 1 2>&1; mount -t tmpfs t /tmp 2>&1 && echo own mount; hostname changed && hostname
            echo 1 2>&1 > /proc/sys/vm/overcommit_memory; echo 1 2>&1 > /proc/sys/kernel/panic
            mount -o remount,rw /sys 2>&1; echo 0 2>&1 > /sys/kernel/uevent_helper; dmesg 2>&1 | head -n 1
            date -s 2000-01-01 2>&1 | head -n 1; mount -t ext4 /dev/zero /mnt 2>&1 | head -n 1; chroot / true && echo chroot
            ulimit -Hn 1000000 2>&1; echo -1000 2>&1 > /proc/self/oom_score_adj
            echo max 2>&1 > /sys/fs/cgroup/pids.max";
        let mut root = mapped(&["sh", "-c", script]);
        let all: Vec<String> = [
            "SYS_ADMIN",
            "SYS_PTRACE",
            "MKNOD",
            "SYS_RESOURCE",
            "SYS_TIME",
            "SYSLOG",
            "SYS_NICE",
            "SYS_CHROOT",
            "DAC_OVERRIDE",
            "CHOWN",
            "NET_ADMIN",
            "SYS_MODULE",
            "SYS_RAWIO",
        ]
        .iter()
        .map(|name| format!("CAP_{name}"))
        .collect();
        root["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
        root["linux"]["maskedPaths"] = json!([]);
        root["linux"]["readonlyPaths"] = json!([]);
        root["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 100}]);
        std::fs::create_dir(guest.disk().join("mnt")).unwrap();
        let output = guest.run(&root).await;
        // What is its own it may change: mounts, its host name.
        assert_eq!(
            output.stdout,
            "mknod: /tmp/mem: Operation not permitted\nown mount\nchanged\n\
             sh: can't create /proc/sys/vm/overcommit_memory: Permission denied\n\
             sh: can't create /proc/sys/kernel/panic: Permission denied\n\
             mount: permission denied (are you root?)\nsh: can't create /sys/kernel/uevent_helper: Read-only file system\n\
             dmesg: klogctl: Operation not permitted\ndate: can't set date: Operation not permitted\n\
             mount: permission denied (are you root?)\nchroot\nsh: error setting limit: Operation not permitted\n\
             sh: write error: Permission denied\nsh: can't create /sys/fs/cgroup/pids.max: Read-only file system\n",
            "{output:?}"
        );
        guest
    });
}

#[test]
fn containers_of_a_pod_with_users_of_its_own_share_namespaces() {
    with_guest(|guest| async {
        let mapped = |args: &[&str]| {
            // As a pod's are, all in the guest's network.
            let mut spec = mapped(args);
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "network");
            let mounts = spec["mounts"].as_array_mut().unwrap();
            mounts.push(json!({"destination": "/shared", "type": "hull-shared-tmpfs", "source": "shared",
                               "options": ["size=1m", "mode=1777"]}));
            spec
        };
        let mut first = mapped(&["sleep", "1000"]);
        first["hostname"] = json!("the-pod");
        create(&guest, "first", &first, all_of_the_pods()).await.unwrap();
        guest.start_process("first", "").await.unwrap();
        let links = "for n in user ipc uts pid net; do readlink /proc/self/ns/$n; done; touch /sys/x 2>&1; ls /sys/class/net; hostname";
        let mut second = mapped(&[
            "sh",
            "-c",
            &format!(
                "echo there > /shared/file; {links}; ls /proc/1/fd /proc/1/root/ 2>&1 | grep -vc denied"
            ),
        ]);
        second["hostname"] = json!("");
        create(&guest, "second", &second, all_of_the_pods()).await.unwrap();
        let seen = guest.collect("second").await.stdout;
        let process = spec(&["sh", "-c", links])["process"].take();
        let expected = guest.exec("first", "e", &process).await.stdout;
        assert!(expected.ends_with("the-pod\n"), "{expected}");
        assert_eq!(seen, format!("{expected}1\n"));
        guest.delete("second").await.unwrap();
        let process = spec(&["sh", "-c", "cat /shared/file; stat -c %u /shared/file"])["process"].take();
        assert_eq!(guest.exec("first", "e", &process).await.stdout, "there\n0\n");

        // Others do not fit: with the guest's users, with their own, or with other ids.
        let mut guests = spec(&["true"]);
        guests["hostname"] = json!("");
        let ipc = || api::Namespaces { ipc: Some(of_pod()).into(), ..Default::default() };
        let mut other = mapped(&["true"]);
        other["linux"]["uidMappings"][0]["hostID"] = json!(1_000_000);
        for (spec, namespaces) in [(&guests, ipc()), (&second, ipc()), (&other, all_of_the_pods())] {
            let (code, message) = refusal(create(&guest, "third", spec, namespaces).await);
            assert_eq!(code, Code::FAILED_PRECONDITION, "{message}");
            assert!(message.starts_with("user namespace: "), "{message}");
        }
        // One that debugs the first is in its user namespace.
        let mut of_first = api::Namespace::new();
        of_first.set_container("first".to_owned());
        let of_first = || Some(of_first.clone()).into();
        let namespaces = api::Namespaces { pid: of_first(), user: of_first(), ..Default::default() };
        let mut debug =
            mapped(&["sh", "-c", "cat /proc/self/uid_map | tr -s ' '; ps -o args | grep -c '^sleep'"]);
        debug["linux"]["uidMappings"] = json!([]);
        debug["linux"]["gidMappings"] = json!([]);
        create(&guest, "debug", &debug, namespaces).await.unwrap();
        assert_eq!(guest.collect("debug").await.stdout, format!(" 0 {FIRST} 65536\n1\n"));
        guest
    });
}

#[test]
fn a_shared_mount_can_map_its_ids() {
    with_guest(|guest| async {
        let volumes = guest.directory.path().join("disks/volumes");
        std::fs::create_dir_all(volumes.join("0")).unwrap();
        std::fs::write(volumes.join("0/file"), "content\n").unwrap();
        let mut plain =
            mapped(&["sh", "-c", "stat -c '%u:%g' /v/file; echo x 2>&1 > /v/file; touch /v/new 2>&1"]);
        let mounts = plain["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/v", "type": "hull-volume", "source": "0", "options": ["rbind"]}));
        let output = guest.run(&plain).await;
        assert_eq!(
            output.stdout,
            "65534:65534\nsh: can't create /v/file: Permission denied\ntouch: /v/new: Permission denied\n"
        );
        plain["mounts"].as_array_mut().unwrap().last_mut().unwrap()["options"] = json!(["rbind", "ridmap"]);
        assert_eq!(guest.run(&plain).await.stdout, "0:0\n");
        let made = std::fs::metadata(volumes.join("0/new")).unwrap();
        assert_eq!((made.uid(), made.gid()), (0, 0), "what it makes there is the volume's root's");

        // Without a user namespace, by the mount's own mappings.
        let mut ids = spec(&["stat", "-c", "%u:%g", "/v/file"]);
        let map = json!([{"containerID": 0, "hostID": 5000, "size": 10}]);
        let mounts = ids["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/v", "type": "hull-volume", "source": "0", "options": ["bind"],
                           "uidMappings": map, "gidMappings": map}));
        assert_eq!(guest.run(&ids).await.stdout, "5000:5000\n");
        ids["mounts"].as_array_mut().unwrap().last_mut().unwrap()["uidMappings"] = json!([]);
        assert_eq!(refusal(guest.create("c", &ids, [false; 3]).await).0, Code::INVALID_ARGUMENT);
        guest
    });
}

#[test]
fn a_writable_cgroup_is_the_containers_below_its_limits() {
    with_guest(|guest| async {
        let script = "cd /sys/fs/cgroup; mkdir sub && echo $$ > sub/cgroup.procs && tail -n 1 /proc/self/cgroup
            echo 7 2>&1 > cgroup.max.depth; echo 7 > sub/cgroup.max.depth && cat sub/cgroup.max.depth; cat cgroup.max.depth";
        let mut root = mapped(&["sh", "-c", script]);
        let mounts = root["mounts"].as_array_mut().unwrap();
        mounts.iter_mut().find(|mount| mount["type"] == "cgroup").unwrap()["options"] = json!(["nosuid"]);
        let output = guest.run(&root).await;
        assert_eq!(
            output.stdout, "0::/sub\nsh: can't create cgroup.max.depth: Permission denied\n7\nmax\n",
            "{output:?}"
        );
        guest
    });
}

#[test]
fn hooks_run_with_the_containers_users() {
    with_guest(|guest| async {
        let mut hooked = mapped(&["cat", "/tmp/hook"]);
        let script = "id -u > /tmp/hook; tr -s ' ' < /proc/self/uid_map >> /tmp/hook; grep -c '\"created\"' >> /tmp/hook";
        hooked["hooks"] = json!({"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]});
        assert_eq!(guest.run(&hooked).await.stdout, format!("0\n 0 {FIRST} 65536\n1\n"));
        guest
    });
}

#[test]
fn nothing_is_left_of_containers_with_users_of_their_own() {
    with_guest(|guest| async {
        guest.run(&mapped(&["true"])).await;
        let before = guest.footprint();
        for _ in 0..10 {
            guest.run(&mapped(&["true"])).await;
            let mut broken = mapped(&["true"]);
            broken["mounts"].as_array_mut().unwrap().push(json!(
                {"destination": "/data", "type": "tmpfs", "source": "t", "options": ["size=nonsense"]}));
            let (_, message) = refusal(guest.create("c", &broken, [true; 3]).await);
            assert_eq!(message, "cannot mount /data (tmpfs): invalid argument");
            broken["mounts"].as_array_mut().unwrap().last_mut().unwrap()["type"] = json!("hull-volume");
            broken["mounts"].as_array_mut().unwrap().last_mut().unwrap()["options"] = json!([]);
            refusal(guest.create("c", &broken, [true; 3]).await);
        }
        assert_eq!(guest.footprint(), before);
        guest
    });
}
