//! The guest's serial console: a 16550A UART at I/O port 0x3f8 whose output goes to a bounded log. There is no input.

pub mod log_file;
pub mod panic;

use std::io::{self, Write};

use hull_protocol::vmm::ExitReason;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use log_file::LogFile;
use panic::PanicMatcher;

/// The first I/O port of COM1.
pub const PORT: u16 = 0x3f8;
/// The UART's registers.
pub const PORTS: u16 = 8;
/// COM1's interrupt line.
pub const IRQ: u32 = 4;

/// The console of one VM.
pub struct Console {
    uart: Serial<Irq, vm_superio::serial::NoEvents, Output>,
}

impl Console {
    /// A console that interrupts through `irq`, an irqfd, and writes to `log`.
    pub fn new(irq: EventFd, log: LogFile) -> Self {
        let output = Output { log, panic: PanicMatcher::default(), bytes: 0 };
        Self { uart: Serial::new(Irq(irq), output) }
    }

    /// Writes to the register at `offset`, byte by byte: a string instruction puts all bytes into the same register.
    pub fn write(&mut self, offset: u8, data: &[u8]) {
        for byte in data {
            if let Err(error) = self.uart.write(offset, *byte) {
                log::error!("the serial console failed: {error}");
            }
        }
    }

    /// Reads the register at `offset`.
    pub fn read(&mut self, offset: u8, data: &mut [u8]) {
        data.fill_with(|| self.uart.read(offset));
    }

    /// Bytes the guest has written.
    pub fn bytes(&self) -> u64 {
        self.uart.writer().bytes
    }

    /// What it means that the guest reset itself, judged by its last words.
    pub fn reason_of_reset(&self) -> ExitReason {
        match self.uart.writer().panic.message() {
            Some(message) => ExitReason::GuestPanic { message },
            None => ExitReason::GuestReset,
        }
    }

    /// Writes out what is still held back, the beginning of a line.
    pub fn flush(&mut self) {
        self.uart.writer_mut().log.flush();
    }
}

/// The UART's interrupt.
struct Irq(EventFd);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        match self.0.write(1) {
            // An interrupt is pending already.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }
}

/// Where the UART's bytes go.
struct Output {
    log: LogFile,
    panic: PanicMatcher,
    bytes: u64,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes += bytes.len() as u64;
        self.panic.watch(bytes);
        self.log.write(bytes);
        Ok(bytes.len())
    }

    /// The UART flushes each byte; lines are flushed by the log itself.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
