//! The runtime's own program, out of reach of the containers that it makes (CVE-2019-5736).
//!
//! A container's process begins as a copy of the runtime. Where that can be made to run `/proc/self/exe` it runs the runtime's program
//! inside the container, and who opens `/proc/PID/exe` there has the file outside in hand. So the commands that make processes
//! run themselves again from a mount of their program that is read-only, is theirs alone, and is gone when they are. PID 1 of a
//! guest needs none of it: a program that runs cannot be written.

use std::ffi::{CString, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;

use super::OciError;
use crate::sys::mount::{self, Depth, MountAttr};
use crate::sys::{path, process};

/// Returns when the program is out of reach.
pub fn raise() -> Result<(), OciError> {
    let failed = |what| OciError::system::<nix::Error>(what);
    let own = path::open(c"/proc/self/exe", libc::O_PATH).map_err(failed("open its own program"))?;
    if path::is_read_only(own.as_fd()).map_err(failed("look at its own program"))? {
        return process::set_name(c"hull-agent").map_err(failed("name itself"));
    }
    let copy = mount::clone_tree(own.as_fd(), Depth::One).map_err(failed("mount its own program"))?;
    let read_only = MountAttr { set: mount::ATTR_RDONLY, ..MountAttr::default() };
    mount::set_attributes(copy.as_fd(), Depth::One, &read_only)
        .map_err(failed("mount its own program read-only"))?;
    let arguments = strings(std::env::args_os());
    let variables = strings(std::env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    }));
    let (arguments, variables) = (process::pointers(&arguments), process::pointers(&variables));
    // SAFETY: lists of pointers to strings that live until here, which end with null.
    let errno = unsafe { process::execute_file(copy.as_fd(), &arguments, &variables) };
    Err(failed("run its own program")(errno))
}

/// What came from the kernel as strings has no NUL bytes in it.
fn strings(from: impl Iterator<Item = OsString>) -> Vec<CString> {
    from.filter_map(|string| CString::new(string.into_vec()).ok()).collect()
}
