//! What a vCPU thread needs besides device code.

use super::{Rule, request, when};

/// `_IO(KVMIO, 0x80)`.
const KVM_RUN: u32 = 0xae80;
/// `_IOR(KVMIO, 0x81, struct kvm_regs)`.
const KVM_GET_REGS: u32 = 0x8090_ae81;
/// `_IO(KVMIO, 0xad)`.
const KVM_KVMCLOCK_CTRL: u32 = 0xaead;

pub(super) const RULES: &[Rule] = &[
    when(libc::SYS_ioctl, &[request(KVM_RUN)], "runs the guest"),
    when(libc::SYS_ioctl, &[request(KVM_KVMCLOCK_CTRL)], "tells the guest's clock of a pause"),
    when(libc::SYS_ioctl, &[request(KVM_GET_REGS)], "where the guest was when it failed"),
];
