//! The sandbox API: a pod without a container that stands for it, in every state; with real network namespaces. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/sandbox.rs"]
mod sandbox;
mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use containerd_shim_protos::api::Status;
use containerd_shim_protos::sandbox_api::{CreateSandboxRequest, PlatformRequest};
use containerd_shim_protos::sandbox_async::SandboxClient;
use hull_shim::client::{Code as ClientCode, Process};
use hull_shim::record::{ExitRecord, Record, ShimRecord};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protobuf::MessageField;
use sandbox::*;
use serde_json::json;
use support::soon;
use ttrpc::asynchronous::Client;
use ttrpc::proto::Code;

fn kill_9(pid: u32) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn every_request_in_every_state_has_its_code() {
    let bare = Bare::new("");
    assert!(!bare.pod.bundle().join("config.json").exists());
    let served = bare.serve().await;
    let codes = |codes: [Code; 6]| -> Codes {
        let [create, start, platform, status, ping, metrics] = codes;
        [
            ("create", create),
            ("start", start),
            ("platform", platform),
            ("status", status),
            ("ping", ping),
            ("metrics", metrics),
            ("shutdown of another", Code::NOT_FOUND),
        ]
    };
    let (ok, gone, not_now) = (Code::OK, Code::NOT_FOUND, Code::FAILED_PRECONDITION);
    let foreign = codes([Code::INVALID_ARGUMENT, gone, gone, gone, gone, gone]);

    // None yet.
    assert_eq!(served.codes("another").await, foreign);
    for result in [served.stop(ID, 0).await.map(drop), served.wait(ID).await.map(drop)] {
        assert_eq!(code(&result.unwrap_err()), gone);
    }
    assert_eq!(code(&served.status(ID).await.unwrap_err()), gone);

    served.create().await.unwrap();
    let status = served.status(ID).await.unwrap();
    assert_eq!((status.state.as_str(), status.pid > 0), ("SANDBOX_NOTREADY", true));
    // A creation in it that is not the first.
    assert_eq!(code(&served.create().await.unwrap_err()), Code::ALREADY_EXISTS);

    let started = served.start().await.unwrap();
    assert_eq!(started.pid, status.pid);
    assert_eq!(started.created_at, status.created_at);
    let ready = codes([Code::ALREADY_EXISTS, not_now, ok, ok, ok, ok]);
    assert_eq!(served.codes(ID).await, ready);
    assert_eq!(served.codes("another").await, foreign);
    let status = served.status(ID).await.unwrap();
    assert_eq!(status.state, "SANDBOX_READY");
    let info: serde_json::Value = serde_json::from_str(&status.info["hull"]).unwrap();
    assert_eq!((&info["phase"], &info["vcpus"]), (&json!("running"), &json!(1)));
    let platform = PlatformRequest { sandbox_id: ID.into(), ..Default::default() };
    assert_eq!(served.sandbox.platform(context(), &platform).await.unwrap().platform.os, "linux");

    // To the task service it is none of its own.
    assert!(served.tasks.state(Process::init(ID)).await.unwrap_err().is_not_found());
    assert!(served.tasks.delete(Process::init(ID)).await.unwrap_err().is_not_found());
    soon(served.tasks.shutdown(ID)).await.unwrap();
    assert_eq!(served.state().await, "SANDBOX_READY", "a pod is not ended by its containers' service");

    let (waited, stopped) = tokio::join!(served.wait(ID), served.stop(ID, 0));
    stopped.unwrap();
    assert_eq!(waited.unwrap().exit_status, 0);
    assert!(!fs::exists(format!("/proc/{}", started.pid)).unwrap(), "the VM is gone when it has stopped");
    assert_eq!(bare.netns.links(), r#"["lo", "eth0@if2"] []"#);
    let stopped = codes([Code::ALREADY_EXISTS, not_now, ok, ok, not_now, gone]);
    assert_eq!(served.codes(ID).await, stopped);
    let status = served.status(ID).await.unwrap();
    assert_eq!((status.state.as_str(), status.exited_at.is_some()), ("SANDBOX_NOTREADY", true));
    for _ in 0..2 {
        served.stop(ID, 1).await.unwrap();
        assert_eq!(served.wait(ID).await.unwrap().exit_status, 0);
    }
    served.shut_down(ID).await.unwrap();
    bare.assert_nothing_left();
    // What is gone can be cleaned up all the same, also twice.
    for _ in 0..2 {
        bare.delete(ID, bare.pod.bundle());
    }
}

#[tokio::test]
async fn what_the_pod_is_to_be_reaches_its_vm_and_its_containers() {
    let bare = Bare::new("");
    let served = bare.serve().await;
    let pid = served.ready().await;
    let pod = fs::read_to_string(bare.pod.file("pod")).unwrap();
    let sysctls =
        "net.core.somaxconn=9,net.ipv4.ip_unprivileged_port_start=0,net.ipv4.ping_group_range=0 2147483647";
    assert_eq!(pod, format!("web-0 {sysctls}\n"));
    let network = fs::read_to_string(bare.pod.file("network")).unwrap();
    assert!(network.starts_with("device net0 mtu 1450\n"), "{network}");
    let identity = |path: &str| fs::metadata(path).map(|found| (found.dev(), found.ino())).unwrap();
    assert_eq!(identity(&format!("/proc/{pid}/ns/net")), identity(&bare.netns.path()));
    assert_eq!(
        bare.pod.cgroups().len(),
        bare.pod.cgroups().iter().filter(|one| one.join(ID).is_dir()).count()
    );

    let web = served.member("web", &["sleep", "1000"]).await;
    assert_ne!(web, pid);
    let files = fs::read_to_string(bare.pod.file("files")).unwrap();
    let wanted = [
        r#"resolv.conf "search a.example b.example\nnameserver 192.0.2.1\nnameserver 192.0.2.2\noptions ndots:5\n""#,
        r#"hosts ""#,
        r#"hostname "web-0\n""#,
    ];
    for (line, wanted) in files.lines().zip(wanted) {
        assert!(line.starts_with(wanted), "{files}");
    }
    assert_eq!(files.lines().count(), 3);
    let record = ShimRecord::read(&bare.pod.file("web")).unwrap().unwrap();
    assert_eq!((record.sandbox.as_deref(), record.vmm_pid), (Some(ID), Some(pid)));
    served.end().await;
}

#[tokio::test]
async fn containers_come_and_go_and_end_with_the_pod() {
    let bare = Bare::new("");
    let containerd = bare.pod.containerd();
    let served = bare.serve().await;
    let refused = soon(served.tasks.create(&bare.pod.member("early", &["true"]))).await.unwrap_err();
    assert_eq!(refused.code(), Some(ClientCode::FAILED_PRECONDITION));
    served.ready().await;
    for round in 0..3 {
        served.member("web", &["sh", "-c", "exit 4"]).await;
        let web = Process::init("web");
        assert_eq!(soon(served.tasks.wait(web)).await.unwrap().exit_status, 4, "round {round}");
        soon(served.tasks.delete(web)).await.unwrap();
        // Not asked for where containerd has a sandbox, and of no consequence.
        soon(served.tasks.shutdown("web")).await.unwrap();
    }
    for id in ["one", "two"] {
        served.member(id, &["sleep", "1000"]).await;
        assert_eq!(served.tasks.state(Process::init(id)).await.unwrap().status.unwrap(), Status::RUNNING);
    }
    served.stop(ID, 0).await.unwrap();
    for id in ["one", "two"] {
        assert_eq!(soon(served.tasks.wait(Process::init(id))).await.unwrap().exit_status, 137, "{id}");
        soon(served.tasks.delete(Process::init(id))).await.unwrap();
    }
    served.shut_down(ID).await.unwrap();
    bare.assert_nothing_left();
    // No event is a sandbox's: its client waits for it.
    let told = containerd.told();
    assert!(told.iter().all(|event| event.container != ID), "{told:?}");
    assert!(told.iter().any(|event| event.topic == "delete" && event.container == "two"), "{told:?}");
}

#[tokio::test]
async fn the_death_of_the_vm_is_seen_and_can_be_cleaned_up() {
    let bare = Bare::new("");
    let served = bare.serve().await;
    let pid = served.ready().await;
    served.member("web", &["sleep", "1000"]).await;
    kill_9(pid);
    assert_eq!(served.wait(ID).await.unwrap().exit_status, 137);
    assert_eq!(served.state().await, "SANDBOX_NOTREADY");
    assert_eq!(soon(served.tasks.wait(Process::init("web"))).await.unwrap().exit_status, 137);
    let late = soon(served.tasks.create(&bare.pod.member("late", &["true"]))).await.unwrap_err();
    assert_eq!(late.code(), Some(ClientCode::FAILED_PRECONDITION));
    soon(served.tasks.delete(Process::init("web"))).await.unwrap();
    served.stop(ID, 0).await.unwrap();
    assert_eq!(ExitRecord::read(bare.pod.bundle()).unwrap().unwrap().exit_code, 137);
    served.shut_down(ID).await.unwrap();
    bare.assert_nothing_left();
}

#[tokio::test]
async fn what_a_dead_shim_leaves_is_cleaned_up_from_disk() {
    let bare = Bare::new("");
    let served = bare.serve().await;
    served.ready().await;
    served.member("web", &["sleep", "1000"]).await;
    let record = ShimRecord::read(bare.pod.bundle()).unwrap().unwrap();
    // A container that is cleaned up while the pod lives harms nobody.
    bare.delete("web", &bare.pod.file("web"));
    assert_eq!(served.state().await, "SANDBOX_READY");
    kill_9(record.shim_pid);
    for _ in 0..2 {
        bare.delete("web", &bare.pod.file("web"));
        bare.delete(ID, bare.pod.bundle());
    }
    bare.assert_nothing_left();
    for bundle in [bare.pod.bundle().to_owned(), bare.pod.file("web")] {
        assert_eq!(ExitRecord::read(&bundle).unwrap().unwrap().exit_code, 137);
    }
    // The next one works.
    let served = bare.serve().await;
    served.ready().await;
    served.end().await;
}

#[tokio::test]
async fn a_pod_that_fails_leaves_an_error_and_nothing_else() {
    for (fault, words) in [("boot", "ended without a word"), ("configure-pod", "ended without a word")] {
        let bare = Bare::new(fault);
        let served = bare.serve().await;
        let error = served.create().await.unwrap_err();
        assert!(error.to_string().contains(words), "{fault}: {error}");
        assert_eq!(code(&served.status(ID).await.unwrap_err()), Code::NOT_FOUND);
        // As containerd does after a failure.
        served.shut_down(ID).await.unwrap();
        bare.assert_nothing_left();
    }
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_name() {
    let bare = Bare::new("");
    let served = bare.serve().await;
    let config = || bare.config();
    let changed = |change: fn(&mut PodSandboxConfig)| {
        let mut config = config();
        change(&mut config);
        bare.request_of(&config)
    };
    let mut requests = vec![
        (
            changed(|it| it.annotations = [("dev.hull.vm.vcpus".into(), "9".into())].into()),
            Code::INVALID_ARGUMENT,
            "dev.hull.vm.vcpus",
        ),
        (
            changed(|it| it.linux.mut_or_insert_default().cgroup_parent = "/a/../b".into()),
            Code::INVALID_ARGUMENT,
            "..",
        ),
        (
            changed(|it| {
                it.linux.mut_or_insert_default().sysctls = [("kernel.shmmax".into(), "9".into())].into();
            }),
            Code::UNIMPLEMENTED,
            "kernel.shmmax",
        ),
        (
            changed(|it| it.dns_config.mut_or_insert_default().servers = vec!["x\nsearch evil".into()]),
            Code::UNIMPLEMENTED,
            "DNS",
        ),
        (
            changed(|it| {
                let context = it.linux.mut_or_insert_default().security_context.mut_or_insert_default();
                context.namespace_options.mut_or_insert_default().network = NamespaceMode::NODE.into();
            }),
            Code::UNIMPLEMENTED,
            "hostNetwork is not supported",
        ),
        (
            changed(|it| {
                let context = it.linux.mut_or_insert_default().security_context.mut_or_insert_default();
                let options = context.namespace_options.mut_or_insert_default();
                options.userns_options = MessageField::some(UserNamespace::new());
            }),
            Code::UNIMPLEMENTED,
            "user namespace",
        ),
    ];
    let mut with = |code, words, change: &dyn Fn(&mut CreateSandboxRequest)| {
        let mut request = bare.request();
        change(&mut request);
        requests.push((request, code, words));
    };
    with(Code::UNIMPLEMENTED, "hostNetwork is not supported", &|it| it.netns_path.clear());
    with(Code::UNIMPLEMENTED, "hostNetwork is not supported", &|it| {
        it.netns_path = "/proc/self/ns/net".into();
    });
    with(Code::UNKNOWN, "/no/such/netns", &|it| it.netns_path = "/no/such/netns".into());
    with(Code::INVALID_ARGUMENT, "options are missing", &|it| it.options = MessageField::none());
    with(Code::INVALID_ARGUMENT, "no runtime.v1.PodSandboxConfig", &|it| {
        it.options.mut_or_insert_default().type_url = "containerd.runc.v1.Options".into();
    });
    with(Code::INVALID_ARGUMENT, "no valid PodSandboxConfig", &|it| {
        it.options.mut_or_insert_default().value = vec![0xff; 9];
    });
    with(Code::INVALID_ARGUMENT, "too long", &|it| {
        it.options.mut_or_insert_default().value = vec![0; (1 << 20) + 1];
    });
    for (request, wanted, words) in requests {
        let error = served.sandbox.create_sandbox(context(), &request).await.unwrap_err();
        assert_eq!(code(&error), wanted, "{error}");
        assert!(error.to_string().contains(words), "{words}: {error}");
    }
    // After all that, it can be.
    served.ready().await;
    served.end().await;
}

/// What a client does not wait for is done all the same.
#[tokio::test]
async fn a_client_that_goes_stops_nothing() {
    let bare = Bare::new("");
    let served = bare.serve().await;
    let impatient = SandboxClient::new(Client::connect(&bare.pod.shim.start().unwrap()).await.unwrap());
    let request = bare.request();
    let early = tokio::spawn(async move { impatient.create_sandbox(context(), &request).await });
    // It is taken up, and its client goes.
    let known =
        || async { served.status(ID).await.map_or_else(|error| code(&error) != Code::NOT_FOUND, |_| true) };
    while !known().await {
        tokio::task::yield_now().await;
    }
    early.abort();
    let created = async {
        while let Err(error) = served.status(ID).await {
            assert_eq!(code(&error), Code::FAILED_PRECONDITION, "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(created).await;
    served.start().await.unwrap();
    served.end().await;
}

/// A container in a pod of the other kind: one shim serves both, each its own way.
#[tokio::test]
async fn the_sandbox_service_does_not_know_a_pause_container() {
    let bare = Bare::new("");
    let mut config = bare.pod.config.clone();
    config["linux"]["namespaces"] = json!([{"type": "network", "path": bare.netns.path()}]);
    fs::write(bare.pod.bundle().join("config.json"), config.to_string()).unwrap();
    let served = bare.serve().await;
    let mut request = bare.pod.request.clone();
    request.rootfs.clear();
    soon(served.tasks.create(&request)).await.unwrap();
    assert_eq!(code(&served.status(ID).await.unwrap_err()), Code::NOT_FOUND);
    assert_eq!(code(&served.create().await.unwrap_err()), Code::ALREADY_EXISTS);
    soon(served.tasks.delete(Process::init(ID))).await.unwrap();
    soon(served.tasks.shutdown(ID)).await.unwrap();
    bare.assert_nothing_left();
}
