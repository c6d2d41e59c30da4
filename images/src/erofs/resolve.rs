//! Walking a path through a metadata tree as a process in the container would: symbolic links are followed, and
//! nothing leads above the root.

use super::tree::{InodeId, Kind, Name, Tree};

/// As many symbolic links as Linux follows in one path (path_resolution(7)).
pub(crate) const SYMLINKS_MAX: usize = 40;

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Resolved {
    /// To this inode; a last component that is a symbolic link is not followed.
    Found(InodeId),
    /// To nothing in this tree. The path as far as it is known, links resolved, relative to the root.
    Missing(Box<[u8]>),
    /// Through something that is no directory, or to nothing at all.
    NotDirectory,
    /// Into a loop.
    Loop,
}

/// A walk in progress: the directories from the root, and what is still to come.
#[derive(Debug)]
pub(crate) struct Walk {
    /// Directories below the root with their names.
    trail: Vec<(Name, InodeId)>,
    /// Components still to walk, the next one last.
    pending: Vec<Name>,
    links: usize,
}

/// One step of a [`Walk`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// In this directory, look at this name; tell the walk by [`Walk::enter`] or [`Walk::follow`].
    Look(InodeId, Name),
    /// Arrived in this directory.
    Done(InodeId),
}

/// The walk met too many symbolic links.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooManyLinks;

impl Walk {
    pub(crate) fn new<'a>(components: impl DoubleEndedIterator<Item = &'a [u8]>) -> Walk {
        Walk { trail: Vec::new(), pending: components.rev().map(Into::into).collect(), links: 0 }
    }

    /// The directory that the walk is in.
    pub(crate) fn here(&self) -> InodeId {
        self.trail.last().map_or(InodeId::ROOT, |(_, id)| *id)
    }

    /// Directories between the root and here, here included.
    pub(crate) fn depth(&self) -> usize {
        self.trail.len()
    }

    pub(crate) fn step(&mut self) -> Step {
        while let Some(name) = self.pending.pop() {
            match &*name {
                b"" | b"." => {}
                b".." => drop(self.trail.pop()),
                _ => return Step::Look(self.here(), name),
            }
        }
        Step::Done(self.here())
    }

    /// The name is a directory: go into it.
    pub(crate) fn enter(&mut self, name: Name, directory: InodeId) {
        self.trail.push((name, directory));
    }

    /// The name is a symbolic link: go where it leads.
    pub(crate) fn follow(&mut self, target: &[u8]) -> Result<(), TooManyLinks> {
        self.links += 1;
        if self.links > SYMLINKS_MAX {
            return Err(TooManyLinks);
        }
        if target.starts_with(b"/") {
            self.trail.clear();
        }
        self.pending.extend(target.split(|byte| *byte == b'/').rev().map(Into::into));
        Ok(())
    }

    /// The path from the root through `name` and everything still to come, by names alone.
    fn rest(self, name: Name) -> Box<[u8]> {
        let mut names: Vec<Name> = self.trail.into_iter().map(|(name, _)| name).collect();
        names.push(name);
        for name in self.pending.into_iter().rev() {
            match &*name {
                b"" | b"." => {}
                b".." => drop(names.pop()),
                _ => names.push(name),
            }
        }
        names.join(&b'/').into()
    }
}

/// Resolves `path`; its last component is not followed if it is a symbolic link.
pub(crate) fn resolve(tree: &Tree, path: &[u8]) -> Resolved {
    let mut components = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    let Some(last) = components.next_back() else { return Resolved::Found(InodeId::ROOT) };
    let mut walk = Walk::new(components);
    loop {
        let (directory, name) = match walk.step() {
            Step::Look(directory, name) => (directory, name),
            Step::Done(directory) => {
                return match tree.lookup(directory, last) {
                    Some(id) if tree.inode(id).kind == Kind::Whiteout => {
                        Resolved::Missing(walk.rest(last.into()))
                    }
                    Some(id) => Resolved::Found(id),
                    None => Resolved::Missing(walk.rest(last.into())),
                };
            }
        };
        let Some(child) = tree.lookup(directory, &name) else { return missing(walk, name, last) };
        match &tree.inode(child).kind {
            Kind::Directory(_) => walk.enter(name, child),
            Kind::Symlink(target) => {
                if walk.follow(target).is_err() {
                    return Resolved::Loop;
                }
            }
            Kind::Whiteout => return missing(walk, name, last),
            Kind::File(_)
            | Kind::CharDevice(_)
            | Kind::BlockDevice(_)
            | Kind::Fifo
            | Kind::Socket
            | Kind::LowerLink(_) => return Resolved::NotDirectory,
        }
    }
}

fn missing(walk: Walk, name: Name, last: &[u8]) -> Resolved {
    let mut path = walk.rest(name).into_vec();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(last);
    Resolved::Missing(path.into())
}
