//! Finding the program of a process as a shell does: by its path, or in `$PATH` (the rules and words are those of Go's
//! `exec.LookPath`, which runc's users know).

use std::ffi::{CStr, CString};

use nix::errno::Errno;

use super::channel::{Failure, Step, at};
use crate::spec::ProcessSpec;
use crate::sys::path;

/// Where a program may be.
#[derive(Debug, PartialEq, Eq)]
pub enum Program {
    /// Exactly here: its name has a slash.
    At(CString),
    /// In the first of these files that can be executed.
    Search(Vec<CString>),
}

impl Program {
    /// From the first argument and the process's own `PATH`.
    pub fn new(spec: &ProcessSpec) -> Self {
        let name = spec.args.first().map(CString::as_c_str).unwrap_or_default();
        if name.to_bytes().contains(&b'/') {
            return Self::At(name.to_owned());
        }
        let path =
            spec.env.iter().find_map(|entry| entry.as_bytes().strip_prefix(b"PATH=")).unwrap_or_default();
        let candidates = path
            .split(|byte| *byte == b':')
            // A relative directory would let the working directory choose the program.
            .filter(|directory| directory.first() == Some(&b'/'))
            .filter_map(|directory| CString::new([directory, b"/", name.to_bytes()].concat()).ok())
            .collect();
        Self::Search(candidates)
    }

    /// Looks with the rights, root and directory of the calling process. Allocates nothing.
    pub fn find(&self) -> Result<&CStr, Failure> {
        match self {
            Self::At(program) => {
                let stat = path::stat_path(program).map_err(at(Step::Stat, 0))?;
                executable(program, &stat).map_err(at(Step::Access, 0))?;
                Ok(program)
            }
            Self::Search(candidates) => candidates
                .iter()
                .find(|candidate| {
                    path::stat_path(candidate).and_then(|stat| executable(candidate, &stat)).is_ok()
                })
                .map(CString::as_c_str)
                .ok_or_else(|| at(Step::Search, 0)(Errno::ENOENT)),
        }
    }
}

fn executable(program: &CStr, stat: &libc::stat) -> nix::Result<()> {
    if path::kind(stat) == libc::S_IFDIR {
        return Err(Errno::EISDIR);
    }
    path::check_executable(program)
}
