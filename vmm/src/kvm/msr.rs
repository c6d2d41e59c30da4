//! Which model specific registers a guest reaches at all (KVM API §4.98, `KVM_X86_SET_MSR_FILTER`).
//!
//! An access elsewhere is a general protection fault in the guest, raised by KVM without a way through the monitor,
//! also on hosts whose KVM is told to ignore unknown registers. Within the windows KVM decides by its own knowledge; what
//! it knows and a guest of ours has no use for is left out of them. The local APIC's registers (0x800 on) cannot be
//! filtered.

use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};

use super::{KvmError, asked};

/// Registers that lie together: the first, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    base: u32,
    count: u32,
}

const fn window(base: u32, count: u32) -> Window {
    Window { base, count }
}

/// Where the registers lie that a guest may ask KVM for.
const ALLOWED: [Window; 5] = [
    // Architectural (Intel SDM vol. 4 table 2-2).
    window(0, 0x2000),
    // KVM's own: clock, asynchronous page faults, end of interrupt.
    window(0x4b56_4d00, 0x100),
    // Architectural on both (EFER, STAR, FS_BASE, TSC_AUX), and AMD's counters.
    window(0xc000_0000, 0x400),
    // AMD's own (APM vol. 2 appendix A).
    window(0xc001_0000, 0x400),
    window(0xc001_1000, 0x100),
];

/// What is left out of the windows.
const DENIED: [Window; 7] = [
    // IA32_BIOS_UPDT_TRIG, a microcode update.
    window(0x79, 1),
    // IA32_SGXLEPUBKEYHASH0 to 3.
    window(0x8c, 4),
    // IA32_VMX_BASIC on: nested virtualisation.
    window(0x480, 0x20),
    // IA32_RTIT: processor trace.
    window(0x560, 0x30),
    // Energy and power meters.
    window(0x606, 0x3c),
    // AMD's patch loader, a microcode update.
    window(0xc001_0020, 1),
    // VM_CR to SVM_KEY: nested virtualisation.
    window(0xc001_0114, 5),
];

/// Keeps the VM's guest to the windows.
pub(super) fn restrict(vm: &VmFd) -> Result<(), KvmError> {
    let bitmaps = ALLOWED.map(bitmap);
    let both = MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE;
    let ranges: Vec<MsrFilterRange<'_>> = ALLOWED
        .iter()
        .zip(&bitmaps)
        .map(|(window, bitmap)| MsrFilterRange {
            flags: both,
            base: window.base,
            msr_count: window.count,
            bitmap,
        })
        .collect();
    vm.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges).map_err(asked("filter model specific registers"))
}

/// One bit for each register of a window; set where the guest may go.
fn bitmap(window: Window) -> Vec<u8> {
    let mut bits = vec![0; window.count.div_ceil(8) as usize];
    for (index, register) in (0..window.count).map(|offset| (offset, window.base + offset)) {
        let denied = DENIED.iter().any(|out| (out.base..out.base + out.count).contains(&register));
        if !denied {
            bits[(index / 8) as usize] |= 1 << (index % 8);
        }
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_allowed(register: u32) -> bool {
        ALLOWED.iter().any(|window| {
            let Some(offset) = register.checked_sub(window.base).filter(|offset| *offset < window.count)
            else {
                return false;
            };
            bitmap(*window)[(offset / 8) as usize] & 1 << (offset % 8) != 0
        })
    }

    #[test]
    fn a_kernel_finds_what_it_needs() {
        // Clock, APIC base, SPEC_CTRL, SYSENTER, MISC_ENABLE, PAT, MTRR, TSC deadline, kvm-clock, EFER, STAR, GS base, HWCR.
        for register in [
            0x10,
            0x1b,
            0x48,
            0x174,
            0x1a0,
            0x277,
            0x2ff,
            0x6e0,
            0x4b56_4d01,
            0xc000_0080,
            0xc000_0081,
            0xc000_0102,
            0xc001_0015,
            0xc001_1029,
        ] {
            assert!(is_allowed(register), "{register:#x}");
        }
    }

    #[test]
    fn the_rest_is_out_of_reach() {
        for register in [
            0x79,
            0x8c,
            0x8f,
            0x480,
            0x491,
            0x570,
            0x606,
            0x641,
            0x2000,
            0x4000_0000,
            0x4b56_4e00,
            0xc000_0400,
            0xc001_0020,
            0xc001_0114,
            0xc001_0117,
            0xc001_2000,
            u32::MAX,
        ] {
            assert!(!is_allowed(register), "{register:#x}");
        }
        assert!(is_allowed(0x78) && is_allowed(0x7a) && is_allowed(0x642) && is_allowed(0xc001_0119));
    }

    #[test]
    fn kvm_takes_the_windows() {
        // KVM_MSR_FILTER_MAX_BITMAP_SIZE, in bytes.
        assert!(ALLOWED.into_iter().all(|window| bitmap(window).len() <= 0x600));
    }
}
