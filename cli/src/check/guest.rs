//! The code of the micro-guests, byte by byte. All of it runs in 64-bit mode at ring 0 with the first 2 MiB mapped one to one.
//!
//! A guest reports by writing a byte to [`PORT`]: [`GOOD`] if what it tried gave the right result, [`BAD`] if not, [`FAULT`] if
//! it got an exception instead.

/// The I/O port a guest reports on.
pub const PORT: u8 = 0xf4;
/// The instruction did what it should.
pub const GOOD: u8 = 0x01;
/// The instruction ran and gave a wrong result.
pub const BAD: u8 = 0x02;
/// An exception came.
pub const FAULT: u8 = 0x03;

/// Where a guest's code is.
pub const CODE: u64 = 0x8000;
/// Where the stack begins; it grows down.
pub const STACK: u64 = 0x7000;
/// 4 KiB of zeros that a guest may use, aligned for everything.
pub const DATA: u32 = 0x9000;
/// The handler of every exception.
pub const HANDLER: u64 = 0xb000;
/// The handler of the breakpoint exception.
pub const BREAKPOINT_HANDLER: u64 = 0xb100;

/// Something a Linux kernel does at ring 0.
pub struct Trial {
    /// The instruction's name.
    pub name: &'static str,
    /// The feature bit without which a kernel does not use it: CPUID leaf, register and bit.
    pub feature: Option<Feature>,
    /// The code, ending in a report.
    pub code: Vec<u8>,
}

/// A bit of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    /// Leaf; subleaf 0.
    pub leaf: u32,
    /// Register.
    pub register: Register,
    /// Bit number.
    pub bit: u8,
}

/// A register that CPUID answers in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    /// EBX
    Ebx,
    /// ECX
    Ecx,
}

/// `mov al, value; out PORT, al; hlt`
pub fn report(value: u8) -> Vec<u8> {
    vec![
        0xb0, value, // mov al, value
        0xe6, PORT, // out PORT, al
        0xf4, // hlt: not reached
    ]
}

/// `je +5` over the report of [`BAD`], then the report of [`GOOD`]: the zero flag says whether it is right.
fn report_equal() -> Vec<u8> {
    let mut code = vec![0x74, 0x05]; // je good
    code.extend(report(BAD));
    code.extend(report(GOOD)); // good:
    code
}

fn ecx(bit: u8) -> Option<Feature> {
    Some(Feature { leaf: 1, register: Register::Ecx, bit })
}

/// `count` rounds of two instructions, then a report.
pub fn counted_loop(count: u32) -> Vec<u8> {
    let mut code = vec![0xb9]; // mov ecx, count
    code.extend(count.to_le_bytes());
    code.extend([
        0xff, 0xc9, // again: dec ecx
        0x75, 0xfc, // jnz again
    ]);
    code.extend(report(GOOD));
    code
}

