//! What root in a container of the agent's command line tries, beside runc: docker's default container, and its `--privileged` one.

use std::process::Stdio;

use hull_tests::attempts::{self, ON_THE_KERNEL};
use hull_tests::document::outcome;
use hull_tests::oci::{Bundle, Runtime, all_capabilities, default_config, default_seccomp, merge};
use serde_json::{Value, json};

/// docker's `--privileged`, without the host's devices.
fn privileged() -> Value {
    let all = all_capabilities();
    let mut config = default_config();
    merge(
        &mut config,
        &json!({
            "process": {"capabilities": {"bounding": all, "effective": all, "permitted": all}},
            "linux": {"maskedPaths": null, "readonlyPaths": null, "seccomp": null,
                      "resources": {"devices": [{"allow": true, "access": "rwm"}]}}
        }),
    );
    for mount in config["mounts"].as_array_mut().unwrap() {
        mount["options"].as_array_mut().unwrap().retain(|option| option != "ro");
    }
    config
}

fn default() -> Value {
    let mut config = default_config();
    config["linux"]["seccomp"] = default_seccomp();
    config
}

/// CVE-2019-5736: a process that is run in the container runs `/proc/self/exe`, which is the agent's program, and waits there for root
/// in the container to write to it. What comes of that.
fn overwritten(runtime: &Runtime, mut config: Value) -> String {
    let bundle = Bundle::new();
    // What the program reads when it is asked about this container never comes.
    std::fs::create_dir_all(bundle.root().join("asked/for")).unwrap();
    let file = bundle.root().join("asked/for/state.json");
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    config["process"]["args"] = json!(["/checker", "sleep:600000"]);
    bundle.write(&config);
    let before = std::fs::read(runtime.program()).unwrap();
    assert_eq!(runtime.create("hostile", &bundle).code, 0);
    runtime.ok(["start", "hostile"]);
    // As long as the runtime itself runs, its program cannot be written by anybody: so it does not stay.
    let answer = bundle.path().join("answer");
    let exec = |output: Stdio, words: &[&str]| {
        let mut command = runtime.command(["exec", "--detach", "hostile"]);
        let status = command.args(words).stdout(output).stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "{words:?}: {status}");
    };
    exec(Stdio::null(), &["/proc/self/exe", "--root", "/asked", "state", "for"]);
    exec(std::fs::File::create(&answer).unwrap().into(), &["/checker", "seize"]);
    let report: Value = hull_tests::eventually("the checker's report", || {
        serde_json::from_str(&std::fs::read_to_string(&answer).unwrap()).ok()
    });
    runtime.ok(["delete", "--force", "hostile"]);
    let answer = &report["probes"]["seize"];
    assert_ne!(answer, "no other program", "the agent's program did not run in the container");
    assert_eq!(std::fs::read(runtime.program()).unwrap(), before);
    outcome(answer)
}

/// What the attempts come to in one container.
fn tried(runtime: &Runtime, mut config: Value) -> Vec<String> {
    let bundle = Bundle::new();
    config["process"]["args"] = json!(attempts::command(&ON_THE_KERNEL));
    bundle.write(&config);
    let output = runtime.ok(["run", "--bundle", &bundle.path().to_string_lossy(), "hostile"]);
    attempts::outcomes(&serde_json::from_str(&output).unwrap(), &ON_THE_KERNEL)
}

/// It is run from a read-only mount: nothing else can be written by one who has every privilege and the same kernel.
#[test]
fn the_agents_program_cannot_be_overwritten() {
    let hull = Runtime::hull();
    for config in [default(), privileged()] {
        assert_eq!(overwritten(&hull, config), "refused (EROFS)");
    }
}

/// Hull refuses at least what runc refuses, in each of the two containers.
#[test]
fn nothing_is_allowed_that_runc_refuses() {
    let (hull, runc) = (Runtime::hull(), Runtime::runc());
    for config in [default(), privileged()] {
        let (ours, theirs) = (tried(&hull, config.clone()), tried(&runc, config));
        for (attempt, (ours, theirs)) in ON_THE_KERNEL.iter().zip(ours.iter().zip(&theirs)) {
            let weaker = ours == "allowed" && theirs != "allowed";
            assert!(!weaker, "{attempt:?}: runc says {theirs}");
        }
    }
}
