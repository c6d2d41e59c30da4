//! `linux.devices` and the rules about them: which of the host's devices a container brings into its VM.
//!
//! A block device comes along where a rule names it, type and both numbers, and allows to use it. What is only listed, as
//! engines list everything that the host has for a privileged container, stays on the host. Of character devices the guest has
//! those that are software of its own kernel, with the same numbers.

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::SpecError;
use super::volumes::VolumeAccess;

/// Character devices that every container has: major number, and minor number if not all.
const EVERYWHERE: [(i64, Option<i64>); 8] = [
    (1, Some(3)), // null
    (1, Some(5)), // zero
    (1, Some(7)), // full
    (1, Some(8)), // random
    (1, Some(9)), // urandom
    (5, Some(0)), // tty
    (5, Some(2)), // ptmx
    (136, None),  // terminals
];
/// Those that are software of the guest's kernel, as they are of the host's.
const SOFTWARE: [(i64, Option<i64>); 2] = [
    (10, Some(200)), // net/tun
    (10, Some(229)), // fuse
];

/// A block device of the host that a container uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDevice {
    /// Major number, on the host.
    pub major: u32,
    /// Minor number, on the host.
    pub minor: u32,
    /// Who may change it.
    pub access: VolumeAccess,
}

/// Takes out what stays on the host, and says what comes along: each device once, whatever it is called.
pub fn take(linux: &mut Linux) -> Result<Vec<BlockDevice>, SpecError> {
    let Some(listed) = linux.devices().clone() else { return Ok(Vec::new()) };
    let resources = linux.resources();
    let rules = resources.as_ref().and_then(|all| all.devices().clone()).unwrap_or_default();
    let (mut kept, mut blocks, mut left) = (Vec::new(), Vec::<BlockDevice>::new(), 0);
    for device in listed {
        let named = allowed(&device, &rules);
        match device.typ() {
            LinuxDeviceType::B if named.is_some() => {
                let block = block(&device, named.unwrap_or(VolumeAccess::ReadOnly))?;
                if !blocks.contains(&block) {
                    blocks.push(block);
                }
                kept.push(device);
            }
            LinuxDeviceType::C | LinuxDeviceType::U if is_among(&EVERYWHERE, &device) => {
                kept.extend(named.map(|_| device));
            }
            LinuxDeviceType::C | LinuxDeviceType::U if is_among(&SOFTWARE, &device) => kept.push(device),
            LinuxDeviceType::C | LinuxDeviceType::U if named.is_some() => {
                return Err(SpecError::Unsupported(format!(
                    "the character device {} ({}:{}) is the host's, and no VM has it: only block devices come along",
                    device.path().display(),
                    device.major(),
                    device.minor()
                )));
            }
            LinuxDeviceType::B | LinuxDeviceType::C | LinuxDeviceType::U => left += 1,
            LinuxDeviceType::P | LinuxDeviceType::A => kept.push(device),
        }
    }
    if left > 0 {
        log::info!("{left} devices of the host stay there: no rule names them");
    }
    linux.set_devices(Some(kept));
    if let Some(rules) = linux.resources_mut().as_mut().and_then(|all| all.devices_mut().as_mut()) {
        rules.retain(|rule| !is_of_the_host(rule, &blocks));
    }
    Ok(blocks)
}

/// What the rules that name this device, and no other, leave of it; `None` if that is nothing.
fn allowed(device: &LinuxDevice, rules: &[LinuxDeviceCgroup]) -> Option<VolumeAccess> {
    let (mut read, mut write) = (false, false);
    for rule in rules {
        let is_exact = rule.typ() == Some(device.typ())
            && (rule.major(), rule.minor()) == (Some(device.major()), Some(device.minor()));
        let any = |number: Option<i64>, own: i64| number.is_none_or(|number| number == -1 || number == own);
        let covers = match rule.typ() {
            None | Some(LinuxDeviceType::A) => true,
            Some(kind) => {
                kind == device.typ() && any(rule.major(), device.major()) && any(rule.minor(), device.minor())
            }
        };
        if if rule.allow() { is_exact } else { covers } {
            let access = rule.access().as_deref().unwrap_or_default();
            read = if access.contains('r') { rule.allow() } else { read };
            write = if access.contains('w') { rule.allow() } else { write };
        }
    }
    match (read, write) {
        (_, true) => Some(VolumeAccess::ReadWrite),
        (true, false) => Some(VolumeAccess::ReadOnly),
        (false, false) => None,
    }
}

