//! bpf(2), for the one program that this agent loads.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

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

/// Loads a program that decides about device access (`BPF_PROG_TYPE_CGROUP_DEVICE`).
pub fn load_device_program(program: &[Instruction]) -> nix::Result<OwnedFd> {
    owned(bpf(
        PROG_LOAD,
        &Load {
            kind: TYPE_CGROUP_DEVICE,
            count: u32::try_from(program.len()).unwrap_or(u32::MAX),
            instructions: program.as_ptr() as u64,
            license: c"Apache-2.0".as_ptr() as u64,
        },
    )?)
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
