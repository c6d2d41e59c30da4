//! The thread that runs a vCPU until the VM ends.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use hull_protocol::vmm::ExitReason;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::Killable;

use super::counters::{ExitCounters, ExitKind};
use super::gate::{Gate, Passed};
use super::kick::{self, Kickable};
use super::statistics::Statistics;
use crate::bus::Bus;
use crate::ending::Ending;
use crate::error::chain;
use crate::jail::seccomp::Filter;

/// A vCPU thread needs little; guest accesses run device code on it.
const STACK: usize = 128 * 1024;

/// What all vCPU threads of a VM share.
pub struct Shared {
    /// Where their I/O goes.
    pub bus: Bus,
    /// How the VM ends.
    pub ending: Ending,
    /// Where they wait while it is paused.
    pub gate: Gate,
    /// When the process started.
    pub start: Instant,
    /// Microseconds from the start to the first entry into the guest; 0 before.
    pub first_entry_us: AtomicU64,
}

/// A running vCPU.
#[derive(Debug)]
pub struct VcpuThread {
    thread: JoinHandle<()>,
    counters: Arc<ExitCounters>,
    statistics: Option<Statistics>,
}

impl VcpuThread {
    /// Starts the thread `vcpuN`, which closes `filter` around itself. [`kick::install`] must have been called.
    pub fn start(id: u8, fd: VcpuFd, filter: Filter, shared: Arc<Shared>) -> io::Result<Self> {
        let counters = Arc::new(ExitCounters::default());
        let statistics = Statistics::of(&fd);
        let runner = Runner { id, counters: Arc::clone(&counters), shared };
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{id}"))
            .stack_size(STACK)
            .spawn(move || runner.run(fd, &filter))?;
        Ok(Self { thread, counters, statistics })
    }

    /// Gets the thread out of the guest; the VM must have ended, or its gate be closed.
    pub fn kick(&self) {
        if let Err(error) = self.thread.kill(kick::signal()) {
            log::error!("cannot signal a vCPU thread: {error}");
        }
    }

    /// Waits for the thread, which ends when the VM has and it was kicked.
    pub fn join(self) {
        if self.thread.join().is_err() {
            log::error!("a vCPU thread panicked");
        }
    }

    /// Exits to the monitor.
    pub fn counters(&self) -> &ExitCounters {
        &self.counters
    }

    /// All exits as KVM counts them, where it can say.
    pub fn kvm_exits(&self) -> Option<u64> {
        self.statistics.as_ref()?.read("exits")
    }

    /// The interrupts that KVM injected, where it can say.
    pub fn kvm_interrupts(&self) -> Option<u64> {
        self.statistics.as_ref()?.read("irq_injections")
    }
}

/// The inside of the thread.
struct Runner {
    id: u8,
    counters: Arc<ExitCounters>,
    shared: Arc<Shared>,
}

/// Why the guest was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// It wanted something, and got it.
    Served,
    /// The thread was kicked, perhaps.
    Interrupted,
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.shared.gate.leave();
    }
}

impl Runner {
    fn run(self, fd: VcpuFd, filter: &Filter) {
        if let Err(error) = filter.close() {
            return self.end(ExitReason::MonitorError { detail: chain(&error) });
        }
        let mut kickable = match Kickable::new(fd) {
            Ok(kickable) => kickable,
            Err(error) => {
                return self
                    .end(ExitReason::MonitorError { detail: format!("cannot unblock a signal: {error}") });
            }
        };
        if self.id == 0 {
            let us = u64::try_from(self.shared.start.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.shared.first_entry_us.store(us, Ordering::Relaxed);
        }
        // A kick before the thread could be kicked is lost; but its reason was there first, and is looked for here.
        self.wait_at_gate(kickable.vcpu());
        while self.shared.ending.reason().is_none() {
            match self.step(kickable.vcpu()) {
                ControlFlow::Continue(Left::Served) => {}
                ControlFlow::Continue(Left::Interrupted) => {
                    kickable.rearm();
                    self.wait_at_gate(kickable.vcpu());
                }
                ControlFlow::Break(reason) => self.end(reason),
            }
        }
    }

    fn wait_at_gate(&self, vcpu: &VcpuFd) {
        if self.shared.gate.pass() == Passed::AfterAPause
            && let Err(error) = vcpu.kvmclock_ctrl()
        {
            // The guest has no kvm-clock that could be told not to take the pause for a lock-up.
            log::debug!("vCPU {}: {error}", self.id);
        }
    }

    fn end(&self, reason: ExitReason) {
        self.shared.ending.cause(reason);
    }

    /// Runs the guest until it needs something, and does it.
    fn step(&self, vcpu: &mut VcpuFd) -> ControlFlow<ExitReason, Left> {
        let bus = &self.shared.bus;
        let detail = match vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                self.counters.count(ExitKind::PortWrite);
                return bus.write_port(port, data).map_continue(|()| Left::Served);
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                self.counters.count(ExitKind::PortRead);
                bus.read_port(port, data);
                return ControlFlow::Continue(Left::Served);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.counters.count(ExitKind::MemoryWrite);
                bus.write_memory(address, data);
                return ControlFlow::Continue(Left::Served);
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.counters.count(ExitKind::MemoryRead);
                bus.read_memory(address, data);
                return ControlFlow::Continue(Left::Served);
            }
            Ok(VcpuExit::Intr) => {
                self.counters.count(ExitKind::Interrupted);
                return ControlFlow::Continue(Left::Interrupted);
            }
            // EINTR: kicked. EAGAIN: a waiting vCPU was woken and must be entered again.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                self.counters.count(ExitKind::Interrupted);
                return ControlFlow::Continue(Left::Interrupted);
            }
            Ok(VcpuExit::Shutdown) => {
                self.counters.count(ExitKind::Other);
                return ControlFlow::Break(ExitReason::TripleFault { vcpu: self.id });
            }
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                format!("the processor refused to enter the guest on CPU {cpu}: hardware reason {reason:#x}")
            }
            Ok(VcpuExit::InternalError) => internal_error(vcpu),
            Ok(other) => format!("unexpected exit {other:?}"),
            Err(error) => format!("KVM_RUN failed: {}", chain(&io::Error::from(error))),
        };
        self.counters.count(ExitKind::Other);
        let detail = match vcpu.get_regs() {
            Ok(registers) => format!("{detail}, rip {:#x}", registers.rip),
            Err(_) => detail,
        };
        ControlFlow::Break(ExitReason::VcpuError { vcpu: self.id, detail })
    }
}

/// What `KVM_EXIT_INTERNAL_ERROR` says.
fn internal_error(vcpu: &mut VcpuFd) -> String {
    // SAFETY: the exit reason was `KVM_EXIT_INTERNAL_ERROR`, for which KVM fills this member of the union; every bit
    // pattern is a valid number.
    let suberror = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
    let meaning = match suberror {
        1 => "an instruction could not be emulated",
        2 => "events came at the same time",
        3 => "an event could not be delivered",
        4 => "an unexpected exit reason",
        _ => "unknown",
    };
    format!("KVM internal error {suberror}: {meaning}")
}
