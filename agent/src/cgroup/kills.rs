//! Which containers the OOM killer has taken processes of. One file is watched for all of them: what happens in a cgroup is counted
//! in those above as well, and only when their sum has grown is anything else read.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{Cgroup, CgroupError, child_directories, stats};
use crate::sys;

/// Between two looks: the kernel tells each time that a container meets its limit, too.
const PAUSE: Duration = Duration::from_millis(100);

/// What the OOM killer does to containers.
#[derive(Debug)]
pub struct Kills {
    path: PathBuf,
    /// The memory.events of the cgroup above them all.
    changes: AsyncFd<OwnedFd>,
    sum: u64,
    /// Of each container.
    counts: HashMap<String, u64>,
}

impl Kills {
    pub(super) fn watch(path: PathBuf) -> Result<Self, CgroupError> {
        let above = Cgroup::find(path.clone())?;
        let file = above
            .open("memory.events", libc::O_RDONLY | libc::O_NONBLOCK)
            .map_err(|source| CgroupError::File { what: "open", file: "memory.events".to_owned(), source })?;
        let changes = sys::ready::watch(file, Interest::PRIORITY).map_err(CgroupError::Watch)?;
        Ok(Self { path, changes, sum: 0, counts: HashMap::new() })
    }

    /// Waits until processes have been killed; the ids of their containers.
    pub async fn next(&mut self) -> Result<Vec<String>, CgroupError> {
        loop {
            // Reading also tells the kernel what has been seen, so it comes before every wait.
            let killed = self.look()?;
            if !killed.is_empty() {
                return Ok(killed);
            }
            self.changes.ready(Interest::PRIORITY).await.map_err(CgroupError::Watch)?.clear_ready();
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn look(&mut self) -> Result<Vec<String>, CgroupError> {
        let mut buffer = [0u8; 256];
        let count = nix::sys::uio::pread(self.changes.get_ref(), &mut buffer, 0)
            .map_err(|source| CgroupError::File { what: "read", file: "memory.events".to_owned(), source })?;
        let sum = stats::field(&String::from_utf8_lossy(&buffer[..count]), "oom_kill");
        if sum == self.sum {
            return Ok(Vec::new());
        }
        self.sum = sum;
        let counts: HashMap<String, u64> = child_directories(&self.path)
            .into_iter()
            .filter_map(|path| {
                let id = path.file_name()?.to_str()?.to_owned();
                // It may be gone by now.
                Some((id, Cgroup::find(path).ok()?.oom_kills()))
            })
            .collect();
        Ok(grown(&std::mem::replace(&mut self.counts, counts), &self.counts))
    }
}

/// Whose count is more than it was. One that is less belongs to another container of the same id, all of whose count is new.
fn grown(before: &HashMap<String, u64>, now: &HashMap<String, u64>) -> Vec<String> {
    let is_new = |(id, count): &(&String, &u64)| **count > 0 && before.get(*id) != Some(count);
    now.iter().filter(is_new).map(|(id, _)| id.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(list: &[(&str, u64)]) -> HashMap<String, u64> {
        list.iter().map(|(id, count)| ((*id).to_owned(), *count)).collect()
    }

    #[test]
    fn a_kill_is_told_once() {
        let before = counts(&[("a", 1), ("b", 0), ("gone", 3), ("again", 4)]);
        let mut told = grown(&before, &counts(&[("a", 1), ("b", 2), ("new", 1), ("calm", 0), ("again", 1)]));
        told.sort();
        assert_eq!(told, ["again", "b", "new"]);
        assert!(grown(&before, &before).is_empty());
    }
}
