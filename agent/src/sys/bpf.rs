//! bpf(2), for the one program that this agent loads.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::{check, owned};

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register, and source register in the upper half.
    pub registers: u8,
    /// Of a jump or a memory access.
    pub offset: i16,
    /// The operand.
    pub immediate: i32,
}

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Programs of cgroups below are asked too, and cannot allow what this one refuses.
const ALLOW_MULTI: u32 = 2;

/// The head of `union bpf_attr` for a load; the kernel takes what follows as zero.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
}

/// The head of `union bpf_attr` for an attachment.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> nix::Result<libc::c_long> {
    // SAFETY: the kernel reads as many bytes as it is told; what the attributes point to outlives the call.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) })
}

/// How often a load is begun that signals end.
const ATTEMPTS: usize = 16;

/// Loads a program that decides about device access (`BPF_PROG_TYPE_CGROUP_DEVICE`).
pub fn load_device_program(program: &[Instruction]) -> nix::Result<OwnedFd> {
    let load = Load {
        kind: TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).unwrap_or(u32::MAX),
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
    };
    owned(undisturbed(|| bpf(PROG_LOAD, &load))?)
}

/// The kernel gives up checking a program, with `EAGAIN`, when a signal has come, as from a child that has ended.
fn undisturbed<T>(mut load: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    for _ in 1..ATTEMPTS {
        match load() {
            Err(Errno::EAGAIN) => {}
            result => return result,
        }
    }
    load()
}

/// Has the cgroup ask the program about every device access in it and below.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> nix::Result<()> {
    bpf(
        PROG_ATTACH,
        &Attach {
            target: cgroup.as_raw_fd().cast_unsigned(),
            program: program.as_raw_fd().cast_unsigned(),
            kind: ATTACH_CGROUP_DEVICE,
            flags: ALLOW_MULTI,
        },
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_a_signal_ended_is_begun_again() {
        let after = |disturbed: usize| {
            let mut calls = 0;
            let result = undisturbed(|| {
                calls += 1;
                if calls <= disturbed { Err(Errno::EAGAIN) } else { Ok(calls) }
            });
            (result, calls)
        };
        assert_eq!(after(0), (Ok(1), 1));
        assert_eq!(after(3), (Ok(4), 4));
        assert_eq!(after(100), (Err(Errno::EAGAIN), ATTEMPTS));
        assert_eq!(undisturbed(|| Err::<(), _>(Errno::EPERM)), Err(Errno::EPERM));
    }
}
