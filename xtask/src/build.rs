//! `make build`: the shipped binaries and the guest's artifacts.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::initramfs;
use crate::packages::{self, List};
use crate::shell::{Error, at, cargo, root, run, say};

/// The triple is named so that `crt-static` does not reach build scripts and procedural macros.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Linked statically: they start faster, run on any distribution, and one of them runs where no library is.
const STATIC: [(&str, &str); 4] = [
    ("hull-vmm", "hull-vmm"),
    ("hull-vmm", "hull-fsd"),
    ("containerd-shim-hull-v2", "containerd-shim-hull-v2"),
    ("hull-agent", "hull-agent"),
];

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where the guest's artifacts go.
pub fn guest() -> PathBuf {
    target().join("guest")
}

/// Everything that `hull run` needs.
pub fn all() -> Result<(), Error> {
    packages::install(&[List::Build])?;
    binaries()?;
    say("packing the initramfs");
    initramfs::write(&target().join("release/hull-agent"), &guest().join("initramfs.img"))?;
    kernel()
}

fn binaries() -> Result<(), Error> {
    say("building hull, the shim, the monitor and the agent");
    let mut statics = cargo();
    statics.env("RUSTFLAGS", "-C target-feature=+crt-static").args([
        "build",
        "--release",
        "--target",
        TARGET,
    ]);
    for (package, _) in STATIC {
        statics.args(["--package", package]);
    }
    run(&mut statics)?;
    // Looking up a registry's host name needs the system's resolver, hence its C library.
    run(cargo().args(["build", "--release", "--package", "hull-cli"]))?;
    let release = target().join("release");
    for (_, binary) in STATIC {
        let (built, shipped) = (target().join(TARGET).join("release").join(binary), release.join(binary));
        let fresh = release.join(format!(".{binary}.new"));
        at(&built, fs::copy(&built, &fresh))?;
        at(&shipped, fs::rename(&fresh, &shipped))?;
    }
    Ok(())
}

fn kernel() -> Result<(), Error> {
    say("building the guest kernel, unless it is cached");
    run(Command::new(root().join("guest-kernel/build.sh"))
        .env("CARGO_TARGET_DIR", target())
        .current_dir(root()))
}
