//! Block devices of the host that containers use: found by their numbers, open, and plugged once for all containers of a pod.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use hull_protocol::agent::api::agent::BlockDevice as GuestDevice;
use hull_protocol::vmm::DiskAccess;

use super::hotplug::{PlugError, PluggedDisk};
use super::{Disk, Vm};
use crate::spec::{BlockDevice, VolumeAccess};

/// Where the kernel lists block devices by number.
const SYSFS: &str = "/sys/dev/block";

/// Why a block device of the host does not get into the VM.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// It is not there, or cannot be opened.
    #[error("cannot use the block device {major}:{minor} of the host: {source}")]
    Open {
        /// Its numbers.
        major: u32,
        /// Its numbers.
        minor: u32,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another container of the pod has it, with other rights.
    #[error(
        "the block device {device} is in the pod's VM {have}, and cannot be {want} for a further container"
    )]
    Access {
        /// Its serial number.
        device: String,
        /// How it is there.
        have: &'static str,
        /// How it is wanted.
        want: &'static str,
    },
}

/// The block devices in a running VM, and how many containers use each.
#[derive(Debug, Default)]
pub struct SharedDevices(tokio::sync::Mutex<BTreeMap<String, SharedDevice>>);

#[derive(Debug)]
struct SharedDevice {
    disk: PluggedDisk,
    access: DiskAccess,
    users: u32,
}

/// Opens them.
pub fn open(devices: &[BlockDevice]) -> Result<Vec<Disk>, DeviceError> {
    let opened = devices.iter().map(|device| {
        let &BlockDevice { major, minor, .. } = device;
        open_one(device).map_err(|source| DeviceError::Open { major, minor, source })
    });
    opened.collect()
}

/// What the agent is told of them.
pub fn for_agent(devices: &[BlockDevice]) -> Vec<GuestDevice> {
    let tell = |device: &BlockDevice| GuestDevice {
        major: device.major,
        minor: device.minor,
        serial: serial(device),
        ..GuestDevice::default()
    };
    devices.iter().map(tell).collect()
}

/// Whether one of them has to be flushed before the VM ends.
pub fn any_writable(devices: &[BlockDevice]) -> bool {
    devices.iter().any(|device| device.access == VolumeAccess::ReadWrite)
}

/// At most 16 of the 20 characters that there are.
fn serial(device: &BlockDevice) -> String {
    format!("dev-{}-{}", device.major, device.minor)
}

fn open_one(device: &BlockDevice) -> io::Result<Disk> {
    let known = Path::new(SYSFS).join(format!("{}:{}", device.major, device.minor));
    // One that is read-only itself can be read all the same, as in a container without a VM.
    let access = match device.access {
        VolumeAccess::ReadWrite if fs::read_to_string(known.join("ro"))?.trim() == "0" => {
            DiskAccess::ReadWrite
        }
        VolumeAccess::ReadWrite | VolumeAccess::ReadOnly => DiskAccess::ReadOnly,
    };
    let path = node(&known)?;
    // Before it is opened: opening another kind of file may do something.
    check_kind(&fs::metadata(&path)?, device)?;
    let file = OpenOptions::new().read(true).write(access == DiskAccess::ReadWrite).open(&path)?;
    check(&file, device)?;
    Disk::of_device(&serial(device), access, file)
}

/// Where its node is, by the name that the kernel has given it.
fn node(known: &Path) -> io::Result<PathBuf> {
    let event = fs::read_to_string(known.join("uevent"))?;
    let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or_else(|| io::Error::other("the kernel has no name for it"))?;
    Ok(Path::new("/dev").join(name))
}

fn check(file: &File, device: &BlockDevice) -> io::Result<()> {
    check_kind(&file.metadata()?, device)
}

fn check_kind(found: &fs::Metadata, device: &BlockDevice) -> io::Result<()> {
    let number = libc::makedev(device.major, device.minor);
    if found.file_type().is_block_device() && found.rdev() == number {
        return Ok(());
    }
    Err(io::Error::other("its node in /dev is another file"))
}

fn word(access: DiskAccess) -> &'static str {
    match access {
        DiskAccess::ReadOnly => "read-only",
        DiskAccess::ReadWrite => "writable",
    }
}

impl Vm {
    /// Gives the VM a block device, or one more container what it has already. Its name, by which it is taken back.
    pub(super) async fn plug_device(&self, disk: Disk) -> Result<String, PlugError> {
        let (serial, access) = (disk.config.serial.clone(), disk.config.access);
        let mut shared = self.devices().0.lock().await;
        if let Some(device) = shared.get_mut(&serial) {
            if device.access != access {
                let (have, want) = (word(device.access), word(access));
                return Err(DeviceError::Access { device: serial, have, want }.into());
            }
            device.users += 1;
            return Ok(serial);
        }
        let disk = self.plug_disk(disk).await?;
        shared.insert(serial.clone(), SharedDevice { disk, access, users: 1 });
        Ok(serial)
    }

    /// Takes a block device from one container, and out of the VM if it was the last that used it.
    pub(super) async fn unplug_device(&self, serial: &str) -> Result<(), PlugError> {
        let mut shared = self.devices().0.lock().await;
        match shared.get_mut(serial) {
            Some(device) if device.users > 1 => device.users -= 1,
            _ => {
                if let Some(device) = shared.remove(serial) {
                    self.unplug_disk(device.disk).await?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_named() {
        let device = BlockDevice { major: 4095, minor: 1_048_575, access: VolumeAccess::ReadOnly };
        assert!(serial(&device).len() <= 20);
        let error = open(&[device]).unwrap_err().to_string();
        assert!(error.contains("4095:1048575") && error.contains("No such file"), "{error}");
    }

    #[test]
    fn another_file_is_not_the_device() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let device = BlockDevice { major: 0, minor: 0, access: VolumeAccess::ReadOnly };
        assert!(check(file.as_file(), &device).is_err());
        let null = File::open("/dev/null").unwrap();
        let device = BlockDevice { major: 1, minor: 3, access: VolumeAccess::ReadOnly };
        assert!(check(&null, &device).is_err(), "a character device");
    }
}
