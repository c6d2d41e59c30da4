//! Hull from end to end: real images from a real registry, in microVMs on a real KVM.
//!
//! Run by `make test`, one at a time, in the test host. Each test ends by asking what was left behind.

// A test that cannot go on is a test that failed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

/// Makes tests of functions that take a containerd: its pods have a pause container in one, and come from the sandbox API in
/// the other, where the engine has that.
macro_rules! in_pods_of_both_kinds {
    ($($name:ident),+ $(,)?) => {
        mod with_a_pause_container {
            $(#[test]
            fn $name() {
                super::$name(hull_tests::containerd::Containerd::for_pods());
            })+
        }

        mod by_the_sandbox_api {
            $(#[test]
            fn $name() {
                if let Some(containerd) = hull_tests::containerd::Containerd::for_sandboxes() {
                    super::$name(containerd);
                }
            })+
        }
    };
}
use in_pods_of_both_kinds;

mod budget;
mod cgroups;
mod configured;
mod confined;
mod containerd;
mod cri;
mod debug;
mod detached;
mod devices;
mod docker;
mod exits;
mod growth;
mod hostile;
mod images;
mod kubelet;
mod layers;
mod limits;
mod load;
mod metrics;
mod network;
mod processors;
mod refused;
mod resize;
mod restarts;
mod sandboxes;
mod soak;
mod streams;
mod terminal;
mod traces;
mod volumes;
