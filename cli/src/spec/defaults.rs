//! What every container has: mounts, namespaces, hidden paths and device rules, as docker gives them.

use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxNamespace, LinuxNamespaceBuilder,
    LinuxNamespaceType, Mount, MountBuilder,
};

use super::Privileges;
use crate::quantity::Bytes;

/// Paths that the container sees as empty.
const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths that the container may read.
const READONLY_PATHS: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Paths that the container sees as empty.
pub fn masked_paths(privileges: Privileges) -> Vec<String> {
    unless_privileged(privileges, MASKED_PATHS)
}

/// Paths that the container may only read.
pub fn readonly_paths(privileges: Privileges) -> Vec<String> {
    unless_privileged(privileges, READONLY_PATHS)
}

fn unless_privileged(privileges: Privileges, list: &[&str]) -> Vec<String> {
    match privileges {
        Privileges::Usual => list.iter().map(|text| (*text).to_owned()).collect(),
        Privileges::All => Vec::new(),
    }
}

/// The file systems of a container, in mounting order.
pub fn mounts(shm_size: Bytes, privileges: Privileges) -> Result<Vec<Mount>, OciSpecError> {
    let shm_size = format!("size={}", shm_size.0);
    let access = if privileges == Privileges::All { "rw" } else { "ro" };
    [
        ("proc", "/proc", "proc", vec!["nosuid", "noexec", "nodev"]),
        ("tmpfs", "/dev", "tmpfs", vec!["nosuid", "strictatime", "mode=755", "size=65536k"]),
        (
            "devpts",
            "/dev/pts",
            "devpts",
            vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        ("mqueue", "/dev/mqueue", "mqueue", vec!["nosuid", "noexec", "nodev"]),
        ("shm", "/dev/shm", "tmpfs", vec!["nosuid", "noexec", "nodev", "mode=1777", shm_size.as_str()]),
        ("sysfs", "/sys", "sysfs", vec!["nosuid", "noexec", "nodev", access]),
        ("cgroup", "/sys/fs/cgroup", "cgroup", vec!["nosuid", "noexec", "nodev", "relatime", access]),
    ]
    .into_iter()
    .map(|(source, destination, kind, options)| {
        mount(source, destination, kind, options.into_iter().map(str::to_owned).collect())
    })
    .collect()
}

/// One mount.
pub fn mount(
    source: &str,
    destination: &str,
    kind: &str,
    options: Vec<String>,
) -> Result<Mount, OciSpecError> {
    MountBuilder::default().source(source).destination(destination).typ(kind).options(options).build()
}

/// The namespaces. That of the network is on the host: the one at `network`, or a new one with nothing in it.
pub fn namespaces(network: Option<&Path>) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    let mut namespaces = [
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Cgroup,
    ]
    .into_iter()
    .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
    .collect::<Result<Vec<_>, _>>()?;
    let mut own = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Network);
    if let Some(path) = network {
        own = own.path(path);
    }
    namespaces.push(own.build()?);
    Ok(namespaces)
}

/// Device access: nodes may be made, but only the harmless ones used.
pub fn device_rules(privileges: Privileges) -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    use LinuxDeviceType::{A, B, C};
    if privileges == Privileges::All {
        let all = LinuxDeviceCgroupBuilder::default().allow(true).typ(A).access("rwm").build()?;
        return Ok(vec![all]);
    }
    let any = None;
    [
        (false, A, any, any, "rwm"),
        (true, C, any, any, "m"),
        (true, B, any, any, "m"),
        (true, C, Some(1), Some(3), "rwm"), // /dev/null
        (true, C, Some(1), Some(5), "rwm"), // /dev/zero
        (true, C, Some(1), Some(7), "rwm"), // /dev/full
        (true, C, Some(1), Some(8), "rwm"), // /dev/random
        (true, C, Some(1), Some(9), "rwm"), // /dev/urandom
        (true, C, Some(5), Some(0), "rwm"), // /dev/tty
        (true, C, Some(5), Some(1), "rwm"), // /dev/console
        (true, C, Some(5), Some(2), "rwm"), // /dev/ptmx
        (true, C, Some(136), any, "rwm"),   // /dev/pts/*
    ]
    .into_iter()
    .map(|(allow, kind, major, minor, access)| {
        let mut rule = LinuxDeviceCgroupBuilder::default().allow(allow).typ(kind).access(access);
        if let Some(major) = major {
            rule = rule.major(major);
        }
        if let Some(minor) = minor {
            rule = rule.minor(minor);
        }
        rule.build()
    })
    .collect()
}

/// Where the root file system is, relative to the bundle.
pub fn root_path() -> PathBuf {
    PathBuf::from("rootfs")
}
