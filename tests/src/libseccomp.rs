//! libseccomp, the reference for our own compiler of filters. Opened at run time, so that only the test that compares the two
//! needs it.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// One comparison (`struct scmp_arg_cmp`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    /// Which argument.
    pub argument: c_uint,
    /// `SCMP_CMP_*`: 1 for not equal, then less, at most, equal, at least, greater, masked equal.
    pub operator: c_uint,
    /// With what, or the mask.
    pub value: u64,
    /// With what, for a mask.
    pub value_two: u64,
}

/// The library.
pub struct LibSeccomp {
    init: unsafe extern "C" fn(u32) -> *mut c_void,
    add_architecture: unsafe extern "C" fn(*mut c_void, u32) -> c_int,
    add_rule: unsafe extern "C" fn(*mut c_void, u32, c_int, c_uint, *const Comparison) -> c_int,
    resolve: unsafe extern "C" fn(*const c_char) -> c_int,
    export: unsafe extern "C" fn(*const c_void, c_int) -> c_int,
    release: unsafe extern "C" fn(*mut c_void),
}

/// A filter that is being made.
pub struct Context<'a> {
    library: &'a LibSeccomp,
    context: NonNull<c_void>,
}

impl LibSeccomp {
    /// Opens the library.
    ///
    /// # Panics
    /// If it is not there.
    pub fn open() -> Self {
        // SAFETY: a NUL-terminated name; the library runs no code of its own when it is opened, and is never closed.
        let library = unsafe { libc::dlopen(c"libseccomp.so.2".as_ptr(), libc::RTLD_NOW) };
        assert!(!library.is_null(), "libseccomp.so.2 is missing: install tests/packages");
        let symbol = |name: &CStr| {
            // SAFETY: a handle from dlopen and a NUL-terminated name.
            let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
            assert!(!symbol.is_null(), "libseccomp lacks {name:?}");
            symbol
        };
        // SAFETY: these are the types of the functions in seccomp.h.
        unsafe {
            Self {
                init: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(u32) -> *mut c_void>(symbol(
                    c"seccomp_init",
                )),
                add_architecture: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*mut c_void, u32) -> c_int,
                >(symbol(c"seccomp_arch_add")),
                add_rule: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*mut c_void, u32, c_int, c_uint, *const Comparison) -> c_int,
                >(symbol(c"seccomp_rule_add_array")),
                resolve: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*const c_char) -> c_int>(
                    symbol(c"seccomp_syscall_resolve_name"),
                ),
                export: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*const c_void, c_int) -> c_int>(
                    symbol(c"seccomp_export_bpf"),
                ),
                release: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void)>(symbol(
                    c"seccomp_release",
                )),
            }
        }
    }

    /// Whether the library knows a system call of this name.
    pub fn knows(&self, name: &str) -> bool {
        self.number(name).is_some()
    }

    /// The library's own number for it, which is negative where 64-bit programs have no such call.
    fn number(&self, name: &str) -> Option<c_int> {
        const UNKNOWN: c_int = -1;
        let name = CString::new(name).ok()?;
        // SAFETY: a NUL-terminated string.
        Some(unsafe { (self.resolve)(name.as_ptr()) }).filter(|number| *number != UNKNOWN)
    }

    /// A filter for 64-bit calls whose default is `verdict`.
    pub fn context(&self, verdict: u32) -> Context<'_> {
        // SAFETY: an integer.
        let context = NonNull::new(unsafe { (self.init)(verdict) });
        Context { library: self, context: context.unwrap_or_else(|| panic!("seccomp_init({verdict:#x})")) }
    }
}

impl Context<'_> {
    /// Adds calls of another architecture: 0x4000_0003 for 32-bit ones, 0x4000_003e for x32.
    pub fn add_architecture(&mut self, token: u32) {
        // SAFETY: a context that is not released yet.
        let result = unsafe { (self.library.add_architecture)(self.context.as_ptr(), token) };
        assert_eq!(result, 0, "seccomp_arch_add({token:#x})");
    }

    /// Adds a rule for a call that the library knows.
    pub fn add_rule(&mut self, name: &str, verdict: u32, comparisons: &[Comparison]) {
        let number = self.library.number(name).unwrap_or_else(|| panic!("{name} is unknown"));
        let count = c_uint::try_from(comparisons.len()).unwrap_or(c_uint::MAX);
        // SAFETY: a context that is not released yet, and a list with its length.
        let result = unsafe {
            (self.library.add_rule)(self.context.as_ptr(), verdict, number, count, comparisons.as_ptr())
        };
        assert_eq!(result, 0, "seccomp_rule_add({name}, {verdict:#x}, {comparisons:?})");
    }

    /// The program: code, jt, jf and k of each instruction.
    pub fn program(&self) -> Vec<(u16, u8, u8, u32)> {
        let mut file = tempfile::tempfile().unwrap_or_else(|error| panic!("a temporary file: {error}"));
        // SAFETY: a context that is not released yet, and an open file.
        let result = unsafe { (self.library.export)(self.context.as_ptr(), file.as_raw_fd()) };
        assert_eq!(result, 0, "seccomp_export_bpf");
        let mut bytes = Vec::new();
        let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes));
        read.unwrap_or_else(|error| panic!("the exported filter: {error}"));
        let (instructions, _) = bytes.as_chunks::<8>();
        instructions
            .iter()
            .map(|&[c0, c1, jt, jf, k0, k1, k2, k3]| {
                (u16::from_le_bytes([c0, c1]), jt, jf, u32::from_le_bytes([k0, k1, k2, k3]))
            })
            .collect()
    }
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // SAFETY: released once.
        unsafe { (self.library.release)(self.context.as_ptr()) };
    }
}
