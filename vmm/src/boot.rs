//! What the guest finds in its memory when it starts: kernel, initramfs, command line, PVH start info, MP table.

pub mod cmdline;
pub mod kernel;
pub mod mptable;
pub mod pvh;
pub mod source;
