//! What a vCPU's I/O reaches: the few ports of this machine, and the device windows.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hull_protocol::vmm::ExitReason;

use crate::console::{self, Console};
use crate::devices::Devices;

/// By writing [`EXIT_ORDERLY`] here the guest ends the VM.
pub const EXIT_PORT: u16 = 0x600;
/// The guest has shut down in good order. Other values are ignored.
pub const EXIT_ORDERLY: u8 = 0x01;

/// The keyboard controller's command port, of which only the reset exists. Reads give zero: its buffers are empty, so a
/// kernel that waits for them before it resets need not wait.
const I8042_COMMAND: u16 = 0x64;
/// Pulses the processor's reset line.
const I8042_RESET: u8 = 0xfe;

/// What reads find where nothing is.
const FLOATING: u8 = 0xff;

/// Ports and windows, shared by all vCPUs.
pub struct Bus {
    console: Mutex<Console>,
    devices: Arc<Devices>,
}

impl Bus {
    /// A bus with a console and devices.
    pub fn new(console: Console, devices: Arc<Devices>) -> Self {
        Self { console: Mutex::new(console), devices }
    }

    /// The console.
    pub fn console(&self) -> MutexGuard<'_, Console> {
        self.console.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An OUT instruction. All bytes go to the same port, as those of a string instruction do.
    pub fn write_port(&self, port: u16, data: &[u8]) -> ControlFlow<ExitReason> {
        match (port, data.first()) {
            (EXIT_PORT, Some(&EXIT_ORDERLY)) => ControlFlow::Break(ExitReason::Shutdown),
            (I8042_COMMAND, Some(&I8042_RESET)) => ControlFlow::Break(self.console().reason_of_reset()),
            _ => {
                if let Some(register) = console_register(port) {
                    self.console().write(register, data);
                }
                ControlFlow::Continue(())
            }
        }
    }

    /// An IN instruction.
    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        match console_register(port) {
            Some(register) => self.console().read(register, data),
            None if port == I8042_COMMAND => data.fill(0),
            None => data.fill(FLOATING),
        }
    }

    /// A write outside of RAM.
    pub fn write_memory(&self, address: u64, data: &[u8]) {
        // A write to nowhere is lost, as on hardware.
        let _ = self.devices.write(address, data);
    }

    /// A read outside of RAM.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) {
        if self.devices.read(address, data).is_none() {
            data.fill(FLOATING);
        }
    }
}

fn console_register(port: u16) -> Option<u8> {
    let register = port.checked_sub(console::PORT).filter(|register| *register < console::PORTS)?;
    u8::try_from(register).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::console::log_file::LogFile;

    fn bus() -> Bus {
        let null = std::fs::File::options().write(true).open("/dev/null").unwrap();
        let console = Console::new(EventFd::new(EFD_NONBLOCK).unwrap(), LogFile::new(null, 100));
        Bus::new(console, Arc::default())
    }

    fn ports() -> impl Strategy<Value = u16> {
        prop_oneof![0x3f0..0x408_u16, 0x60..0x68_u16, 0x5fe..0x604_u16, any::<u16>()]
    }

    proptest! {
        #[test]
        fn only_two_writes_end_the_vm_and_none_panics(
            accesses in prop::collection::vec((any::<bool>(), ports(), prop::collection::vec(any::<u8>(), 0..9)), 1..50),
        ) {
            let bus = bus();
            for (write, port, mut data) in accesses {
                if write {
                    let ends = matches!((port, data.first()), (EXIT_PORT, Some(1)) | (I8042_COMMAND, Some(0xfe)));
                    prop_assert_eq!(bus.write_port(port, &data).is_break(), ends);
                } else {
                    bus.read_port(port, &mut data);
                }
            }
        }

        #[test]
        fn memory_that_is_not_there_reads_as_ones(address: u64, mut data in prop::collection::vec(any::<u8>(), 0..9)) {
            let bus = bus();
            bus.write_memory(address, &data);
            bus.read_memory(address, &mut data);
            prop_assert!(data.iter().all(|byte| *byte == FLOATING));
        }
    }

    #[test]
    fn ports_next_to_the_console_are_not_the_console() {
        let bus = bus();
        for port in [console::PORT - 1, console::PORT + console::PORTS] {
            assert!(bus.write_port(port, b"x").is_continue());
        }
        assert_eq!(bus.console().bytes(), 0);
        assert!(bus.write_port(console::PORT, b"xy").is_continue());
        assert_eq!(bus.console().bytes(), 2);
    }
}
