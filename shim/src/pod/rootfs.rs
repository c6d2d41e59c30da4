//! The root file system, from the mounts of a Create request to what the monitor, the file broker and the agent are given.
//!
//! The kind of a mount comes from its declared type only, never from what lies at its path.

mod disk;
mod host;
mod recipe;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;
use hull_protocol::agent::api::agent::{ErofsDisk, Ext4Disk, Rootfs, SharedFolder, TmpfsUpper, WholeDisk};
use hull_protocol::agent::{ROOTFS_SERIAL, UPPER_SERIAL};
use hull_protocol::fs::ExportAccess;
use hull_protocol::vmm::DiskAccess;
use ttrpc::proto::Code;

pub use disk::Disk;
use host::HostMount;
use recipe::{Recipe, Upper};

use super::Export;

/// Pieces of one disk: the descriptors of one control message.
const EXTENTS_MAX: usize = hull_protocol::vmm::FDS_MAX;

/// Why the root file system cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// A mount of another type.
    #[error(
        "a root file system of type {kind:?} is not supported: use overlay, bind, ext4 or erofs (the overlayfs, native, devmapper or blockfile snapshotter)"
    )]
    Type {
        /// The declared type.
        kind: String,
    },
    /// Mounts that make no sense together.
    #[error("{0}")]
    Shape(&'static str),
    /// An option that would change the meaning if it were ignored.
    #[error("the mount option {option:?} of {kind} is not supported")]
    Option {
        /// The mount's type.
        kind: &'static str,
        /// The option.
        option: String,
    },
    /// A disk's file or a folder cannot be used.
    #[error("{path}: {source}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// A disk's file is no whole number of blocks.
    #[error("{path} is damaged: {length} bytes are not a multiple of {block}", path = path.display(), block = disk::BLOCK)]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length.
        length: u64,
    },
    /// A declared mount cannot be made.
    #[error("cannot mount the root file system: {what}: {source}")]
    Mount {
        /// Which step.
        what: String,
        /// What the operating system said.
        source: io::Error,
    },
}

impl RootfsError {
    /// The status code for the client.
    pub fn code(&self) -> Code {
        match self {
            Self::Type { .. } | Self::Option { .. } => Code::UNIMPLEMENTED,
            Self::Shape(_) => Code::INVALID_ARGUMENT,
            Self::Open { .. } | Self::Length { .. } | Self::Mount { .. } => Code::UNKNOWN,
        }
    }
}

/// What a Create request's mounts ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootfsPlan {
    /// The disk of an image, read-only, with a writable layer.
    Image {
        /// The file systems on the image disk, the uppermost first, each of these pieces in order.
        layers: Vec<Vec<PathBuf>>,
        /// The writable disk; a tmpfs where there is none.
        upper: Option<PathBuf>,
    },
    /// A disk with an ext4 file system.
    Disk {
        /// The block device or file.
        path: PathBuf,
        /// Whether the guest may write to it.
        access: DiskAccess,
    },
    /// A folder of the host, mounted by somebody else.
    Folder(PathBuf),
    /// What is to be mounted on this folder, in order.
    Mounts(PathBuf, Vec<HostMount>),
}

/// How the parts of a root file system are called in the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootfsNames {
    /// Serial number of the lower or only disk.
    pub lower: String,
    /// Serial number of the writable disk.
    pub upper: String,
    /// Name of the shared folder.
    pub folder: String,
}

impl RootfsNames {
    /// For the container that a VM boots with.
    pub fn first(container: &str) -> Self {
        let (lower, upper) = (ROOTFS_SERIAL.to_owned(), UPPER_SERIAL.to_owned());
        Self { lower, upper, folder: format!("{container}.root") }
    }
}

/// The host's side of a root file system, open.
#[derive(Debug, Default)]
pub struct OpenRootfs {
    /// For the monitor.
    pub disks: Vec<Disk>,
    /// Of the first of them: how long its file systems are, in bytes, where they are several.
    pub layers: Vec<u64>,
    /// For the file broker.
    pub export: Option<Export>,
}

