//! Which of the host's cgroup file systems count what a pod takes: the one of version 2, or those of version 1 with the
//! controllers that do. Pure: from the kernel's list of mounts.

use std::path::{Path, PathBuf};

/// What of version 2 is passed on to the cgroups of pods.
pub const UNIFIED_CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];
/// What of version 1 counts. Others would confine a monitor to what the engine meant for one of its containers.
const LEGACY_CONTROLLERS: [&str; 5] = ["cpu", "cpuacct", "memory", "blkio", "pids"];
/// Where the hierarchy of version 2 is by agreement; it may be mounted elsewhere too.
const USUAL_PLACE: &str = "/sys/fs/cgroup";

/// A tree of cgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub root: PathBuf,
    /// Of which version.
    pub kind: Kind,
}

/// The versions of cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 2.
    Unified,
    /// 1.
    Legacy {
        /// Whether it counts memory.
        memory: bool,
    },
}

/// The hierarchies in a list of mounts (`/proc/PID/mountinfo`, proc(5)). Where some of version 1 count, that of version 2 has
/// not the controllers.
pub fn parse(mounts: &str) -> Vec<Hierarchy> {
    let mut unified: Option<Hierarchy> = None;
    let mut legacy: Vec<(Vec<&str>, Hierarchy)> = Vec::new();
    for line in mounts.lines() {
        let Some((of_mount, of_system)) = line.split_once(" - ") else { continue };
        let Some(root) = of_mount.split(' ').nth(4).map(unescaped) else { continue };
        let mut of_system = of_system.split(' ');
        let (system, options) = (of_system.next(), of_system.nth(1).unwrap_or_default());
        match system {
            Some("cgroup2") if unified.is_none() || root == Path::new(USUAL_PLACE) => {
                unified = Some(Hierarchy { root, kind: Kind::Unified });
            }
            Some("cgroup") => {
                let counts = |word: &&str| LEGACY_CONTROLLERS.contains(word);
                let controllers: Vec<&str> = options.split(',').filter(counts).collect();
                // One may be mounted twice.
                if !controllers.is_empty() && legacy.iter().all(|(others, _)| *others != controllers) {
                    let kind = Kind::Legacy { memory: controllers.contains(&"memory") };
                    legacy.push((controllers, Hierarchy { root, kind }));
                }
            }
            _ => {}
        }
    }
    if legacy.is_empty() {
        unified.into_iter().collect()
    } else {
        legacy.into_iter().map(|(_, hierarchy)| hierarchy).collect()
    }
}

/// The kernel writes blanks and backslashes of a path as three octal digits.
fn unescaped(field: &str) -> PathBuf {
    let mut pieces = field.split('\\');
    let mut path = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let code = piece.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (code, piece.get(3..)) {
            (Some(code), Some(rest)) => {
                path.push(char::from(code));
                path.push_str(rest);
            }
            _ => path.push_str(piece),
        }
    }
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_is_one_tree() {
        let mounts = "22 1 0:20 / /proc rw - proc proc rw\n\
                      30 1 0:27 / /run/other rw - cgroup2 cgroup2 rw\n\
                      31 1 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(parse(mounts), [Hierarchy { root: "/sys/fs/cgroup".into(), kind: Kind::Unified }]);
        assert_eq!(parse("22 1 0:20 / /proc rw - proc proc rw\n"), []);
    }

    #[test]
    fn of_version_1_those_that_count_are_taken_once() {
        let mounts = "31 1 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      33 31 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
                      34 31 0:31 / /sys/fs/my\\040cgroup rw - cgroup cgroup rw,memory\n\
                      35 31 0:31 / /mnt/memory rw - cgroup cgroup rw,memory\n\
                      36 31 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                      37 31 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let expected = [("/sys/fs/cgroup/cpu,cpuacct", false), ("/sys/fs/my cgroup", true)];
        let expected =
            expected.map(|(root, memory)| Hierarchy { root: root.into(), kind: Kind::Legacy { memory } });
        assert_eq!(parse(mounts), expected);
    }
}
