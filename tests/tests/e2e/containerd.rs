//! containerd runs its containers in Hull: `ctr` on a daemon of the test's own.

use std::fs;
use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hull_tests::containerd::{Containerd, RUNTIME, busybox};
use hull_tests::eventually;
use hull_tests::terminal::Terminal;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn kill_9(pid: &serde_json::Value) {
    kill(Pid::from_raw(pid.as_i64().unwrap().try_into().unwrap()), Signal::SIGKILL).unwrap();
}

#[test]
fn layers_are_the_root_file_system_and_what_is_written_stays_in_them() {
    let containerd = Containerd::start();
    let script = "
        echo out; echo err >&2
        awk '$5 == \"/\"' /proc/self/mountinfo | wc -l
        echo kept >/etc/kept; mkdir /etc/dir; ln -s kept /etc/link; rm /etc/group; chown 1000:1000 /etc/passwd
        mkfifo /run/fifo 2>/dev/null || { mkdir -p /run && mkfifo /run/fifo; }
        (echo through >/run/fifo &) ; cat /run/fifo
        exit 3";
    for snapshotter in ["overlayfs", "native"] {
        let said =
            containerd.run_container(&["--snapshotter", snapshotter], snapshotter, &["sh", "-c", script]);
        assert_eq!((said.code, said.err.as_str()), (3, "err\n"), "{snapshotter}: {said:?}");
        assert_eq!(said.out, "out\n1\nthrough\n", "{snapshotter}");
        // What the container wrote is in its snapshot.
        let mounts =
            containerd.ok(["snapshots", "--snapshotter", snapshotter, "mounts", "/mnt", snapshotter]);
        let mut words = mounts.split([' ', ',', '\n']);
        let written = match snapshotter {
            "overlayfs" => words.find_map(|word| word.strip_prefix("upperdir=")),
            _ => words.find(|word| word.contains("/snapshots/")),
        };
        let written = written.unwrap_or_else(|| panic!("{mounts}"));
        let file = |name: &str| std::path::Path::new(written).join(name);
        assert_eq!(fs::read_to_string(file("etc/kept")).unwrap(), "kept\n", "{snapshotter}");
        assert_eq!(fs::read_link(file("etc/link")).unwrap(), std::path::Path::new("kept"));
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(file("etc/passwd")).unwrap()), 1000);
        containerd.ok(["container", "rm", snapshotter]);
    }
    let said = containerd.run_container(&["--rm", "--read-only"], "ro", &["sh", "-c", "echo x >/file"]);
    assert!(said.code != 0 && said.err.contains("Read-only"), "{said:?}");
    containerd.left_nothing();
}

/// A thin pool of the device mapper, on two files. What is in it goes with it.
pub struct ThinPool(tempfile::TempDir);

impl ThinPool {
    const NAME: &str = "hull-e2e-pool";

    pub fn new() -> Self {
        let folder = tempfile::TempDir::with_prefix("hull-e2e-").unwrap();
        let script = "
            modprobe loop; modprobe dm_thin_pool
            truncate -s 16M meta && truncate -s 600M data
            meta=$(losetup -f --show meta) && data=$(losetup -f --show data)
            dmsetup create $0 --table \"0 $(blockdev --getsz $data) thin-pool $meta $data 128 0 1 skip_block_zeroing\"";
        Self::shell(folder.path(), script);
        Self(folder)
    }

    /// What containerd is told, for disks of this size.
    pub fn configuration(&self, size: &str) -> String {
        format!(
            "[plugins.\"io.containerd.snapshotter.v1.devmapper\"]\n  pool_name = \"{}\"\n  root_path = \"{}\"\n  \
             base_image_size = \"{size}\"\n  fs_type = \"ext4\"\n",
            Self::NAME,
            self.0.path().display()
        )
    }

    fn shell(folder: &std::path::Path, script: &str) {
        let status = std::process::Command::new("sh")
            .args(["-euc", script, Self::NAME])
            .current_dir(folder)
            .env("DM_DISABLE_UDEV", "1")
            .status();
        assert!(status.unwrap().success(), "{script}");
    }
}

