//! `containerd-shim-hull-v2`: the shim's executable. Everything it does is in the library.

use std::io::{self, Write};
use std::process::ExitCode;

use hull_shim::{Failure, Invocation};

fn main() -> ExitCode {
    one_heap();
    let outcome = Invocation::parse(std::env::args_os().skip(1))
        .map_err(Failure::from)
        .and_then(|invocation| hull_shim::run(&invocation))
        .and_then(|output| io::stdout().write_all(&output).map_err(Failure::from));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Standard error may be closed; the exit code says it all the same.
            let _ = writeln!(io::stderr(), "{failure}");
            ExitCode::FAILURE
        }
    }
}

/// Keeps all threads on one heap: they are few and wait, and each further heap of glibc's costs memory.
fn one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no other thread exists yet, and the parameter is a documented one.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
