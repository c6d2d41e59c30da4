//! Who holds network namespaces: the processes in them, open files that name them, and mounts of them.
//!
//! Sockets and tap devices hold theirs as well, and do not say so: those go with the process that has them.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// What a link to a network namespace says, before its number.
const KIND: &str = "net:[";

/// One who holds a network namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// As the kernel names it: `net:[4026531840]`.
    pub namespace: String,
    /// How it is held.
    pub by: Holder,
}

/// How a namespace is held.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// A thread of this process is in it.
    Member(u32),
    /// This process has a descriptor of it.
    Descriptor(u32),
    /// It is mounted there, in a mount namespace with this name.
    Mount(String, String),
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, by } = self;
        match by {
            Holder::Member(pid) => write!(f, "{namespace}: process {pid} is in it"),
            Holder::Descriptor(pid) => write!(f, "{namespace}: process {pid} has a descriptor of it"),
            Holder::Mount(path, mounts) => write!(f, "{namespace}: it is mounted at {path} in {mounts}"),
        }
    }
}

/// Everybody on the machine who holds one. What ends while one looks is left out.
pub fn references() -> BTreeSet<Reference> {
    let (mut found, mut seen) = (BTreeSet::new(), BTreeSet::new());
    for process in entries(Path::new("/proc")) {
        let Some(pid) = process.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        // Threads of the kernel run no program; they come and go, and are in the first namespace.
        if name_of(&process.join("exe")).is_none() {
            continue;
        }
        let held = |link: &PathBuf| name_of(link).filter(|name| name.starts_with(KIND));
        let open = entries(&process.join("fd"));
        let descriptors = open.iter().filter_map(held);
        found.extend(descriptors.map(|namespace| Reference { namespace, by: Holder::Descriptor(pid) }));
        for thread in entries(&process.join("task")) {
            let member = held(&thread.join("ns/net"));
            found.extend(member.map(|namespace| Reference { namespace, by: Holder::Member(pid) }));
            if let Some(mounts) = name_of(&thread.join("ns/mnt"))
                && seen.insert(mounts.clone())
            {
                let table = fs::read_to_string(thread.join("mountinfo")).unwrap_or_default();
                found.extend(table.lines().filter_map(|line| mounted(line, &mounts)));
            }
        }
    }
    found
}

/// What a line of a table of mounts says of a network namespace.
fn mounted(line: &str, mounts: &str) -> Option<Reference> {
    let mut words = line.split(' ').skip(3);
    let (root, path) = (words.next()?, words.next()?);
    let by = Holder::Mount(path.to_owned(), mounts.to_owned());
    root.starts_with(KIND).then(|| Reference { namespace: root.to_owned(), by })
}

/// What a link says.
fn name_of(link: &Path) -> Option<String> {
    fs::read_link(link).ok()?.into_os_string().into_string().ok()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
