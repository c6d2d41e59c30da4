//! The root file system as virtio-blk disks, from the mounts of a Create request.
//!
//! The kind of a mount comes from its declared type only, never from what lies at its path.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;
use hull_protocol::agent::api::agent::{ErofsDisk, Ext4Disk, Rootfs, TmpfsUpper};
use hull_protocol::agent::{ROOTFS_SERIAL, UPPER_SERIAL};
use hull_protocol::vmm::{DiskAccess, DiskConfig, DiskDiscard, DiskExtent, RateLimits};
use ttrpc::proto::Code;

/// Blocks of an image disk.
const BLOCK: u64 = 4096;
/// Pieces of one disk: the descriptors of one control message.
const EXTENTS_MAX: usize = hull_protocol::vmm::FDS_MAX;

/// Why the root file system cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// No mounts: the root file system is a host directory.
    #[error("a root file system that is a directory of the host is not supported yet: pass an erofs mount")]
    HostDirectory,
    /// A mount of another type.
    #[error(
        "a root file system of type {kind:?} is not supported yet: use erofs, with ext4 for the writable layer"
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
    /// A disk's file cannot be used.
    #[error("{path}: {source}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// A disk's file is no whole number of blocks.
    #[error("{path} is damaged: {length} bytes are not a multiple of {BLOCK}", path = path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length.
        length: u64,
    },
}

impl RootfsError {
    /// The status code for the client.
    pub fn code(&self) -> Code {
        match self {
            Self::HostDirectory | Self::Type { .. } | Self::Option { .. } => Code::UNIMPLEMENTED,
            Self::Shape(_) => Code::INVALID_ARGUMENT,
            Self::Open { .. } | Self::Length { .. } => Code::UNKNOWN,
        }
    }
}

/// A disk with its open files.
#[derive(Debug)]
pub struct Disk {
    /// What the monitor is told.
    pub config: DiskConfig,
    /// One descriptor for each extent.
    pub fds: Vec<OwnedFd>,
}

/// What a Create request's mounts ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootfsPlan {
    /// Pieces of the image disk, in order.
    lower: Vec<PathBuf>,
    /// The writable disk; a tmpfs where there is none.
    upper: Option<PathBuf>,
}

impl RootfsPlan {
    /// Reads the mounts.
    pub fn parse(mounts: &[Mount]) -> Result<Self, RootfsError> {
        let mut lower = None;
        let mut upper = None;
        for mount in mounts {
            if !mount.target.is_empty() && mount.target != "/" {
                return Err(RootfsError::Shape("a mount inside the root file system is not supported yet"));
            }
            match mount.type_.as_str() {
                "erofs" if lower.is_none() => lower = Some(erofs_pieces(mount)?),
                "erofs" => return Err(RootfsError::Shape("more than one erofs mount is not supported yet")),
                "ext4" if upper.is_none() => upper = Some(ext4_image(mount)?),
                "ext4" => {
                    return Err(RootfsError::Shape("more than one ext4 mount makes no root file system"));
                }
                other => return Err(RootfsError::Type { kind: other.to_owned() }),
            }
        }
        match (lower, upper) {
            (Some(lower), upper) if lower.len() <= EXTENTS_MAX => Ok(Self { lower, upper }),
            (Some(_), _) => Err(RootfsError::Shape("the image has more layers than a disk can have pieces")),
            (None, Some(_)) => {
                Err(RootfsError::Shape("an ext4 mount without an erofs mount below it is not supported yet"))
            }
            (None, None) => Err(RootfsError::HostDirectory),
        }
    }

    /// Whether the guest can write to a disk that outlives it, so that it must be shut down in good order.
    pub fn is_persistent(&self) -> bool {
        self.upper.is_some()
    }

    /// Opens everything.
    pub fn open(&self) -> Result<Vec<Disk>, RootfsError> {
        let mut disks = vec![open_disk(ROOTFS_SERIAL, DiskAccess::ReadOnly, &self.lower)?];
        if let Some(upper) = &self.upper {
            disks.push(open_disk(UPPER_SERIAL, DiskAccess::ReadWrite, std::slice::from_ref(upper))?);
        }
        Ok(disks)
    }

