//! The agent's command line, as somebody sees it who is used to runc's; each behaviour is asked of both.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;

use hull_tests::eventually;
use hull_tests::oci::{Bundle, Runtime, default_config};
use serde_json::{Value, json};

fn sleeping() -> Value {
    let mut config = default_config();
    config["process"]["args"] = json!(["/checker", "sleep:60000"]);
    config["annotations"] = json!({"org.example.key": "value"});
    config
}

fn both() -> [Runtime; 2] {
    [Runtime::hull(), Runtime::runc()]
}

#[test]
fn a_life_from_create_to_delete() {
    for runtime in both() {
        let bundle = Bundle::new();
        bundle.write(&sleeping());
        assert_eq!(runtime.create("c", &bundle).code, 0);
        let state: Value = serde_json::from_str(&runtime.ok(["state", "c"])).unwrap();
        assert_eq!((&state["status"], &state["id"]), (&json!("created"), &json!("c")));
        assert_eq!(state["bundle"], json!(bundle.path()));
        assert_eq!(state["rootfs"], json!(bundle.root()));
        assert_eq!(state["annotations"]["org.example.key"], "value");
        let pid = state["pid"].as_i64().unwrap();
        assert!(Path::new(&format!("/proc/{pid}")).exists());

        let again = runtime.create("c", &bundle);
        assert!(again.code == 1 && again.err.contains("container with given ID already exists"), "{again:?}");
        runtime.ok(["start", "c"]);
        assert_eq!(runtime.status("c").unwrap(), "running");
        let again = runtime.run(["start", "c"]);
        assert!(
            again.code == 1 && again.err.contains("cannot start an already running container"),
            "{again:?}"
        );
        assert!(runtime.ok(["list"]).lines().nth(1).unwrap().starts_with("c  "));
        assert_eq!(runtime.ok(["list", "--quiet"]), "c\n");

        runtime.ok(["pause", "c"]);
        assert_eq!(runtime.status("c").unwrap(), "paused");
        runtime.ok(["resume", "c"]);
        let refused = runtime.run(["delete", "c"]);
        assert!(
            refused.code == 1 && refused.err.contains("cannot delete container c that is not stopped"),
            "{refused:?}"
        );
        runtime.ok(["kill", "c", "KILL"]);
        eventually("it stops", || (runtime.status("c")? == "stopped").then_some(()));
        let late = runtime.run(["kill", "c", "TERM"]);
        assert!(late.code == 1 && late.err.contains("container not running"), "{late:?}");
        let late = runtime.run(["exec", "c", "/checker"]);
        assert!(late.code == 255 && late.err.contains("container"), "{late:?}");
        let late = runtime.run(["start", "c"]);
        assert!(late.code == 1 && late.err.contains("cannot start a container that has stopped"), "{late:?}");
        runtime.ok(["delete", "c"]);
        let gone = runtime.run(["state", "c"]);
        assert!(gone.code == 1 && gone.err.contains("container does not exist"), "{gone:?}");
        assert_eq!(runtime.run(["delete", "c"]).code, 1);
        runtime.ok(["delete", "--force", "c"]);
    }
}

