//! Builds a VM from its plan, holds its parts while it runs, and takes it down.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use hull_protocol::vmm::{CpuTemplate, ExitReason, STATS_VERSION, Unplug, VmStats};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use crate::boot::cmdline::{self, CmdlineError, KernelArgs};
use crate::boot::kernel::{self, KernelError};
use crate::boot::mptable;
use crate::boot::pvh::{self, StartInfoError};
use crate::bus::Bus;
use crate::console::log_file::LogFile;
use crate::console::{self, Console};
use crate::devices::{self, Devices, SlotError};
use crate::ending::Ending;
use crate::jail::filters::Role;
use crate::jail::seccomp::{Filter, FilterError};
use crate::kvm::{Kvm, KvmError, Vm, asked};
use crate::layout::{self, RamSize};
use crate::memory::{self, GuestMemory, MemoryError};
use crate::vcpu::cpuid::{self, Topology};
use crate::vcpu::gate::{Gate, GateError};
use crate::vcpu::thread::{Shared, VcpuThread};
use crate::vcpu::{kick, registers};
use crate::virtio::balloon::BalloonControl;
use crate::virtio::fs::FileThread;
use crate::virtio::mem::{Mem, MemControl};
use crate::virtio::pmem::FileRegion;
use crate::virtio::{MmioTransport, Quiet, VirtioDevice};

/// A machine without its devices.
#[derive(Debug)]
pub struct Board {
    /// `/dev/kvm`.
    pub kvm: Kvm,
    /// The kernel's ELF file.
    pub kernel: File,
    /// The initramfs.
    pub initramfs: File,
    /// Where the console's output goes.
    pub console: LogFile,
    /// Number of vCPUs, at least one.
    pub vcpus: u8,
    /// How many of them the guest starts when it boots, at least one.
    pub online: u8,
    /// What they look like.
    pub cpu: CpuTemplate,
    /// Guest memory.
    pub ram: RamSize,
    /// Words for the kernel.
    pub kernel_args: KernelArgs,
}

/// All that is needed to boot.
pub struct Plan {
    /// The machine.
    pub board: Board,
    /// Its devices in the order of their slots.
    pub devices: Vec<Box<dyn VirtioDevice>>,
    /// What inflates the balloon, if one is among the devices.
    pub balloon: Option<BalloonControl>,
    /// The memory that can be plugged, and what says how much of it should be.
    pub hotplug: Option<(Range<u64>, MemControl)>,
    /// The device for it, where that is to be plugged while the VM runs.
    pub reserved: Option<Box<Mem>>,
    /// Files that are in its memory.
    pub files: Vec<FileRegion>,
    /// What serves shared files, now or later.
    pub file_thread: FileThread,
}

