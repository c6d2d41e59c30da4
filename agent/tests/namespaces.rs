//! Containers that share namespaces: those of the pod, and those of one another.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod guest;

use guest::{Guest, context, refusal, spec, with_guest};
use hull_protocol::agent::StreamKind;
use hull_protocol::agent::api::agent as api;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use ttrpc::Code;

fn of_pod() -> api::Namespace {
    let mut namespace = api::Namespace::new();
    namespace.mut_pod();
    namespace
}

fn of(id: &str) -> api::Namespace {
    let mut namespace = api::Namespace::new();
    namespace.set_container(id.to_owned());
    namespace
}

/// Which of its namespaces a container shares with the pod.
fn pod(kinds: &str) -> api::Namespaces {
    let ask = |kind| kinds.contains(kind).then(of_pod).into();
    api::Namespaces { ipc: ask("ipc"), uts: ask("uts"), pid: ask("pid"), ..Default::default() }
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

async fn start(guest: &Guest, id: &str, spec: &Value, namespaces: api::Namespaces) {
    create(guest, id, spec, namespaces).await.unwrap();
    guest.start_process(id, "").await.unwrap();
}

/// Runs a script in a container of this name that joins `namespaces`, and deletes it.
async fn shell(guest: &Guest, id: &str, script: &str, namespaces: api::Namespaces) -> String {
    create(guest, id, &spec(&["sh", "-c", script]), namespaces).await.unwrap();
    let output = guest.collect(id).await;
    assert_eq!(output.stderr, "");
    guest.delete(id).await.unwrap();
    output.stdout
}

const LINKS: &str = "for n in ipc uts pid mnt net cgroup; do readlink /proc/self/ns/$n; done";

/// Which of the namespaces ipc, uts, pid, mnt, net, cgroup are the same.
fn same(left: &str, right: &str) -> String {
    let kinds = ["ipc", "uts", "pid", "mnt", "net", "cgroup"];
    let equal = kinds.iter().zip(left.lines().zip(right.lines())).filter(|(_, (left, right))| left == right);
    equal.map(|(kind, _)| *kind).collect::<Vec<_>>().join(" ")
}

#[test]
fn containers_share_what_they_ask_the_pod_for_and_nothing_else() {
    with_guest(|guest| async {
        let both = [pod("ipc uts pid"), pod("ipc uts pid"), pod("ipc"), pod("")];
        let mut seen = Vec::new();
        // All at once: the number of a namespace that is gone is used again.
        for (id, namespaces) in ["a", "b", "c", "d"].into_iter().zip(both) {
            start(&guest, id, &spec(&["sleep", "1000"]), namespaces).await;
            let links = spec(&["sh", "-c", LINKS])["process"].take();
            seen.push(guest.exec(id, "e", &links).await.stdout);
        }
        assert_eq!(same(&seen[0], &seen[1]), "ipc uts pid");
        assert_eq!(same(&seen[0], &seen[2]), "ipc");
        assert_eq!(same(&seen[0], &seen[3]), "");
        let agents: String = ["ipc", "uts", "pid", "mnt", "net", "cgroup"]
            .map(|kind| {
                let link = format!("/proc/{}/ns/{kind}", guest.agent_pid());
                std::fs::read_link(link).unwrap().display().to_string() + "\n"
            })
            .concat();
        assert_eq!(same(&seen[0], &agents), "", "the pod's namespaces are the agent's");
        guest
    });
}

#[test]
fn the_pods_host_name_and_message_queues_are_seen_by_all() {
    with_guest(|guest| async {
        let mut first = spec(&["sleep", "1000"]);
        first["hostname"] = json!("the-pod");
        first["linux"]["sysctl"] = json!({"kernel.shmmni": "77"});
        start(&guest, "first", &first, pod("ipc uts")).await;
        let mut second =
            spec(&["sh", "-c", "hostname; cat /proc/sys/kernel/shmmni; : > /dev/mqueue/q; echo $$"]);
        second["hostname"] = json!("");
        create(&guest, "second", &second, pod("ipc uts")).await.unwrap();
        let output = guest.collect("second").await;
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("the-pod\n77\n1\n", ""));
        let queues = spec(&["sh", "-c", "ls /dev/mqueue; hostname"])["process"].take();
        assert_eq!(guest.exec("first", "e", &queues).await.stdout, "q\nthe-pod\n");
        assert_eq!(guest.shell("ls /dev/mqueue; cat /proc/sys/kernel/shmmni").await.stdout, "4096\n");
        guest
    });
}