#[test]
fn exit_codes_are_the_processs_own() {
    for runtime in both() {
        let bundle = Bundle::new();
        std::fs::copy("/bin/busybox", bundle.root().join("sh")).unwrap();
        let path = bundle.path().to_string_lossy().into_owned();
        let mut config = default_config();
        for (script, code) in [("exit 7", 7), ("exit 0", 0)] {
            config["process"]["args"] = json!(["/sh", "-c", script]);
            bundle.write(&config);
            assert_eq!(runtime.run(["run", "--bundle", &path, "c"]).code, code, "{}: {script}", runtime.name);
        }
        config["process"]["args"] = json!(["/checker", "sleep:60000"]);
        bundle.write(&config);
        assert_eq!(runtime.create("c", &bundle).code, 0);
        runtime.ok(["start", "c"]);
        for (script, code) in [("exit 9", 9), ("kill -9 $$", 137)] {
            assert_eq!(
                runtime.run(["exec", "c", "/sh", "-c", script]).code,
                code,
                "{}: {script}",
                runtime.name
            );
        }
        let missing = runtime.run(["exec", "c", "nonsense"]);
        assert!(
            missing.code == 255 && missing.err.contains("executable file not found in $PATH"),
            "{}: {missing:?}",
            runtime.name
        );
        let said = runtime.run(["exec", "--user", "5:6", "--env", "A=b", "--cwd", "/tmp", "c", "/checker"]);
        let report: Value = serde_json::from_str(&said.out).unwrap();
        assert_eq!(report["status"]["Uid"], "5 5 5 5");
        assert_eq!(report["status"]["Gid"], "6 6 6 6");
        assert_eq!(report["cwd"], "/tmp");
        assert!(report["env"].as_array().unwrap().contains(&json!("A=b")));

        let pid_file = bundle.path().join("pid");
        let words =
            ["exec", "--detach", "--pid-file", &pid_file.to_string_lossy(), "c", "/checker", "sleep:60000"];
        // It keeps the streams that it is given.
        let status = runtime.command(words).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "{}", runtime.name);
        let pid = std::fs::read_to_string(&pid_file).unwrap();
        assert!(Path::new(&format!("/proc/{pid}")).exists(), "{pid:?}");
        // With its init, everything of a container ends.
        runtime.ok(["delete", "--force", "c"]);
        eventually("the exec ends", || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
            stat.is_none_or(|stat| stat.contains(") Z ")).then_some(())
        });
    }
}

#[test]
fn what_cannot_be_created_leaves_nothing() {
    for runtime in both() {
        let bundle = Bundle::new();
        let mut config = default_config();
        config["process"]["args"] = json!(["nonsense"]);
        bundle.write(&config);
        let said = runtime.create("c", &bundle);
        assert!(said.code == 1 && said.err.contains("executable file not found in $PATH"), "{said:?}");
        assert!(runtime.status("c").is_none());

        bundle.write(&json!({"ociVersion": "1.0.2", "process": {"args": "not a list"}}));
        assert_eq!(runtime.create("c", &bundle).code, 1);
        config["process"]["args"] = json!(["/checker"]);
        config["hooks"] = json!({"createRuntime": [{"path": "/bin/false"}]});
        bundle.write(&config);
        let said = runtime.create("c", &bundle);
        assert!(said.code == 1 && said.err.contains("hook"), "{said:?}");
        let cgroups: Vec<_> =
            std::fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!cgroups.contains(&"c".into()), "{}: {cgroups:?}", runtime.name);
        assert_eq!(runtime.ok(["list", "--quiet"]), "");
    }
    // Ours leaves no mount either, and no directory.
    let hull = Runtime::hull();
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    let before = mounts();
    let bundle = Bundle::new();
    bundle.write(&sleeping());
    assert_eq!(hull.create("c", &bundle).code, 0);
    assert_eq!(mounts(), before);
    let mode = std::fs::metadata(hull.root().join("c")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    hull.ok(["delete", "--force", "c"]);
    assert_eq!(
        std::fs::read_dir(hull.root())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir())
            .count(),
        0
    );
}

#[test]
fn a_container_outlives_who_made_it_and_nothing_else_does() {
    let hull = Runtime::hull();
    let bundle = Bundle::new();
    bundle.write(&sleeping());
    assert_eq!(hull.create("c", &bundle).code, 0);
    // By what it is: it runs from a mount in which it has no name.
    let agent = std::fs::metadata(hull.program()).map(|program| (program.dev(), program.ino())).unwrap();
    let processes = || {
        std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| std::fs::metadata(entry.ok()?.path().join("exe")).ok())
            .filter(|program| (program.dev(), program.ino()) == agent)
            .count()
    };
    // The init itself, which is the agent's program until it is started.
    assert_eq!(processes(), 1);
    hull.ok(["start", "c"]);
    assert_eq!(processes(), 0);
    hull.ok(["delete", "--force", "c"]);
}