/// Why a VM cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// No guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// No kernel or no initramfs.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A command line that is too long.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// The boot information could not be written.
    #[error(transparent)]
    StartInfo(#[from] StartInfoError),
    /// The MP table could not be written.
    #[error("cannot write the MP table")]
    MpTable(#[source] vm_memory::GuestMemoryError),
    /// A device could not be connected.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The host gives no event descriptor.
    #[error("cannot make an event descriptor")]
    Event(#[source] io::Error),
    /// The kick's signal handler could not be installed.
    #[error("cannot install a signal handler")]
    Signal(#[source] vmm_sys_util::errno::Error),
    /// The threads cannot be kept to their system calls.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The host gives no thread.
    #[error("cannot start a vCPU thread")]
    Thread(#[source] io::Error),
}

/// Why a VM is not paused.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// Its vCPUs do not stop, or have stopped already.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// A device does not become quiet. The VM goes on.
    #[error("the host has not finished what {0} has asked of it")]
    Busy(String),
}

/// A running VM.
pub struct Machine {
    vcpus: Vec<VcpuThread>,
    shared: Arc<Shared>,
    devices: Arc<Devices>,
    balloon: Option<BalloonControl>,
    hotplug: Option<MemControl>,
    reserved: Mutex<Option<Box<Mem>>>,
    file_thread: FileThread,
    ram: RamSize,
    /// Dropped after the threads that use it are gone.
    vm: Vm,
}

impl Machine {
    /// Builds the VM, lets its vCPUs run and closes the system call filters; the caller's thread is the event loop from
    /// here on. `start` is when the process started.
    pub fn boot(plan: Plan, start: Instant) -> Result<Self, BootError> {
        let Plan { board, devices, balloon, hotplug, reserved, files, file_thread } = plan;
        let reserved = Mutex::new(reserved);
        let (region, hotplug) = hotplug.unzip();
        let ram = board.ram;
        let memory = memory::allocate(board.ram, region)?;
        let vm = Vm::new(&board.kvm, &memory, files)?;
        let vcpus = (0..board.vcpus).map(|id| vm.create_vcpu(id)).collect::<Result<Vec<_>, _>>()?;
        let entry = load(&memory, &board)?;
        prepare(&board, &vcpus, &memory, entry)?;

        let console = Console::new(vm.interrupt(console::IRQ)?, board.console);
        let slots = Arc::new(Devices::default());
        for device in devices {
            slots.plug(&vm, device)?;
        }
        let devices = slots;
        let shared = Arc::new(Shared {
            bus: Bus::new(console, Arc::clone(&devices)),
            ending: Ending::new().map_err(BootError::Event)?,
            gate: Gate::new(vcpus.len()),
            start,
            first_entry_us: AtomicU64::new(0),
        });
        kick::install().map_err(BootError::Signal)?;
        let (for_vcpus, for_event_loop) = (Filter::of(Role::Vcpu)?, Filter::of(Role::EventLoop)?);
        let threads = Vec::with_capacity(vcpus.len());
        let mut machine =
            Self { vcpus: threads, shared, devices, balloon, hotplug, reserved, file_thread, ram, vm };
        for (id, vcpu) in (0..).zip(vcpus) {
            match VcpuThread::start(id, vcpu, for_vcpus.clone(), Arc::clone(&machine.shared)) {
                Ok(thread) => machine.vcpus.push(thread),
                Err(error) => {
                    machine.take_down();
                    return Err(BootError::Thread(error));
                }
            }
        }
        // Not before: this thread's filter denies to start others, which would have it as well.
        if let Err(error) = for_event_loop.close() {
            machine.take_down();
            return Err(error.into());
        }
        Ok(machine)
    }

    /// How the VM ends.
    pub fn ending(&self) -> &Ending {
        &self.shared.ending
    }

    /// Its devices.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// What inflates its balloon, if it has one.
    pub fn balloon(&self) -> Option<&BalloonControl> {
        self.balloon.as_ref()
    }

    /// What says how much memory should be plugged, if any can be.
    pub fn hotplug(&self) -> Option<&MemControl> {
        self.hotplug.as_ref()
    }

    /// The device for memory that can be plugged, once, where it waits to be plugged itself.
    pub fn take_reserved(&self) -> Option<Box<Mem>> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What serves shared files.
    pub fn file_thread(&self) -> &FileThread {
        &self.file_thread
    }

    /// Its memory.
    pub fn ram(&self) -> RamSize {
        self.ram
    }

    /// Counters since the start.
    pub fn stats(&self) -> VmStats {
        let mut stats = VmStats {
            version: STATS_VERSION,
            ram_bytes: self.ram.bytes(),
            vm_exits: self.vcpus.iter().filter_map(VcpuThread::kvm_exits).sum(),
            interrupts: self.vcpus.iter().filter_map(VcpuThread::kvm_interrupts).sum(),
            hotplug: self.hotplug.as_ref().map(MemControl::stats),
            balloon: self.balloon.as_ref().map(|balloon| Box::new(balloon.stats())),
            console_bytes: self.shared.bus.console().bytes(),
            start_to_first_entry_us: self.shared.first_entry_us.load(Ordering::Relaxed),
            ..VmStats::default()
        };
        for vcpu in &self.vcpus {
            vcpu.counters().add_to(&mut stats.exits);
        }
        self.devices.for_each(|_, device| {
            stats.devices.insert(device.name().to_owned(), device.counters());
        });
        stats
    }

    /// Gives the running guest a further device. Answers its slot.
    pub fn plug(&self, device: Box<dyn VirtioDevice>) -> Result<usize, SlotError> {
        self.devices.plug(&self.vm, device)
    }

    /// Takes a device away from the running guest.
    pub fn unplug(&self, name: &str, how: Unplug) -> Result<Box<MmioTransport>, SlotError> {
        self.devices.unplug(&self.vm, name, how)
    }

    /// Stops all vCPUs, then the devices: nothing is in flight when this returns. Nobody may call a device before
    /// [`resume`](Self::resume).
    pub fn pause(&self) -> Result<(), PauseError> {
        self.shared.gate.close(|| self.vcpus.iter().for_each(VcpuThread::kick))?;
        let mut busy = None;
        self.devices.for_each(|_, device| {
            if device.quiesce() == Quiet::NotYet {
                busy.get_or_insert_with(|| device.name().to_owned());
            }
        });
        let Some(device) = busy else { return Ok(()) };
        self.devices.for_each(|_, device| device.resume());
        self.shared.gate.open()?;
        Err(PauseError::Busy(device))
    }

    /// Lets a paused VM go on.
    pub fn resume(&self) -> Result<(), GateError> {
        self.devices.for_each(|_, device| device.resume());
        self.shared.gate.open()
    }

    /// Whether the VM is paused.
    pub fn is_paused(&self) -> bool {
        self.shared.gate.is_closed()
    }

    /// Stops all vCPUs for good, and serves what the guest had queued before: its last words may be on their way. The
    /// VM's end is caused here if nobody has.
    pub fn take_down(&mut self) {
        self.shared.ending.cause(ExitReason::Stopped);
        match self.shared.gate.open() {
            // Paused or not, all threads are to leave.
            Ok(()) | Err(_) => {}
        }
        for vcpu in &self.vcpus {
            vcpu.kick();
        }
        for vcpu in self.vcpus.drain(..) {
            vcpu.join();
        }
        self.devices.for_each(|_, device| {
            for queue in 0..device.watched_queue_events().len() {
                if device.watched_queue_events()[queue].read().is_ok() {
                    device.queue_event(queue);
                }
            }
            if device.quiesce() == Quiet::NotYet {
                log::error!("the host has not finished what {} has asked of it", device.name());
            }
        });
        self.shared.bus.console().flush();
    }
}

/// Fills guest memory; returns the kernel's entry.
fn load(memory: &GuestMemory, board: &Board) -> Result<u32, BootError> {
    // The command line first: it is the cheapest to be wrong.
    let boot_vcpus = (board.online < board.vcpus).then_some(board.online);
    let slots = (0..devices::SLOTS).filter_map(devices::place);
    let line = cmdline::build(slots, boot_vcpus, &board.kernel_args)?;
    let loaded = kernel::load(memory, board.ram, &board.kernel, &board.initramfs)?;
    pvh::write_start_info(memory, board.ram, &loaded.initramfs, &line)?;
    memory
        .write_slice(&mptable::build(board.vcpus), GuestAddress(layout::MP_TABLE))
        .map_err(BootError::MpTable)?;
    Ok(loaded.entry)
}

/// Gives each vCPU its identity and the first one its registers.
fn prepare(board: &Board, vcpus: &[VcpuFd], memory: &GuestMemory, entry: u32) -> Result<(), BootError> {
    let supported = board.kvm.supported_cpuid()?;
    for (id, vcpu) in (0..).zip(vcpus) {
        let leaves = cpuid::build(&supported, board.cpu, Topology { id, vcpus: board.vcpus })?;
        vcpu.set_cpuid2(&leaves).map_err(asked("set a vCPU's CPUID"))?;
        registers::set_common(vcpu)?;
    }
    if let Some(first) = vcpus.first() {
        registers::set_boot_processor(first, memory, entry)?;
    }
    Ok(())
}