impl Drop for ThinPool {
    fn drop(&mut self) {
        let script = "
            for device in $(dmsetup ls | cut -f1 | grep \"^$0-\"); do dmsetup remove $device; done
            dmsetup remove $0
            for file in meta data; do losetup -d $(losetup -j $file | cut -d: -f1); done";
        Self::shell(self.0.path(), script);
    }
}

#[test]
fn a_disk_is_the_root_file_system() {
    let pool = ThinPool::new();
    let containerd = Containerd::with(|_| pool.configuration("64MB"));
    let script = "awk '$5 == \"/\"' /proc/self/mountinfo | grep -o ' - ext4'; cat /kept 2>/dev/null; echo kept >/kept; exit 5";
    let said = containerd.run_container(&["--snapshotter", "devmapper"], "disk", &["sh", "-c", script]);
    assert_eq!((said.code, said.out.as_str()), (5, " - ext4\n"), "{said:?}");
    // What was written is on the disk.
    let second = ["task", "start", "disk"];
    let said = containerd.run(second);
    assert_eq!((said.code, said.out.as_str()), (5, " - ext4\nkept\n"), "{said:?}");
    containerd.ok(["container", "rm", "disk"]);
    containerd.ok(["images", "rm", "--sync", &busybox()]);
    containerd.left_nothing();
}

#[test]
fn a_file_is_the_disk_with_the_root_file_system() {
    let scratch = tempfile::TempDir::with_prefix("hull-e2e-").unwrap();
    let file = scratch.path().join("scratch");
    let script = "modprobe loop; truncate -s 64M \"$0\" && mkfs.ext4 -q \"$0\"";
    let made = std::process::Command::new("sh").args(["-euc", script]).arg(&file).status();
    assert!(made.unwrap().success());
    let containerd = Containerd::with(|_| {
        format!(
            "[plugins.\"io.containerd.snapshotter.v1.blockfile\"]\n  scratch_file = \"{}\"\n  fs_type = \"ext4\"\n",
            file.display()
        )
    });
    let script = "awk '$5 == \"/\"' /proc/self/mountinfo | grep -o ' - ext4'; cat /kept 2>/dev/null; echo kept >/kept; exit 5";
    let said = containerd.run_container(&["--snapshotter", "blockfile"], "file", &["sh", "-c", script]);
    if containerd.version() < (1, 7) {
        assert!(said.code != 0 && said.err.contains("blockfile"), "{said:?}");
    } else {
        assert_eq!((said.code, said.out.as_str()), (5, " - ext4\n"), "{said:?}");
        let said = containerd.run(["task", "start", "file"]);
        assert_eq!((said.code, said.out.as_str()), (5, " - ext4\nkept\n"), "{said:?}");
        containerd.ok(["container", "rm", "file"]);
    }
    containerd.left_nothing();
}

#[test]
fn layers_that_the_snapshotter_mounts_are_the_root_file_system() {
    assert!(std::process::Command::new("modprobe").args(["-a", "loop", "erofs"]).status().unwrap().success());
    let containerd = Containerd::start();
    let script = "cat /kept 2>/dev/null; echo kept >/kept; head -c 4 /bin/busybox | tail -c 3; exit 5";
    let said = containerd.run_container(&["--snapshotter", "erofs"], "erofs", &["sh", "-c", script]);
    if containerd.version() < (2, 1) {
        assert!(said.code != 0 && said.err.contains("erofs"), "{said:?}");
    } else {
        assert_eq!((said.code, said.out.as_str()), (5, "ELF"), "{said:?}");
        let said = containerd.run(["task", "start", "erofs"]);
        assert_eq!((said.code, said.out.as_str()), (5, "kept\nELF"), "{said:?}");
        containerd.ok(["container", "rm", "erofs"]);
        // They stay mounted as long as the image is there.
        containerd.ok(["images", "rm", "--sync", &busybox()]);
    }
    containerd.left_nothing();
}

#[test]
fn a_background_container_from_start_to_end() {
    let containerd = Containerd::start();
    let mut events = containerd.events();
    let log = containerd.file("hull-test.log");
    let log_uri = format!("file://{}", log.display());
    let words =
        ["sh", "-c", "echo started; trap 'echo terminated; exit 7' TERM; while :; do sleep 0.1; done"];
    containerd.detached(&["--log-uri", &log_uri], "web", &words);
    eventually("its first line", || fs::read_to_string(&log).ok().filter(|text| text == "started\n"));
    assert_eq!(containerd.status("web"), "RUNNING");

    let said = containerd.run([
        "task",
        "exec",
        "--exec-id",
        "e1",
        "web",
        "sh",
        "-c",
        "echo in exec; echo e >&2; exit 5",
    ]);
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (5, "in exec\n", "e\n"), "{said:?}");
    let mut cat = containerd
        .ctr(["task", "exec", "--exec-id", "e2", "web", "sha256sum"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input = vec![b'x'; 3_000_000];
    cat.stdin.take().unwrap().write_all(&input).unwrap();
    let output = cat.wait_with_output().unwrap();
    let hash: String =
        <sha2::Sha256 as sha2::Digest>::digest(&input).iter().map(|b| format!("{b:02x}")).collect();
    assert!(String::from_utf8_lossy(&output.stdout).starts_with(&hash), "{output:?}");
    let said = containerd.run(["task", "exec", "--exec-id", "e3", "web", "no-such-program"]);
    assert!(said.code != 0 && said.err.contains("executable file not found in $PATH"), "{said:?}");

    let metrics = containerd.ok(["task", "metrics", "--format", "json", "web"]);
    let metrics: serde_json::Value = serde_json::from_str(&metrics).unwrap();
    assert!(metrics.to_string().contains("\"usage\":"), "{metrics}");
    assert!(!containerd.ok(["task", "ps", "web"]).is_empty());

    containerd.ok(["task", "pause", "web"]);
    assert_eq!(containerd.status("web"), "PAUSED");
    let said = containerd.run(["task", "exec", "--exec-id", "e4", "web", "true"]);
    assert!(said.code != 0 && said.err.contains("paused"), "{said:?}");
    containerd.ok(["task", "resume", "web"]);
    assert_eq!(containerd.status("web"), "RUNNING");

    containerd.ok(["task", "kill", "-s", "SIGTERM", "web"]);
    containerd.becomes("web", "STOPPED");
    assert_eq!(fs::read_to_string(&log).unwrap(), "started\nterminated\n");
    let said = containerd.run(["task", "kill", "web"]);
    assert!(said.code != 0 && said.err.contains("process already finished"), "{said:?}");
    assert_eq!(containerd.exit_code("web"), 7);
    assert_eq!(
        events.until("/tasks/delete", "web"),
        [
            "create",
            "start",
            "exec-added e1",
            "exec-started e1",
            "exit e1",
            "exec-added e2",
            "exec-started e2",
            "exit e2",
            "exec-added e3",
            "paused",
            "resumed",
            "exit",
            "delete"
        ]
    );
    drop(events);
    containerd.ok(["container", "rm", "web"]);
    fs::remove_file(log).unwrap();
    containerd.left_nothing();
}

/// The OOM killer takes one process of a container that goes on: that is told when it happens, and once.
#[test]
fn an_oom_kill_is_told_at_once() {
    let containerd = Containerd::start();
    let mut events = containerd.events();
    // 60 MB in one process's memory: more than it may have, and less than there is.
    let script = "tail -c 60m /dev/zero; exec sleep 1000";
    containerd.detached(&["--memory-limit", "33554432"], "eater", &["sh", "-c", script]);
    assert_eq!(events.until("/tasks/oom", "eater"), ["create", "start", "oom"]);
    assert_eq!(containerd.status("eater"), "RUNNING");
    containerd.ok(["task", "kill", "-s", "SIGKILL", "eater"]);
    containerd.becomes("eater", "STOPPED");
    assert_eq!(containerd.exit_code("eater"), 137);
    assert_eq!(events.until("/tasks/delete", "eater"), ["create", "start", "oom", "exit", "delete"]);
    drop(events);
    containerd.ok(["container", "rm", "eater"]);
    containerd.left_nothing();
}

#[test]
fn the_clock_is_right_after_a_pause() {
    let containerd = Containerd::start();
    containerd.detached(&[], "clock", &["sleep", "1000"]);
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let check = |when: &str| {
        let before = now();
        let said = containerd.ok(["task", "exec", "--exec-id", when, "clock", "date", "+%s"]);
        let (guest, after): (u64, u64) = (said.trim().parse().unwrap(), now());
        // Within a second, and within how long it took to ask.
        assert!((before - 1..=after + 1).contains(&guest), "{when}: {guest} is not in {before}..{after}");
    };
    check("before");
    containerd.ok(["task", "pause", "clock"]);
    std::thread::sleep(Duration::from_secs(7));
    containerd.ok(["task", "resume", "clock"]);
    check("after");
    containerd.remove("clock");
    containerd.left_nothing();
}

#[test]
fn a_logger_takes_what_a_container_writes() {
    let containerd = Containerd::start();
    let (logger, log) = (containerd.file("hull-logger"), containerd.file("hull-test"));
    // Ready when descriptor 5 is closed; called with the words of the address.
    let script = "#!/bin/sh
        echo \"$CONTAINER_NAMESPACE $CONTAINER_ID $1\" >\"$2.who\"
        exec 5>&-
        cat <&3 >\"$2.out\" &
        cat <&4 >\"$2.err\"
        wait";
    fs::write(&logger, script).unwrap();
    fs::set_permissions(&logger, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let address = format!("binary://{}?file={}", logger.display(), log.display());
    let script = "seq 1 20000; echo err >&2; exit 3";
    containerd.detached(&["--log-uri", &address], "web", &["sh", "-c", script]);
    containerd.becomes("web", "STOPPED");
    // The logger has ended when the task is deleted.
    assert_eq!(containerd.exit_code("web"), 3);
    let told = |ending: &str| fs::read_to_string(log.with_extension(ending)).unwrap();
    assert_eq!(told("who"), "default web file\n");
    let wanted: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    assert!(told("out") == wanted, "{} bytes", told("out").len());
    assert_eq!(told("err"), "err\n");
    containerd.ok(["container", "rm", "web"]);
    // One that cannot be run is the run's error.
    let address = format!("binary://{}", containerd.file("no-such-logger").display());
    let said = containerd.run_container(&["-d", "--log-uri", &address], "none", &["true"]);
    assert!(said.code != 0 && said.err.contains("no-such-logger"), "{said:?}");
    containerd.run(["container", "rm", "none"]);
    fs::remove_file(logger).unwrap();
    for ending in ["who", "out", "err"] {
        fs::remove_file(log.with_extension(ending)).unwrap();
    }
    containerd.left_nothing();
}

#[test]
fn a_terminal_is_run_and_attached_to() {
    let containerd = Containerd::start();
    let command = containerd.ctr(["run", "--runtime", RUNTIME, "--rm", "-t", &busybox(), "tty", "sh"]);
    let mut terminal = Terminal::run(command, 90, 30);
    terminal.expect("#");
    terminal.send("tty; stty size\n");
    terminal.expect("/dev/pts/0");
    terminal.expect("30 90");
    terminal.send("exit 9\n");
    assert_eq!(terminal.wait().code(), Some(9));

    // ctr looks for a terminal even if it does not stay.
    let image = busybox();
    let command = containerd.ctr(["run", "--runtime", RUNTIME, "-d", "-t", &image, "later", "sh"]);
    assert!(Terminal::run(command, 80, 25).wait().success());
    let mut attached = Terminal::run(containerd.ctr(["task", "attach", "later"]), 80, 25);
    attached.send("echo attached $((6 * 7))\n");
    attached.expect("attached 42");
    attached.send("exit 4\n");
    assert_eq!(attached.wait().code(), Some(4));
    containerd.becomes("later", "");
    containerd.remove("later");
    containerd.left_nothing();
}

#[test]
fn a_folder_of_the_host_is_a_root_file_system() {
    let containerd = Containerd::start();
    let layer = containerd.file("rootfs");
    fs::create_dir(&layer).unwrap();
    containerd.ok(["images", "mount", &busybox(), layer.to_str().unwrap()]);
    let folder = containerd.file("folder");
    let copied = std::process::Command::new("cp").args(["-a"]).arg(&layer).arg(&folder).status().unwrap();
    assert!(copied.success());
    containerd.ok(["images", "unmount", "--rm", layer.to_str().unwrap()]);
    fs::remove_dir(&layer).unwrap();
    let script = "echo written >/from-guest; cat /from-host";
    fs::write(folder.join("from-host"), "of the host\n").unwrap();
    let options = [
        "run",
        "--runtime",
        RUNTIME,
        "--rm",
        "--rootfs",
        folder.to_str().unwrap(),
        "dir",
        "/bin/sh",
        "-c",
        script,
    ];
    assert_eq!(containerd.ok(options), "of the host\n");
    assert_eq!(fs::read_to_string(folder.join("from-guest")).unwrap(), "written\n");
    fs::remove_dir_all(folder).unwrap();
    containerd.left_nothing();
}

#[test]
fn the_death_of_the_monitor_is_exit_137() {
    let containerd = Containerd::start();
    let mut events = containerd.events();
    containerd.detached(&[], "web", &["sleep", "1000"]);
    let exec = containerd
        .ctr(["task", "exec", "--exec-id", "e", "web", "sh", "-c", "echo up; sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut exec = exec;
    let mut up = [0; 3];
    exec.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    kill_9(&containerd.shim_record("web")["vmm_pid"]);
    containerd.becomes("web", "STOPPED");
    assert_eq!(exec.wait().unwrap().code(), Some(137));
    assert_eq!(containerd.exit_code("web"), 137);
    let told = events.until("/tasks/delete", "web");
    assert_eq!(told, ["create", "start", "exec-added e", "exec-started e", "exit e", "exit", "delete"]);
    drop(events);
    containerd.ok(["container", "rm", "web"]);
    containerd.left_nothing();
}

#[test]
fn the_death_of_the_shim_is_cleaned_up_after() {
    let containerd = Containerd::start();
    let mut events = containerd.events();
    containerd.detached(&[], "web", &["sleep", "1000"]);
    let record = containerd.shim_record("web");
    kill_9(&record["shim_pid"]);
    let told = events.until("/tasks/delete", "web");
    assert_eq!(told, ["create", "start", "exit", "delete"]);
    eventually("the VM has ended", || {
        (!fs::exists(format!("/proc/{}", record["vmm_pid"])).unwrap()).then_some(())
    });
    drop(events);
    containerd.becomes("web", "");
    containerd.ok(["container", "rm", "web"]);
    containerd.left_nothing();
}
