//! New limits of a container change the size of its VM where they have to, and what cannot be had is refused.

use hull_tests::containerd::Containerd;
use hull_tests::cri::*;
use hull_tests::eventually;
use hull_tests::hull::metric;
use hull_tests::kubelet::{Pod, some};

/// A pod's limits never ask for more.
const MOST_VCPUS: usize = 32;

/// Asks for new limits: memory in MiB, processors in percent of one.
pub fn update(pod: &Pod<'_>, id: &str, mib: i64, percent: i64) -> Result<Empty, Refused> {
    let linux = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: percent * 1000,
        memory_limit_in_bytes: mib << 20,
        ..LinuxContainerResources::default()
    };
    let request = UpdateContainerResourcesRequest {
        container_id: id.into(),
        linux: some(linux),
        ..UpdateContainerResourcesRequest::default()
    };
    pod.cri.call("UpdateContainerResources", &request)
}

/// A container that needs no more than the VM has without it.
pub fn small(pod: &Pod<'_>) -> String {
    pod.container_with("web", "sleep 1000", |config| {
        config.linux.mut_or_insert_default().resources =
            some(LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() });
    })
}

/// The VM's memory in MiB and its processors, as a container sees them.
pub fn size(pod: &Pod<'_>, id: &str) -> (u64, u64) {
    let said = pod.says(id, "awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo; nproc");
    let mut numbers = said.lines().map(|line| line.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn a_vm_grows_and_shrinks_with_its_containers_limits() {
    let containerd = Containerd::for_pods_as("vm.resize = \"allow\"\n");
    let pod = Pod::run(&containerd, "sized", NamespaceMode::CONTAINER);
    let web = small(&pod);
    let (began, cpus) = size(&pod, &web);
    assert!((400..512).contains(&began) && cpus == 1, "{began} MiB, {cpus} processors");

    // 1024 MiB, the guest's 128, and a 32nd of the limit: 672 more than it has booted with.
    update(&pod, &web, 1024, 100).unwrap();
    let (grown, _) = size(&pod, &web);
    assert!((began + 662..=began + 672).contains(&grown), "{began}, then {grown} MiB");
    let limit = "cat /sys/fs/cgroup/memory.max";
    assert_eq!(pod.says(&web, limit), "1073741824\n");
    let bound = eventually("the guest tells of its memory", || {
        metric(&containerd.hull(["metrics"]).out, "hull_guest_containers_memory_bytes", &[])
    });
    assert!(bound >= f64::from(1024 << 20), "all containers may have {bound} bytes");
    // It is there to be used.
    pod.says(&web, "dd if=/dev/zero of=/dev/null bs=800M count=1 2>/dev/null");

    update(&pod, &web, 256, 100).unwrap();
    assert_eq!((size(&pod, &web).0, pod.says(&web, limit)), (began, "268435456\n".to_owned()));
    // Up to half of it, and further.
    for (mib, more) in [(512, 144), (768, 408), (368, 0)] {
        update(&pod, &web, mib, 100).unwrap();
        let (now, _) = size(&pod, &web);
        assert!(
            (began + more - 10.min(more)..=began + more).contains(&now),
            "{mib}: {began}, then {now} MiB"
        );
    }

    // What the host has not is refused, and nothing has changed.
    let refused = update(&pod, &web, 1 << 20, 100).unwrap_err();
    let words = format!("{refused:?}");
    assert!(words.contains("the limits take a VM of 1 vCPU and"), "{words}");
    assert_eq!((size(&pod, &web).0, pod.says(&web, limit)), (began, "385875968\n".to_owned()));

    let too_many = std::thread::available_parallelism().unwrap().get() + 1;
    if too_many <= MOST_VCPUS {
        let refused = update(&pod, &web, 368, 100 * i64::try_from(too_many).unwrap()).unwrap_err();
        assert!(format!("{refused:?}").contains(&format!("{too_many} vCPUs")), "{refused:?}");
    }
    assert_eq!(size(&pod, &web).1, 1);
    pod.end();
    containerd.left_nothing();
}
