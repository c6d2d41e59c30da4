//! `make build`: the shipped binaries and the guest's artifacts.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::initramfs;
use crate::packages::{self, List};
use crate::shell::{Error, at, cargo, output, root, run, say};

/// The triple is named so that `crt-static` does not reach build scripts and procedural macros.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// A program that is linked statically.
struct Static {
    package: &'static str,
    binary: &'static str,
    profile: &'static str,
}

/// Linked statically: they start faster, run on any distribution, and one of them runs where no library is, the agent. There is one
/// of each for every pod: they are built to be small, the monitor and the broker only as far as it does not cost speed.
const STATIC: [Static; 4] = [
    Static { package: "hull-vmm", binary: "hull-vmm", profile: "monitor" },
    Static { package: "hull-vmm", binary: "hull-fsd", profile: "monitor" },
    Static { package: "containerd-shim-hull-v2", binary: "containerd-shim-hull-v2", profile: "small" },
    Static { package: "hull-agent", binary: "hull-agent", profile: "small" },
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
    let mut builds = Vec::new();
    for profile in ["monitor", "small"] {
        let mut statics = cargo();
        let mut flags = ["-C", "target-feature=+crt-static"].map(str::to_owned).to_vec();
        flags.push("-Cforce-unwind-tables=no".to_owned());
        flags.push(format!("-Clink-arg=-Wl,-T,{}", root().join("agent/no-unwinding.ld").display()));
        flags.push("-Clink-arg=-Wl,--no-eh-frame-hdr".to_owned());
        if packs_relocations()? {
            flags.push("-Clink-arg=-Wl,-z,pack-relative-relocs".to_owned());
        }
        // A path may have spaces in it.
        statics.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        statics.args(["build", "--profile", profile, "--target", TARGET]);
        for part in STATIC.iter().filter(|part| part.profile == profile) {
            statics.args(["--package", part.package]);
        }
        builds.push(statics);
    }
    // Looking up a registry's host name needs the system's resolver, hence its C library.
    let mut hull = cargo();
    hull.args(["build", "--release", "--package", "hull-cli"]);
    builds.push(hull);
    at_once(builds)?;
    let release = target().join("release");
    for Static { binary, profile, .. } in STATIC {
        let (built, shipped) = (target().join(TARGET).join(profile).join(binary), release.join(binary));
        let fresh = release.join(format!(".{binary}.new"));
        at(&built, fs::copy(&built, &fresh))?;
        at(&shipped, fs::rename(&fresh, &shipped))?;
    }
    Ok(())
}

/// Runs builds beside one another: to optimize a whole program takes one processor, and a profile's folder is its own.
fn at_once(builds: Vec<Command>) -> Result<(), Error> {
    std::thread::scope(|scope| {
        let builds: Vec<_> = builds
            .into_iter()
            // Progress bars would overwrite one another.
            .map(|mut build| scope.spawn(move || run(build.env("CARGO_TERM_PROGRESS_WHEN", "never"))))
            .collect();
        builds.into_iter().try_for_each(|build| {
            build.join().unwrap_or_else(|_| Err(Error::Other("a build cannot be waited for".to_owned())))
        })
    })
}

/// Whether the C library that is linked in can apply relocations to itself that take a twentieth of the room: from 2.36 on.
fn packs_relocations() -> Result<bool, Error> {
    let version = output(Command::new("getconf").arg("GNU_LIBC_VERSION"))?;
    let mut numbers = version.trim().trim_start_matches("glibc ").split('.').map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else { return Ok(false) };
    Ok((major, minor) >= (2, 36))
}

fn kernel() -> Result<(), Error> {
    say("building the guest kernel, unless it is cached");
    run(Command::new(root().join("guest-kernel/build.sh"))
        .env("CARGO_TARGET_DIR", target())
        .current_dir(root()))
}
