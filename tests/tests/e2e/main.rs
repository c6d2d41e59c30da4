//! Hull from end to end: real images from a real registry, in microVMs on a real KVM.
//!
//! Run by `make test`, one at a time, in the test host. Each test ends by asking what was left behind.

// A test that cannot go on is a test that failed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

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
mod hostile;
mod images;
mod kubelet;
mod layers;
mod limits;
mod load;
mod metrics;
mod network;
mod refused;
mod resize;
mod restarts;
mod sandboxes;
mod soak;
mod streams;
mod terminal;
mod volumes;
