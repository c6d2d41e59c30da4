//! What a boot may cost, as counts: a count hardly depends on the machine, a time does.
//!
//! The bounds only go down. To lower one, run this test with `--nocapture` in a few hosts and write a little more than
//! what the printed lines show; a bound that is exceeded is not raised: find out who asks for more.

use std::fs;

use hull_tests::hull::Hull;

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
