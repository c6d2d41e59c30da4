//! The kernel's side of a filter: what a program says to one system call. For tests; nothing that is shipped runs filters.

use crate::bpf::{AND, AT_LEAST, EQUAL, GREATER, Instruction, JUMP, LOAD, RETURN};

/// A system call as the kernel shows it to a filter (`struct seccomp_data`, without the instruction pointer).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// `AUDIT_ARCH_*`.
    pub arch: u32,
    /// The number, with the x32 bit.
    pub number: u32,
    /// The six arguments.
    pub args: [u64; 6],
}

/// The kernel would not have taken this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It runs past its end.
    #[error("the program runs past its end")]
    End,
    /// An instruction that no filter of ours or libseccomp's has.
    #[error("unknown instruction {0:#x}")]
    Instruction(u16),
    /// It reads where there is nothing.
    #[error("reads offset {0}")]
    Offset(u32),
}

/// Runs `program` on `call`. Returns the verdict and the number of instructions it took.
pub fn evaluate(program: &[Instruction], call: &Call) -> Result<(u32, usize), Fault> {
    /// `BPF_JMP | BPF_JSET | BPF_K`, which libseccomp may use.
    const JUMP_IF_SET: u16 = 0x45;
    let mut accumulator = 0u32;
    let mut at = 0usize;
    let mut steps = 0;
    loop {
        let Instruction { code, jt, jf, k } = *program.get(at).ok_or(Fault::End)?;
        at += 1;
        steps += 1;
        let holds = match code {
            LOAD => {
                accumulator = load(call, k)?;
                continue;
            }
            AND => {
                accumulator &= k;
                continue;
            }
            JUMP => {
                at += k as usize;
                continue;
            }
            RETURN => return Ok((k, steps)),
            EQUAL => accumulator == k,
            GREATER => accumulator > k,
            AT_LEAST => accumulator >= k,
            JUMP_IF_SET => accumulator & k != 0,
            other => return Err(Fault::Instruction(other)),
        };
        at += usize::from(if holds { jt } else { jf });
    }
}

fn load(call: &Call, offset: u32) -> Result<u32, Fault> {
    #[allow(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
    let half = |value: u64, shift: u32| (value >> shift) as u32;
    match offset {
        0 => Ok(call.number),
        4 => Ok(call.arch),
        8 | 12 => Ok(0),
        16..64 if offset.is_multiple_of(4) => {
            let argument = call.args[(offset as usize - 16) / 8];
            Ok(half(argument, if offset.is_multiple_of(8) { 0 } else { 32 }))
        }
        other => Err(Fault::Offset(other)),
    }
}
