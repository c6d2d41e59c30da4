//! The read-only layers below a container's writable one: one file system, or several on the parts of one disk.
//!
//! Several are mounted each in a directory of its own, only until the overlay has been made of them: it keeps mounts of its own,
//! and the directories go again at once.

use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hull_protocol::agent::api::agent as api;
use hull_protocol::agent::{LAYER_BLOCK, LAYERS_MAX};

use super::{Disks, RootfsError, c_path, mount_disk};
use crate::helper::Work;
use crate::launch::UserNamespace;
use crate::sys::disk::Partition;
use crate::sys::mount::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY};

/// What an overlay is told, beside its layers.
type Options = Vec<(CString, Option<CString>)>;

/// The layers, to be mounted.
pub(super) struct Lower<'a> {
    disks: &'a Disks,
    /// The directory for them.
    place: PathBuf,
    /// The whole disk.
    disk: PathBuf,
    /// What it is made into, the uppermost first; nothing for a disk that is one file system.
    parts: Vec<Partition>,
}

impl<'a> Lower<'a> {
    /// The layers on the disk that `request` names, below `place`.
    pub fn of(disks: &'a Disks, request: &api::ErofsDisk, place: PathBuf) -> Result<Self, RootfsError> {
        let disk = disks.find(&request.serial)?;
        // An overlay without a layer to write to takes no single one.
        if request.layers.len() == 1 || request.layers.len() > LAYERS_MAX {
            return Err(RootfsError::Layers);
        }
        let mut start = 0u64;
        let mut parts = Vec::with_capacity(request.layers.len());
        for (number, &length) in (1..).zip(&request.layers) {
            if length == 0 || !length.is_multiple_of(LAYER_BLOCK) {
                return Err(RootfsError::Layers);
            }
            parts.push(Partition { number, start, length });
            start = start.checked_add(length).ok_or(RootfsError::Layers)?;
        }
        Ok(Self { disks, place, disk, parts })
    }

    /// The directory of the uppermost.
    pub fn top(&self) -> CString {
        self.parts.first().map_or_else(|| c_path(&self.place), |part| self.directory(*part))
    }

    /// What mounts them, each for itself.
    pub fn mount(&self, user: Option<&Arc<UserNamespace>>) -> Vec<Work> {
        let directory = |path| Work::MakeDirectory { path, mode: 0o755 };
        let place = c_path(&self.place);
        let mut work = vec![directory(place.clone())];
        if self.parts.is_empty() {
            work.push(self.mount_one(&self.disk, &place, user));
            return work;
        }
        work.push(Work::Mount {
            kind: c"tmpfs".to_owned(),
            options: vec![(c"source".to_owned(), Some(c"layers".to_owned()))],
            attributes: ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC,
            user: None,
            target: place,
        });
        for part in &self.parts {
            let target = self.directory(*part);
            work.push(directory(target.clone()));
            let source = match self.disks {
                Disks::Directories(_) => self.disk.join(part.number.to_string()),
                Disks::Virtio => {
                    work.push(Work::AddPartition { disk: c_path(&self.disk), partition: *part });
                    let mut name = self.disk.clone().into_os_string();
                    name.push(part.number.to_string());
                    PathBuf::from(name)
                }
            };
            work.push(self.mount_one(&source, &target, user));
        }
        work
    }

    /// What makes one file system of those that are mounted, and of what `own` says of a writable one, on `target`.
    pub fn overlay(&self, own: Options, target: CString) -> Vec<Work> {
        let mut options = vec![(c"source".to_owned(), Some(c"overlay".to_owned()))];
        if self.parts.is_empty() {
            options.push((c"lowerdir".to_owned(), Some(c_path(&self.place))));
        }
        // One by one: a text of them all would be too long.
        let each = |part: &Partition| (c"lowerdir+".to_owned(), Some(self.directory(*part)));
        options.extend(self.parts.iter().map(each));
        options.extend(own);
        let kind = c"overlay".to_owned();
        let mut work = vec![Work::Mount { kind, options, attributes: 0, user: None, target }];
        if !self.parts.is_empty() {
            work.push(Work::Detach { path: c_path(&self.place) });
        }
        work
    }

    /// What mounts them as the whole root file system, on `root`.
    pub fn alone(&self, root: CString, user: Option<&Arc<UserNamespace>>) -> Vec<Work> {
        if self.parts.is_empty() {
            return vec![self.mount_one(&self.disk, &root, user)];
        }
        let mut work = self.mount(user);
        work.extend(self.overlay(Options::new(), root));
        work
    }

    fn directory(&self, part: Partition) -> CString {
        c_path(&self.place.join(part.number.to_string()))
    }

    fn mount_one(&self, source: &Path, target: &CStr, user: Option<&Arc<UserNamespace>>) -> Work {
        mount_disk(self.disks, "erofs", source, target, ATTR_RDONLY, user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(lengths: &[u64]) -> Result<Vec<(u8, u64, u64)>, RootfsError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("rootfs")).unwrap();
        let disks = Disks::Directories(folder.path().to_owned());
        let request =
            api::ErofsDisk { serial: "rootfs".into(), layers: lengths.to_vec(), ..api::ErofsDisk::default() };
        let lower = Lower::of(&disks, &request, "/run/lower".into())?;
        Ok(lower.parts.iter().map(|part| (part.number, part.start, part.length)).collect())
    }

    #[test]
    fn layers_lie_one_behind_the_other() {
        assert_eq!(parts(&[]).unwrap(), []);
        assert_eq!(parts(&[4096, 8192, 4096]).unwrap(), [(1, 0, 4096), (2, 4096, 8192), (3, 12288, 4096)]);
        assert_eq!(parts(&[4096; LAYERS_MAX]).unwrap().last().unwrap(), &(253, 252 * 4096, 4096));
    }

    #[test]
    fn lengths_that_cannot_be_are_refused() {
        let huge = u64::MAX - 4095;
        for lengths in
            [vec![4096], vec![4096, 0], vec![4096, 512], vec![huge, huge], vec![4096; LAYERS_MAX + 1]]
        {
            assert!(matches!(parts(&lengths), Err(RootfsError::Layers)), "{}", lengths.len());
        }
    }
}
