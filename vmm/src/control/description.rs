//! A VM while it is being described: every part is checked when it comes.

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;

use hull_protocol::vmm::{
    DiskConfig, Failure, FailureCode, FsConfig, MachineConfig, NetworkConfig, PmemConfig, VsockConfig,
};

use super::{invalid, wrong_state};
use crate::boot::cmdline::KernelArgs;
use crate::console::log_file::LogFile;
use crate::devices;
use crate::error::chain;
use crate::kvm::Kvm;
use crate::layout::{Beyond, RamSize};
use crate::machine::{Board, Plan};
use crate::virtio::VirtioDevice;
use crate::virtio::balloon::{Balloon, BalloonControl};
use crate::virtio::block::Block;
use crate::virtio::entropy::Entropy;
use crate::virtio::fs::{FileThread, Fs, FsError};
use crate::virtio::mem::{Mem, MemControl, REGION_ALIGNMENT};
use crate::virtio::net;
use crate::virtio::pmem::mapping::ALIGNMENT;
use crate::virtio::pmem::{FileRegion, Pmem};
use crate::virtio::vsock::Vsock;

/// The most vCPUs of a VM.
pub const VCPUS_MAX: u8 = 32;

/// What is known so far.
#[derive(Default)]
pub struct Description {
    board: Option<Board>,
    /// Address space for what comes behind RAM.
    beyond: Option<Beyond>,
    files: Vec<FileRegion>,
    hotplug: Option<(Range<u64>, MemControl)>,
    /// The device for it, where that comes later.
    reserved: Option<Box<Mem>>,
    devices: Vec<Box<dyn VirtioDevice>>,
    balloon: Option<BalloonControl>,
    file_thread: Option<FileThread>,
}

impl Description {
    /// The machine. Descriptors: `/dev/kvm`, kernel, initramfs, console log.
    pub fn set_machine(&mut self, config: MachineConfig, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        if self.board.is_some() {
            return Err(wrong_state("the machine is described already"));
        }
        let count = fds.len();
        let Ok([kvm, kernel, initramfs, console]) = <[OwnedFd; 4]>::try_from(fds) else {
            return Err(invalid(format!(
                "a machine takes 4 file descriptors (/dev/kvm, kernel, initramfs, console log), but came with {count}"
            )));
        };
        if !(1..=VCPUS_MAX).contains(&config.vcpus) {
            return Err(invalid(format!("{} vCPUs are not between 1 and {VCPUS_MAX}", config.vcpus)));
        }
        let online = config.online_vcpus.unwrap_or(config.vcpus);
        if !(1..=config.vcpus).contains(&online) {
            let vcpus = config.vcpus;
            return Err(invalid(format!("{online} of {vcpus} vCPUs cannot be started at the boot")));
        }
        let ram = RamSize::from_mib(config.memory_mib).ok_or_else(|| {
            let (mib, min, max) = (config.memory_mib, RamSize::MIN_MIB, RamSize::MAX_MIB);
            invalid(format!("{mib} MiB of memory are not between {min} and {max}"))
        })?;
        let kernel_args = KernelArgs::try_from(config.kernel_args).map_err(|error| invalid(chain(&error)))?;
        let kvm_failure = |error| Failure { code: FailureCode::Kvm, message: chain(&error) };
        let kvm = Kvm::new(kvm).map_err(kvm_failure)?;
        kvm.check_vcpus(config.vcpus).map_err(kvm_failure)?;
        self.beyond = Some(ram.beyond());
        self.board = Some(Board {
            kvm,
            kernel: File::from(kernel),
            initramfs: File::from(initramfs),
            console: LogFile::new(File::from(console), config.console_limit_bytes),
            vcpus: config.vcpus,
            online,
            cpu: config.cpu,
            ram,
            kernel_args,
        });
        Ok(())
    }

    /// A disk. Descriptors: one for each extent.
    pub fn add_disk(&mut self, config: &DiskConfig, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        self.add(Block::new(config, fds).map_err(|error| invalid(chain(&error)))?)
    }

    /// A network interface. Descriptors: its tap, and with vhost the kernel's device.
    pub fn add_network(&mut self, config: &NetworkConfig, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        self.add_boxed(net::device(config, fds).map_err(|error| invalid(chain(&error)))?)
    }

    /// The vsock device. Descriptors: the listener, then one for each port.
    pub fn add_vsock(&mut self, config: &VsockConfig, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let mut fds = fds.into_iter();
        let Some(listener) = fds.next() else {
            return Err(invalid("a vsock device takes a listening socket, but came without"));
        };
        self.add(Vsock::new(config, listener, fds.collect()).map_err(|error| invalid(chain(&error)))?)
    }

    /// The file system device. Descriptor: the file broker's socket.
    pub fn add_fs(&mut self, config: &FsConfig, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let thread = self.file_thread()?;
        let device = file_system(config, fds, &thread);
        self.file_thread = Some(thread);
        self.add(device?)
    }

    /// The thread for shared files, made when it is first asked for.
    fn file_thread(&mut self) -> Result<FileThread, Failure> {
        match self.file_thread.take() {
            Some(thread) => Ok(thread),
            None => FileThread::start().map_err(|error| Failure {
                code: FailureCode::Resources,
                message: format!("cannot start the file system's thread: {error}"),
            }),
        }
    }

