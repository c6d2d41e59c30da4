//! Stacks of random layers against a model that applies their entries one by one to a flat map of paths.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::show_fused;
use crate::erofs::mode;
use crate::layer::testing::{TarBuilder, convert};

#[derive(Debug, Clone)]
enum Operation {
    File(u16),
    Directory(u16),
    Symlink,
    HardLink(String),
    Whiteout,
    Opaque,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Directory {
        mode: u16,
    },
    /// Files that are one have one identity.
    File {
        identity: usize,
        content: Vec<u8>,
    },
    Symlink {
        identity: usize,
    },
}

type Files = BTreeMap<String, Node>;

/// A layer on its way onto the files below it.
struct Application {
    before: Files,
    files: Files,
    /// Paths that this layer has entries for, or for something below; and whether for the path itself.
    own: BTreeMap<String, bool>,
    tar: TarBuilder,
}

const IMPLIED: Node = Node::Directory { mode: 0o755 };

fn below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

fn ancestors(path: &str) -> Vec<&str> {
    path.match_indices('/').map(|(at, _)| &path[..at]).collect()
}

impl Application {
    fn is_directory(&self, path: &str) -> bool {
        matches!(self.files.get(path), Some(Node::Directory { .. }))
    }

    fn remove(&mut self, path: &str) {
        self.files.retain(|known, _| known != path && !below(known, path));
        self.own.retain(|known, _| known != path && !below(known, path));
    }

    /// Makes a directory of the layer of `path`, if that is possible.
    fn imply(&mut self, path: &str) -> bool {
        if self.own.contains_key(path) {
            return self.is_directory(path);
        }
        if !self.is_directory(path) {
            self.remove(path);
            self.files.insert(path.to_owned(), IMPLIED);
        }
        self.own.insert(path.to_owned(), false);
        true
    }

    /// Deletes what lower layers have below `path`, and what their directories lent to ours.
    fn hide(&mut self, path: &str) {
        let own = &self.own;
        self.files.retain(|known, _| !below(known, path) || own.contains_key(known));
        for (known, node) in &mut self.files {
            if below(known, path) && self.own.get(known) == Some(&false) {
                *node = IMPLIED;
            }
        }
    }

    /// The node that a hard link shares: this layer's, or else the one below as it was.
    fn link_target(&self, target: &str) -> Option<Node> {
        let files = ancestors(target);
        if files.iter().any(|path| self.own.contains_key(*path) && !self.is_directory(path)) {
            return None;
        }
        let all = if self.own.contains_key(target) { &self.files } else { &self.before };
        all.get(target).filter(|node| !matches!(node, Node::Directory { .. })).cloned()
    }

    /// Applies one entry to the model and adds it to the archive; leaves out what would be refused.
    fn apply(&mut self, path: &str, operation: &Operation, identity: usize) {
        let before = (self.files.clone(), self.own.clone());
        let reachable = ancestors(path).into_iter().all(|ancestor| self.imply(ancestor));
        let linked = match operation {
            Operation::HardLink(target) => self.link_target(target),
            _ => None,
        };
        if !reachable || (matches!(operation, Operation::HardLink(_)) && linked.is_none()) {
            (self.files, self.own) = before;
            return;
        }
        let tar = std::mem::take(&mut self.tar);
        let (directory, name) =
            path.rsplit_once('/').map_or(("", path), |(directory, name)| (directory, name));
        let whiteout = format!("{directory}/.wh.{name}");
        self.tar = match operation {
            Operation::File(size) => {
                let content = format!("{identity} ").repeat(usize::from(*size)).into_bytes();
                let tar = tar.file(path, &content);
                self.replace(path, Node::File { identity, content });
                tar
            }
            Operation::Symlink => {
                self.replace(path, Node::Symlink { identity });
                tar.symlink(path, &format!("target {identity}"))
            }
            Operation::HardLink(target) => {
                if let Some(node) = linked {
                    self.replace(path, node);
                }
                tar.hard_link(path, target)
            }
            Operation::Directory(mode) => {
                if !self.is_directory(path) {
                    self.remove(path);
                }
                self.files.insert(path.to_owned(), Node::Directory { mode: *mode });
                self.own.insert(path.to_owned(), true);
                tar.directory(path, *mode)
            }
            Operation::Whiteout => {
                if !self.own.contains_key(path) {
                    self.remove(path);
                } else if self.is_directory(path) {
                    self.hide(path);
                    if self.own.insert(path.to_owned(), true) == Some(false) {
                        self.files.insert(path.to_owned(), IMPLIED);
                    }
                }
                tar.file(&whiteout, b"")
            }
            Operation::Opaque => {
                if self.imply(path) {
                    self.hide(path);
                    tar.file(&format!("{path}/.wh..wh..opq"), b"")
                } else {
                    (self.files, self.own) = before;
                    tar
                }
            }
        };
    }

    fn replace(&mut self, path: &str, node: Node) {
        self.remove(path);
        self.files.insert(path.to_owned(), node);
        self.own.insert(path.to_owned(), true);
    }
}

fn paths() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|names| names.join("/"))
}

fn operations() -> impl Strategy<Value = (String, Operation)> {
    let operation = prop_oneof![
        3 => (0_u16..1500).prop_map(Operation::File),
        3 => (0_u16..0o1000).prop_map(Operation::Directory),
        1 => Just(Operation::Symlink),
        2 => paths().prop_map(Operation::HardLink),
        2 => Just(Operation::Whiteout),
        1 => Just(Operation::Opaque),
    ];
    (paths(), operation)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn stacked_layers_are_what_the_model_says(
        layers in prop::collection::vec(prop::collection::vec(operations(), 0..14), 0..5),
    ) {
        let mut files = Files::new();
        let mut converted = Vec::new();
        let mut identity = 0;
        for layer in &layers {
            let mut application = Application {
                before: files.clone(),
                files,
                own: BTreeMap::new(),
                tar: TarBuilder::default(),
            };
            for (path, operation) in layer {
                identity += 1;
                application.apply(path, operation, identity);
            }
            converted.push(convert(&application.tar.finish()).unwrap());
            files = application.files;
        }

        let shown = show_fused(converted);
        let expected: Vec<&str> = std::iter::once("").chain(files.keys().map(String::as_str)).collect();
        prop_assert_eq!(shown.keys().map(String::as_str).collect::<Vec<_>>(), expected);
        let mut groups: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
        for (path, node) in &files {
            let shown = &shown[path];
            match node {
                Node::Directory { mode: permissions } => {
                    prop_assert!(shown.is(mode::DIRECTORY), "{}", path);
                    prop_assert_eq!(shown.permissions(), *permissions, "{}", path);
                }
                Node::File { identity, content } => {
                    prop_assert!(shown.is(mode::REGULAR), "{}", path);
                    prop_assert!(&shown.content == content, "{}", path);
                    groups.entry(*identity).or_default().push(path);
                }
                Node::Symlink { identity } => {
                    prop_assert_eq!(shown.content.clone(), format!("target {identity}").into_bytes());
                    groups.entry(*identity).or_default().push(path);
                }
            }
        }
        for group in groups.values() {
            for path in group {
                prop_assert_eq!(shown[*path].found, shown[group[0]].found, "{}", path);
                prop_assert_eq!(shown[*path].found.inode.links as usize, group.len(), "{}", path);
            }
        }
    }
}
