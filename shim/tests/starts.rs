//! `start` that cannot be: it says why, exit code 1, and neither a process nor a file is left. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

use hull_shim::client::{ClientError, Code, Process};
use support::mount::Mounted;
use support::{Pod, script, soon};

fn write_config(pod: &Pod) {
    fs::write(pod.bundle().join("config.json"), pod.config.to_string()).unwrap();
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(Result::unwrap);
    let below = entries.flat_map(|entry| {
        if entry.file_type().unwrap().is_dir() {
            files(&entry.path())
        } else {
            vec![entry.path().display().to_string()]
        }
    });
    below.collect()
}

/// What is in the bundle, but for the words of a shim that was started.
fn bundled(pod: &Pod) -> Vec<String> {
    files(pod.bundle()).into_iter().filter(|file| !file.ends_with("/shim.log")).collect()
}

/// Runs `start`, which must fail for this reason, and leave nothing.
#[track_caller]
fn refused(pod: &Pod, words: &[&str]) {
    let (state, bundle) = (files(&pod.file("r")), bundled(pod));
    match pod.shim.start() {
        Err(ClientError::Shim { status, message }) => {
            assert_eq!(status.code(), Some(1), "{message}");
            assert!(words.iter().all(|part| message.contains(part)), "{message}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(pod.processes(), []);
    assert_eq!(files(&pod.file("r")), state);
    assert_eq!(bundled(pod), bundle);
}

/// Another `start`, once the reason is gone.
async fn works(pod: &Pod) {
    let client = pod.connect().await;
    soon(client.create(&pod.request)).await.unwrap();
    soon(client.delete(Process::init(&pod.id))).await.unwrap();
    soon(client.shutdown(&pod.id)).await.unwrap();
    pod.assert_nothing_left();
}

#[tokio::test]
async fn a_bundle_that_cannot_be_written() {
    let pod = Pod::new("web", &["true"]);
    let mounted = Mounted::again(&pod.file("bundle"), pod.bundle());
    write_config(&pod);
    mounted.protect();
    refused(&pod, &["cannot start the shim: cannot write", "/b/address", "Read-only file system"]);
    drop(mounted);
    works(&pod).await;
}

#[tokio::test]
async fn a_full_disk() {
    // Of the bundle, and of the state, which takes names and no room.
    for (full, files) in [("b", 1024), ("b", 4), ("r", 4)] {
        let pod = Pod::new("web", &["true"]);
        let mounted = Mounted::tiny(&pod.file(full), 16384, files);
        write_config(&pod);
        let ballast = |number: &u32| fs::write(pod.file(full).join(format!("{number}")), [0; 8192]).is_ok();
        assert!((0..).find(|number| !ballast(number)).is_some());
        refused(&pod, &["cannot start the shim: ", "No space left on device"]);
        drop(mounted);
        works(&pod).await;
    }
}

#[tokio::test]
async fn a_state_folder_that_is_none() {
    let pod = Pod::with("web", &["true"], "", "HULL_STATE_DIR=/dev/null/r");
    write_config(&pod);
    refused(&pod, &["/dev/null/r/s: Not a directory"]);
    pod.set_environment(&format!("HULL_STATE_DIR=/tmp/{}", "r".repeat(100)));
    refused(&pod, &["HULL_STATE_DIR", "shorter"]);
}

#[tokio::test]
async fn a_configuration_that_cannot_be_used() {
    let pod = Pod::with("web", &["true"], "", "HULL_CONFIG=/no/such/file");
    write_config(&pod);
    refused(&pod, &["/no/such/file"]);
    let file = pod.file("config.toml");
    fs::write(&file, "memory = [").unwrap();
    pod.set_environment(&format!("HULL_CONFIG={}", file.display()));
    refused(&pod, &["config.toml"]);
    pod.set_environment("HULL_BOOT_TIMEOUT_SECS=soon");
    refused(&pod, &["HULL_BOOT_TIMEOUT_SECS"]);
    pod.set_environment("");
    works(&pod).await;
}

#[tokio::test]
async fn a_socket_that_is_taken() {
    let pod = Pod::new("web", &["true"]);
    write_config(&pod);
    let address = pod.shim.start().unwrap();
    let socket = Path::new(address.strip_prefix("unix://").unwrap()).to_owned();
    let client = hull_shim::client::TaskClient::connect(&address).await.unwrap();
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
    let _ = fs::remove_file(pod.bundle().join("address"));
    // By something that cannot be removed.
    fs::create_dir(&socket).unwrap();
    refused(&pod, &["cannot remove", socket.to_str().unwrap()]);
    fs::remove_dir(&socket).unwrap();
    // By one who listens: that is the pod's shim, whoever it is.
    let listener = UnixListener::bind(&socket).unwrap();
    assert_eq!(pod.shim.start().unwrap(), address);
    assert_eq!(pod.processes(), []);
    // By one who did.
    drop(listener);
    works(&pod).await;
}

#[tokio::test]
async fn a_shim_that_is_refused_memory() {
    let pod = Pod::new("web", &["true"]);
    write_config(&pod);
    let whole = fs::read_to_string(&pod.shim.binary).unwrap();
    let mut failures = 0;
    for kib in (2048..=65536).step_by(2048) {
        // The shell needs some itself, and says so.
        let limited = whole.replace("exec ", &format!("ulimit -v {kib} && exec "));
        script(&pod.shim.binary, limited.trim_start_matches("#!/bin/sh\n"));
        match pod.shim.start() {
            Ok(address) => {
                let client = hull_shim::client::TaskClient::connect(&address).await.unwrap();
                soon(client.shutdown("web")).await.unwrap();
                pod.assert_nothing_left();
                let _ = fs::remove_file(pod.bundle().join("address"));
            }
            Err(ClientError::Shim { message, .. }) => {
                failures += 1;
                assert!(!message.is_empty());
                assert_eq!(pod.processes(), [], "{kib}: {message}");
                let left = [files(&pod.file("r")), files(pod.bundle())].concat();
                let fine = |file: &&String| file.ends_with("/config.json") || file.ends_with("/shim.log");
                assert!(left.iter().all(|file| fine(&file)), "{kib}: {message}: {left:?}");
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(failures > 0);
    script(&pod.shim.binary, whole.trim_start_matches("#!/bin/sh\n"));
    works(&pod).await;
}

#[tokio::test]
async fn what_start_has_no_need_of_is_create_s_to_complain_of() {
    let pod = Pod::with("web", &["true"], "", "HULL_VMM=/no/such/hull-vmm TTRPC_ADDRESS=no/such/address");
    let client = hull_shim::client::TaskClient::connect(&pod.shim.start().unwrap()).await.unwrap();
    let error = soon(client.create(&pod.request)).await.unwrap_err();
    assert!(error.to_string().contains("/b/config.json"), "{error}");
    write_config(&pod);
    let error = soon(client.create(&pod.request)).await.unwrap_err();
    assert_eq!(error.to_string(), "HULL_VMM names /no/such/hull-vmm, which is no file");
    assert_eq!(error.code(), Some(Code::UNKNOWN));
    // What is there and cannot be run.
    let vmm = pod.file("vmm");
    fs::set_permissions(&vmm, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
    pod.set_environment("");
    let client = pod.connect().await;
    let error = soon(client.create(&pod.request)).await.unwrap_err();
    assert!(error.to_string().contains(&format!("cannot start {}: ", vmm.display())), "{error}");
    soon(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
}
