//! The shim's log: whose each line is, and what is never in it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::path::Path;

use hull_shim::client::messages::ExecProcessRequest;
use hull_shim::client::{PROCESS_TYPE_URL, json_any};
use hull_shim::client::{Process, Reach};
use serde_json::json;
use support::{Pod, script, soon};

const SECRETS: [&str; 4] = ["env-5ecret", "argument-5ecret", "exec-5ecret", "output-5ecret"];

/// Every file below a folder that holds one of the texts, but not `config.json`: that is the client's.
fn files_with(folder: &Path, texts: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files_with(&path, texts));
        } else if kind.is_file() && path.file_name() != Some("config.json".as_ref()) {
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
            let held = texts.iter().filter(|held| text.contains(**held));
            found.extend(held.map(|held| format!("{} holds {held}", path.display())));
        }
    }
    found
}

#[tokio::test]
async fn it_names_the_pod_and_the_container_and_tells_no_secrets() {
    let config = tempfile::NamedTempFile::new().unwrap();
    fs::write(config.path(), "log.level = \"debug\"\n").unwrap();
    let debug = format!("HULL_CONFIG={}", config.path().display());
    let mut pod =
        Pod::with("web", &["sh", "-c", "echo output-5ecret; exec sleep 100", "argument-5ecret"], "", &debug);
    pod.config["process"]["env"] = json!(["PATH=/bin:/usr/bin", "TOKEN=env-5ecret"]);
    let monitor = fs::read_to_string(pod.file("vmm")).unwrap();
    let monitor = monitor.trim_start_matches("#!/bin/sh\n").trim_end();
    script(&pod.file("vmm"), &format!("echo 'a word of the monitor' >&2\n{monitor}"));

    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    let init = Process::init("web");
    soon(client.start(init)).await.unwrap();
    let mut exec = ExecProcessRequest::new();
    (exec.id, exec.exec_id) = ("web".into(), "e1".into());
    let process = json!({
        "args": ["sh", "-c", "exit 3 # exec-5ecret"], "env": ["PATH=/bin:/usr/bin", "A=exec-5ecret"],
        "cwd": "/", "user": {"uid": 0, "gid": 0}
    });
    exec.spec = Some(json_any(PROCESS_TYPE_URL, process.to_string().into_bytes())).into();
    soon(client.exec(&exec)).await.unwrap();
    let e1 = Process { container: "web", exec: "e1" };
    soon(client.start(e1)).await.unwrap();
    assert_eq!(soon(client.wait(e1)).await.unwrap().exit_status, 3);
    // An error, of a container and of one that there is not.
    soon(client.start(init)).await.unwrap_err();
    soon(client.kill(Process::init("nobody"), 9, Reach::Process)).await.unwrap_err();
    soon(client.kill(init, 9, Reach::Process)).await.unwrap();
    soon(client.wait(init)).await.unwrap();

    let log = pod.log();
    for line in log.lines() {
        assert!(line.starts_with("time=\"20") && line.contains(" namespace=\"test\" pod=\"web\""), "{line}");
    }
    let has = |words: &[&str]| {
        let found = log.lines().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(found, "no line with {words:?} in:\n{log}");
    };
    has(&["msg=\"create\"", "container=\"web\""]);
    has(&["level=info", "container=\"nobody\""]);
    has(&["level=warn", "msg=\"a word of the monitor\"", "of=\"hull-vmm\""]);
    assert_eq!(files_with(pod.dir.path(), &SECRETS), Vec::<String>::new());

    soon(client.delete(e1)).await.unwrap();
    soon(client.delete(init)).await.unwrap();
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
}

#[tokio::test]
async fn what_a_panicking_guest_says_is_in_it() {
    let pod = Pod::with("web", &["true"], "panic", "");
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap_err();
    let log = pod.log();
    let at = |words: &str| log.find(words).unwrap_or_else(|| panic!("no {words:?} in:\n{log}"));
    let (first, last) = (at("msg=\"the guest's console: Oops: 0000\""), at("the guest's console: ---[ end"));
    assert!(first < last && last < at("msg=\"the VM ended: the guest kernel panicked"), "{log}");
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
}
