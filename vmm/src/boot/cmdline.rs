//! The kernel's command line.

use linux_loader::cmdline::Cmdline;
use vm_memory::GuestAddress;

use crate::layout::CMDLINE_MAX;

/// What every guest is told: the serial console; a panic resets at once, through the keyboard controller's port, which
/// the monitor watches; `/init` of the initramfs is the first process.
pub const BASE: &str = "console=ttyS0 panic=-1 reboot=k quiet rdinit=/init";

/// Words for the kernel: printable ASCII.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelArgs(String);

/// Why words or a line cannot be given to the kernel.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// A byte that has no business on a command line.
    #[error("the kernel arguments hold {0:?}; only printable ASCII is allowed")]
    Character(char),
    /// Too long with all that the monitor adds.
    #[error("the kernel command line is longer than {} bytes", CMDLINE_MAX - 1)]
    TooLong,
}

impl TryFrom<String> for KernelArgs {
    type Error = CmdlineError;

    fn try_from(args: String) -> Result<Self, CmdlineError> {
        match args.chars().find(|c| !matches!(c, ' '..='~')) {
            Some(c) => Err(CmdlineError::Character(c)),
            None => Ok(Self(args)),
        }
    }
}

/// A device the kernel cannot find by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioDevice {
    /// Where its registers are.
    pub address: u64,
    /// How many bytes of them.
    pub size: u64,
    /// Its interrupt line.
    pub irq: u32,
}

/// [`BASE`], the devices, how many vCPUs to start if not all, then the caller's words, which so can override what comes
/// before.
pub fn build(
    devices: impl IntoIterator<Item = MmioDevice>,
    boot_vcpus: Option<u8>,
    args: &KernelArgs,
) -> Result<Cmdline, CmdlineError> {
    // Its only failures here are about length: all characters are checked.
    let too_long = |_| CmdlineError::TooLong;
    let mut line = Cmdline::new(CMDLINE_MAX).map_err(too_long)?;
    line.insert_str(BASE).map_err(too_long)?;
    for device in devices {
        line.add_virtio_mmio_device(device.size, GuestAddress(device.address), device.irq, None)
            .map_err(too_long)?;
    }
    if let Some(count) = boot_vcpus {
        line.insert("maxcpus", &count.to_string()).map_err(too_long)?;
    }
    let words = args.0.trim_matches(' ');
    if !words.is_empty() {
        line.insert_str(words).map_err(too_long)?;
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(line: &Cmdline) -> String {
        line.as_cstring().unwrap().into_string().unwrap()
    }

    #[test]
    fn devices_come_before_the_callers_words() {
        let devices = [
            MmioDevice { address: 0xd000_0000, size: 0x1000, irq: 5 },
            MmioDevice { address: 0xd000_1000, size: 0x1000, irq: 6 },
        ];
        let args = KernelArgs::try_from(" loglevel=7 ".to_owned()).unwrap();
        assert_eq!(
            text(&build(devices, Some(2), &args).unwrap()),
            format!(
                "{BASE} virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6 \
                 maxcpus=2 loglevel=7"
            )
        );
        assert_eq!(text(&build([], None, &KernelArgs::default()).unwrap()), BASE);
    }

    #[test]
    fn the_limit_is_exact() {
        let fits = CMDLINE_MAX - 1 - BASE.len() - 1;
        let line = build([], None, &KernelArgs::try_from("x".repeat(fits)).unwrap()).unwrap();
        assert_eq!(text(&line).len(), CMDLINE_MAX - 1);
        let error = build([], None, &KernelArgs::try_from("x".repeat(fits + 1)).unwrap()).unwrap_err();
        assert_eq!(error, CmdlineError::TooLong);
    }

    proptest! {
        #[test]
        fn only_printable_ascii_gets_in(args in any::<String>()) {
            let printable = args.bytes().all(|b| (b' '..=b'~').contains(&b));
            prop_assert_eq!(KernelArgs::try_from(args).is_ok(), printable);
        }
    }
}
