//! Pods through containerd's sandbox API, which has the shim make them.

use hull_tests::containerd::Containerd;
use hull_tests::cri::*;
use hull_tests::kubelet::Pod;

#[test]
fn a_pod_without_a_container_that_stands_for_it() {
    let Some(containerd) = Containerd::for_sandboxes() else { return };
    let pod = Pod::run(&containerd, "bare", NamespaceMode::CONTAINER);
    let id = pod.container("app", 0, "sleep 1000", &[]);
    assert_eq!(
        pod.says(&id, "hostname; cat /etc/hostname; cat /etc/resolv.conf"),
        "bare\nbare\nnameserver 192.0.2.53\n"
    );
    pod.end();
    containerd.left_nothing();
}
