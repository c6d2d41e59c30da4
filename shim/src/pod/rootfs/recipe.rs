//! A root file system that comes as a recipe: file systems each on a disk of its own, and last how they are put together.
//!
//! That is how containerd 2.2 and newer hand over what their erofs snapshotter has, to a shim that says it can take it (`-info`). The
//! recipe's words are theirs (docs/mounts.md of containerd): a mount of type `format/mkdir/overlay`, in whose options `{{ mount N }}` is
//! where mount N lies, and `{{ overlay A B }}` where A to B do, one after the other.

use std::path::PathBuf;

use containerd_shim_protos::types::mount::Mount;

use super::{RootfsError, at_the_root, erofs_pieces, ext4, writable};

/// Begins an option that asks for a directory.
const MAKE_DIRECTORY: &str = "X-containerd.mkdir.path=";
/// Options that say what the guest's overlay does anyway.
const DEFAULTS: [&str; 5] = ["index=off", "metacopy=off", "redirect_dir=off", "nfs_export=off", "xino=off"];

/// What a recipe asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// The layers, the uppermost first: the files that make up each.
    pub layers: Vec<Vec<PathBuf>>,
    /// What is written to.
    pub upper: Upper,
}

/// Where a recipe has what is written go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upper {
    /// Nowhere.
    None,
    /// To an ext4 disk, with the directories that the agent uses.
    Disk(PathBuf),
    /// To directories of the host, with these options of an overlay.
    Host(Vec<String>),
}

/// Whether these mounts are a recipe: the last says how the others are put together.
pub fn is_recipe(kinds: &[&str]) -> bool {
    kinds.split_last().is_some_and(|(last, rest)| {
        !rest.is_empty()
            && last.strip_suffix("/overlay").is_some_and(|transforms| {
                transforms.split('/').all(|transform| matches!(transform, "format" | "mkdir"))
            })
            && rest.iter().all(|kind| matches!(*kind, "erofs" | "ext4"))
    })
}

impl Recipe {
    /// Reads the mounts of a recipe.
    pub fn parse(mounts: &[Mount]) -> Result<Self, RootfsError> {
        let shape = RootfsError::Shape;
        let (last, disks) = mounts.split_last().ok_or(shape("a root file system without mounts"))?;
        mounts.iter().try_for_each(at_the_root)?;
        let mut said = Said::default();
        for option in &last.options {
            said.read(option)?;
        }
        let order = said.lower.ok_or(shape("an overlay without layers"))?.indices();
        let layer = |index: usize| match disks.get(index) {
            Some(mount) if mount.type_ == "erofs" => erofs_pieces(mount),
            _ => Err(shape("an overlay of layers that are not there")),
        };
        let layers = order.map(layer).collect::<Result<Vec<_>, _>>()?;
        let writables: Vec<&Mount> = disks.iter().filter(|mount| mount.type_ == "ext4").collect();
        if layers.is_empty() || layers.len() + writables.len() != disks.len() {
            return Err(shape("an overlay that leaves out one of its disks"));
        }
        let upper = match (said.upper, said.work, writables.as_slice()) {
            (None, None, []) => Upper::None,
            (Some(Place::Mount(upper)), Some(Place::Mount(work)), [disk])
                if upper == work && disks.get(upper).is_some_and(|mount| std::ptr::eq(mount, *disk)) =>
            {
                Upper::Disk(writable(ext4(disk)?)?)
            }
            (Some(Place::Host(upper)), Some(Place::Host(work)), []) => {
                said.rest.extend([format!("upperdir={upper}"), format!("workdir={work}")]);
                return Ok(Self { layers, upper: Upper::Host(said.rest) });
            }
            _ => return Err(shape("an overlay that does not say as usual where to write")),
        };
        match said.rest.into_iter().find(|option| !DEFAULTS.contains(&option.as_str())) {
            Some(option) => Err(RootfsError::Option { kind: "overlay", option }),
            None => Ok(Self { layers, upper }),
        }
    }
}

