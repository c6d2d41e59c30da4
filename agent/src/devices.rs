//! The devices that the guest has, as the kernel's sysfs lists them: what a privileged container finds in its /dev.
//!
//! Read from sysfs, which nobody can write names into, and not from /dev. Makes no node: that is for whoever builds the container.

use std::fs;
use std::path::Path;

use hull_protocol::agent::api::agent as api;

use crate::launch::DEVICES;
use crate::rootfs::{Disks, RootfsError};
use crate::spec::{BlockNumbers, DeviceNode, MountPoint};

/// A guest has some dozens.
const DEVICES_MAX: usize = 1024;
/// Permissions of a node where the kernel names none, as devtmpfs has it.
const MODE: u32 = 0o600;
/// What every container has by another way: the first of its terminals, and the multiplexer of its own.
const OWN: [&str; 2] = ["console", "ptmx"];

/// Nodes for all of them but the default ones.
pub fn of_the_guest() -> Vec<DeviceNode> {
    let mut nodes = below(Path::new("/sys/dev/char"), libc::S_IFCHR);
    nodes.extend(below(Path::new("/sys/dev/block"), libc::S_IFBLK));
    nodes.sort_unstable_by(|one, other| one.path.path().cmp(other.path.path()));
    nodes.truncate(DEVICES_MAX);
    nodes
}

/// The numbers of the disks that stand for block devices of the host.
pub fn numbers(disks: &Disks, devices: &[api::BlockDevice]) -> Result<Vec<BlockNumbers>, RootfsError> {
    let both = |device: &api::BlockDevice| {
        let guest = disks.number(&device.serial)?;
        Ok(BlockNumbers { host: (device.major, device.minor), guest })
    };
    devices.iter().map(both).collect()
}

fn below(directory: &Path, kind: u32) -> Vec<DeviceNode> {
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    // A device that goes meanwhile is none.
    entries.filter_map(|entry| node(&fs::read_to_string(entry.path().join("uevent")).ok()?, kind)).collect()
}

/// From what the kernel tells of a device. `None` for one that has no node, or that every container has.
fn node(event: &str, kind: u32) -> Option<DeviceNode> {
    let value = |key: &str| event.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let (major, minor) = (value("MAJOR")?.parse().ok()?, value("MINOR")?.parse().ok()?);
    let name = value("DEVNAME")?;
    let is_default = |&(_, its_major, its_minor): &(_, u32, u32)| {
        kind == libc::S_IFCHR && (its_major, its_minor) == (major, minor)
    };
    if OWN.contains(&name) || DEVICES.iter().any(is_default) {
        return None;
    }
    let octal = |text: &str| u32::from_str_radix(text, 8).ok();
    let id = |key| value(key).and_then(|text| text.parse().ok()).unwrap_or(0);
    Some(DeviceNode {
        path: MountPoint::of_device(name)?,
        mode: kind | (value("DEVMODE").and_then(octal).unwrap_or(MODE) & 0o777),
        device: libc::makedev(major, minor),
        uid: id("DEVUID"),
        gid: id("DEVGID"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_what_the_kernel_says() {
        let disk =
            node("MAJOR=254\nMINOR=16\nDEVNAME=vdb\nDEVTYPE=disk\nDISKSEQ=2\n", libc::S_IFBLK).unwrap();
        assert_eq!(disk.path.path(), c"dev/vdb");
        assert_eq!((disk.mode, disk.device), (libc::S_IFBLK | 0o600, libc::makedev(254, 16)));
        let tun =
            node("MAJOR=10\nMINOR=200\nDEVNAME=net/tun\nDEVMODE=0666\nDEVGID=5\n", libc::S_IFCHR).unwrap();
        assert_eq!(tun.path.steps, [c"dev".to_owned(), c"dev/net".to_owned(), c"dev/net/tun".to_owned()]);
        assert_eq!((tun.mode, tun.gid), (libc::S_IFCHR | 0o666, 5));
    }

    #[test]
    fn what_every_container_has_and_what_has_no_node_is_left_out() {
        for event in [
            "MAJOR=1\nMINOR=3\nDEVNAME=null\nDEVMODE=0666\n",
            "MAJOR=5\nMINOR=1\nDEVNAME=console\n",
            "MAJOR=5\nMINOR=2\nDEVNAME=ptmx\nDEVMODE=0666\n",
            "MAJOR=29\nMINOR=0\n",
            "DEVNAME=x\nMAJOR=1\nMINOR=-1\n",
            "",
        ] {
            assert_eq!(node(event, libc::S_IFCHR), None, "{event:?}");
        }
        // A block device of the same number is another device.
        assert!(node("MAJOR=1\nMINOR=3\nDEVNAME=ram3\n", libc::S_IFBLK).is_some());
    }
}
