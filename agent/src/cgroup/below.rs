//! Cgroups that a container has made below its own. Their paths are the workload's words: they are resolved below the container's
//! cgroup and cannot lead out of it.

use std::ffi::CString;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::{Cgroup, CgroupError};
use crate::sys;

/// The longest path of a cgroup.
const PATH_MAX: usize = 4096;

impl Cgroup {
    /// The one of this path below it.
    pub fn below(&self, path: &str) -> Result<Self, CgroupError> {
        let outside = || CgroupError::Outside(path.to_owned());
        // As a container names its own cgroup in its namespace, too.
        let relative = path.trim_start_matches('/');
        let relative = if relative.is_empty() { "." } else { relative };
        if relative.len() > PATH_MAX {
            return Err(outside());
        }
        let name = CString::new(relative).map_err(|_| outside())?;
        let flags = libc::O_DIRECTORY | libc::O_RDONLY;
        match sys::path::open_in(self.directory(), &name, flags, sys::path::Resolve::Beneath) {
            Ok(directory) => Ok(Self { path: self.path.join(relative), directory }),
            Err(Errno::EXDEV | Errno::ELOOP) => Err(outside()),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Err(CgroupError::NotBelow(path.to_owned())),
            Err(source) => Err(CgroupError::File { what: "open", file: path.to_owned(), source }),
        }
    }

    /// The one below it that a process of its is in, as the kernel says in the agent's own `proc`.
    pub fn of_process(&self, proc: BorrowedFd<'_>, pid: libc::pid_t) -> Option<Self> {
        let name = CString::new(format!("{pid}/cgroup")).ok()?;
        let file = sys::path::open_at(proc, &name, libc::O_RDONLY).ok()?;
        let mut text = String::new();
        std::fs::File::from(file).take(super::FILE_MAX).read_to_string(&mut text).ok()?;
        self.below(relative_to(&self.path, &text)?.to_str()?).ok()
    }
}

/// What of a process's cgroup, in the words of `/proc/PID/cgroup`, comes after the cgroup at `path`. The kernel names cgroups from the
/// root of the hierarchy, `path` begins with where that is mounted.
fn relative_to(path: &Path, text: &str) -> Option<PathBuf> {
    let whole = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mut own = path.components();
    while own.next().is_some() {
        let name = own.as_path();
        if !name.as_os_str().is_empty()
            && let Ok(rest) = Path::new(whole).strip_prefix(name)
        {
            return Some(rest.to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir, create_dir_all};
    use std::os::unix::fs::symlink;

    #[test]
    fn no_path_leads_out() {
        // Any directories do: these rules are the kernel's for all of them.
        let all = tempfile::tempdir().unwrap();
        create_dir_all(all.path().join("own/a/b")).unwrap();
        create_dir(all.path().join("other")).unwrap();
        std::fs::write(all.path().join("own/file"), "").unwrap();
        symlink("../other", all.path().join("own/link")).unwrap();
        let own = Cgroup::find(all.path().join("own")).unwrap();
        for inside in ["a", "a/b", "/a/b", "a/", "a/../a/b", "", "/", "."] {
            own.below(inside).unwrap_or_else(|error| panic!("{inside:?}: {error}"));
        }
        let long = "a/".repeat(PATH_MAX);
        for outside in ["..", "../other", "/../other", "a/../../other", "../own/a", "link", "a\0b", &long] {
            let error = own.below(outside).unwrap_err();
            assert!(matches!(error, CgroupError::Outside(_)), "{outside:?}: {error}");
        }
        for absent in ["c", "a/c", "file", "file/c"] {
            let error = own.below(absent).unwrap_err();
            assert!(matches!(error, CgroupError::NotBelow(_)), "{absent:?}: {error}");
        }
    }

    #[test]
    fn where_the_kernel_says_a_process_is() {
        let path = Path::new("/sys/fs/cgroup/hull/c1");
        let of = |text| relative_to(path, text);
        assert_eq!(of("0::/hull/c1/a/b\n"), Some("a/b".into()));
        assert_eq!(of("12:cpu:/hull/c1/no\n0::/hull/c1\n"), Some("".into()));
        for elsewhere in ["0::/hull/c10/a\n", "0::/\n", "1:cpu:/hull/c1/a\n", ""] {
            assert_eq!(of(elsewhere), None, "{elsewhere:?}");
        }
        assert_eq!(relative_to(Path::new("/elsewhere/c/c"), "0::/c/c/a"), Some("a".into()));
    }
}
