//! The debug console is there where the configuration says so, and nowhere else.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;

use hull_shim::client::{Code, Process, TaskClient};
use support::{Pod, soon};

const ARGUMENT: &str = "hull.debug_console";

async fn end(pod: &Pod, client: &TaskClient) {
    let web = Process::init("web");
    soon(client.start(web)).await.unwrap();
    soon(client.wait(web)).await.unwrap();
    soon(client.delete(web)).await.unwrap();
    let error = soon(client.debug("ps")).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::FAILED_PRECONDITION), "there is no VM any more: {error}");
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
}

fn kernel_args(pod: &Pod) -> String {
    fs::read_to_string(pod.file("kernel")).unwrap()
}

#[tokio::test]
async fn without_the_key_neither_shim_nor_guest_has_one() {
    let pod = Pod::new("web", &["true"]);
    fs::write(pod.file("config.toml"), "[debug]\nconsole = false\n").unwrap();
    for configuration in ["", "config.toml"] {
        let named = pod.file(configuration);
        let variable = format!(
            "HULL_CONFIG={}",
            if configuration.is_empty() { "".into() } else { named.display().to_string() }
        );
        pod.set_environment(&variable);
        let client = pod.connect().await;
        soon(client.create(&pod.request)).await.unwrap();
        assert!(!kernel_args(&pod).contains(ARGUMENT), "{}", kernel_args(&pod));
        for line in ["ps", ""] {
            let error = soon(client.debug(line)).await.unwrap_err();
            assert_eq!(error.code(), Some(Code::FAILED_PRECONDITION));
            assert!(error.to_string().contains("debug.console = true in /etc/hull/config.toml"), "{error}");
        }
        end(&pod, &client).await;
    }
}

#[tokio::test]
async fn with_the_key_the_guest_answers() {
    let pod = Pod::new("web", &["true"]);
    fs::write(pod.file("config.toml"), "[debug]\nconsole = true\n").unwrap();
    pod.set_environment(&format!("HULL_CONFIG={}", pod.file("config.toml").display()));
    let client = pod.connect().await;
    let error = soon(client.debug("ps")).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::FAILED_PRECONDITION), "there is no VM yet: {error}");
    soon(client.create(&pod.request)).await.unwrap();
    assert!(kernel_args(&pod).trim_end().ends_with(ARGUMENT), "{}", kernel_args(&pod));
    assert_eq!(soon(client.debug("ps")).await.unwrap(), b"answer to ps\n");
    assert_eq!(soon(client.debug("long")).await.unwrap(), b"answer to long\n\n(there is more)\n");
    let error = soon(client.debug(&"x".repeat(10_000))).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::INVALID_ARGUMENT));
    end(&pod, &client).await;
}