impl RootfsPlan {
    /// Reads the mounts. Without any, the root file system is the folder that `config.json` names; `root` is that path.
    pub fn parse(mounts: &[Mount], bundle: &Path, root: &Path) -> Result<Self, RootfsError> {
        let kinds: Vec<&str> = mounts.iter().map(|mount| mount.type_.as_str()).collect();
        match kinds.as_slice() {
            [] => Ok(Self::Folder(bundle.join(root))),
            ["ext4"] => {
                let (path, access) = ext4(&mounts[0])?;
                Ok(Self::Disk { path, access })
            }
            kinds if kinds.iter().all(|kind| matches!(*kind, "erofs" | "ext4")) => Self::image(mounts),
            kinds if recipe::is_recipe(kinds) => Self::put_together(Recipe::parse(mounts)?, bundle),
            kinds => match kinds.iter().find(|kind| !matches!(**kind, "overlay" | "bind")) {
                Some(kind) if !matches!(*kind, "erofs" | "ext4") => {
                    Err(RootfsError::Type { kind: (*kind).to_owned() })
                }
                Some(_) => {
                    Err(RootfsError::Shape("disks and folders cannot be mixed in one root file system"))
                }
                None => {
                    let mounts = mounts.iter().map(HostMount::parse).collect::<Result<_, _>>()?;
                    Ok(Self::Mounts(bundle.join("rootfs"), mounts))
                }
            },
        }
    }

    fn image(mounts: &[Mount]) -> Result<Self, RootfsError> {
        let (mut lower, mut upper) = (None, None);
        for mount in mounts {
            at_the_root(mount)?;
            match mount.type_.as_str() {
                "erofs" if lower.is_none() => lower = Some(erofs_pieces(mount)?),
                "erofs" => return Err(RootfsError::Shape("more than one erofs mount is not supported yet")),
                _ if upper.is_none() => upper = Some(ext4(mount)?),
                _ => return Err(RootfsError::Shape("more than one ext4 mount makes no root file system")),
            }
        }
        let upper = upper.map(writable).transpose()?;
        match lower {
            Some(lower) => Self::image_of(vec![lower], upper),
            None => Err(RootfsError::Shape("two ext4 mounts make no root file system")),
        }
    }

    fn image_of(layers: Vec<Vec<PathBuf>>, upper: Option<PathBuf>) -> Result<Self, RootfsError> {
        if layers.iter().map(Vec::len).sum::<usize>() > EXTENTS_MAX {
            return Err(RootfsError::Shape("the image has more layers than a disk can have pieces"));
        }
        Ok(Self::Image { layers, upper })
    }

    fn put_together(recipe: Recipe, bundle: &Path) -> Result<Self, RootfsError> {
        let Recipe { layers, upper } = recipe;
        match upper {
            Upper::None => Self::image_of(layers, None),
            Upper::Disk(path) => Self::image_of(layers, Some(path)),
            // What is written is to be seen on the host: so the host's kernel reads the layers too.
            Upper::Host(options) => {
                Ok(Self::Mounts(bundle.join("rootfs"), vec![HostMount::of_layers(layers, options)]))
            }
        }
    }

    /// Whether the guest can write to a disk that outlives it, so that it must be shut down in good order.
    pub fn is_persistent(&self) -> bool {
        match self {
            Self::Image { upper, .. } => upper.is_some(),
            Self::Disk { access, .. } => *access == DiskAccess::ReadWrite,
            // What was written to a shared folder is with the host.
            Self::Folder(_) | Self::Mounts(..) => false,
        }
    }

    /// Opens everything; what is to be mounted is mounted, for nobody else to see.
    pub async fn open(&self, names: &RootfsNames) -> Result<OpenRootfs, RootfsError> {
        let folder = |root: OwnedFd, path: &Path| {
            let (name, path) = (names.folder.clone(), path.to_owned());
            let export = Some(Export { name, path, access: ExportAccess::ReadWrite, root });
            OpenRootfs { export, ..OpenRootfs::default() }
        };
        Ok(match self {
            Self::Image { layers, upper } => {
                let image = Disk::open(&names.lower, DiskAccess::ReadOnly, &layers.concat())?;
                let lengths = image.lengths(layers.iter().map(Vec::len));
                let mut disks = vec![image];
                if let Some(upper) = upper {
                    let pieces = std::slice::from_ref(upper);
                    disks.push(Disk::open(&names.upper, DiskAccess::ReadWrite, pieces)?);
                }
                let layers = if lengths.len() > 1 { lengths } else { Vec::new() };
                OpenRootfs { disks, layers, export: None }
            }
            Self::Disk { path, access } => {
                let disks = vec![Disk::open(&names.lower, *access, std::slice::from_ref(path))?];
                OpenRootfs { disks, ..OpenRootfs::default() }
            }
            Self::Folder(path) => folder(host::copy_of(path)?, path),
            Self::Mounts(path, mounts) => folder(host::mount(path, mounts).await?, path),
        })
    }

