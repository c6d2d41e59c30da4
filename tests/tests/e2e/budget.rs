//! What a boot and an idle pod may cost, as counts and memory: those hardly depend on the machine, a time does.
//!
//! The bounds only go down. To lower one, run this test with `--nocapture` in a few hosts and write a little more than
//! what the printed lines show; a bound that is exceeded is not raised: find out who asks for more.

use std::fs;

use hull_tests::hull::{Hull, binaries};
use hull_tests::memory;

/// Boots of which the cheapest counts: a busy host adds ticks of the timer, it takes none away.
const BOOTS: usize = 3;

/// Figures of the boot record, from the start of the monitor to the agent's connection, and the most that each may be. The
/// monitor counts them, so they are the same on every host.
const OF_THE_MONITOR: [(&str, u64); 4] =
    [("monitor_exits", 303), ("mmio_exits", 235), ("device_interrupts", 6), ("notifications", 7)];

/// Those that KVM counts, measured in the emulated test host: other processors leave the guest for other reasons.
const OF_KVM: [(&str, u64); 2] = [("vm_exits", 12_000), ("interrupts", 700)];

#[test]
fn a_boot_takes_no_more_exits_and_interrupts_than_it_used_to() {
    let hull = Hull::new();
    let boots: Vec<serde_json::Value> = (0..BOOTS)
        .map(|_| {
            let id = hull.detached(&[], "busybox", &["sleep", "600"]);
            let boot = hull.shim_record(&id)["boot"].clone();
            hull.ok(["rm", "-f", &id]);
            println!("{boot}");
            boot
        })
        .collect();
    let emulated = fs::read_to_string("/proc/cpuinfo").unwrap().contains("QEMU TCG");
    for (figure, most) in OF_THE_MONITOR.into_iter().chain(OF_KVM.into_iter().filter(|_| emulated)) {
        let least = boots.iter().map(|boot| boot[figure].as_u64().unwrap()).min().unwrap();
        assert!((1..=most).contains(&least), "{figure} up to the agent's word: {least} of at most {most}");
    }
    hull.left_nothing();
}

/// Of the shim's program, in bytes: its pages are its own where only one shim runs.
const SHIM_MAX: u64 = 3_100_000;
/// What a shim alone has to itself, in KiB.
const SHIM_PRIVATE_MAX: u64 = 4 << 10;
/// What is charged to one pod's shim and monitor, besides its guest's memory, in KiB.
const PSS_MAX: u64 = 8 << 10;

#[test]
fn an_idle_pod_takes_little_memory_and_is_not_woken() {
    let program = fs::metadata(binaries().join("containerd-shim-hull-v2")).unwrap().len();
    assert!(program <= SHIM_MAX, "the shim's program has {program} bytes");
    let hull = Hull::new();
    let id = hull.detached(&["-m", "384m"], "busybox", &["sleep", "600"]);
    let record = hull.shim_record(&id);
    let pid = |name: &str| record[name].as_u64().unwrap();
    let shim = memory::whole(pid("shim_pid"));
    let monitor = memory::split(pid("vmm_pid"), 512 << 20).0;
    println!("shim: {shim:?}, monitor: {monitor:?}");
    assert!((1..=SHIM_PRIVATE_MAX).contains(&shim.private), "the shim: {shim:?}");
    assert!(shim.pss + monitor.pss <= PSS_MAX, "the shim: {shim:?}, the monitor: {monitor:?}");
    // Or the kernel wakes up twice a second.
    assert_eq!(hull.ok(["exec", &id, "cat", "/proc/sys/vm/compaction_proactiveness"]), "0\n");
    hull.ok(["rm", "-f", &id]);
    hull.left_nothing();
}
