//! Thousands of containers from one agent, and nothing that grows: `HULL_ROUNDS=10000` for the long run.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod guest;

use std::time::Instant;

use guest::{Footprint, Guest, spec, with_guest};

/// Rounds unless the environment says otherwise.
const ROUNDS: u32 = 200;
/// Rounds before anything is measured: allocators and caches fill once.
const WARM_UP: u32 = 50;
/// What resident memory may grow by between the first and the last measurement, in KiB, however many rounds there are:
/// less than 4 KiB a container already shows after a hundred.
const GROWTH_MAX: u64 = 384;

/// What the agent has, as the kernel counts it.
#[derive(Debug)]
struct Measured {
    footprint: Footprint,
    threads: usize,
    resident_kib: u64,
}

fn measure(guest: &Guest) -> Measured {
    let pid = guest.agent_pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    Measured {
        footprint: guest.footprint(),
        threads: usize::try_from(field("Threads:")).unwrap(),
        resident_kib: field("VmRSS:"),
    }
}

/// One container, with an exec in it, from creation to deletion.
async fn round(guest: &Guest, number: u32) {
    let id = format!("c{number}");
    guest.create(&id, &spec(&["cat"]), [true, true, true]).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    if number.is_multiple_of(8) {
        let output = guest.exec(&id, "e", &spec(&["echo", "there"])["process"].take()).await;
        assert_eq!(output.stdout, "there\n");
    }
    guest.delete(&id).await.unwrap();
}

#[test]
fn nothing_grows_with_the_number_of_containers() {
    let rounds = std::env::var("HULL_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    with_guest(|guest| async {
        for number in 0..WARM_UP {
            round(&guest, number).await;
        }
        let before = measure(&guest);
        let start = Instant::now();
        for number in 0..rounds {
            round(&guest, number).await;
            if number % 1000 == 999 {
                println!("{} rounds: {:?}", number + 1, measure(&guest));
            }
        }
        let after = measure(&guest);
        println!("{rounds} rounds in {:.0?}: before {before:?}, after {after:?}", start.elapsed());
        assert_eq!(after.footprint, before.footprint);
        assert_eq!(after.threads, 1);
        assert!(
            after.resident_kib <= before.resident_kib + GROWTH_MAX,
            "from {} to {} KiB",
            before.resident_kib,
            after.resident_kib
        );
        guest
    });
}
