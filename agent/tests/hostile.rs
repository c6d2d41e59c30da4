//! Images and specs that try to reach out of their container: each test is named after the hole that it keeps closed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod guest;

use std::os::unix::fs::symlink;

use guest::{Guest, refusal, spec, with_guest};
use hull_protocol::agent::StreamKind;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

/// A spec that leaves /dev to the image.
fn with_the_images_dev(args: &[&str]) -> Value {
    let mut spec = spec(args);
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| {
        let destination = mount["destination"].as_str().unwrap();
        !destination.starts_with("/dev") || destination == "/dev/pts"
    });
    spec
}

/// CVE-2024-21626: a working directory that is an open file of the runtime's.
#[test]
fn no_descriptor_of_the_agent_is_a_way_out() {
    with_guest(|guest| async {
        guest.create("c", &spec(&["sleep", "1000"]), [false; 3]).await.unwrap();
        guest.start_process("c", "").await.unwrap();
        let mut refused = 0;
        for number in 0..40 {
            let cwd = format!("/proc/self/fd/{number}");
            let mut process =
                spec(&["sh", "-c", "pwd -P; ls -d ../../../../../../bin/busybox"])["process"].take();
            process["cwd"] = json!(cwd);
            guest.create_exec("c", "e", &process, [false, true, true]).await.unwrap();
            // A directory that can be entered is one of the container's own.
            match guest.start_process("c", "e").await {
                Err(_) => refused += 1,
                Ok(_) => panic!("{cwd} was entered"),
            }
            guest.wait("c", "e").await.unwrap();
            guest.delete_exec("c", "e").await.unwrap();

            let mut init = spec(&["pwd"]);
            init["process"]["cwd"] = json!(cwd);
            let (_, message) = refusal(guest.create("d", &init, [false; 3]).await);
            assert!(message.contains("chdir to cwd"), "{message}");
        }
        assert_eq!(refused, 40);
        // A link in the image to the same.
        symlink("/proc/self/fd/7", guest.disk().join("work")).unwrap();
        let mut init = spec(&["pwd"]);
        init["process"]["cwd"] = json!("/work");
        refusal(guest.create("d", &init, [false; 3]).await);
        guest.delete("c").await.unwrap();
        guest
    });
}

/// CVE-2025-31133: what hides a file is the agent's own null device, not what the image has at /dev/null.
#[test]
fn an_image_cannot_choose_what_hides_a_file() {
    with_guest(|guest| async {
        std::fs::create_dir(guest.disk().join("dev")).unwrap();
        std::fs::write(guest.disk().join("secret"), "secret\n").unwrap();
        std::fs::write(guest.disk().join("bait"), "bait\n").unwrap();
        let script = "stat -c '%t:%T' /secret; cat /secret | wc -c; echo x > /secret; cat /bait";
        let mut masked = spec(&["sh", "-c", script]);
        masked["linux"]["maskedPaths"] = json!(["/secret"]);
        let hidden = "1:3\n0\nbait\n";
        symlink("/bait", guest.disk().join("dev/null")).unwrap();
        assert_eq!(guest.run(&masked).await.stdout, hidden);
        let mut own_dev = with_the_images_dev(&["sh", "-c", script]);
        own_dev["linux"]["maskedPaths"] = json!(["/secret"]);
        let (_, message) = refusal(guest.create("c", &own_dev, [false; 3]).await);
        assert!(message.contains("default devices"), "{message}");
        std::fs::remove_file(guest.disk().join("dev/null")).unwrap();
        assert_eq!(guest.run(&own_dev).await.stdout, hidden);
        guest
    });
}

/// CVE-2025-52565: the terminal is not mounted where a link of the image points to.
#[test]
fn an_image_cannot_choose_where_the_console_is_mounted() {
    with_guest(|guest: Guest| async {
        std::fs::create_dir(guest.disk().join("dev")).unwrap();
        std::fs::write(guest.disk().join("target"), "as it was\n").unwrap();
        symlink("/target", guest.disk().join("dev/console")).unwrap();
        let script = "cat /target; grep -c ' /target ' /proc/self/mountinfo";
        let mut terminal = with_the_images_dev(&["sh", "-c", script]);
        terminal["process"]["terminal"] = json!(true);
        match guest.create("c", &terminal, [false, true, false]).await {
            Err(error) => assert!(error.to_string().contains("/dev/console"), "{error}"),
            Ok(_) => {
                let mut stdout = guest.attach("c", None, StreamKind::Stdout).await.unwrap();
                guest.start_process("c", "").await.unwrap();
                let mut output = String::new();
                stdout.read_to_string(&mut output).await.unwrap();
                assert_eq!(output, "as it was\r\n0\r\n");
                guest.wait("c", "").await.unwrap();
                guest.delete("c").await.unwrap();
            }
        }
        guest
    });
}

/// CVE-2025-52881: what the agent writes to its procfs goes there, whatever the image has in its place.
#[test]
fn an_image_cannot_redirect_what_is_written_to_procfs() {
    with_guest(|guest| async {
        for directory in ["proc/sys/net/ipv4", "proc/sys/kernel", "proc/self/attr"] {
            std::fs::create_dir_all(guest.disk().join(directory)).unwrap();
        }
        let bait = ["proc/sys/net/ipv4/ip_unprivileged_port_start", "proc/self/oom_score_adj", "bait"];
        for file in bait {
            std::fs::write(guest.disk().join(file), "bait\n").unwrap();
        }
        let mut written = spec(&[
            "sh",
            "-c",
            "cat /shadow/sys/net/ipv4/ip_unprivileged_port_start /shadow/self/oom_score_adj",
        ]);
        written["process"]["oomScoreAdj"] = json!(77);
        written["linux"]["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "99"});
        // No procfs at /proc: the image's own files are there when the agent writes.
        let mounts = written["mounts"].as_array_mut().unwrap();
        mounts.iter_mut().find(|mount| mount["destination"] == "/proc").unwrap()["destination"] =
            json!("/shadow");
        written["linux"]["maskedPaths"] = json!([]);
        written["linux"]["readonlyPaths"] = json!([]);
        assert_eq!(guest.run(&written).await.stdout, "99\n77\n");
        for file in bait {
            assert_eq!(std::fs::read_to_string(guest.disk().join(file)).unwrap(), "bait\n");
        }
        guest
    });
}
