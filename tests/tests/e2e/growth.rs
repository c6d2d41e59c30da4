//! A VM grows by a processor, and loses it again: in a host that has one to spare.

use hull_tests::containerd::Containerd;
use hull_tests::cri::NamespaceMode;
use hull_tests::kubelet::Pod;

use crate::resize::{size, small, update};

#[test]
fn a_vm_grows_by_a_processor_and_loses_it_again() {
    let processors = std::thread::available_parallelism().unwrap().get();
    assert!(processors > 1, "this host has no processor for a VM to grow by");
    let containerd = Containerd::for_pods_as("vm.resize = \"allow\"\n");
    let pod = Pod::run(&containerd, "sized", NamespaceMode::CONTAINER);
    let web = small(&pod);
    assert_eq!(size(&pod, &web).1, 1);
    update(&pod, &web, 64, 150).unwrap();
    assert_eq!(size(&pod, &web).1, 2);
    update(&pod, &web, 64, 100).unwrap();
    assert_eq!(size(&pod, &web).1, 1);
    pod.end();
    containerd.left_nothing();
}
