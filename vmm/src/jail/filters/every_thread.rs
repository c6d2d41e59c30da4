//! What every thread needs, whatever it does: memory, locks, a line for the log, an end.

use super::{Rule, always, has, is, is_this_process, lacks, when};

pub(super) const RULES: &[Rule] = &[
    // Memory. Never executable, and never a file's.
    always(libc::SYS_brk, "the allocator: its one heap"),
    when(
        libc::SYS_mmap,
        &[lacks(2, libc::PROT_EXEC), has(3, libc::MAP_ANONYMOUS | libc::MAP_PRIVATE)],
        "the allocator: large blocks",
    ),
    when(libc::SYS_mremap, &[is(3, libc::MREMAP_MAYMOVE)], "the allocator: large blocks that grow"),
    always(libc::SYS_munmap, "the allocator, and stacks of threads that have ended"),
    when(libc::SYS_mprotect, &[lacks(2, libc::PROT_EXEC)], "the allocator: a heap that grows"),
    when(libc::SYS_madvise, &[is(2, libc::MADV_DONTNEED)], "the stack of a thread that ends; balloon"),
    // Locks and time.
    always(libc::SYS_futex, "locks, and joining threads"),
    always(libc::SYS_sched_yield, "locks under contention"),
    always(libc::SYS_clock_gettime, "time, where the kernel does not give it without a call"),
    always(libc::SYS_restart_syscall, "the kernel's own, after a stop"),
    always(libc::SYS_getrandom, "hash tables' keys; entropy device"),
    // Descriptors, all of which were opened before.
    always(libc::SYS_write, "events, the console's log, standard error"),
    always(libc::SYS_read, "events"),
    always(libc::SYS_close, "whatever is dropped"),
    when(libc::SYS_fcntl, &[is(1, libc::F_GETFD)], "debug builds check a descriptor before they close it"),
    // Signals and the end.
    always(libc::SYS_rt_sigprocmask, "the C library, around the end of a thread and abort"),
    always(libc::SYS_rt_sigreturn, "return from a signal handler"),
    always(libc::SYS_sigaltstack, "the handler for stack overflows, taken off at the end"),
    always(libc::SYS_getpid, "the C library's pthread_kill and abort"),
    always(libc::SYS_gettid, "the C library's abort, and the report of a denied call"),
    when(libc::SYS_tgkill, &[is_this_process(0), is(2, libc::SIGABRT)], "abort, which is how a panic ends"),
    when(libc::SYS_prctl, &[is(0, libc::PR_GET_NAME)], "the report of a denied call"),
    always(libc::SYS_exit, "the end of a thread"),
    always(libc::SYS_exit_group, "the end of the process"),
];
