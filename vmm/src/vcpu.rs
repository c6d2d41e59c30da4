//! A vCPU: what it is (CPUID, registers), the thread that runs it, what it counts.

pub mod counters;
pub mod cpuid;
pub mod gate;
pub mod kick;
pub mod registers;
pub mod statistics;
pub mod thread;
