//! The pod's network by the API, and containers in it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod guest;

use std::process::Command;

use guest::{Guest, container, context, refusal, spec, with_guest};
use hull_protocol::agent::api::agent as api;
use serde_json::{Value, json};
use ttrpc::Code;

/// A link in the agent's network whose other end is in the test's.
fn plug(guest: &Guest, name: &str) {
    let pid = guest.agent_pid().to_string();
    let words = format!("link add {name} type veth peer name plugged address 02:00:00:00:00:01 netns {pid}");
    let status = Command::new("ip").args(words.split(' ')).status().unwrap();
    assert!(status.success());
}

fn described() -> api::ConfigureNetworkRequest {
    let address =
        api::NetworkAddress { address: vec![10, 77, 0, 2], prefix_length: 24, ..Default::default() };
    let interface = api::NetworkInterface {
        mac: vec![2, 0, 0, 0, 0, 1],
        name: "eth0".into(),
        mtu: 1400,
        addresses: vec![address],
        ..Default::default()
    };
    let route = api::NetworkRoute {
        destination: vec![10, 77, 0, 0],
        prefix_length: 24,
        interface: "eth0".into(),
        scope: 253,
        ..Default::default()
    };
    api::ConfigureNetworkRequest { interfaces: vec![interface], routes: vec![route], ..Default::default() }
}

/// A container in the pod's network.
fn in_pod(script: &str) -> Value {
    let mut spec = spec(&["sh", "-c", script]);
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "network");
    spec
}

#[test]
fn containers_live_in_the_pods_network_or_in_their_own() {
    with_guest(|guest| async {
        plug(&guest, &format!("hull-a{}", guest.agent_pid() % 100_000));
        guest.client.configure_network(context(), &described()).await.unwrap();
        let output = guest
            .run(&in_pod("ip -o addr; ip route; ping -c1 -W5 127.0.0.1 >/dev/null && echo loopback"))
            .await;
        for part in ["eth0", "10.77.0.2/24", "127.0.0.1/8", "10.77.0.0/24 dev eth0 scope link", "loopback"] {
            assert!(output.stdout.contains(part), "{part}: {output:?}");
        }
        let output = guest.shell("ip -o link; ping -c1 -W5 127.0.0.1 >/dev/null && echo loopback").await;
        assert!(!output.stdout.contains("eth0") && output.stdout.contains("loopback"), "{output:?}");

        guest.create("c", &in_pod("sleep 1000"), [false; 3]).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        let stats = guest.client.container_stats(context(), &container("c")).await.unwrap();
        let names: Vec<_> = stats.network.iter().map(|link| link.name.as_str()).collect();
        assert_eq!(names, ["eth0"]);
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn a_network_that_cannot_be_is_refused() {
    with_guest(|guest| async {
        let (code, text) = refusal(guest.client.configure_network(context(), &described()).await);
        assert_eq!(
            (code, text.as_str()),
            (Code::FAILED_PRECONDITION, "no network device has the address 02:00:00:00:00:01")
        );
        let mut wrong = described();
        wrong.interfaces[0].name = "lo".into();
        assert_eq!(
            refusal(guest.client.configure_network(context(), &wrong).await).0,
            Code::INVALID_ARGUMENT
        );
        guest.client.configure_network(context(), &api::ConfigureNetworkRequest::new()).await.unwrap();
        guest
    });
}

#[test]
fn files_come_with_the_request() {
    with_guest(|guest| async {
        let script = "cat /etc/hosts /etc/resolv.conf; echo more >>/etc/hosts && tail -n1 /etc/hosts; \
                      echo x >>/etc/resolv.conf || echo read-only; \
                      head -c 4000000 /dev/zero >>/etc/hosts || echo bounded";
        let mut with_files = spec(&["sh", "-c", script]);
        let mounts = with_files["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/etc/hosts", "type": "hull-file", "source": "hosts"}));
        mounts.push(json!({"destination": "/etc/resolv.conf", "type": "hull-file", "source": "dns", "options": ["ro"]}));
        std::os::unix::fs::symlink("../run/nowhere/x", guest.disk().join("etc/resolv.conf")).unwrap();
        let before = guest.footprint();
        let mut request = guest.create_request("c", &with_files, [false, true, true], Some(16 << 20));
        let file = |name: &str, content: &str| api::File {
            name: name.into(),
            content: content.into(),
            ..Default::default()
        };
        request.rootfs.mut_or_insert_default().files = vec![file("hosts", "one\n"), file("dns", "two\n")];
        guest.client.create_container(context(), &request).await.unwrap();
        let output = guest.collect("c").await;
        assert_eq!(output.stdout, "one\ntwo\nmore\nread-only\nbounded\n", "{output:?}");
        guest.delete("c").await.unwrap();
        assert_eq!(guest.footprint(), before);

        for (files, part) in [
            (vec![file("../x", "")], "../x"),
            (vec![file("x", &"x".repeat(65537))], "65537 bytes"),
            (vec![file("x", ""); 17], "17 of them"),
        ] {
            request.rootfs.mut_or_insert_default().files = files;
            let (code, text) = refusal(guest.client.create_container(context(), &request).await);
            assert_eq!(code, Code::INVALID_ARGUMENT);
            assert!(text.contains(part), "{text}");
        }
        // A mount of a file that did not come.
        request.rootfs.mut_or_insert_default().files = vec![file("hosts", "")];
        let (_, text) = refusal(guest.client.create_container(context(), &request).await);
        assert!(text.contains("/etc/resolv.conf"), "{text}");
        assert_eq!(guest.footprint(), before);
        guest
    });
}
