//! Gets a vCPU thread out of `KVM_RUN`.
//!
//! A signal alone may come between the thread's last look around and its `KVM_RUN`, and be lost. So the handler, which
//! runs on the vCPU's own thread, also sets `immediate_exit` in the shared `kvm_run` page (KVM API §5): from then on
//! `KVM_RUN` returns at once, until the thread has rearmed and then looks around. The thread's owner must have made the
//! reason visible before it kicks.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{Ordering, compiler_fence};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, create_sigset, register_signal_handler};

thread_local! {
    /// Where this thread's vCPU has its `immediate_exit` byte, or null. Constant and without destructor, so that a
    /// signal handler may use it.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The signal that kicks.
pub fn signal() -> libc::c_int {
    SIGRTMIN()
}

extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    IMMEDIATE_EXIT.with(|byte| {
        let byte = byte.get();
        if !byte.is_null() {
            // SAFETY: not null means a `Kickable` lives on this very thread, whose vCPU keeps the page mapped.
            unsafe { ptr::write_volatile(byte, 1) };
        }
    });
}

/// Installs the signal's handler for the process. To be called before the first vCPU thread starts.
pub fn install() -> Result<(), vmm_sys_util::errno::Error> {
    register_signal_handler(signal(), handle)
}

/// A vCPU that can be kicked while this lives, from the thread that made it.
pub struct Kickable {
    fd: VcpuFd,
    /// The handler finds the vCPU by its thread, so it must not move to another.
    _on_this_thread: PhantomData<*mut ()>,
}

impl Kickable {
    /// Makes the current thread the one that runs `fd`.
    pub fn new(mut fd: VcpuFd) -> Result<Self, vmm_sys_util::errno::Error> {
        let byte = ptr::from_mut(&mut fd.get_kvm_run().immediate_exit);
        IMMEDIATE_EXIT.with(|cell| cell.set(byte));
        let this = Self { fd, _on_this_thread: PhantomData };
        unblock(signal())?;
        Ok(this)
    }

    /// Makes the vCPU enter the guest again after a kick. The reason of the kick must be looked for afterwards: a further
    /// kick in between counts for the next `KVM_RUN`.
    pub fn rearm(&mut self) {
        let byte = ptr::from_mut(&mut self.fd.get_kvm_run().immediate_exit);
        // SAFETY: the vCPU keeps its page mapped; only this thread and its signal handler write the byte.
        unsafe { ptr::write_volatile(byte, 0) };
        // The handler runs on this thread: it is enough that the compiler keeps the order.
        compiler_fence(Ordering::SeqCst);
    }

    /// The vCPU.
    pub fn vcpu(&mut self) -> &mut VcpuFd {
        &mut self.fd
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.with(|cell| cell.set(ptr::null_mut()));
    }
}

/// Whoever started the process may have left the signal blocked.
fn unblock(signal: libc::c_int) -> Result<(), vmm_sys_util::errno::Error> {
    let set = create_sigset(&[signal])?;
    // SAFETY: `set` is a valid signal set, and the old one is not asked for.
    let status = unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut()) };
    if status == 0 { Ok(()) } else { Err(vmm_sys_util::errno::Error::new(status)) }
}