/// Where something is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// In the directory of the usual name, on this mount.
    Mount(usize),
    /// At this path of the host.
    Host(String),
}

/// A run of mounts, in this order.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: usize,
    last: usize,
}

impl Run {
    fn indices(self) -> Box<dyn Iterator<Item = usize>> {
        if self.first <= self.last {
            Box::new(self.first..=self.last)
        } else {
            Box::new((self.last..=self.first).rev())
        }
    }
}

/// What the options of the overlay say.
#[derive(Debug, Default)]
struct Said {
    lower: Option<Run>,
    upper: Option<Place>,
    work: Option<Place>,
    rest: Vec<String>,
}

impl Said {
    fn read(&mut self, option: &str) -> Result<(), RootfsError> {
        let refused = || RootfsError::Option { kind: "overlay", option: option.to_owned() };
        if let Some(directory) = option.strip_prefix(MAKE_DIRECTORY) {
            // The agent makes those two, and there are no others.
            let path = directory.split_once("}}").and_then(|(_, rest)| rest.split(':').next());
            return if matches!(path, Some("/upper" | "/work")) { Ok(()) } else { Err(refused()) };
        }
        match option.split_once('=') {
            Some(("lowerdir", value)) => self.lower = Some(run(value).ok_or_else(refused)?),
            Some(("upperdir", value)) => self.upper = Some(place(value, "/upper").ok_or_else(refused)?),
            Some(("workdir", value)) => self.work = Some(place(value, "/work").ok_or_else(refused)?),
            _ if option.contains("{{") || option.starts_with("X-") => return Err(refused()),
            _ => self.rest.push(option.to_owned()),
        }
        Ok(())
    }
}

/// `{{ mount N }}` or `{{ overlay A B }}`, and nothing else.
fn run(text: &str) -> Option<Run> {
    let (words, "") = template(text)? else { return None };
    match words.as_slice() {
        ["mount", only] => only.parse().ok().map(|only| Run { first: only, last: only }),
        ["overlay", first, last] => Some(Run { first: first.parse().ok()?, last: last.parse().ok()? }),
        _ => None,
    }
}

/// `{{ mount N }}` and the usual directory, or a path.
fn place(text: &str, directory: &str) -> Option<Place> {
    if text.starts_with('/') && !text.contains("{{") {
        return Some(Place::Host(text.to_owned()));
    }
    let (words, rest) = template(text)?;
    match words.as_slice() {
        ["mount", index] if rest == directory => index.parse().ok().map(Place::Mount),
        _ => None,
    }
}

