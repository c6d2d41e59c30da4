//! Ports: the serial console and those around it.

use std::ops::ControlFlow;
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use hull_vmm::bus::Bus;
use hull_vmm::console::Console;
use hull_vmm::console::log_file::LogFile;
use hull_vmm::devices::Devices;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::Body;
use crate::devices::file;

/// What the log takes, and the most that a line about its being full may add.
const LOG: u64 = 2000;
const LAST_LINE: u64 = 200;

/// Accesses to ports of every size, and to addresses without a device.
pub fn ports() -> Body {
    Box::new(|input| {
        let log = file(0);
        let console =
            Console::new(EventFd::new(EFD_NONBLOCK).unwrap(), LogFile::new(log.try_clone().unwrap(), LOG));
        let bus = Bus::new(console, Arc::new(Devices::default()));
        let _ended: Result<()> = access(&mut Unstructured::new(input), &bus);
        bus.console().flush();
        let length = log.metadata().unwrap().len();
        assert!(length <= LOG + LAST_LINE, "a log of {length} bytes");
    })
}

fn access(u: &mut Unstructured<'_>, bus: &Bus) -> Result<()> {
    while !u.is_empty() {
        let port: u16 = match u.int_in_range(0..=3)? {
            0 => u.arbitrary()?,
            1 => u.int_in_range(0x60..=0x64)?,
            _ => u.int_in_range(0x3f8..=0x3ff)?,
        };
        let length = if u.ratio(7, 8)? { u.int_in_range(0..=8)? } else { u.int_in_range(0..=4096)? };
        match u.int_in_range(0..=3)? {
            0 => bus.read_port(port, &mut vec![0; length]),
            1 => bus.read_memory(u.arbitrary()?, &mut vec![0; length.min(8)]),
            2 => bus.write_memory(u.arbitrary()?, &vec![0; length.min(8)]),
            _ => {
                let byte = u.arbitrary()?;
                if let ControlFlow::Break(_) = bus.write_port(port, &vec![byte; length]) {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}
