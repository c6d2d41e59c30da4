//! What root in a container of a real VM tries, beyond what the agent's own tests try outside of one: the vsock device, by which the
//! agent and the host talk, and the agent's program. The second table of docs/security.md.
//!
//! `hull run` has no `--privileged`: what matters here of what it gives are the capabilities, and that no system call is filtered.

use hull_tests::document::{self, Section, outcome};
use hull_tests::hull::{Hull, Said};
use hull_tests::oci::checker;
use serde_json::Value;

const DOCUMENT: &str = "docs/security.md";

/// What it is, in words, the probe, and what stands in the way.
const ATTEMPTS: [(&str, &str, &str); 8] = [
    ("connect to the agent's port on the host", "vsock:2,1024", "the shim took one connection, the agent's"),
    ("connect to its other port there", "vsock:2,1025", "the host listens on none"),
    ("connect to a port of the host's", "vsock:2,22", "the host listens on none"),
    ("connect to the agent by the guest's address", "vsock:3,1025", "the guest has no vsock loopback"),
    (
        "connect to the agent by the loopback address",
        "vsock:1,1025",
        "the monitor refuses what is not for the host",
    ),
    ("connect to the next guest", "vsock:4,1025", "the monitor refuses what is not for the host"),
    ("take the agent's port", "vsock-listen:1025", "the agent has it"),
    // Once something runs that is the agent's.
    ("overwrite the agent's program", "seize", "it runs"),
];

/// Besides docker's defaults.
const PRIVILEGED: [&str; 4] = ["--cap-add", "ALL", "--security-opt", "seccomp=unconfined"];

/// In the container: something for the agent's program to wait for, and then time.
const PREPARE: &str = "mkdir -p /asked/for; mkfifo /asked/for/state.json; echo ready; sleep 1000";
/// The agent's program, as a new process finds it before it has its own.
const AGENT: [&str; 5] = ["/proc/self/exe", "--root", "/asked", "state", "for"];

fn outcomes(said: &Said) -> Vec<String> {
    let report: Value = serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    let answers = &report["probes"];
    assert_ne!(answers["seize"], "no other program", "the agent's program did not run in the container");
    ATTEMPTS.iter().map(|(_, probe, _)| outcome(&answers[probe])).collect()
}

fn probes() -> Vec<&'static str> {
    std::iter::once("/checker").chain(ATTEMPTS.iter().map(|(_, probe, _)| *probe)).collect()
}

fn tried(options: &[&str]) -> Vec<String> {
    let hull = Hull::new();
    let volume = format!("{}:/checker:ro", checker().display());
    let id = hull.detached(&[options, &["-v", &volume]].concat(), "busybox", &["sh", "-c", PREPARE]);
    hull_tests::eventually("the container is ready", || {
        hull.ok(["logs", &id]).contains("ready").then_some(())
    });
    hull.ok([&["exec", "-d", &id][..], &AGENT].concat());
    let found = outcomes(&hull.run([vec!["exec", &id], probes()].concat()));
    // What was killed was a process of the container's, and not the agent.
    assert_eq!(hull.ok(["exec", &id, "echo", "alive"]), "alive\n");
    hull.ok(["rm", "-f", &id]);
    hull.left_nothing();
    found
}

#[test]
fn the_agent_and_the_host_are_out_of_reach() {
    let mut section = Section::default();
    let (default, privileged) = (tried(&[]), tried(&PRIVILEGED));
    for ((words, _, guard), (default, privileged)) in ATTEMPTS.iter().zip(default.into_iter().zip(privileged))
    {
        section.rows.push([(*words).to_owned(), default, privileged, (*guard).to_owned()]);
    }
    let allowed: Vec<_> = section.rows.iter().filter(|row| row.contains(&"allowed".to_owned())).collect();
    assert!(allowed.is_empty(), "{allowed:?}");
    document::check_or_write(DOCUMENT, "attempts-vm", &section, &[0, 1, 2]);
}
