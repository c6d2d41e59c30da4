//! The life of containers and their processes, on a real kernel.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod guest;

use guest::{Guest, refusal, spec, with_guest};
use ttrpc::Code;

#[test]
fn a_program_runs_and_its_output_and_exit_code_come_back() {
    with_guest(|guest| async {
        let output = guest.shell("echo out; echo err >&2; exit 7").await;
        assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (7, "out\n", "err\n"));
        assert_eq!(guest.run(&spec(&["true"])).await.code, 0);
        guest
    });
}

#[test]
fn a_killed_program_reports_its_signal() {
    with_guest(|guest| async {
        guest.create("c", &spec(&["sleep", "1000"]), [false; 3]).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        guest.signal("c", "", libc::SIGKILL, false).await.unwrap();
        assert_eq!(guest.wait("c", "").await.unwrap().code, 137);
        assert_eq!(refusal(guest.signal("c", "", libc::SIGTERM, false).await).0, Code::NOT_FOUND);
        guest.delete("c").await.unwrap();
        assert_eq!(refusal(guest.wait("c", "").await).0, Code::NOT_FOUND);
        guest
    });
}

#[test]
fn a_program_that_cannot_run_is_refused_in_the_words_of_runc() {
    with_guest(|guest| async {
        std::fs::write(guest.disk().join("plain"), "no program").unwrap();
        for (program, message) in [
            ("nonsense", r#"exec: "nonsense": executable file not found in $PATH"#),
            ("/no/such", r#"exec: "/no/such": stat /no/such: no such file or directory"#),
            ("/plain", r#"exec: "/plain": permission denied"#),
            ("/etc", r#"exec: "/etc": is a directory"#),
        ] {
            let before = guest.footprint();
            let refused = refusal(guest.create("c", &spec(&[program]), [true; 3]).await);
            assert_eq!(refused, (Code::INVALID_ARGUMENT, message.to_owned()));
            assert_eq!(guest.footprint(), before);
        }
        guest
    });
}

/// A container that runs until it is killed.
async fn sleeper(guest: &Guest, id: &str) {
    guest.create(id, &spec(&["sleep", "1000"]), [false; 3]).await.unwrap();
    guest.start_process(id, "").await.unwrap();
}

fn process_of(args: &[&str]) -> serde_json::Value {
    spec(args)["process"].take()
}

#[test]
fn an_exec_joins_everything_and_inherits_what_it_does_not_say() {
    with_guest(|guest| async {
        let mut limited = spec(&["sleep", "1000"]);
        limited["process"]["rlimits"] =
            serde_json::json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]);
        limited["process"]["noNewPrivileges"] = serde_json::json!(true);
        guest.create("c", &limited, [false; 3]).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        let script = "for n in pid mnt uts ipc net cgroup; do [ $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) ] || echo $n differs; done
            [ $(grep ^Cap /proc/1/status | md5sum | cut -c1-32) = $(grep ^Cap /proc/self/status | md5sum | cut -c1-32) ] || echo caps
            ulimit -n; grep NoNewPrivs /proc/self/status; tail -n 1 /proc/self/cgroup; hostname; ls /proc/self/fd | wc -l";
        let mut process = process_of(&["sh", "-c", script]);
        process.as_object_mut().unwrap().remove("capabilities");
        let output = guest.exec("c", "e", &process).await;
        assert_eq!(output.stdout, "77\nNoNewPrivs:\t1\n0::/\ntesthost\n4\n", "{}", output.stderr);
        let mut user = process_of(&["sh", "-c", "id -u; pwd; exit 5"]);
        user["user"] = serde_json::json!({"uid": 42, "gid": 42});
        user["cwd"] = serde_json::json!("/tmp");
        let output = guest.exec("c", "e", &user).await;
        assert_eq!((output.code, output.stdout.as_str()), (5, "42\n/tmp\n"));
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn an_exec_that_cannot_run_says_why_and_can_be_deleted() {
    with_guest(|guest| async {
        sleeper(&guest, "c").await;
        let before = guest.footprint();
        guest.create_exec("c", "e", &process_of(&["nonsense"]), [false, true, true]).await.unwrap();
        let again = guest.create_exec("c", "e", &process_of(&["true"]), [false; 3]).await;
        assert_eq!(refusal(again).0, Code::ALREADY_EXISTS);
        let (code, message) = refusal(guest.start_process("c", "e").await);
        assert_eq!(code, Code::INVALID_ARGUMENT);
        assert_eq!(message, r#"exec: "nonsense": executable file not found in $PATH"#);
        assert_eq!(guest.wait("c", "e").await.unwrap().code, 127);
        guest.delete_exec("c", "e").await.unwrap();
        let mut nowhere = process_of(&["true"]);
        nowhere["cwd"] = serde_json::json!("/nowhere");
        guest.create_exec("c", "e", &nowhere, [false; 3]).await.unwrap();
        let (_, message) = refusal(guest.start_process("c", "e").await);
        assert_eq!(message, r#"chdir to cwd ("/nowhere") failed: no such file or directory"#);
        guest.wait("c", "e").await.unwrap();
        guest.delete_exec("c", "e").await.unwrap();
        assert_eq!(refusal(guest.wait("c", "e").await).0, Code::NOT_FOUND);
        assert_eq!(guest.footprint(), before);
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn the_end_of_init_ends_its_execs_and_is_reported_after_theirs() {
    with_guest(|guest| async {
        sleeper(&guest, "c").await;
        guest.create_exec("c", "e", &process_of(&["sleep", "1000"]), [false; 3]).await.unwrap();
        guest.start_process("c", "e").await.unwrap();
        assert_eq!(refusal(guest.delete_exec("c", "e").await).0, Code::FAILED_PRECONDITION);
        guest.signal("c", "", libc::SIGKILL, false).await.unwrap();
        assert_eq!(guest.wait("c", "").await.unwrap().code, 137);
        // Already known: it came first.
        let exec = tokio::time::timeout(std::time::Duration::from_secs(1), guest.wait("c", "e")).await;
        assert_eq!(exec.unwrap().unwrap().code, 137);
        let late = guest.create_exec("c", "f", &process_of(&["true"]), [false; 3]).await;
        assert_eq!(refusal(late).0, Code::FAILED_PRECONDITION);
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn signals_reach_one_process_or_all() {
    with_guest(|guest| async {
        let script = "trap 'echo init; exit 4' TERM; echo ready; while :; do sleep 0.05; done";
        guest.create("c", &spec(&["sh", "-c", script]), [false, true, false]).await.unwrap();
        let mut stdout = guest.attach("c", None, hull_protocol::agent::StreamKind::Stdout).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        let mut line = [0; 6];
        tokio::io::AsyncReadExt::read_exact(&mut stdout, &mut line).await.unwrap();
        guest.create_exec("c", "e", &process_of(&["sleep", "1000"]), [false; 3]).await.unwrap();
        guest.start_process("c", "e").await.unwrap();
        guest.create_exec("c", "f", &process_of(&["sleep", "1000"]), [false; 3]).await.unwrap();
        guest.start_process("c", "f").await.unwrap();
        guest.signal("c", "e", libc::SIGUSR1, false).await.unwrap();
        assert_eq!(guest.wait("c", "e").await.unwrap().code, 128 + libc::SIGUSR1.unsigned_abs());
        guest.signal("c", "", libc::SIGTERM, true).await.unwrap();
        assert_eq!(guest.wait("c", "").await.unwrap().code, 4);
        assert_eq!(guest.wait("c", "f").await.unwrap().code, 128 + libc::SIGTERM.unsigned_abs());
        let bad = guest.signal("c", "", 65, false).await;
        assert_eq!(refusal(bad).0, Code::INVALID_ARGUMENT);
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn a_paused_container_stands_still_and_can_be_killed() {
    with_guest(|guest| async {
        sleeper(&guest, "c").await;
        let request = guest::container("c");
        guest.client.pause_container(guest::context(), &request).await.unwrap();
        guest.create_exec("c", "e", &process_of(&["true"]), [false; 3]).await.unwrap();
        assert_eq!(refusal(guest.start_process("c", "e").await).0, Code::FAILED_PRECONDITION);
        guest.client.resume_container(guest::context(), &request).await.unwrap();
        assert_eq!(
            refusal(guest.client.resume_container(guest::context(), &request).await).0,
            Code::FAILED_PRECONDITION
        );
        guest.start_process("c", "e").await.unwrap();
        assert_eq!(guest.wait("c", "e").await.unwrap().code, 0);
        guest.client.pause_container(guest::context(), &request).await.unwrap();
        guest.signal("c", "", libc::SIGKILL, true).await.unwrap();
        assert_eq!(guest.wait("c", "").await.unwrap().code, 137);
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn processes_are_listed_and_statistics_have_their_use() {
    with_guest(|guest| async {
        guest.create("c", &spec(&["sh", "-c", "sleep 1000 & sleep 1000 & wait"]), [false; 3]).await.unwrap();
        let pid = guest.start_process("c", "").await.unwrap();
        let request = guest::container("c");
        // The shell needs a moment for its children: ask until they are there, at most so often.
        let mut pids = Vec::new();
        for _ in 0..1000 {
            pids = guest.client.list_processes(guest::context(), &request).await.unwrap().pids;
            if pids.len() == 3 {
                break;
            }
        }
        assert!(pids.len() == 3 && pids.contains(&pid), "{pids:?}");
        let stats = guest.client.container_stats(guest::context(), &request).await.unwrap();
        assert!(stats.cpu.usage_usec > 0);
        guest.delete("c").await.unwrap();
        assert_eq!(guest.footprint().children, 0);
        guest
    });
}

#[test]
fn a_created_container_can_be_deleted_and_its_name_used_again() {
    with_guest(|guest| async {
        let before = guest.footprint();
        for _ in 0..3 {
            guest.create("c", &spec(&["true"]), [true; 3]).await.unwrap();
            assert_eq!(guest.container_cgroups(), ["c"]);
            let twice = guest.create("c", &spec(&["true"]), [true; 3]).await;
            assert_eq!(refusal(twice).0, Code::ALREADY_EXISTS);
            guest.delete("c").await.unwrap();
        }
        assert_eq!(refusal(guest.delete("c").await).0, Code::NOT_FOUND);
        assert_eq!(
            refusal(guest.create("../c", &spec(&["true"]), [true; 3]).await).0,
            Code::INVALID_ARGUMENT
        );
        assert_eq!(guest.footprint(), before);
        guest
    });
}

#[test]
fn two_hundred_rounds_leave_nothing() {
    with_guest(|guest| async {
        guest.shell("true").await;
        let before = guest.footprint();
        for round in 0..200 {
            let id = format!("c{round}");
            guest.create(&id, &spec(&["true"]), [true; 3]).await.unwrap();
            guest.start_process(&id, "").await.unwrap();
            assert_eq!(guest.wait(&id, "").await.unwrap().code, 0);
            guest.delete(&id).await.unwrap();
        }
        assert_eq!(guest.footprint(), before);
        guest
    });
}

#[test]
fn limits_are_kept_where_the_kernel_offers_them() {
    with_guest(|guest| async {
        let path = format!(
            "/proc/{}/root{}/cgroup/cgroup.controllers",
            guest.agent_pid(),
            guest.directory.path().display()
        );
        let controllers = std::fs::read_to_string(path).unwrap();
        let has = |name| controllers.split_whitespace().any(|controller| controller == name);
        let mut limited = spec(&[
            "sh",
            "-c",
            "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max; \
            head -c 64m /dev/zero | tail -c 64m > /dev/null",
        ]);
        limited["linux"]["resources"] = serde_json::json!({
            "memory": {"limit": 16 << 20, "swap": 16 << 20}, "pids": {"limit": 20}, "cpu": {"quota": 50000, "period": 100_000}});
        let created = guest.create("c", &limited, [false, true, true]).await;
        if !(has("memory") && has("pids") && has("cpu")) {
            // A limit that cannot be kept is refused, never forgotten.
            let (code, message) = refusal(created);
            assert_eq!(code, Code::UNIMPLEMENTED, "{message}");
            assert!(guest.container_cgroups().is_empty());
            return guest;
        }
        created.unwrap();
        let output = guest.collect("c").await;
        assert_eq!(output.stdout, "16777216\n20\n50000 100000\n");
        let status = guest.wait("c", "").await.unwrap();
        assert!(status.oom_killed, "{output:?}");
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn a_host_that_hangs_up_ends_everything() {
    with_guest(|guest| async {
        sleeper(&guest, "c").await;
        let second = Guest::start().await;
        sleeper(&second, "c").await;
        second.hang_up().await;
        guest
    });
}

/// The cgroup that a process of container `c` is in, as it sees that itself.
async fn cgroup_of_exec(guest: &Guest, exec: &str, cgroup: &str) -> Result<String, ttrpc::Error> {
    let process = spec(&["grep", "^0::", "/proc/self/cgroup"])["process"].take();
    guest.create_exec_in("c", exec, &process, [false, true, true], cgroup).await?;
    Ok(guest.collect_exec("c", exec).await.stdout)
}

#[test]
fn an_exec_goes_into_a_cgroup_below_the_containers() {
    with_guest(|guest| async {
        guest.create("c", &spec(&["sleep", "1000"]), [false; 3]).await.unwrap();
        guest.create("other", &spec(&["sleep", "1000"]), [false; 3]).await.unwrap();
        for id in ["c", "other"] {
            guest.start_process(id, "").await.unwrap();
        }
        let own = guest.cgroup_directory().join("c");
        std::fs::create_dir_all(own.join("workers/one")).unwrap();
        for (path, seen) in [("workers", "/workers"), ("/workers/one", "/workers/one"), ("", "/")] {
            assert_eq!(cgroup_of_exec(&guest, "e", path).await.unwrap(), format!("0::{seen}\n"), "{path:?}");
        }
        for (path, words) in [
            ("absent", "the container has no cgroup \"absent\" below its own"),
            ("cgroup.procs", "the container has no cgroup \"cgroup.procs\" below its own"),
            ("../other", "\"../other\" is not a sub cgroup path"),
            ("/workers/../../other", "\"/workers/../../other\" is not a sub cgroup path"),
        ] {
            let (code, message) = refusal(cgroup_of_exec(&guest, "e", path).await);
            assert_eq!((code, message.as_str()), (Code::INVALID_ARGUMENT, words));
        }
        // One that goes between creation and start: the exec ends as one that could not be made, and its id is free again.
        let process = spec(&["true"])["process"].take();
        guest.create_exec_in("c", "late", &process, [false; 3], "workers/one").await.unwrap();
        std::fs::remove_dir(own.join("workers/one")).unwrap();
        let (code, _) = refusal(guest.start_process("c", "late").await);
        assert_eq!(code, Code::INVALID_ARGUMENT);
        guest.delete_exec("c", "late").await.unwrap();
        guest.delete("c").await.unwrap();
        guest.delete("other").await.unwrap();
        guest
    });
}

/// As a service manager in a container does: no process may stay in a cgroup that gives controllers to those below.
#[test]
fn an_exec_into_a_divided_cgroup_goes_where_the_init_is() {
    with_guest(|guest| async {
        guest.create("c", &spec(&["sleep", "1000"]), [false; 3]).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        let own = guest.cgroup_directory().join("c");
        let init = std::fs::read_to_string(own.join("cgroup.procs")).unwrap();
        for name in ["init", "divided/leaf"] {
            std::fs::create_dir_all(own.join(name)).unwrap();
        }
        std::fs::write(own.join("init/cgroup.procs"), init).unwrap();
        let controllers = std::fs::read_to_string(own.join("cgroup.controllers")).unwrap();
        let Some(controller) = ["memory", "pids"].into_iter().find(|name| controllers.contains(name)) else {
            // This kernel's cgroups have none to give.
            guest.delete("c").await.unwrap();
            return guest;
        };
        for directory in [own.clone(), own.join("divided")] {
            std::fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
        }
        assert_eq!(cgroup_of_exec(&guest, "e", "").await.unwrap(), "0::/init\n");
        assert_eq!(cgroup_of_exec(&guest, "e", "divided/leaf").await.unwrap(), "0::/divided/leaf\n");
        let process = spec(&["true"])["process"].take();
        guest.create_exec_in("c", "none", &process, [false; 3], "divided").await.unwrap();
        let (code, message) = refusal(guest.start_process("c", "none").await);
        assert_eq!(code, Code::FAILED_PRECONDITION, "{message}");
        assert!(message.contains("the cgroup is divided"), "{message}");
        guest.delete("c").await.unwrap();
        guest
    });
}