/// The words between braces, and what follows.
fn template(text: &str) -> Option<(Vec<&str>, &str)> {
    let (inside, rest) = text.strip_prefix("{{")?.split_once("}}")?;
    Some((inside.split_whitespace().collect(), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::mount;
    use super::*;

    const OVERLAY: &str = "format/mkdir/overlay";

    fn layer(path: &str) -> Mount {
        mount("erofs", path, &["ro", "loop"])
    }

    #[test]
    fn a_container_with_a_disk_to_write_to() {
        let mounts = [
            mount("ext4", "/s/9/rwlayer.img", &["rw", "loop"]),
            layer("/s/3/layer.erofs"),
            layer("/s/2/layer.erofs"),
            mount(
                OVERLAY,
                "overlay",
                &[
                    "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
                    "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
                    "workdir={{ mount 0 }}/work",
                    "upperdir={{ mount 0 }}/upper",
                    "lowerdir={{ overlay 1 2 }}",
                    "index=off",
                ],
            ),
        ];
        let kinds: Vec<&str> = mounts.iter().map(|mount| mount.type_.as_str()).collect();
        assert!(is_recipe(&kinds));
        let recipe = Recipe::parse(&mounts).unwrap();
        assert_eq!(recipe.layers, [[PathBuf::from("/s/3/layer.erofs")], ["/s/2/layer.erofs".into()]]);
        assert_eq!(recipe.upper, Upper::Disk("/s/9/rwlayer.img".into()));
    }

    #[test]
    fn merged_layers_are_one_that_has_many_files() {
        let merged = mount("erofs", "/s/3/fsmeta.erofs", &["ro", "loop", "device=/s/1/l", "device=/s/2/l"]);
        let mounts = [layer("/s/4/l"), merged, mount(OVERLAY, "overlay", &["lowerdir={{ overlay 0 1 }}"])];
        let recipe = Recipe::parse(&mounts).unwrap();
        assert_eq!(recipe.layers[1], ["/s/3/fsmeta.erofs", "/s/1/l", "/s/2/l"].map(PathBuf::from));
        assert_eq!(recipe.upper, Upper::None);
        // The other way round, and a single one.
        let mounts = [layer("/b"), layer("/a"), mount("format/overlay", "o", &["lowerdir={{overlay 1 0}}"])];
        assert_eq!(Recipe::parse(&mounts).unwrap().layers, [[PathBuf::from("/a")], ["/b".into()]]);
        let mounts = [layer("/a"), mount(OVERLAY, "o", &["lowerdir={{ mount 0 }}"])];
        assert_eq!(Recipe::parse(&mounts).unwrap().layers, [[PathBuf::from("/a")]]);
    }

    #[test]
    fn directories_of_the_host_stay_the_hosts() {
        let options = ["workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir={{ overlay 0 1 }}", "index=off"];
        let mounts = [layer("/a"), layer("/b"), mount(OVERLAY, "overlay", &options)];
        let Upper::Host(options) = Recipe::parse(&mounts).unwrap().upper else { panic!("not the host's") };
        assert_eq!(options, ["index=off", "upperdir=/s/9/fs", "workdir=/s/9/work"]);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let writable = || mount("ext4", "/w", &["rw"]);
        let overlay = |options: &[&str]| mount(OVERLAY, "overlay", options);
        let usual = ["workdir={{ mount 0 }}/work", "upperdir={{ mount 0 }}/upper", "lowerdir={{ mount 1 }}"];
        for (mounts, words) in [
            (vec![layer("/a"), overlay(&[])], "without layers"),
            (vec![layer("/a"), overlay(&["lowerdir={{ mount 7 }}"])], "not there"),
            (vec![layer("/a"), overlay(&["lowerdir={{ overlay 0 999999999 }}"])], "not there"),
            (vec![layer("/a"), layer("/b"), overlay(&["lowerdir={{ mount 0 }}"])], "leaves out"),
            (vec![layer("/a"), overlay(&["lowerdir={{ source 0 }}"])], "{{ source 0 }}"),
            (vec![layer("/a"), overlay(&["lowerdir={{ mount 0 }}", "uidmap=0:1:2"])], "uidmap"),
            (vec![layer("/a"), overlay(&["lowerdir={{ mount 0 }}", "upperdir=/u"])], "where to write"),
            (vec![mount("ext4", "/w", &["ro"]), layer("/a"), overlay(&usual)], "read-only"),
            (vec![writable(), layer("/a"), overlay(&[&usual[..], &["volatile"]].concat())], "volatile"),
            (
                vec![
                    writable(),
                    layer("/a"),
                    overlay(&[&usual[..], &["X-containerd.mkdir.path=/etc"]].concat()),
                ],
                "/etc",
            ),
            (
                vec![
                    mount("erofs", "/a", &["X-containerd.dmverity=/m"]),
                    overlay(&["lowerdir={{ mount 0 }}"]),
                ],
                "dmverity",
            ),
        ] {
            let error = Recipe::parse(&mounts).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        for kinds in [&["format/mkdir/bind"][..], &["erofs", "mkfs/overlay"], &["bind", OVERLAY], &[OVERLAY]]
        {
            assert!(!is_recipe(kinds), "{kinds:?}");
        }
    }

    proptest! {
        #[test]
        fn any_options_are_read_or_refused(options in prop::collection::vec("[{} a-z=0-9/:.X-]{0,40}", 0..6)) {
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            let _ = Recipe::parse(&[mount("ext4", "/w", &["rw"]), layer("/a"), mount(OVERLAY, "o", &options)]);
        }
    }
}
