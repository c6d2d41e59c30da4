//! Requests whose work hangs: each is answered in time, with the right code, and nobody else waits for it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod guest;

use std::time::{Duration, Instant};

use guest::{Guest, context, process, refusal, spec, with_guest};
use hull_protocol::agent::ANSWER_DEADLINE;
use hull_protocol::agent::api::agent as api;
use protobuf::Message;
use serde_json::{Value, json};
use ttrpc::Code;

/// What a request takes that waits for nothing, on a slow machine.
const AT_ONCE: Duration = Duration::from_secs(10);

fn with_hanging_hook(kind: &str) -> Value {
    let mut spec = spec(&["true"]);
    spec["hooks"] = json!({kind: [{"path": "/bin/sh", "args": ["sh", "-c", "sleep 1000"]}]});
    spec
}

/// Writes a file of a container's cgroup, as somebody who stops or starts it behind the agent's back.
fn write_cgroup(guest: &Guest, id: &str, file: &str, value: &str) {
    std::fs::write(guest.cgroup_directory().join(id).join(file), value).unwrap();
}

/// That all of a container's life takes no longer than it should, again and again until `end`.
async fn others_are_served(guest: &Guest, end: Instant) {
    let mut rounds = 0;
    while Instant::now() < end || rounds == 0 {
        let start = Instant::now();
        guest.create("other", &spec(&["sh", "-c", "exit 3"]), [false; 3]).await.unwrap();
        guest.start_process("other", "").await.unwrap();
        assert_eq!(guest.wait("other", "").await.unwrap().code, 3);
        guest.delete("other").await.unwrap();
        // About those that hang, too.
        let of = guest::container("frozen");
        assert_eq!(guest.client.list_processes(context(), &of).await.unwrap().pids.len(), 2);
        guest.client.container_stats(context(), &of).await.unwrap();
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
        rounds += 1;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

#[test]
fn a_request_that_hangs_is_answered_in_time_and_nobody_waits_for_it() {
    with_guest(|guest| async {
        guest.create("frozen", &spec(&["sleep", "1000"]), [false; 3]).await.unwrap();
        guest.start_process("frozen", "").await.unwrap();
        guest.create("hooked", &with_hanging_hook("startContainer"), [false; 3]).await.unwrap();
        let before = guest.footprint();
        write_cgroup(&guest, "frozen", "cgroup.freeze", "1");
        let sleep = spec(&["sleep", "1000"])["process"].take();
        guest.create_exec("frozen", "e", &sleep, [false; 3]).await.unwrap();

        let start = Instant::now();
        let hanging = with_hanging_hook("createContainer");
        let (created, started, executed, ()) = tokio::join!(
            guest.create("hanging", &hanging, [false; 3]),
            guest.start_process("hooked", ""),
            guest.start_process("frozen", "e"),
            async {
                // The exec's process is there and does not run.
                tokio::time::sleep(Duration::from_secs(2)).await;
                others_are_served(&guest, start + Duration::from_secs(20)).await;
            },
        );
        assert!(start.elapsed() < ANSWER_DEADLINE, "{:?}", start.elapsed());
        for refused in [refusal(created), refusal(started), refusal(executed)] {
            assert_eq!(refused.0, Code::DEADLINE_EXCEEDED, "{refused:?}");
            assert!(refused.1.ends_with("took too long"), "{refused:?}");
        }
        // Nothing is left half made: what was given up is gone or has ended, and what hangs no longer goes on.
        assert_eq!(refusal(guest.wait("hanging", "").await).0, Code::NOT_FOUND);
        assert_eq!(guest.wait("hooked", "").await.unwrap().code, 137);
        assert_eq!(guest.wait("frozen", "e").await.unwrap().code, 127);
        guest.delete_exec("frozen", "e").await.unwrap();
        write_cgroup(&guest, "frozen", "cgroup.freeze", "0");
        let echo = spec(&["echo", "again"])["process"].take();
        assert_eq!(guest.exec("frozen", "e", &echo).await.stdout, "again\n");
        // The hooked one's init has ended, and it is still there.
        let after = guest.footprint();
        assert_eq!((after.cgroups, after.mounts), (before.cgroups, before.mounts));
        guest.delete("hooked").await.unwrap();
        guest.delete("frozen").await.unwrap();
        assert!(guest.container_cgroups().is_empty());
        guest
    });
}

#[test]
fn the_work_goes_on_when_its_caller_does_not_wait() {
    with_guest(|guest| async {
        let mut slow = spec(&["sleep", "1000"]);
        slow["hooks"] = json!({"createContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "sleep 3"]}]});
        let request = guest.create_request("c", &slow, [false; 3], Some(1 << 20));
        let impatient = ttrpc::context::with_timeout(1_000_000_000);
        let start = Instant::now();
        guest.client.create_container(impatient, &request).await.unwrap_err();
        assert!(start.elapsed() > Duration::from_millis(900), "it was refused for another reason");
        // The id is taken, and the container comes to be: one who asks again does not get a second.
        assert_eq!(refusal(guest.create("c", &slow, [false; 3]).await).0, Code::ALREADY_EXISTS);
        let deadline = Instant::now() + Duration::from_secs(30);
        while guest.start_process("c", "").await.is_err() {
            assert!(Instant::now() < deadline, "the container does not come to be");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn bytes_that_are_no_request_are_an_invalid_argument() {
    guest::with_agent(|control| async move {
        let client = ttrpc::r#async::Client::new(ttrpc::r#async::transport::Socket::new(control));
        let request = |method: &str, payload: Vec<u8>| ttrpc::proto::Request {
            service: "hull.agent.v1.Agent".to_owned(),
            method: method.to_owned(),
            payload,
            ..Default::default()
        };
        for method in ["Info", "CreateContainer", "StartProcess", "DeleteContainer"] {
            let (code, message) = refusal(client.request(request(method, vec![0xff; 9])).await);
            assert_eq!(code, Code::INVALID_ARGUMENT, "{message}");
            assert!(message.starts_with("the request cannot be read: "), "{message}");
        }
        // One that waits has no deadline, and is refused at once where there is nothing to wait for.
        let nobody = process("nobody", "").write_to_bytes().unwrap();
        assert_eq!(refusal(client.request(request("WaitProcess", nobody)).await).0, Code::NOT_FOUND);
        let end = api::ShutdownRequest::new().write_to_bytes().unwrap();
        client.request(request("Shutdown", end)).await.unwrap();
    });
}
