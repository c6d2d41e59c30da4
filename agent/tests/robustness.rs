//! An agent that has no room and too much to do: it says so, goes on, and all is well again when the cause is gone.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod guest;

use std::process::Command;

use futures::future::join_all;
use guest::{Guest, container, context, process, refusal, spec, with_guest};
use hull_protocol::agent::api::agent as api;
use serde_json::json;
use ttrpc::Code;

/// Requests that are under way at once.
const AT_ONCE: usize = 500;
/// How often so many.
const WAVES: usize = 10;

/// A command in the agent's mount namespace.
fn in_the_guest(guest: &Guest, words: &[&str]) {
    let pid = guest.agent_pid().to_string();
    let status = Command::new("nsenter").args(["-t", &pid, "-m"]).args(words).status().unwrap();
    assert!(status.success(), "{words:?}: {status}");
}

/// The file system on which the agent makes containers' directories has room for no more files, as when a privileged container has
/// filled it.
#[test]
fn a_full_place_of_the_agents_own_refuses_and_is_no_harm() {
    with_guest(|guest| async {
        guest.create("before", &spec(&["sleep", "1000"]), [false; 3]).await.unwrap();
        guest.start_process("before", "").await.unwrap();
        let before = guest.footprint();
        let place = guest.directory.path().join("run").display().to_string();
        let count = Command::new("nsenter")
            .args(["-t", &guest.agent_pid().to_string(), "-m", "stat", "-f", "-c", "%c %d", &place])
            .output()
            .unwrap();
        let count = String::from_utf8(count.stdout).unwrap();
        let [all, free] = count.split_whitespace().map(|n| n.parse::<u64>().unwrap()).collect::<Vec<_>>()[..]
        else {
            panic!("{count}")
        };
        for room in 0..3 {
            in_the_guest(
                &guest,
                &["mount", "-o", &format!("remount,nr_inodes={}", all - free + room), &place],
            );
            for _ in 0..3 {
                let (_, message) = refusal(guest.create("c", &spec(&["true"]), [false; 3]).await);
                assert!(message.to_lowercase().contains("no space left on device"), "{message}");
                assert!(message.contains("containers/c"), "it says where: {message}");
            }
            // What runs goes on, and what needs no room works.
            let output = guest.exec("before", "e", &spec(&["echo", "there"])["process"].take()).await;
            assert_eq!((output.code, output.stdout.as_str()), (0, "there\n"));
        }
        assert_eq!(guest.footprint(), before, "nothing is left of what was refused");
        in_the_guest(&guest, &["mount", "-o", &format!("remount,nr_inodes={all}"), &place]);
        assert_eq!(guest.shell("echo fine").await.stdout, "fine\n");
        guest.delete("before").await.unwrap();
        guest
    });
}

/// The disk of a container's writable layer is full.
#[test]
fn a_full_disk_refuses_what_needs_room_there() {
    with_guest(|guest| async {
        let disk = guest.disk().parent().unwrap().join("small");
        std::fs::create_dir(&disk).unwrap();
        in_the_guest(
            &guest,
            &["mount", "-t", "tmpfs", "-o", "nr_inodes=200", "small", &disk.display().to_string()],
        );
        let before = guest.footprint();
        let mut request = guest.create_request("full", &spec(&["sleep", "1000"]), [false; 3], None);
        request.rootfs.mut_or_insert_default().mut_ext4().serial = "small".to_owned();
        guest.client.create_container(context(), &request).await.unwrap();
        guest.start_process("full", "").await.unwrap();
        let shell = |script: &str| spec(&["sh", "-c", script])["process"].take();
        let fill = "i=0; while touch /tmp/$i 2> /tmp/0; do i=$((i + 1)); done; cat /tmp/0";
        let said = guest.exec("full", "e", &shell(fill)).await.stdout;
        assert!(said.ends_with("No space left on device\n"), "{said}");
        // What needs no room runs.
        assert_eq!(guest.exec("full", "e", &shell("echo there")).await.stdout, "there\n");
        guest.delete("full").await.unwrap();
        // Another container cannot be made on it.
        for _ in 0..3 {
            let (_, message) = refusal(guest.client.create_container(context(), &request).await);
            assert!(message.ends_with("No space left on device"), "{message}");
        }
        // With room again it can.
        in_the_guest(&guest, &["mount", "-o", "remount,nr_inodes=400", &disk.display().to_string()]);
        guest.client.create_container(context(), &request).await.unwrap();
        guest.start_process("full", "").await.unwrap();
        assert_eq!(guest.exec("full", "e", &shell("mkdir /new && echo made")).await.stdout, "made\n");
        guest.delete("full").await.unwrap();
        assert_eq!(guest.footprint(), before);
        guest
    });
}

/// Thousands of requests at once, most of them wrong: each is answered, by an error that fits, and a container beside them does not
/// wait.
#[test]
fn a_flood_of_requests_is_answered() {
    with_guest(|guest| async {
        guest.create("beside", &spec(&["cat"]), [true, true, false]).await.unwrap();
        guest.start_process("beside", "").await.unwrap();
        let before = guest.footprint();
        for wave in 0..WAVES {
            let flood = join_all((0..AT_ONCE).map(|number| flooded(&guest, wave, number)));
            let beside = async {
                let said = guest.exec("beside", "e", &spec(&["echo", "there"])["process"].take()).await;
                assert_eq!(said.stdout, "there\n");
            };
            tokio::join!(flood, beside);
        }
        assert_eq!(guest.footprint(), before);
        guest.delete("beside").await.unwrap();
        guest
    });
}

/// One request of many kinds.
async fn flooded(guest: &Guest, wave: usize, number: usize) {
    let id = format!("c{wave}-{number}");
    let code = match number % 10 {
        0 => {
            let request = api::InfoRequest {
                api_version: hull_protocol::agent::API_VERSION,
                ..api::InfoRequest::default()
            };
            guest.client.info(context(), &request).await.unwrap();
            return;
        }
        1 => {
            guest.client.container_stats(context(), &container("beside")).await.unwrap();
            return;
        }
        2 => refusal(guest.create(&id, &json!({"ociVersion": "1.0.2"}), [false; 3]).await).0,
        3 => refusal(guest.create(&id, &json!([number]), [false; 3]).await).0,
        4 => refusal(guest.create("../escape", &spec(&["true"]), [false; 3]).await).0,
        5 => refusal(guest.create("beside", &spec(&["true"]), [false; 3]).await).0,
        6 => refusal(guest.create_exec("beside", "bad", &json!({"args": number}), [false; 3]).await).0,
        7 => refusal(guest.wait(&id, "").await).0,
        8 => refusal(guest.client.pause_container(context(), &container(&id)).await).0,
        // In each wave some containers that come and go.
        _ if number % 100 == 9 => {
            guest.create(&id, &spec(&["true"]), [false; 3]).await.unwrap();
            guest.start_process(&id, "").await.unwrap();
            assert_eq!(guest.wait(&id, "").await.unwrap().code, 0);
            guest.delete(&id).await.unwrap();
            return;
        }
        _ => refusal(guest.client.delete_exec(context(), &process("beside", &id)).await).0,
    };
    let fits = match number % 10 {
        2..=4 | 6 => [Code::INVALID_ARGUMENT, Code::UNIMPLEMENTED].contains(&code),
        5 => code == Code::ALREADY_EXISTS,
        _ => code == Code::NOT_FOUND,
    };
    assert!(fits, "{number}: {code:?}");
}
