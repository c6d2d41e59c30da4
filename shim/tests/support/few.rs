//! A cgroup in which there may be only so many threads. Needs root, and the controller `pids`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// One such cgroup.
pub struct Few(PathBuf);

impl Few {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = Self::root();
        if root == Path::new("/sys/fs/cgroup") {
            fs::write(root.join("cgroup.subtree_control"), "+pids").unwrap();
        }
        let cgroup = root.join(format!("hs-{}-{number}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        Self(cgroup)
    }

    /// Where processes are that no test has limited.
    pub fn root() -> PathBuf {
        let v1 = Path::new("/sys/fs/cgroup/pids");
        if v1.is_dir() { v1.to_owned() } else { "/sys/fs/cgroup".into() }
    }

    /// Lets a process have so many more threads and children than it has.
    pub fn hold(&self, pid: u32, more: u64) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
        let has: u64 = fs::read_to_string(self.0.join("pids.current")).unwrap().trim().parse().unwrap();
        fs::write(self.0.join("pids.max"), (has + more).to_string()).unwrap();
    }

    /// How often one more was refused.
    pub fn refused(&self) -> u64 {
        let events = fs::read_to_string(self.0.join("pids.events")).unwrap();
        events.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Few {
    fn drop(&mut self) {
        let removed = fs::remove_dir(&self.0);
        assert!(removed.is_ok() || std::thread::panicking(), "{removed:?}");
    }
}