/// What is tried, each in a VM of its own.
pub fn trials() -> Vec<Trial> {
    let data = DATA.to_le_bytes();
    let with_data = |opcode: &[u8]| [opcode, &data].concat();
    vec![
        Trial {
            name: "popcnt",
            feature: ecx(23),
            code: [
                &[0xb8, 0xff, 0x00, 0x00, 0x00][..], // mov eax, 0xff
                &[0xf3, 0x0f, 0xb8, 0xc8],           // popcnt ecx, eax
                &[0x83, 0xf9, 0x08],                 // cmp ecx, 8
                &report_equal(),
            ]
            .concat(),
        },
        Trial {
            name: "cmpxchg16b",
            feature: ecx(13),
            code: [
                &with_data(&[0xbf])[..],         // mov edi, DATA
                &[0x31, 0xc0],                   // xor eax, eax
                &[0x31, 0xd2],                   // xor edx, edx: rdx:rax is what is expected there, zero
                &[0xbb, 0x2a, 0x00, 0x00, 0x00], // mov ebx, 42
                &[0x31, 0xc9],                   // xor ecx, ecx: rcx:rbx is what shall be there
                &[0xf0, 0x48, 0x0f, 0xc7, 0x0f], // lock cmpxchg16b [rdi]
                &[0x83, 0x3f, 0x2a],             // cmp dword [rdi], 42
                &report_equal(),
            ]
            .concat(),
        },
        Trial {
            name: "int3",
            feature: None,
            code: [
                &[0x31, 0xdb][..],   // xor ebx, ebx
                &[0xcc],             // int3: the handler puts 7 into ebx and returns
                &[0x83, 0xfb, 0x07], // cmp ebx, 7
                &report_equal(),
            ]
            .concat(),
        },
        Trial {
            name: "clac/stac",
            feature: Some(Feature { leaf: 7, register: Register::Ebx, bit: 20 }),
            code: [
                &[0x0f, 0x01, 0xcb][..],         // stac: sets the AC flag, bit 18
                &[0x9c, 0x58],                   // pushfq; pop rax
                &[0x0f, 0x01, 0xca],             // clac
                &[0x9c, 0x59],                   // pushfq; pop rcx
                &[0x31, 0xc8],                   // xor eax, ecx
                &[0x25, 0x00, 0x00, 0x04, 0x00], // and eax, 1 << 18
                &[0x3d, 0x00, 0x00, 0x04, 0x00], // cmp eax, 1 << 18
                &report_equal(),
            ]
            .concat(),
        },
        Trial {
            name: "xsave/xrstor",
            feature: ecx(26),
            code: [
                &[0x31, 0xc9][..],               // xor ecx, ecx: XCR0
                &[0x31, 0xd2],                   // xor edx, edx
                &[0xb8, 0x03, 0x00, 0x00, 0x00], // mov eax, 3: x87 and SSE
                &[0x0f, 0x01, 0xd1],             // xsetbv
                &with_data(&[0xbf]),             // mov edi, DATA
                &[0x0f, 0xae, 0x27],             // xsave [rdi]
                &[0x0f, 0xae, 0x2f],             // xrstor [rdi]
                // The header's first word names the parts that are not in their first state, of those asked for: at most 3.
                &[0x8b, 0x87, 0x00, 0x02, 0x00, 0x00], // mov eax, [rdi + 512]
                &[0x83, 0xe0, 0xfc],                   // and eax, ~3
                &report_equal(),
            ]
            .concat(),
        },
        Trial {
            name: "iretq",
            feature: None,
            code: [
                &[0x8c, 0xd0][..],                           // mov eax, ss
                &[0x50],                                     // push rax: ss
                &[0x68, 0x00, 0x70, 0x00, 0x00],             // push STACK: rsp
                &[0x6a, 0x02],                               // push 2: rflags
                &[0x8c, 0xc8],                               // mov eax, cs
                &[0x50],                                     // push rax: cs
                &[0x48, 0x8d, 0x05, 0x03, 0x00, 0x00, 0x00], // lea rax, [rip + 3]: behind iretq
                &[0x50],                                     // push rax: rip
                &[0x48, 0xcf],                               // iretq
                &[0x48, 0x81, 0xfc, 0x00, 0x70, 0x00, 0x00], // cmp rsp, STACK
                &report_equal(),
            ]
            .concat(),
        },
    ]
}

/// The breakpoint exception's handler: `mov ebx, 7; iretq`.
pub fn breakpoint_handler() -> Vec<u8> {
    vec![
        0xbb, 0x07, 0x00, 0x00, 0x00, // mov ebx, 7
        0x48, 0xcf, // iretq
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_guest_can_report_success_and_failure_and_fits() {
        for trial in trials() {
            let code = trial.code;
            assert!(code.ends_with(&report(GOOD)), "{}", trial.name);
            assert!(code.windows(5).any(|window| window == report(BAD)), "{}", trial.name);
            assert!(code.len() as u64 + CODE < u64::from(DATA), "{}", trial.name);
        }
    }
}
