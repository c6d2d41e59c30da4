//! A system call that no filter allows: one line that names it, and the end of the process.
//!
//! The kernel does not carry the call out and raises SIGSYS on the thread. The handler writes to standard error, which
//! is the shim's log, and exits with a status of its own. It runs in a process that may be taken over, and between any
//! two instructions: it allocates nothing, takes no lock, and returns to nobody.
//!
//! The monitor and the file broker share it: each [`Program`] has a handler, which knows by itself whose it is.

use std::mem::MaybeUninit;
use std::ptr;

use hull_protocol::vmm::DENIED_STATUS;
use nix::errno::Errno;
use syscalls::Sysno;

use super::{JailError, refused};

/// The beginning of `siginfo_t` as the kernel fills it for SIGSYS (sigaction(2), `_sigsys`).
#[repr(C)]
struct DeniedCall {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    _padding: libc::c_int,
    _instruction: *mut libc::c_void,
    number: libc::c_int,
    _architecture: libc::c_uint,
}

/// Whose calls are denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `hull-vmm`.
    Monitor,
    /// `hull-fsd`.
    Broker,
}

impl Program {
    /// The line's first word.
    fn name(self) -> &'static [u8] {
        match self {
            Self::Monitor => b"hull-vmm",
            Self::Broker => b"hull-fsd",
        }
    }

    /// The line's last words.
    fn ends(self) -> &'static [u8] {
        match self {
            Self::Monitor => b"the monitor ends",
            Self::Broker => b"the file broker ends",
        }
    }

    fn handler(self) -> extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) -> ! {
        match self {
            Self::Monitor => of_monitor,
            Self::Broker => of_broker,
        }
    }
}

/// Long enough for a thread's name and a call's, both bounded by the kernel.
const LINE_MAX: usize = 160;
/// `TASK_COMM_LEN`.
const NAME_MAX: usize = 16;

/// Installs the handler for the process.
pub fn report(program: Program) -> Result<(), JailError> {
    // SAFETY: all zero is a valid value of the structure, an empty mask among it.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = program.handler() as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
    // SAFETY: the handler is async-signal-safe, and the old action is not asked for.
    let done = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) };
    Errno::result(done).map_err(refused("be told of denied system calls")).map(drop)
}

extern "C" fn of_monitor(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) -> ! {
    // SAFETY: the kernel hands a handler with SA_SIGINFO a whole siginfo_t, of which this is the beginning.
    end(Program::Monitor, unsafe { (*info.cast::<DeniedCall>()).number })
}

extern "C" fn of_broker(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) -> ! {
    // SAFETY: as above.
    end(Program::Broker, unsafe { (*info.cast::<DeniedCall>()).number })
}

/// Says which call it was, and ends the process.
fn end(program: Program, number: libc::c_int) -> ! {
    let mut thread = [0_u8; NAME_MAX];
    // SAFETY: the kernel writes at most 16 bytes.
    unsafe { libc::prctl(libc::PR_GET_NAME, thread.as_mut_ptr()) };
    let mut line = Line { bytes: [0; LINE_MAX], length: 0 };
    describe(&mut line, program, &thread, number);
    // SAFETY: the bytes are there. What cannot be written is lost: this process ends here.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.length);
        libc::_exit(DENIED_STATUS)
    }
}

fn describe(line: &mut Line, program: Program, thread: &[u8], number: libc::c_int) {
    line.put(program.name());
    line.put(b": thread ");
    line.put(thread.split(|byte| *byte == 0).next().unwrap_or_default());
    line.put(b" made the system call ");
    let known = usize::try_from(number).ok().and_then(Sysno::new);
    line.put(known.map_or("unknown", |call| call.name()).as_bytes());
    line.put(b" (");
    line.put_number(number.unsigned_abs());
    line.put(b"), which its filter denies: ");
    line.put(program.ends());
    line.put(b"\n");
}

/// Text on the stack.
struct Line {
    bytes: [u8; LINE_MAX],
    length: usize,
}

impl Line {
    fn put(&mut self, text: &[u8]) {
        let room = self.bytes.get_mut(self.length..).unwrap_or_default();
        for (to, from) in room.iter_mut().zip(text) {
            *to = *from;
            self.length += 1;
        }
    }

    fn put_number(&mut self, mut number: u32) {
        let mut digits = [0; 10];
        let mut first = digits.len();
        for digit in digits.iter_mut().rev() {
            // A remainder by ten is a digit.
            *digit = b'0' + u8::try_from(number % 10).unwrap_or_default();
            number /= 10;
            first -= 1;
            if number == 0 {
                break;
            }
        }
        self.put(digits.get(first..).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(thread: &[u8], number: libc::c_int) -> String {
        line_of(Program::Monitor, thread, number)
    }

    fn line_of(program: Program, thread: &[u8], number: libc::c_int) -> String {
        let mut line = Line { bytes: [0; LINE_MAX], length: 0 };
        describe(&mut line, program, thread, number);
        String::from_utf8(line.bytes[..line.length].to_vec()).unwrap()
    }

    #[test]
    fn a_call_is_named() {
        assert_eq!(
            line(b"vcpu0\0\0junk", 59),
            "hull-vmm: thread vcpu0 made the system call execve (59), which its filter denies: the monitor ends\n"
        );
        assert_eq!(
            line_of(Program::Broker, b"hull-fsd\0", 41),
            "hull-fsd: thread hull-fsd made the system call socket (41), which its filter denies: the file broker ends\n"
        );
        assert!(line(b"x", 4_000_000).contains(" unknown (4000000), "));
        assert!(line(b"x", 0).contains(" read (0), "));
        assert!(
            line_of(Program::Broker, &[b'n'; NAME_MAX], libc::c_int::MAX)
                .ends_with("(2147483647), which its filter denies: the file broker ends\n")
        );
    }

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!(std::mem::offset_of!(DeniedCall, number), 24);
        assert!(size_of::<DeniedCall>() <= size_of::<libc::siginfo_t>());
    }
}
