//! Whether the host's OOM killer has killed in a cgroup: a counter of the kernel's, looked at when a process of the pod has died.

use std::fs;
use std::path::{Path, PathBuf};

use super::hierarchy::Kind;

/// The kills in a cgroup since it was made, which may have been before.
#[derive(Clone, Debug)]
pub struct OomKills {
    file: PathBuf,
    before: u64,
}

impl OomKills {
    /// Those from now on; `None` where this hierarchy does not count them.
    pub fn of(kind: Kind, cgroup: &Path) -> Option<Self> {
        let name = match kind {
            Kind::Unified => "memory.events",
            Kind::Legacy { memory: true } => "memory.oom_control",
            Kind::Legacy { memory: false } => return None,
        };
        let file = cgroup.join(name);
        let before = count(&file)?;
        Some(Self { file, before })
    }

    /// Whether there was one.
    pub fn came(&self) -> bool {
        count(&self.file).is_some_and(|now| self.before < now)
    }
}

/// Both files have a line of this form; that of version 1 since Linux 4.13.
fn count(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_is_told_if_it_came_later() {
        for (kind, name, text) in [
            (Kind::Unified, "memory.events", "low 0\nhigh 0\nmax 7\noom 7\noom_kill N\noom_group_kill 0\n"),
            (
                Kind::Legacy { memory: true },
                "memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill N\n",
            ),
        ] {
            let cgroup = tempfile::tempdir().unwrap();
            let set = |count: &str| fs::write(cgroup.path().join(name), text.replace('N', count)).unwrap();
            assert!(OomKills::of(kind, cgroup.path()).is_none(), "a kernel that does not count");
            set("3");
            let kills = OomKills::of(kind, cgroup.path()).unwrap();
            assert!(!kills.came());
            set("4");
            // Monitor and broker are killed together: each is told.
            assert!(kills.clone().came() && kills.came());
            fs::remove_file(cgroup.path().join(name)).unwrap();
            assert!(!kills.came());
        }
        assert!(OomKills::of(Kind::Legacy { memory: false }, Path::new("/")).is_none());
    }
}