    /// A source of random numbers.
    pub fn add_entropy(&mut self) -> Result<(), Failure> {
        self.add(Entropy::new())
    }

    /// A file as memory. Descriptors: the file.
    pub fn add_pmem(&mut self, config: &PmemConfig, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let beyond = self.beyond.as_mut().ok_or_else(|| wrong_state("describe the machine first"))?;
        let count = fds.len();
        let Ok([file]) = <[OwnedFd; 1]>::try_from(fds) else {
            return Err(invalid(format!("a file as memory takes 1 file descriptor, but came with {count}")));
        };
        let start = beyond
            .clone()
            .take(config.length.saturating_add(ALIGNMENT), ALIGNMENT)
            .ok_or_else(|| invalid(format!("{} bytes are more than there are addresses", config.length)))?;
        let (device, region) = Pmem::new(config, file, start).map_err(|error| invalid(chain(&error)))?;
        self.add(device)?;
        if let Some(beyond) = &mut self.beyond {
            beyond.take(region.mapping.length(), ALIGNMENT);
        }
        self.files.push(region);
        Ok(())
    }

    /// Memory that can be plugged.
    pub fn add_hotplug_memory(&mut self, mib: u32) -> Result<(), Failure> {
        let (device, region, control, left) = self.hotplug_memory(mib)?;
        self.add(device)?;
        self.beyond = Some(left);
        self.hotplug = Some((region, control));
        Ok(())
    }

    /// Memory that can be plugged once its device is.
    pub fn reserve_hotplug_memory(&mut self, mib: u32) -> Result<(), Failure> {
        let (device, region, control, left) = self.hotplug_memory(mib)?;
        self.beyond = Some(left);
        self.hotplug = Some((region, control));
        self.reserved = Some(Box::new(device));
        Ok(())
    }

    fn hotplug_memory(&self, mib: u32) -> Result<(Mem, Range<u64>, MemControl, Beyond), Failure> {
        let beyond = self.beyond.as_ref().ok_or_else(|| wrong_state("describe the machine first"))?;
        let bytes = u64::from(mib) << 20;
        if bytes == 0 || !bytes.is_multiple_of(REGION_ALIGNMENT) {
            let unit = REGION_ALIGNMENT >> 20;
            return Err(invalid(format!("{mib} MiB of memory to plug are not a multiple of {unit}")));
        }
        let mut left = beyond.clone();
        let start = left
            .take(bytes, REGION_ALIGNMENT)
            .ok_or_else(|| invalid(format!("{mib} MiB are more than there are addresses")))?;
        let region = start..start + bytes;
        if self.hotplug.is_some() {
            return Err(wrong_state("there is memory to plug already"));
        }
        let (device, control) = Mem::new(&region)
            .map_err(|error| Failure { code: FailureCode::Resources, message: chain(&error) })?;
        Ok((device, region, control, left))
    }

    /// A balloon.
    pub fn add_balloon(&mut self) -> Result<(), Failure> {
        let (balloon, control) = Balloon::new()
            .map_err(|error| Failure { code: FailureCode::Resources, message: chain(&error) })?;
        self.add(balloon)?;
        self.balloon = Some(control);
        Ok(())
    }

    /// What is to be booted. The description is empty afterwards.
    pub fn plan(&mut self) -> Result<Plan, Failure> {
        let board = self.board.take().ok_or_else(|| wrong_state("there is no machine to boot"))?;
        let file_thread = self.file_thread()?;
        Ok(Plan {
            board,
            devices: std::mem::take(&mut self.devices),
            balloon: self.balloon.take(),
            hotplug: self.hotplug.take(),
            reserved: self.reserved.take(),
            files: std::mem::take(&mut self.files),
            file_thread,
        })
    }

    fn add(&mut self, device: impl VirtioDevice + 'static) -> Result<(), Failure> {
        self.add_boxed(Box::new(device))
    }

    fn add_boxed(&mut self, device: Box<dyn VirtioDevice>) -> Result<(), Failure> {
        if self.devices.iter().any(|other| other.name() == device.name()) {
            return Err(wrong_state(format!("there is a device {} already", device.name())));
        }
        if self.devices.len() == devices::SLOTS {
            let message = format!("a VM has at most {} devices", devices::SLOTS);
            return Err(Failure { code: FailureCode::Resources, message });
        }
        self.devices.push(device);
        Ok(())
    }
}

/// The file system device. Descriptor: the file broker's socket.
pub fn file_system(config: &FsConfig, fds: Vec<OwnedFd>, thread: &FileThread) -> Result<Fs, Failure> {
    let count = fds.len();
    let Ok([broker]) = <[OwnedFd; 1]>::try_from(fds) else {
        return Err(invalid(format!(
            "a file system device takes 1 file descriptor (the file broker's socket), but came with {count}"
        )));
    };
    Fs::new(config, broker, thread).map_err(|error| {
        let code = match error {
            FsError::Tag(_) | FsError::Socket => FailureCode::InvalidRequest,
            FsError::Second => FailureCode::WrongState,
            FsError::Hangs | FsError::Io(_) => FailureCode::Resources,
        };
        Failure { code, message: chain(&error) }
    })
}
