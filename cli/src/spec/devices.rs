//! Block devices of the host in the container: `--device`.

use std::path::PathBuf;
use std::str::FromStr;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
};

/// Why such a flag is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Not the shape of one.
    #[error("expected HOST[:PATH][:rwm], for example /dev/sdb:/dev/xvdb:r")]
    Shape,
    /// The place in the container.
    #[error("{0:?} is no absolute path in the container")]
    Target(String),
    /// What the container may do.
    #[error("{0:?} is not a set of the letters r, w and m")]
    Access(String),
}

/// `--device HOST[:PATH][:rwm]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFlag {
    /// On the host, as it was given.
    pub source: PathBuf,
    /// In the container, absolute.
    pub target: PathBuf,
    /// What it may do: some of `rwm`.
    pub access: String,
}

/// A block device of the host, found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Where it is in the container, and what that may do.
    pub flag: DeviceFlag,
    /// Major and minor number.
    pub number: (u32, u32),
    /// Permissions of its node.
    pub mode: u32,
    /// Owner and group of its node.
    pub owner: (u32, u32),
}

impl FromStr for DeviceFlag {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let is_access = |word: &str| !word.is_empty() && word.bytes().all(|letter| b"rwm".contains(&letter));
        let parts: Vec<&str> = text.split(':').collect();
        let (source, target, access) = match parts[..] {
            [source] => (source, source, "rwm"),
            [source, access] if is_access(access) => (source, source, access),
            [source, target] => (source, target, "rwm"),
            [source, target, access] => (source, target, access),
            _ => return Err(DeviceError::Shape),
        };
        if source.is_empty() {
            return Err(DeviceError::Shape);
        }
        if !is_access(access) {
            return Err(DeviceError::Access(access.to_owned()));
        }
        if !target.starts_with('/') {
            return Err(DeviceError::Target(target.to_owned()));
        }
        Ok(Self { source: source.into(), target: target.into(), access: access.to_owned() })
    }
}

/// Lists them in a specification, each with the rule that lets it be used.
pub fn add(linux: &mut Linux, devices: &[Device]) -> Result<(), OciSpecError> {
    if devices.is_empty() {
        return Ok(());
    }
    let nodes = devices.iter().map(node).collect::<Result<Vec<_>, _>>()?;
    linux.set_devices(Some(nodes));
    if let Some(rules) = linux.resources_mut().as_mut().and_then(|resources| resources.devices_mut().as_mut())
    {
        rules.extend(devices.iter().map(rule).collect::<Result<Vec<_>, _>>()?);
    }
    Ok(())
}

fn node(device: &Device) -> Result<LinuxDevice, OciSpecError> {
    LinuxDeviceBuilder::default()
        .path(&device.flag.target)
        .typ(LinuxDeviceType::B)
        .major(device.number.0)
        .minor(device.number.1)
        .file_mode(device.mode)
        .uid(device.owner.0)
        .gid(device.owner.1)
        .build()
}

fn rule(device: &Device) -> Result<LinuxDeviceCgroup, OciSpecError> {
    LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(LinuxDeviceType::B)
        .major(device.number.0)
        .minor(device.number.1)
        .access(&device.flag.access)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_written_as_docker_writes_it() {
        let parsed = |text: &str| {
            let flag: DeviceFlag = text.parse().unwrap();
            (flag.source.display().to_string(), flag.target.display().to_string(), flag.access)
        };
        let of = |source: &str, target: &str, access: &str| (source.into(), target.into(), access.into());
        assert_eq!(parsed("/dev/sdb"), of("/dev/sdb", "/dev/sdb", "rwm"));
        assert_eq!(parsed("/dev/sdb:r"), of("/dev/sdb", "/dev/sdb", "r"));
        assert_eq!(parsed("/dev/sdb:/dev/xvdb"), of("/dev/sdb", "/dev/xvdb", "rwm"));
        assert_eq!(parsed("/dev/sdb:/dev/xvdb:rm"), of("/dev/sdb", "/dev/xvdb", "rm"));
        for wrong in ["", ":/dev/x", "/dev/sdb:x", "/dev/sdb:/dev/x:rx", "/dev/sdb:/dev/x:", "/a:/b:r:w"] {
            wrong.parse::<DeviceFlag>().unwrap_err();
        }
    }
}