#[test]
fn hooks_of_the_runtimes_side_see_the_state() {
    for runtime in both() {
        let bundle = Bundle::new();
        let script = bundle.path().join("hook");
        let log = bundle.path().join("log");
        std::fs::write(&script, "#!/bin/sh\necho \"$1 $MARK $(cat)\" >> \"$2\"\n").unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let hook = |name: &str| json!([{"path": script, "args": ["hook", name, log], "env": ["MARK=mark", "PATH=/bin:/usr/bin"]}]);
        let mut config = sleeping();
        config["hooks"] = ["prestart", "createRuntime", "poststart", "poststop"]
            .iter()
            .map(|name| ((*name).to_owned(), hook(name)))
            .collect::<serde_json::Map<_, _>>()
            .into();
        bundle.write(&config);
        assert_eq!(runtime.create("c", &bundle).code, 0);
        runtime.ok(["start", "c"]);
        runtime.ok(["delete", "--force", "c"]);
        let log = std::fs::read_to_string(log).unwrap();
        let mut names = Vec::new();
        // runc breaks lines in the state of some hooks.
        for line in log.lines().filter(|line| line.contains(" mark ")) {
            let (name, state) = line.split_once(" mark ").unwrap();
            let state: Value = serde_json::from_str(state).unwrap();
            assert_eq!(state["id"], "c", "{line}");
            assert_eq!(state["bundle"], json!(bundle.path()), "{line}");
            names.push(name.to_owned());
        }
        assert_eq!(names, ["prestart", "createRuntime", "poststart", "poststop"], "{}", runtime.name);
    }
}

#[test]
fn errors_go_to_the_log_that_containerd_reads() {
    for runtime in both() {
        let log = runtime.root().join("log.json");
        let said = runtime.run(["--log", &log.to_string_lossy(), "--log-format", "json", "state", "nothing"]);
        assert_eq!(said.code, 1);
        let line: Value = serde_json::from_str(std::fs::read_to_string(log).unwrap().trim()).unwrap();
        assert_eq!((&line["level"], &line["msg"]), (&json!("error"), &json!("container does not exist")));
    }
}

/// `--cgroup`: a path below the container's cgroup; and without it, in one that is divided, where the init is.
#[test]
fn an_exec_goes_into_a_cgroup_below_the_containers() {
    for runtime in both() {
        let name = runtime.name;
        let bundle = Bundle::new();
        std::fs::copy("/bin/busybox", bundle.root().join("sh")).unwrap();
        bundle.write(&sleeping());
        assert_eq!(runtime.create("c", &bundle).code, 0);
        runtime.ok(["start", "c"]);
        let state: Value = serde_json::from_str(&runtime.ok(["state", "c"])).unwrap();
        let pid = state["pid"].to_string();
        let path = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let own = Path::new("/sys/fs/cgroup")
            .join(path.lines().find_map(|line| line.strip_prefix("0::/")).unwrap());
        for directory in ["init", "workers/one"] {
            std::fs::create_dir_all(own.join(directory)).unwrap();
        }
        let exec = |words: &[&str]| {
            let script = [
                "c",
                "/sh",
                "-c",
                "while read line; do case $line in 0::*) echo $line;; esac; done < /proc/self/cgroup",
            ];
            runtime.run([&["exec"], words, &script].concat())
        };
        for (words, seen) in [
            (&["--cgroup", "workers"][..], "/workers"),
            (&["--cgroup", "/workers/one"], "/workers/one"),
            (&[], "/"),
        ] {
            let said = exec(words);
            assert_eq!((said.code, said.out), (0, format!("0::{seen}\n")), "{name}: {words:?}: {}", said.err);
        }
        for words in [
            &["--cgroup", "absent"][..],
            &["--cgroup", "../../.."],
            &["--cgroup", "workers/../.."],
            &["--cgroup", "cpu:workers"],
            &["--cgroup", "init", "--cgroup", "workers"],
        ] {
            let said = exec(words);
            assert_ne!(said.code, 0, "{name}: {words:?}");
            assert!(!said.out.contains("0::"), "{name}: {words:?}: {said:?}");
        }
        std::fs::write(own.join("init/cgroup.procs"), &pid).unwrap();
        std::fs::write(own.join("cgroup.subtree_control"), "+pids").unwrap();
        let said = exec(&[]);
        assert_eq!((said.code, said.out.as_str()), (0, "0::/init\n"), "{name}: {}", said.err);
        runtime.ok(["delete", "--force", "c"]);
    }
}
