//! A shim that is refused memory, descriptors, or processes and threads, once it runs, by every small amount: each time the
//! requests end with an error or the shim does, the events keep their laws, nothing is left, and the next pod works. Needs
//! root.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;

use hull_shim::client::{Code, Process};
use nix::libc;
use support::counters::Counters;
use support::few::Few;
use support::life::{Life, Said, Shape};
use support::{script, soon};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resource {
    Memory,
    Descriptors,
    Processes,
}

/// Lets a process that runs have no more of a resource than this; its children can have more again.
fn limit(pid: u32, resource: libc::__rlimit_resource_t, to: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let pid = pid.try_into().unwrap();
    // SAFETY: both structures are ours and live for the call.
    unsafe {
        assert_eq!(libc::prlimit(pid, resource, std::ptr::null(), &raw mut limit), 0);
        limit.rlim_cur = to;
        assert_eq!(libc::prlimit(pid, resource, &raw const limit, std::ptr::null_mut()), 0);
    }
}

fn virtual_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// A life with only so much more; what it came to.
async fn with(life: &mut Life, resource: Resource, more: u64) -> Said {
    let (containerd, client) = life.begin("").await;
    // What is short for the shim is not for its children.
    let vmm = fs::read_to_string(life.pod.file("vmm")).unwrap();
    let free =
        format!("ulimit -S -v unlimited; ulimit -S -n 1024; echo $$ >{}/cgroup.procs", Few::root().display());
    script(&life.pod.file("vmm"), &vmm.replace("#!/bin/sh\n", &format!("{free}\n")));
    let shim = soon(client.connect_task("web")).await.unwrap().shim_pid;
    let few = Few::new();
    match resource {
        Resource::Memory => limit(shim, libc::RLIMIT_AS, virtual_bytes(shim) + (more << 18)),
        Resource::Descriptors => {
            limit(shim, libc::RLIMIT_NOFILE, Counters::of(shim).descriptors as u64 + more);
        }
        Resource::Processes => few.hold(shim, more),
    }
    let said = life.live(&client).await;
    life.conclude(&format!("{resource:?} {more}"), &containerd, &said);
    said
}

async fn every_amount(shape: Shape, resource: Resource) {
    let mut life = Life::new(shape);
    let (mut failed, mut enough) = (0, 0);
    // Until it has been enough often enough.
    for more in 0.. {
        assert!(more < 100, "it is never enough");
        let said = with(&mut life, resource, more).await;
        for (what, error) in &said.errors {
            let fits = error.code().is_none_or(|code| {
                matches!(code, Code::UNKNOWN | Code::NOT_FOUND | Code::FAILED_PRECONDITION | Code::INTERNAL)
            });
            assert!(fits, "{resource:?} {more}: {what}: {:?} {error}", error.code());
        }
        if said.errors.is_empty() {
            assert_eq!(said.exit, Some(137));
            enough += 1;
            if enough == 3 {
                break;
            }
        } else {
            (failed, enough) = (failed + 1, 0);
        }
    }
    assert!(failed > 0, "it was never short");
    let said = life.once("").await;
    assert!(said.errors.is_empty() && said.exit == Some(137), "{said:?}");
}

#[tokio::test]
async fn of_memory() {
    every_amount(Shape::Alone, Resource::Memory).await;
}

#[tokio::test]
async fn of_memory_in_a_pod() {
    every_amount(Shape::Sandboxed, Resource::Memory).await;
}

#[tokio::test]
async fn of_descriptors() {
    every_amount(Shape::Alone, Resource::Descriptors).await;
}

#[tokio::test]
async fn of_descriptors_in_a_pod() {
    every_amount(Shape::Sandboxed, Resource::Descriptors).await;
}

#[tokio::test]
async fn of_processes() {
    every_amount(Shape::Alone, Resource::Processes).await;
}

#[tokio::test]
async fn of_processes_in_a_pod() {
    every_amount(Shape::Sandboxed, Resource::Processes).await;
}

/// A shim that has been short stays able to serve what needs no more.
#[tokio::test]
async fn a_running_container_outlives_the_want_of_its_shim() {
    for resource in [Resource::Descriptors, Resource::Processes] {
        let life = Life::new(Shape::Alone);
        let client = life.pod.connect().await;
        let web = Process::init("web");
        soon(client.create(&life.pod.request)).await.unwrap();
        soon(client.start(web)).await.unwrap();
        let shim = soon(client.connect_task("web")).await.unwrap().shim_pid;
        let few = Few::new();
        match resource {
            Resource::Descriptors => limit(shim, libc::RLIMIT_NOFILE, 4),
            _ => few.hold(shim, 0),
        }
        let mut exec = life.pod.exec_request("e", &["true"]);
        exec.stdout = format!("file://{}", life.pod.file("output").display());
        soon(client.exec(&exec)).await.unwrap();
        if resource == Resource::Descriptors {
            let error = soon(client.start(Process::exec("web", "e"))).await.unwrap_err();
            assert!(error.to_string().contains("Too many open files"), "{error}");
            limit(shim, libc::RLIMIT_NOFILE, 1024);
        }
        soon(client.start(Process::exec("web", "e"))).await.unwrap();
        assert_eq!(soon(client.wait(Process::exec("web", "e"))).await.unwrap().exit_status, 0);
        soon(client.kill(web, 9, hull_shim::client::Reach::Process)).await.unwrap();
        assert_eq!(soon(client.wait(web)).await.unwrap().exit_status, 137);
        soon(client.delete(web)).await.unwrap();
        soon(client.shutdown("web")).await.unwrap();
        life.pod.assert_nothing_left();
    }
}
