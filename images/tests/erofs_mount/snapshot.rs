//! Everything that a program can see of a file tree, for comparison.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What can be seen of one file. Directories have no link count or size here: file systems differ in those.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub links: u64,
    pub size: u64,
    pub mtime: (i64, i64),
    pub device: u64,
    /// The path, first in order, that is the same file.
    pub same_as: PathBuf,
    /// Of files, and targets of links.
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Everything below `root`, `root` itself included as the empty path.
pub fn snapshot(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let full = if path.as_os_str().is_empty() { root.to_path_buf() } else { root.join(&path) };
        let metadata = fs::symlink_metadata(&full).unwrap();
        if metadata.is_dir() {
            pending.extend(fs::read_dir(&full).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        }
        let content = if metadata.is_symlink() {
            fs::read_link(&full).unwrap().as_os_str().as_bytes().to_vec()
        } else if metadata.is_file() {
            fs::read(&full).unwrap()
        } else {
            Vec::new()
        };
        let countable = !metadata.is_dir();
        seen.insert(
            path.clone(),
            (
                metadata.ino(),
                Seen {
                    mode: metadata.mode(),
                    uid: metadata.uid(),
                    gid: metadata.gid(),
                    links: if countable { metadata.nlink() } else { 0 },
                    size: if countable { metadata.size() } else { 0 },
                    mtime: (metadata.mtime(), metadata.mtime_nsec()),
                    device: metadata.rdev(),
                    same_as: path,
                    content,
                    xattrs: xattrs(&full),
                },
            ),
        );
    }
    let mut first: BTreeMap<u64, PathBuf> = BTreeMap::new();
    seen.into_iter()
        .map(|(path, (inode, mut one))| {
            one.same_as = first.entry(inode).or_insert_with(|| path.clone()).clone();
            (path, one)
        })
        .collect()
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut names = vec![0_u8; 64 << 10];
    // SAFETY: the path is NUL-terminated, and the buffer has the length that is passed.
    let length = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(length).unwrap_or(0));
    names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let c_name = CString::new(name).unwrap();
            let mut value = vec![0_u8; 64 << 10];
            // SAFETY: both strings are NUL-terminated, and the buffer has the length that is passed.
            let length = unsafe {
                libc::lgetxattr(path.as_ptr(), c_name.as_ptr(), value.as_mut_ptr().cast(), value.len())
            };
            value.truncate(usize::try_from(length).unwrap());
            (name.to_vec(), value)
        })
        .collect()
}

/// Panics with the paths that differ.
pub fn assert_same(got: &BTreeMap<PathBuf, Seen>, expected: &BTreeMap<PathBuf, Seen>) {
    let mut differences = Vec::new();
    for (path, expected) in expected {
        match got.get(path) {
            None => differences.push(format!("{} is missing", path.display())),
            Some(got) if got != expected => {
                let brief = |seen: &Seen| {
                    let content = seen.content.iter().take(40).copied().collect();
                    let full =
                        Seen { content, same_as: seen.same_as.clone(), xattrs: seen.xattrs.clone(), ..*seen };
                    format!("{full:?}")
                };
                let same_content = got.content == expected.content;
                differences.push(format!(
                    "{} differs (same content: {same_content}):\n  got      {}\n  expected {}",
                    path.display(),
                    brief(got),
                    brief(expected)
                ));
            }
            Some(_) => {}
        }
    }
    for path in got.keys().filter(|path| !expected.contains_key(*path)) {
        differences.push(format!("{} should not be there", path.display()));
    }
    differences.truncate(20);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