    /// What the agent is told. A tmpfs takes at most `tmpfs_bytes` of the guest's memory.
    ///
    /// There is an upper even for a read-only root file system: mount points that the image lacks are made there, and
    /// the agent remounts the whole read-only.
    pub fn for_agent(&self, tmpfs_bytes: u64) -> Rootfs {
        let mut rootfs = Rootfs::new();
        rootfs.set_erofs(ErofsDisk { serial: ROOTFS_SERIAL.to_owned(), ..ErofsDisk::default() });
        if self.upper.is_some() {
            rootfs.set_ext4(Ext4Disk { serial: UPPER_SERIAL.to_owned(), ..Ext4Disk::default() });
        } else {
            rootfs.set_tmpfs(TmpfsUpper { size_bytes: tmpfs_bytes, ..TmpfsUpper::default() });
        }
        rootfs
    }
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

fn ext4_image(mount: &Mount) -> Result<PathBuf, RootfsError> {
    match mount.options.iter().find(|option| !matches!(option.as_str(), "rw" | "loop")) {
        Some(option) => Err(RootfsError::Option { kind: "ext4", option: option.clone() }),
        None => Ok(PathBuf::from(&mount.source)),
    }
}

fn open_disk(serial: &str, access: DiskAccess, pieces: &[PathBuf]) -> Result<Disk, RootfsError> {
    let mut fds = Vec::with_capacity(pieces.len());
    let mut extents = Vec::with_capacity(pieces.len());
    for path in pieces {
        let (file, length) =
            open_piece(path, access).map_err(|source| RootfsError::Open { path: path.clone(), source })?;
        if length == 0 || length % BLOCK != 0 {
            return Err(RootfsError::Length { path: path.clone(), length });
        }
        extents.push(DiskExtent { offset: 0, length });
        fds.push(file.into());
    }
    let (discard, limits) = (DiskDiscard::On, RateLimits::default());
    let config = DiskConfig { serial: serial.to_owned(), access, extents, discard, limits };
    Ok(Disk { config, fds })
}

fn open_piece(path: &Path, access: DiskAccess) -> io::Result<(File, u64)> {
    // O_NONBLOCK: a fifo in the place of a file must not hang the pod.
    let mut file = OpenOptions::new()
        .read(true)
        .write(access == DiskAccess::ReadWrite)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let kind = file.metadata()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a file nor a block device"));
    }
    let length = file.seek(SeekFrom::End(0))?;
    Ok((file, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        Mount {
            type_: kind.into(),
            source: source.into(),
            options: options.iter().map(|&option| option.into()).collect(),
            ..Mount::default()
        }
    }

    #[test]
    fn the_pieces_of_an_image_become_one_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("index"), vec![0; 4096]).unwrap();
        std::fs::write(path("layer"), vec![0; 8192]).unwrap();
        let device = format!("device={}", path("layer"));
        let plan = RootfsPlan::parse(&[mount("erofs", &path("index"), &["ro", &device])]).unwrap();
        let disks = plan.open().unwrap();
        assert_eq!(disks.len(), 1);
        assert_eq!(
            disks[0].config.extents.iter().map(|extent| extent.length).collect::<Vec<_>>(),
            [4096, 8192]
        );
        assert_eq!(disks[0].fds.len(), 2);
        assert!(plan.for_agent(1).has_tmpfs() && !plan.is_persistent());

        std::fs::write(path("layer"), vec![0; 100]).unwrap();
        let error = plan.open().unwrap_err().to_string();
        assert!(error.contains("layer") && error.contains("4096"), "{error}");
    }

    #[test]
    fn other_types_are_named() {
        let error = RootfsPlan::parse(&[mount("overlay", "overlay", &[])]).unwrap_err();
        assert!(error.to_string().contains("\"overlay\""));
        assert_eq!(error.code(), Code::UNIMPLEMENTED);
        assert!(matches!(RootfsPlan::parse(&[]), Err(RootfsError::HostDirectory)));
        assert!(RootfsPlan::parse(&[mount("erofs", "/x", &["dm-verity=1"])]).is_err());
        assert!(RootfsPlan::parse(&[mount("ext4", "/x", &["rw"])]).is_err());
    }

    #[test]
    fn a_directory_is_no_disk() {
        let folder = tempfile::tempdir().unwrap();
        let plan = RootfsPlan::parse(&[mount("erofs", &folder.path().display().to_string(), &[])]).unwrap();
        assert!(matches!(plan.open(), Err(RootfsError::Open { .. })));
    }
}
