//! What a machine has of the things that a runtime may leave behind.
//!
//! Tests that use this run one at a time: what appears meanwhile is theirs.

mod netns;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Processes, mounts, network links and who holds network namespaces, cgroups, sockets and files, each as a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Looks at the machine now, and at the files below `state`.
    pub fn take(state: &Path) -> Self {
        let mut lines = BTreeSet::new();
        lines.extend(processes());
        lines.extend(mounts());
        lines.extend(below("cgroup", Path::new("/sys/fs/cgroup"), Kind::Folders));
        lines.extend(names("link", Path::new("/sys/class/net")));
        lines.extend(names("shm", Path::new("/dev/shm")));
        lines.extend(names("netns", Path::new("/run/netns")));
        lines.extend(netns::references().iter().map(|reference| format!("netns {reference}")));
        lines.extend(names("lease", Path::new("/run/hull-networks/hull")));
        lines.extend(packet_filter());
        lines.extend(sockets());
        lines.extend(below("file", state, Kind::All));
        lines.extend(names("file", Path::new("/tmp")).into_iter().filter(|name| !name.contains("hull-e2e-")));
        Self(lines)
    }

    /// Fails unless everything is again as in this snapshot; what is on its way out gets a little time.
    #[track_caller]
    pub fn assert_unchanged(&self, state: &Path) {
        let start = Instant::now();
        loop {
            let now = Self::take(state);
            if now == *self {
                return;
            }
            if start.elapsed() > Duration::from_secs(20) {
                let left: Vec<_> = now.0.difference(&self.0).collect();
                let gone: Vec<_> = self.0.difference(&now.0).collect();
                panic!("left behind: {left:#?}\ngone: {gone:#?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn processes() -> Vec<String> {
    let mut lines = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        // Kernel threads have no command line and come and go; our own children that were not waited for do count.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let after = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let fields: Vec<&str> = after.split(' ').collect();
        let is_kernel_thread =
            fields.get(6).and_then(|flags| flags.parse::<u64>().ok()).is_some_and(|f| f & 0x0020_0000 != 0);
        if !is_kernel_thread {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            lines.push(format!("process {name} {}", String::from_utf8_lossy(&command).replace('\0', " ")));
        }
    }
    lines
}

fn mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().map(|line| format!("mount {line}")).collect()
}

fn sockets() -> Vec<String> {
    let table = fs::read_to_string("/proc/net/unix").unwrap();
    table
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7))
        .filter(|path| path.contains("hull"))
        .map(|path| format!("socket {path}"))
        .collect()
}

/// The rules of the packet filter, where Hull's bridge has brought some.
fn packet_filter() -> Vec<String> {
    if !Path::new("/sys/class/net/hull0").exists() {
        return Vec::new();
    }
    ["iptables-save", "ip6tables-save"]
        .iter()
        .flat_map(|program| {
            let saved = std::process::Command::new(program).output().unwrap();
            let saved = String::from_utf8(saved.stdout).unwrap();
            let rules = saved.lines().filter(|line| line.starts_with("-A"));
            rules.map(|rule| format!("{program} {rule}")).collect::<Vec<_>>()
        })
        .collect()
}

fn names(what: &str, folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| format!("{what} {}", entry.path().display())).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    All,
    Folders,
}

fn below(what: &str, folder: &Path, kind: Kind) -> Vec<String> {
    let mut lines = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return lines };
    for entry in entries.flatten() {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder {
            lines.extend(below(what, &entry.path(), kind));
        }
        // Empty folders of a fixed layout are not a leak; files in them are.
        if kind == Kind::Folders && is_folder || kind == Kind::All && !is_folder {
            lines.push(format!("{what} {}", entry.path().display()));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::mpsc::channel;

    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use nix::sched::{CloneFlags, unshare};
    use tempfile::NamedTempFile;

    use super::*;

    const LINK: &str = "/proc/thread-self/ns/net";
    const NOTHING: Option<&str> = None;

    /// What a snapshot says of a network namespace.
    fn said_of(namespace: &str) -> Vec<String> {
        let snapshot = Snapshot::take(Path::new("/nonexistent"));
        snapshot.0.into_iter().filter(|line| line.starts_with(&format!("netns {namespace}"))).collect()
    }

    /// Needs root.
    #[test]
    fn whoever_holds_a_network_namespace_is_found() {
        let (tell, told) = channel();
        let (go, gone) = channel::<()>();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            mount(NOTHING, "/", NOTHING, MsFlags::MS_PRIVATE | MsFlags::MS_REC, NOTHING).unwrap();
            let name = fs::read_link(LINK).unwrap().into_os_string().into_string().unwrap();
            let file = File::open(LINK).unwrap();
            let place = NamedTempFile::with_prefix("hull-e2e-").unwrap();
            mount(Some(LINK), place.path(), NOTHING, MsFlags::MS_BIND, NOTHING).unwrap();
            tell.send((name, file, place.path().display().to_string())).unwrap();
            gone.recv().unwrap();
            umount2(place.path(), MntFlags::empty()).unwrap();
        });
        let (name, file, place) = told.recv().unwrap();
        let said = said_of(&name);
        let own = std::process::id();
        let mounted = format!("netns {name}: it is mounted at {place} in mnt:[");
        let holds =
            ["has a descriptor of it", "is in it"].map(|how| format!("netns {name}: process {own} {how}"));
        assert!(said.len() == 3 && said[0].starts_with(&mounted) && said[1..] == holds, "{said:?}");
        go.send(()).unwrap();
        thread.join().unwrap();
        assert_eq!(said_of(&name), holds[..1]);
        drop(file);
        // Its number may be another's by now.
        assert!(!said_of(&name).contains(&holds[0]));
    }
}