fn block(device: &LinuxDevice, access: VolumeAccess) -> Result<BlockDevice, SpecError> {
    // The kernel's dev_t has 12 and 20 bits (include/linux/kdev_t.h).
    let fits = |number: i64, bits: u32| u32::try_from(number).ok().filter(|number| number >> bits == 0);
    match (fits(device.major(), 12), fits(device.minor(), 20)) {
        (Some(major), Some(minor)) => Ok(BlockDevice { major, minor, access }),
        _ => Err(SpecError::Unsupported(format!(
            "the block device {} has numbers that no device has: {}:{}",
            device.path().display(),
            device.major(),
            device.minor()
        ))),
    }
}

fn is_among(list: &[(i64, Option<i64>)], device: &LinuxDevice) -> bool {
    let is = |(major, minor): &(i64, Option<i64>)| {
        *major == device.major() && minor.is_none_or(|minor| minor == device.minor())
    };
    list.iter().any(is)
}

/// A rule about block devices by number, none of which is in the guest under that number.
fn is_of_the_host(rule: &LinuxDeviceCgroup, plugged: &[BlockDevice]) -> bool {
    let number = |number: Option<i64>| number.filter(|number| *number != -1);
    let (major, minor) = (number(rule.major()), number(rule.minor()));
    if rule.typ() != Some(LinuxDeviceType::B) || (major, minor) == (None, None) {
        return false;
    }
    let is = |block: &BlockDevice| (major, minor) == (Some(block.major.into()), Some(block.minor.into()));
    !plugged.iter().any(is)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn taken(devices: &Value, rules: &Value) -> Result<(Vec<BlockDevice>, Value), SpecError> {
        let linux = json!({"devices": devices, "resources": {"devices": rules}});
        let mut linux: Linux = serde_json::from_value(linux).unwrap();
        let blocks = take(&mut linux)?;
        Ok((blocks, serde_json::to_value(&linux).unwrap()))
    }

    fn rule(allow: bool, kind: &str, major: i64, minor: i64, access: &str) -> Value {
        json!({"allow": allow, "type": kind, "major": major, "minor": minor, "access": access})
    }

    fn device(kind: &str, path: &str, major: i64, minor: i64) -> Value {
        json!({"type": kind, "path": path, "major": major, "minor": minor, "fileMode": 0o660, "uid": 7, "gid": 6})
    }

    fn none() -> Value {
        json!({"allow": false, "access": "rwm"})
    }

    #[test]
    fn a_block_device_that_a_rule_names_comes_along() {
        let devices = json!([device("b", "/dev/xvda", 7, 0), device("b", "/data", 7, 0)]);
        for (access, wanted) in [
            ("rwm", VolumeAccess::ReadWrite),
            ("w", VolumeAccess::ReadWrite),
            ("mr", VolumeAccess::ReadOnly),
            ("r", VolumeAccess::ReadOnly),
        ] {
            let rules = json!([none(), rule(true, "b", 7, 0, access)]);
            let (blocks, linux) = taken(&devices, &rules).unwrap();
            assert_eq!(blocks, [BlockDevice { major: 7, minor: 0, access: wanted }], "{access}");
            assert_eq!(linux["devices"], devices, "both names, with mode and owner");
            assert_eq!(linux["resources"]["devices"].as_array().unwrap().len(), 2);
        }
        // A later rule goes before an earlier one, also one about all devices.
        let wanted = |rules: Value| taken(&devices, &rules).unwrap().0.first().map(|block| block.access);
        let (all, less) = (rule(true, "b", 7, 0, "rwm"), rule(false, "b", 7, 0, "w"));
        assert_eq!(wanted(json!([all, less])), Some(VolumeAccess::ReadOnly));
        assert_eq!(wanted(json!([all, rule(false, "b", 7, -1, "w")])), Some(VolumeAccess::ReadOnly));
        assert_eq!(wanted(json!([all, none()])), None);
        assert_eq!(wanted(json!([rule(true, "b", 7, 0, "m")])), None);
    }

    #[test]
    fn what_is_only_listed_stays_on_the_host() {
        let devices = json!([
            device("b", "/dev/sda", 8, 0),
            device("c", "/dev/kvm", 10, 232),
            device("c", "/dev/fuse", 10, 229),
            device("c", "/dev/pts/0", 136, 0),
            {"type": "p", "path": "/run/pipe"}
        ]);
        let everything = json!({"allow": true, "access": "rwm"});
        for rules in [
            json!([everything]),
            json!([rule(true, "b", 8, -1, "rwm")]),
            json!([rule(true, "b", -1, -1, "rwm")]),
            json!([rule(true, "c", 8, 0, "rwm")]),
            json!([rule(true, "b", 8, 1, "rwm")]),
            json!([]),
        ] {
            let (blocks, linux) = taken(&devices, &rules).unwrap();
            assert_eq!(blocks, [], "{rules}");
            let kept = linux["devices"].as_array().unwrap().iter().map(|device| device["path"].clone());
            assert_eq!(kept.collect::<Vec<_>>(), ["/dev/fuse", "/run/pipe"], "{rules}");
        }
    }

    #[test]
    fn what_every_container_has_is_made_where_it_is_named() {
        let devices = json!([device("c", "/dev/null", 1, 3), device("c", "/dev/ptmx", 5, 2)]);
        let (_, linux) = taken(&devices, &json!([rule(true, "c", 1, 3, "rwm")])).unwrap();
        assert_eq!(linux["devices"], json!([devices[0]]));
    }

    #[test]
    fn rules_about_the_hosts_numbers_do_not_speak_of_the_guests_disks() {
        let rules = json!([
            none(),
            rule(true, "b", -1, -1, "m"),
            rule(true, "b", 7, 0, "rwm"),
            rule(true, "b", 254, 0, "rwm"),
            rule(true, "b", 254, -1, "rwm"),
            rule(true, "c", 1, 3, "rwm")
        ]);
        let (_, linux) = taken(&json!([device("b", "/dev/xvda", 7, 0)]), &rules).unwrap();
        let kept: Vec<_> = linux["resources"]["devices"].as_array().unwrap().iter().collect();
        assert_eq!(kept.len(), 4, "{kept:?}");
        assert!(kept.iter().all(|rule| rule["major"] != 254), "{kept:?}");
    }

    #[test]
    fn what_no_vm_has_is_refused_by_name() {
        let serial = json!([device("c", "/dev/ttyS0", 4, 64)]);
        let error = taken(&serial, &json!([rule(true, "c", 4, 64, "rw")])).unwrap_err();
        assert!(error.to_string().contains("/dev/ttyS0 (4:64)"), "{error}");
        assert_eq!(error.code(), ttrpc::proto::Code::UNIMPLEMENTED);
        for (major, minor) in [(4096, 0), (1, 1 << 20), (-2, 0), (1 << 40, 1)] {
            let devices = json!([device("b", "/dev/odd", major, minor)]);
            let error = taken(&devices, &json!([rule(true, "b", major, minor, "rw")])).unwrap_err();
            assert!(error.to_string().contains("/dev/odd"), "{error}");
        }
    }
}