    /// What the agent is told; `layers` is what the open root file system says of them. A tmpfs takes at most `tmpfs_bytes` of the
    /// guest's memory.
    ///
    /// There is an upper even for a read-only image: mount points that the image lacks are made there, and
    /// the agent remounts the whole read-only.
    pub fn for_agent(&self, names: &RootfsNames, layers: Vec<u64>, tmpfs_bytes: u64) -> Rootfs {
        let mut rootfs = Rootfs::new();
        let serial = names.lower.clone();
        match self {
            Self::Image { upper, .. } => {
                rootfs.set_erofs(ErofsDisk { serial, layers, ..ErofsDisk::default() });
                if upper.is_some() {
                    rootfs.set_ext4(Ext4Disk { serial: names.upper.clone(), ..Ext4Disk::default() });
                } else {
                    rootfs.set_tmpfs(TmpfsUpper { size_bytes: tmpfs_bytes, ..TmpfsUpper::default() });
                }
            }
            Self::Disk { access, .. } => {
                let read_only = *access == DiskAccess::ReadOnly;
                rootfs.set_disk(WholeDisk { serial, read_only, ..WholeDisk::default() });
            }
            Self::Folder(_) | Self::Mounts(..) => {
                rootfs.set_shared(SharedFolder { name: names.folder.clone(), ..SharedFolder::default() });
            }
        }
        rootfs
    }
}

fn at_the_root(mount: &Mount) -> Result<(), RootfsError> {
    if mount.target.is_empty() || mount.target == "/" {
        return Ok(());
    }
    Err(RootfsError::Shape("a disk inside the root file system is not supported yet"))
}

fn erofs_pieces(mount: &Mount) -> Result<Vec<PathBuf>, RootfsError> {
    let mut pieces = vec![PathBuf::from(&mount.source)];
    for option in &mount.options {
        match option.split_once('=') {
            Some(("device", path)) => pieces.push(PathBuf::from(path)),
            // The disk is read-only and needs no loop device whatever they say.
            None if option == "ro" || option == "loop" => {}
            _ => return Err(RootfsError::Option { kind: "erofs", option: option.clone() }),
        }
    }
    Ok(pieces)
}

fn ext4(mount: &Mount) -> Result<(PathBuf, DiskAccess), RootfsError> {
    let mut access = DiskAccess::ReadWrite;
    for option in &mount.options {
        match option.as_str() {
            "ro" => access = DiskAccess::ReadOnly,
            // The disk needs no loop device, and discards what the guest discards.
            "rw" | "loop" | "discard" => {}
            _ => return Err(RootfsError::Option { kind: "ext4", option: option.clone() }),
        }
    }
    at_the_root(mount)?;
    Ok((PathBuf::from(&mount.source), access))
}