#[test]
fn the_first_process_of_the_pod_is_the_agents_and_gives_nothing_away() {
    with_guest(|guest| async {
        let script = "
            cat /proc/1/comm; echo $$ | grep -c '^1$'
            kill -9 1; kill -TERM 1; kill -STOP 1; sleep 0.1; cut -d' ' -f3 /proc/1/stat
            ls /proc/1/fd /proc/1/root/ /proc/1/cwd/ 2>&1 | grep -v -e denied -e '^/proc/1/fd:$'; cat /proc/1/environ /proc/1/maps 2>&1 | grep -v denied
            grep -E '^(CapPrm|CapEff|CapBnd|NoNewPrivs)' /proc/1/status | tr -d '\\t'";
        let seen = shell(&guest, "c", script, pod("pid")).await;
        let zero = "0".repeat(16);
        let expected = format!("hull-pod\n0\nS\nCapPrm:{zero}\nCapEff:{zero}\nCapBnd:{zero}\nNoNewPrivs:1\n");
        assert_eq!(seen, expected);
        // One who may trace finds an empty root, and no file.
        let mut tracer = spec(&["sh", "-c", "ls -a /proc/1/root/.. /proc/1/fd; echo x > /proc/1/root/x"]);
        for set in ["bounding", "effective", "permitted"] {
            tracer["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_SYS_PTRACE"));
        }
        create(&guest, "tracer", &tracer, pod("pid")).await.unwrap();
        let output = guest.collect("tracer").await;
        assert_eq!(output.stdout, "/proc/1/fd:\n.\n..\n\n/proc/1/root/..:\n.\n..\n");
        assert!(output.stderr.contains("Read-only file system"), "{output:?}");
        guest
    });
}

