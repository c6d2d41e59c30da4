//! Images and specs that try to reach out of their container: each test is named after the hole that it keeps closed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod guest;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// What a container needs to reach others where it can see them, and no path that is hidden or read-only.
fn privileged(args: &[&str]) -> Value {
    let mut spec = spec(args);
    let all = ["CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "KILL", "SYS_CHROOT", "SYS_PTRACE", "SYS_ADMIN"]
        .map(|name| format!("CAP_{name}"));
    spec["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
    (spec["linux"]["maskedPaths"], spec["linux"]["readonlyPaths"]) = (json!([]), json!([]));
    spec["linux"]["resources"] = json!({"devices": [{"allow": true, "access": "rwm"}]});
    for mount in spec["mounts"].as_array_mut().unwrap() {
        mount["options"].as_array_mut().unwrap().retain(|option| option != "ro");
    }
    spec
}

/// Containers of one pod, each with process ids of its own: what one has, the other does not find.
#[test]
fn a_containers_processes_and_files_are_no_others() {
    with_guest(|guest| async {
        let victim = "echo found > /secret; echo found > /dev/shm/secret; echo ready; exec sleep 4321";
        let pid = guest.create("victim", &spec(&["sh", "-c", victim]), [false, true, false]).await.unwrap();
        let mut ready = guest.attach("victim", None, StreamKind::Stdout).await.unwrap();
        guest.start_process("victim", "").await.unwrap();
        ready.read_exact(&mut [0; 6]).await.unwrap();
        let script = format!(
            "ls -d /proc/{pid}/root/secret /secret /dev/shm/secret
            kill -9 {pid} && echo killed
            for one in /proc/[0-9]*; do grep -l [4]321 $one/cmdline; cat $one/root/secret; done
            mount -t proc proc /mnt 2> /dev/null && ls -d /mnt/{pid}
            mount -t cgroup2 none /mnt && find /mnt -name '*victim*'
            echo {pid} > /sys/fs/cgroup/cgroup.procs && echo moved
            echo tried"
        );
        for spec in [spec(&["sh", "-c", &script]), privileged(&["sh", "-c", &script])] {
            std::fs::create_dir_all(guest.disk().join("mnt")).unwrap();
            let output = guest.run(&spec).await;
            assert_eq!(output.stdout, "tried\n", "{output:?}");
        }
        assert!(
            Path::new(&format!("/proc/{}/root/proc/{pid}", guest.agent_pid())).exists(),
            "it was not ended"
        );
        guest.delete("victim").await.unwrap();
        guest
    });
}

/// CVE-2021-30465, CVE-2019-19921: while a container is made, another one with the same volume swaps a directory for a link, as
/// fast as the kernel can. Whatever comes of the container, nothing is made or mounted outside of its root.
#[test]
fn a_link_that_is_swapped_in_leads_no_mount_out_of_the_root() {
    const ROUNDS: usize = 300;
    with_guest(|guest| async {
        let outside = tempfile::tempdir().unwrap();
        let victim = outside.path().join("victim");
        std::fs::create_dir(&victim).unwrap();
        std::fs::write(victim.join("file"), "as it was\n").unwrap();
        let volume = guest.disk().parent().unwrap().join("volumes/0");
        std::fs::create_dir_all(&volume).unwrap();
        let agents = format!("/proc/{}/mountinfo", guest.agent_pid());
        // Not those that the machine makes meanwhile.
        let place = guest.directory.path().display().to_string();
        let mounts_of_the_agent = || {
            let text = std::fs::read_to_string(&agents).unwrap();
            text.lines().filter(|line| line.contains(&place) || line.contains("victim")).count()
        };
        // The first use mounts the volumes.
        guest.run(&in_a_volume()).await;
        let (before, mounts_before) = (guest.footprint(), mounts_of_the_agent());

        let up = "../".repeat(20);
        let targets = [
            victim.display().to_string(),
            format!("{up}{}", victim.display()),
            format!("/proc/self/fd/../../../..{}", victim.display()),
            "/proc/1/root/tmp".to_owned(),
        ];
        let (mut made, mut refused) = (0, 0);
        for target in targets {
            let names = ["dir/sub", "link"].map(|name| volume.join(name));
            for name in &names {
                let _ = std::fs::remove_dir_all(name).or_else(|_| std::fs::remove_file(name));
            }
            std::fs::create_dir_all(&names[0]).unwrap();
            symlink(&target, &names[1]).unwrap();
            let swapping = Swapping::start(names);
            for _ in 0..ROUNDS / 4 {
                match guest.create("c", &in_a_volume(), [false; 3]).await {
                    Ok(_) => {
                        made += 1;
                        assert_eq!(mounts_of_the_agent() - mounts_before, 3, "no mount shows outside");
                        guest.delete("c").await.unwrap();
                    }
                    Err(error) => {
                        refused += 1;
                        let (_, message) = refusal::<()>(Err(error));
                        assert!(
                            message.contains("/v/dir") || message.contains("default devices"),
                            "{message}"
                        );
                    }
                }
                let left: Vec<_> =
                    std::fs::read_dir(&victim).unwrap().map(|entry| entry.unwrap().file_name()).collect();
                assert_eq!(left, ["file"], "by {target}");
            }
            assert!(swapping.stop() > ROUNDS, "the link was hardly swapped");
        }
        println!("{made} made, {refused} refused");
        assert_eq!(std::fs::read_to_string(victim.join("file")).unwrap(), "as it was\n");
        assert_eq!(mounts_of_the_agent(), mounts_before);
        let mut after = guest.footprint();
        after.mounts = before.mounts;
        assert_eq!(after, before);
        guest
    });
}

/// Mounts, files, nodes, hidden and read-only paths, all below a directory of a volume.
fn in_a_volume() -> Value {
    let mut spec = spec(&["true"]);
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/v", "type": "hull-volume", "source": "0", "options": ["rbind"]}));
    mounts.push(json!({"destination": "/v/dir/sub/tmpfs/deep", "type": "tmpfs", "options": ["size=1m"]}));
    mounts.push(
        json!({"destination": "/v/dir/sub/again", "type": "hull-volume", "source": "0", "options": ["bind"]}),
    );
    spec["linux"]["devices"] =
        json!([{"path": "/v/dir/sub/pipes/pipe", "type": "p", "major": 0, "minor": 0, "uid": 7, "gid": 7}]);
    spec["linux"]["maskedPaths"] = json!(["/v/dir/sub/file", "/v/dir/sub/again"]);
    spec["linux"]["readonlyPaths"] = json!(["/v/dir/sub/file", "/v/dir/sub/pipes"]);
    spec["process"]["cwd"] = json!("/v/dir/sub/cwd/deep");
    spec
}

/// A thread that exchanges two names for ever: what a process in a container can do to a volume, without the time that its shell
/// would take.
struct Swapping {
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<usize>,
}

impl Swapping {
    fn start([one, other]: [PathBuf; 2]) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let told = over.clone();
        let thread = std::thread::spawn(move || {
            let mut swaps = 0;
            while !told.load(Ordering::Relaxed) {
                let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                let here = nix::fcntl::AT_FDCWD;
                nix::fcntl::renameat2(here, &one, here, &other, flags).unwrap();
                swaps += 1;
            }
            swaps
        });
        Self { over, thread }
    }

    /// How often they were exchanged.
    fn stop(self) -> usize {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
