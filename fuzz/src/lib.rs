//! Bodies of fuzz targets: each takes bytes, makes of them what a hostile guest, image or neighbour could send, and
//! panics when Hull does what it must not.
//!
//! They are shared by three drivers: `make test` runs the kept corpus and a bounded number of random inputs, the program
//! `hull-fuzz` runs as many as are asked for with any toolchain, and `fuzz/libfuzzer` is for cargo-fuzz. Guest memory
//! lies between guard pages, so that a byte too far ends the process.

// A body that cannot go on is a finding.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod agent;
pub mod allocation;
mod broker;
mod console;
mod control;
mod devices;
mod fuse;
mod guest;
mod kernel;
mod layers;
mod vsock;

/// One target's state, made once, and what it does with an input. The same input does the same, whatever came before.
pub type Body = Box<dyn FnMut(&[u8])>;

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of its folder in the corpus, too.
    pub name: &'static str,
    /// Makes its body.
    pub make: fn() -> Body,
}

impl Target {
    /// The most that one input may make the code hold, in bytes.
    #[must_use]
    pub fn peak_max(&self) -> usize {
        match self.name {
            // For a list of numbers, the protobuf library sets aside room for as many as it is said to have, up to ten
            // million, and touches none of it before they are there.
            "agent_message" => 96 << 20,
            _ => 24 << 20,
        }
    }
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "mmio", make: devices::registers },
    Target { name: "blk", make: devices::blk },
    Target { name: "blk_ring", make: devices::blk_ring },
    Target { name: "net", make: devices::net },
    Target { name: "vsock", make: vsock::device },
    Target { name: "vsock_packet", make: vsock::packet },
    Target { name: "fs", make: fuse::device },
    Target { name: "fuse", make: fuse::messages },
    Target { name: "rng", make: devices::rng },
    Target { name: "balloon", make: devices::balloon },
    Target { name: "mem", make: devices::mem },
    Target { name: "pmem", make: devices::pmem },
    Target { name: "console", make: console::ports },
    Target { name: "control", make: control::requests },
    Target { name: "kernel", make: kernel::load },
    Target { name: "broker", make: broker::requests },
    Target { name: "layer", make: layers::tar },
    Target { name: "sidecar", make: layers::sidecar },
    Target { name: "erofs", make: layers::erofs },
    Target { name: "agent_message", make: agent::messages },
    Target { name: "agent_spec", make: agent::spec },
    Target { name: "agent_spec_values", make: agent::spec_values },
];

/// The target of this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|target| target.name == name).copied()
}