#[test]
fn orphans_are_reaped_and_the_end_of_init_ends_the_rest_of_its_container_alone() {
    with_guest(|guest| async {
        start(&guest, "other", &spec(&["sleep", "1000"]), pod("pid")).await;
        let init = spec(&["sh", "-c", "(sleep 1001 & (sleep 0.1 &) ); sleep 0.3; ps -o stat | grep -c Z"]);
        create(&guest, "c", &init, pod("pid")).await.unwrap();
        let mut stdout = guest.attach("c", None, StreamKind::Stdout).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        let process = spec(&["sleep", "1002"])["process"].take();
        guest.create_exec("c", "e", &process, [false; 3]).await.unwrap();
        guest.start_process("c", "e").await.unwrap();
        let status = guest.wait("c", "").await.unwrap();
        assert_eq!((status.code, guest.wait("c", "e").await.unwrap().code), (1, 137));
        // The background child held the stream until it was killed.
        let mut text = String::new();
        stdout.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "0\n");
        let list = guest.client.list_processes(context(), &guest::container("c")).await.unwrap();
        assert!(list.pids.is_empty(), "{:?}", list.pids);
        let names = spec(&["sh", "-c", "ps -o args | grep '^sleep'"])["process"].take();
        assert_eq!(guest.exec("other", "e", &names).await.stdout, "sleep 1000\n");
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn an_ephemeral_container_joins_its_target_and_leaves_it_alone() {
    with_guest(|guest| async {
        let namespaces = || api::Namespaces {
            pid: Some(of("target")).into(),
            ipc: Some(of("target")).into(),
            uts: Some(of("target")).into(),
            ..Default::default()
        };
        let (code, message) = refusal(create(&guest, "debug", &spec(&["true"]), namespaces()).await);
        assert_eq!((code, message.as_str()), (Code::NOT_FOUND, "container \"target\" not found"));

        start(&guest, "target", &spec(&["sleep", "1234"]), pod("")).await;
        let script =
            "hostname debugged; tr '\\0' ' ' < /proc/1/cmdline; echo; grep -c root: /proc/1/root/etc/passwd";
        let mut debug = spec(&["sh", "-c", script]);
        debug["hostname"] = json!("");
        create(&guest, "debug", &debug, namespaces()).await.unwrap();
        let output = guest.collect("debug").await;
        // As in any engine: one with the same rights reaches the target's files by its process.
        assert_eq!(output.stdout, "sleep 1234 \n1\n");
        guest.delete("debug").await.unwrap();
        let process = spec(&["sh", "-c", "hostname; ps -o args | grep -c '^sleep 1234'"])["process"].take();
        assert_eq!(guest.exec("target", "e", &process).await.stdout, "testhost\n1\n");

        // An exec in the joined container is in the same namespaces.
        let mut waiting = spec(&["sleep", "1235"]);
        waiting["hostname"] = json!("");
        start(&guest, "debug", &waiting, namespaces()).await;
        let process =
            spec(&["sh", "-c", "tr '\\0' ' ' < /proc/1/cmdline; readlink /proc/self/ns/ipc"])["process"]
                .take();
        let inside = guest.exec("debug", "e", &process).await.stdout;
        assert_eq!(inside, guest.exec("target", "f", &process).await.stdout);
        // The kernel ends everybody in the target's namespace with its first process.
        guest.signal("target", "", libc::SIGKILL, false).await.unwrap();
        assert_eq!(guest.wait("debug", "").await.unwrap().code, 137);
        guest.wait("target", "").await.unwrap();
        let (code, message) = refusal(create(&guest, "late", &spec(&["true"]), namespaces()).await);
        assert_eq!(
            (code, message.as_str()),
            (Code::FAILED_PRECONDITION, "cannot join the container's namespaces: the container has ended")
        );
        guest
    });
}

#[test]
fn a_container_cannot_join_itself_or_be_joined_before_it_is_there() {
    with_guest(|guest| async {
        let itself = api::Namespaces { ipc: Some(of("c")).into(), ..Default::default() };
        let (code, message) = refusal(create(&guest, "c", &spec(&["true"]), itself).await);
        assert_eq!(code, Code::FAILED_PRECONDITION);
        assert!(message.contains("being created"), "{message}");
        let path = api::Namespaces { ipc: Some(of("../c")).into(), ..Default::default() };
        assert_eq!(refusal(create(&guest, "c", &spec(&["true"]), path).await).0, Code::INVALID_ARGUMENT);
        assert_eq!(guest.footprint().mounts, guest.footprint().mounts);
        guest
    });
}

#[test]
fn a_shared_tmpfs_is_the_same_for_all_who_mount_it() {
    with_guest(|guest| async {
        let mut sharing = spec(&["sleep", "1000"]);
        let shm = json!({"destination": "/dev/shm", "type": "hull-shared-tmpfs", "source": "shm",
                         "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]});
        let mounts = sharing["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/dev/shm");
        mounts.push(shm);
        mounts.push(json!({"destination": "/cache", "type": "hull-shared-tmpfs", "source": "cache",
                           "options": ["size=1m", "ro"]}));
        let before = guest.footprint();
        start(&guest, "first", &sharing, pod("")).await;
        sharing["process"]["args"] = json!([
            "sh",
            "-c",
            "
            echo hello > /dev/shm/file; stat -c %a /dev/shm; grep -c ' /dev/shm .*noexec' /proc/self/mountinfo
            df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d' ' -f2; touch /cache/x 2>&1"
        ]);
        create(&guest, "second", &sharing, pod("")).await.unwrap();
        let output = guest.collect("second").await;
        assert_eq!(output.stdout, "1777\n1\n65536\ntouch: /cache/x: Read-only file system\n");
        guest.delete("second").await.unwrap();
        let process = spec(&["cat", "/dev/shm/file"])["process"].take();
        assert_eq!(guest.exec("first", "e", &process).await.stdout, "hello\n");
        assert_eq!(guest.shell("ls /dev/shm").await.stdout, "");
        guest.delete("first").await.unwrap();
        assert_eq!(guest.footprint().mounts, before.mounts + 2);
        guest
    });
}
