//! What root in a container of a real VM tries, by default and with `--privileged`: the tables of docs/security.md. And what a privileged
//! one does to its own VM, which nobody else notices.

use std::os::unix::fs::symlink;

use hull_tests::attempts::{self, Attempt, ON_THE_HOST, ON_THE_KERNEL};
use hull_tests::document;
use hull_tests::hull::{Hull, image};
use hull_tests::oci::checker;
use serde_json::Value;

const DOCUMENT: &str = "docs/security.md";

/// In the container: something for the agent's program to wait for, and then time.
const PREPARE: &str = "mkdir -p /tmp /mnt /asked/for; mkfifo /asked/for/state.json; echo ready; sleep 1000";
/// The agent's program, as a new process finds it before it has its own.
const AGENT: [&str; 5] = ["/proc/self/exe", "--root", "/asked", "state", "for"];

fn all() -> impl Iterator<Item = &'static Attempt> {
    ON_THE_KERNEL.iter().chain(&ON_THE_HOST)
}

/// What came of all attempts, in order.
fn tried(options: &[&str]) -> Vec<String> {
    // Made first, and gone last: what is left behind is looked for in between.
    let host = tempfile::tempdir().unwrap();
    let hull = Hull::new();
    let (secret, shared) = (host.path().join("secret"), host.path().join("shared"));
    std::fs::write(&secret, "secret\n").unwrap();
    std::fs::create_dir(&shared).unwrap();
    symlink(&secret, shared.join("link")).unwrap();
    let volumes =
        [format!("{}:/checker:ro", checker().display()), format!("{}:/volume:ro", shared.display())];
    let options = [options, &["-v", &volumes[0], "-v", &volumes[1]]].concat();
    let id = hull.detached(&options, "busybox", &["sh", "-c", PREPARE]);
    hull_tests::eventually("the container is ready", || {
        hull.ok(["logs", &id]).contains("ready").then_some(())
    });
    hull.ok([&["exec", "-d", &id][..], &AGENT].concat());
    let said = hull.run([vec!["exec", &id], attempts::command(all())].concat());
    let report: Value = serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    assert_ne!(
        report["probes"]["seize"], "no other program",
        "the agent's program did not run in the container"
    );
    // What was killed was a process of the container's, and not the agent.
    assert_eq!(hull.ok(["exec", &id, "echo", "alive"]), "alive\n");
    hull.ok(["rm", "-f", &id]);
    let left: Vec<_> = std::fs::read_dir(&shared).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(
        (left.as_slice(), std::fs::read(&secret).unwrap().as_slice()),
        (&["link".into()][..], &b"secret\n"[..])
    );
    hull.left_nothing();
    attempts::outcomes(&report, all())
}

#[test]
fn what_root_in_a_container_can_do_is_what_the_document_says() {
    let (default, privileged) = (tried(&[]), tried(&["--privileged"]));
    let (kernel, host) = (0..ON_THE_KERNEL.len(), ON_THE_KERNEL.len()..default.len());
    let on_the_kernel = attempts::section(&ON_THE_KERNEL, &default[kernel.clone()], &privileged[kernel]);
    let on_the_host = attempts::section(&ON_THE_HOST, &default[host.clone()], &privileged[host]);
    // What a privileged container may do beyond its VM: nothing. These two end in it.
    let own = ["read its disk by a node of its own", "make a read-only volume writable"];
    let beyond = |row: &&[String; 4]| row.contains(&"allowed".to_owned()) && !own.contains(&row[0].as_str());
    assert_eq!(on_the_host.rows.iter().find(beyond), None);
    document::check_or_write(DOCUMENT, "attempts", &on_the_kernel, &[0, 1, 2]);
    document::check_or_write(DOCUMENT, "attempts-vm", &on_the_host, &[0, 1, 2]);
}

/// With every privilege, root can end its guest's kernel. That ends its own VM, and is told so.
#[test]
fn a_privileged_container_ends_no_vm_but_its_own() {
    let hull = Hull::new();
    let other = hull.detached(&[], "busybox", &["sleep", "1000"]);
    // A panic, where else a process is killed that takes more than it may have.
    let script =
        "echo 2 > /proc/sys/vm/panic_on_oom; dd if=/dev/zero of=/dev/null bs=128M count=1; echo survived";
    let busybox = image("busybox");
    let said = hull.run(["run", "--rm", "--privileged", "-m", "64m", &busybox, "sh", "-c", script]);
    assert_eq!((said.code, said.out.as_str()), (137, ""), "{said:?}");
    assert!(said.err.contains("panic"), "{said:?}");
    assert_eq!(hull.ok(["exec", &other, "echo", "alive"]), "alive\n");
    hull.ok(["rm", "-f", &other]);
    hull.left_nothing();
}
