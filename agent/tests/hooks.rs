//! Hooks that run where the container runs.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod guest;

use std::time::{Duration, Instant};

use guest::{refusal, spec, with_guest};
use serde_json::{Value, json};
use ttrpc::Code;

fn shell(script: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["HOOK=yes"]})
}

#[test]
fn hooks_read_the_state_in_order_each_in_its_place() {
    with_guest(|guest| async {
        let log = guest.directory.path().join("log");
        let (log, root) = (log.display(), guest.directory.path().join("run/containers/c/rootfs"));
        let mut hooked = spec(&["sh", "-c", "cat /log; ls /from-create"]);
        hooked["annotations"] = json!({"a.b": "c\"d"});
        hooked["process"]["user"] = json!({"uid": 12, "gid": 0});
        hooked["hooks"] = json!({
            "createContainer": [
                shell(&format!("cat > {log}; echo >> {log}; echo $HOOK $0 $(ls /proc/self/fd | wc -w) >> {log}")),
                shell(&format!("echo second $(hostname) $(readlink /proc/self/ns/pid) >> {log}; touch {}/from-create", root.display())),
            ],
            "startContainer": [shell("cat > /tmp/log; echo; id -u >> /tmp/log; echo $HOOK >> /tmp/log; ls /proc/self/fd | wc -w >> /tmp/log"),
                               shell("cat /tmp/log > /dev/null && : > /tmp/second")],
            "prestart": [{"path": "/nowhere"}], "createRuntime": [{"path": "/nowhere"}],
            "poststart": [{"path": "/nowhere"}], "poststop": [{"path": "/nowhere"}]});
        hooked["process"]["args"] = json!([
            "sh",
            "-c",
            "cat /tmp/log; ls /tmp/second /from-create; grep -c . /proc/self/status > /dev/null && ls /proc | grep '^[0-9]'"
        ]);
        let pid = guest.create("c", &hooked, [false, true, true]).await.unwrap();
        let seen = std::fs::read_to_string(guest.directory.path().join("log")).unwrap();
        let mut lines = seen.lines();
        let state: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
        assert_eq!(state["id"], "c");
        assert_eq!((&state["status"], &state["pid"]), (&json!("creating"), &json!(pid)));
        assert_eq!(state["annotations"], json!({"a.b": "c\"d"}));
        assert!(state["bundle"].as_str().unwrap().starts_with('/') && state["ociVersion"].is_string());
        // 3 is ls's own descriptor.
        assert_eq!(lines.next(), Some("yes sh 4"));
        let second = lines.next().unwrap();
        assert!(second.starts_with("second ") && second.contains("pid:["), "{second}");
        assert!(!second.contains(&std::fs::read_link("/proc/self/ns/pid").unwrap().display().to_string()));

        let output = guest.collect("c").await;
        let (state, rest) = output.stdout.split_once("}").unwrap();
        let (annotations, rest) = rest.split_once('}').unwrap_or_default();
        let state: Value = serde_json::from_str(&format!("{state}}}{annotations}}}")).unwrap();
        assert_eq!((&state["status"], &state["pid"]), (&json!("created"), &json!(pid)));
        // Nothing of a hook is left when the program runs: 1 is the shell.
        let expected = "12\nyes\n4\n/from-create\n/tmp/second\n1\n";
        assert!(rest.trim_start().starts_with(expected), "{rest:?} {output:?}");
        guest.delete("c").await.unwrap();
        guest
    });
}

#[test]
fn a_hook_that_fails_or_hangs_fails_what_it_belongs_to() {
    with_guest(|guest| async {
        let before = guest.footprint();
        let with = |kind: &str, hook: Value| {
            let mut spec = spec(&["true"]);
            spec["hooks"] = json!({kind: [hook]});
            spec
        };
        let (code, message) =
            refusal(guest.create("c", &with("createContainer", shell("exit 3")), [false; 3]).await);
        assert_eq!(
            (code, message.as_str()),
            (Code::FAILED_PRECONDITION, "the createContainer hook /bin/sh failed: exit code 3")
        );
        let missing = json!({"path": "/not/there"});
        let (_, message) =
            refusal(guest.create("c", &with("createContainer", missing.clone()), [false; 3]).await);
        assert!(message.starts_with("the createContainer hook /not/there is not in the guest"), "{message}");
        let mut slow = shell("sleep 1000");
        slow["timeout"] = json!(1);
        let started = Instant::now();
        let (_, message) =
            refusal(guest.create("c", &with("createContainer", slow.clone()), [false; 3]).await);
        assert_eq!(message, "the createContainer hook /bin/sh did not end within 1 s");
        assert!(started.elapsed() < Duration::from_secs(30));
        assert_eq!(guest.footprint(), before);

        for (hook, expected) in [
            (shell("kill -9 $$"), "the startContainer hook /bin/sh failed: exit code 137"),
            (
                missing,
                "the startContainer hook /not/there is not in the guest, cannot be run, or exited with 127",
            ),
            (slow, "the startContainer hook /bin/sh did not end within 1 s"),
        ] {
            guest.create("c", &with("startContainer", hook), [false; 3]).await.unwrap();
            let (code, message) = refusal(guest.start_process("c", "").await);
            assert_eq!((code, message.as_str()), (Code::FAILED_PRECONDITION, expected));
            assert_ne!(guest.wait("c", "").await.unwrap().code, 0);
            guest.delete("c").await.unwrap();
        }
        assert_eq!(guest.footprint(), before);
        for bad in
            [json!({"path": "sh"}), json!({"path": "/x", "timeout": 0}), json!({"path": "/x", "timeout": -1})]
        {
            let (code, _) = refusal(guest.create("c", &with("startContainer", bad), [false; 3]).await);
            assert_eq!(code, Code::INVALID_ARGUMENT);
        }
        guest
    });
}

#[test]
fn a_start_hook_has_the_rights_of_the_process_alone() {
    with_guest(|guest| async {
        let mut hooked = spec(&["cat", "/tmp/rights"]);
        hooked["process"]["noNewPrivileges"] = json!(true);
        hooked["process"]["capabilities"] =
            json!({"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]});
        hooked["hooks"] = json!({"startContainer": [shell(
            "grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status | tr -d '\\t' > /tmp/rights; ls / >> /tmp/rights")]});
        let output = guest.run(&hooked).await;
        assert_eq!(
            output.stdout,
            "CapEff:0000000000000001\nCapBnd:0000000000000001\nNoNewPrivs:1\nbin\ndev\netc\nproc\nroot\nsys\ntmp\n",
            "{output:?}"
        );
        guest
    });
}