/// The disk that is written to.
fn writable(disk: (PathBuf, DiskAccess)) -> Result<PathBuf, RootfsError> {
    match disk {
        (path, DiskAccess::ReadWrite) => Ok(path),
        (_, DiskAccess::ReadOnly) => Err(RootfsError::Shape("the writable layer cannot be read-only")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        Mount {
            type_: kind.into(),
            source: source.into(),
            options: options.iter().map(|&option| option.into()).collect(),
            ..Mount::default()
        }
    }

    fn parse(mounts: &[Mount]) -> Result<RootfsPlan, RootfsError> {
        RootfsPlan::parse(mounts, Path::new("/bundle"), Path::new("rootfs"))
    }

    #[tokio::test]
    async fn the_pieces_of_an_image_become_one_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("index"), vec![0; 4096]).unwrap();
        std::fs::write(path("layer"), vec![0; 8192]).unwrap();
        let device = format!("device={}", path("layer"));
        let plan = parse(&[mount("erofs", &path("index"), &["ro", &device])]).unwrap();
        let names = RootfsNames::first("web");
        let open = plan.open(&names).await.unwrap();
        let (disks, layers) = (open.disks, open.layers);
        assert!(disks.len() == 1 && layers.is_empty());
        assert_eq!(
            disks[0].config.extents.iter().map(|extent| extent.length).collect::<Vec<_>>(),
            [4096, 8192]
        );
        assert_eq!(disks[0].fds.len(), 2);
        assert!(plan.for_agent(&names, layers, 1).has_tmpfs() && !plan.is_persistent());

        let index = mount("erofs", &path("index"), &["ro", "loop", &device]);
        let top = mount("erofs", &path("layer"), &["ro", "loop"]);
        let overlay = mount("format/mkdir/overlay", "overlay", &["lowerdir={{ overlay 0 1 }}"]);
        let plan = parse(&[top, index, overlay]).unwrap();
        let open = plan.open(&names).await.unwrap();
        assert_eq!((open.disks[0].fds.len(), &open.layers[..]), (3, &[8192, 12288][..]));
        assert_eq!(plan.for_agent(&names, open.layers, 1).erofs().layers, [8192, 12288]);

        std::fs::write(path("layer"), vec![0; 100]).unwrap();
        let error = plan.open(&names).await.unwrap_err().to_string();
        assert!(error.contains("layer") && error.contains("4096"), "{error}");
    }

    #[test]
    fn the_declared_type_decides() {
        let names = RootfsNames::first("web");
        let overlay =
            mount("overlay", "overlay", &["lowerdir=/a:/b", "upperdir=/u", "workdir=/w", "index=off"]);
        assert!(parse(&[overlay]).unwrap().for_agent(&names, Vec::new(), 1).has_shared());
        assert!(
            parse(&[mount("bind", "/dev/vda", &["rbind", "rw"])])
                .unwrap()
                .for_agent(&names, Vec::new(), 1)
                .has_shared()
        );
        let disk = parse(&[mount("ext4", "/a/folder", &["ro"])]).unwrap();
        assert!(disk.for_agent(&names, Vec::new(), 1).disk().read_only && !disk.is_persistent());
        let disk = parse(&[mount("ext4", "/dev/mapper/snap-1", &["rw", "discard"])]).unwrap();
        assert!(!disk.for_agent(&names, Vec::new(), 1).disk().read_only && disk.is_persistent());
        assert_eq!(parse(&[]).unwrap(), RootfsPlan::Folder("/bundle/rootfs".into()));
        let absolute = RootfsPlan::parse(&[], Path::new("/bundle"), Path::new("/var/merged")).unwrap();
        assert_eq!(absolute, RootfsPlan::Folder("/var/merged".into()));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (mounts, words) in [
            (vec![mount("xfs", "/dev/dm-1", &["nouuid"])], "\"xfs\""),
            (vec![mount("format/mkdir/overlay", "overlay", &[])], "format/mkdir/overlay"),
            (vec![mount("mkfs/ext4", "/x", &[]), mount("format/mkdir/overlay", "o", &[])], "mkfs/ext4"),
            (vec![mount("erofs", "/x", &["dm-verity=1"])], "dm-verity=1"),
            (vec![mount("ext4", "/x", &["data=journal"])], "data=journal"),
            (vec![mount("bind", "/x", &["size=1"])], "size=1"),
            (vec![mount("bind", "/x", &[]), mount("ext4", "/y", &[])], "mixed"),
            (vec![mount("ext4", "/x", &[]), mount("ext4", "/y", &[])], "ext4"),
            (vec![mount("erofs", "/x", &[]), mount("ext4", "/y", &["ro"])], "read-only"),
        ] {
            let error = parse(&mounts).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert!(matches!(error.code(), Code::UNIMPLEMENTED | Code::INVALID_ARGUMENT));
        }
    }

    #[tokio::test]
    async fn a_directory_is_no_disk() {
        let folder = tempfile::tempdir().unwrap();
        let plan = parse(&[mount("erofs", &folder.path().display().to_string(), &[])]).unwrap();
        assert!(matches!(plan.open(&RootfsNames::first("web")).await, Err(RootfsError::Open { .. })));
    }
}
