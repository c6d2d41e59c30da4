//! What comes over the control connection and is no request: bounded noise, and an agent that stands it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod guest;

use guest::{container, process, spec, with_agent};
use hull_protocol::agent::api::agent as api;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use protobuf::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use ttrpc::r#async::transport::Socket;

const SERVICE: &str = "hull.agent.v1.Agent";
/// Methods that end nothing and set nothing of the machine that runs this test.
const METHODS: [&str; 16] = [
    "Info",
    "CreateContainer",
    "CreateExec",
    "StartProcess",
    "WaitProcess",
    "SignalProcess",
    "ResizeTerminal",
    "DeleteExec",
    "DeleteContainer",
    "PauseContainer",
    "ResumeContainer",
    "UpdateContainer",
    "RevertUpdate",
    "ContainerStats",
    "ListProcesses",
    "Nonsense",
];
/// Requests of noise to one agent.
const REQUESTS: usize = 400;
/// Connections of noise, each to an agent of its own.
const CONNECTIONS: usize = 12;

fn noise() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..200)
}

/// A request as the shim sends it, with some of its bytes changed and its end perhaps cut off.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let create = api::CreateContainerRequest {
        container_id: "c".to_owned(),
        spec: spec(&["true"]).to_string().into_bytes(),
        ..Default::default()
    };
    let valid = vec![
        create.write_to_bytes().unwrap(),
        process("c", "e").write_to_bytes().unwrap(),
        container("c").write_to_bytes().unwrap(),
    ];
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
    (prop::sample::select(valid), changes, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |(mut bytes, changes, end, cut)| {
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if cut {
                bytes.truncate(end.index(bytes.len()));
            }
            bytes
        },
    )
}

proptest! {
    #[test]
    fn bytes_are_a_request_or_an_error(bytes in prop_oneof![noise(), mutated()]) {
        // What is accepted can be written down again: nothing of it is out of range.
        macro_rules! decode {
            ($($request:ident),*) => {$(
                if let Ok(request) = api::$request::parse_from_bytes(&bytes) {
                    prop_assert_eq!(api::$request::parse_from_bytes(&request.write_to_bytes().unwrap()).unwrap(), request);
                }
            )*};
        }
        decode!(
            InfoRequest, ConfigurePodRequest, CreateContainerRequest, CreateExecRequest, ProcessRequest, ContainerRequest,
            SignalProcessRequest, ResizeTerminalRequest, UpdateContainerRequest, ShutdownRequest, SlotRequest
        );
    }
}

/// The same values in each run.
fn samples<T>(strategy: &impl Strategy<Value = T>, count: usize) -> Vec<T> {
    let mut runner = TestRunner::new_with_rng(
        Config::default(),
        prop::test_runner::TestRng::deterministic_rng(prop::test_runner::RngAlgorithm::ChaCha),
    );
    (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

#[test]
fn an_agent_answers_noise_with_errors_and_goes_on() {
    with_agent(|control| async move {
        let client = ttrpc::r#async::Client::new(Socket::new(control));
        let request = |method: &str, payload: Vec<u8>| ttrpc::proto::Request {
            service: SERVICE.to_owned(),
            method: method.to_owned(),
            payload,
            timeout_nano: 20_000_000_000,
            ..Default::default()
        };
        let what = (prop::sample::select(METHODS.to_vec()), prop_oneof![noise(), mutated()]);
        for (method, payload) in samples(&what, REQUESTS) {
            // A payload that happens to be a request may succeed, and one that waits may take its time.
            if let Err(error) = client.request(request(method, payload)).await {
                assert!(matches!(error, ttrpc::Error::RpcStatus(_)), "{method}: {error}");
            }
        }
        let info = api::InfoRequest { api_version: hull_protocol::agent::API_VERSION, ..Default::default() };
        client.request(request("Info", info.write_to_bytes().unwrap())).await.unwrap();
        let end = api::ShutdownRequest::new().write_to_bytes().unwrap();
        client.request(request("Shutdown", end)).await.unwrap();
    });
}

#[test]
fn a_connection_of_noise_ends_an_agent_in_good_order() {
    for bytes in samples(&prop::collection::vec(any::<u8>(), 1..2000), CONNECTIONS) {
        with_agent(|mut control: UnixStream| async move {
            // It may hang up before it has read all.
            let _ = control.write_all(&bytes).await;
            let _ = control.shutdown().await;
            let mut answer = Vec::new();
            let _ = control.read_to_end(&mut answer).await;
        });
    }
}
