//! An overlay whose layers are file systems in files: each is mounted, and the overlay in front of them.
//!
//! The layers lie on a tmpfs that the overlay covers, and all that in the mount namespace of the thread that does this. Loop devices are
//! told to go with the last mount that uses them: nothing of it is left when the overlay is gone.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount as sys_mount};
use nix::unistd::chdir;

use super::super::RootfsError;
use super::failed;

/// Requests of `/dev/loop-control` and of a loop device (linux/loop.h).
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// How often a free device may turn out to be taken by somebody else.
const ATTEMPTS: usize = 64;
/// For what is no program's on the host; the overlay has flags of its own.
const GUARDED: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// `struct loop_config`, with `struct loop_info64` in it.
#[repr(C)]
struct LoopConfig {
    file: u32,
    block_size: u32,
    /// Numbers, offset and limit.
    places: [u64; 5],
    /// Number and encryption.
    kinds: [u32; 3],
    flags: u32,
    /// Names and key.
    names: [[u8; 32]; 5],
    spare: [u64; 2],
    reserved: [u64; 8],
}

/// Mounts the layers, the uppermost first, and the overlay of them on `place`. The thread's working directory changes.
pub fn mount(layers: &[Vec<PathBuf>], options: &[String], place: &Path) -> Result<(), RootfsError> {
    sys_mount(Some("layers"), place, Some("tmpfs"), GUARDED, Some("size=1m,mode=700"))
        .map_err(failed(|| "a tmpfs for the layers".to_owned()))?;
    // By names relative to here the text for the overlay stays short.
    chdir(place).map_err(failed(|| "enter the tmpfs for the layers".to_owned()))?;
    let names: Vec<String> = (0..layers.len()).map(|number| number.to_string()).collect();
    for (name, pieces) in names.iter().zip(layers) {
        mount_layer(pieces, name)?;
    }
    let lower = format!("lowerdir={}", names.join(":"));
    let data = options.iter().chain([&lower]).cloned().collect::<Vec<_>>().join(",");
    sys_mount(Some("overlay"), place, Some("overlay"), MsFlags::empty(), Some(data.as_str()))
        .map_err(failed(|| format!("overlay with {data}")))
}

fn mount_layer(pieces: &[PathBuf], name: &str) -> Result<(), RootfsError> {
    let Some((first, others)) = pieces.split_first() else {
        return Err(RootfsError::Shape("a layer without a file"));
    };
    let failed =
        |source: io::Error| RootfsError::Mount { what: format!("erofs of {}", first.display()), source };
    std::fs::create_dir(name).map_err(failed)?;
    let first = LoopDevice::of(first)?;
    let others = others.iter().map(|piece| LoopDevice::of(piece)).collect::<Result<Vec<_>, _>>()?;
    let data =
        others.iter().map(|piece| format!("device={}", piece.path.display())).collect::<Vec<_>>().join(",");
    let flags = GUARDED | MsFlags::MS_RDONLY;
    sys_mount(Some(&first.path), name, Some("erofs"), flags, Some(data.as_str()))
        .map_err(|errno| failed(errno.into()))
}

/// A file as a block device, as long as this or a mount of it is there.
struct LoopDevice {
    path: PathBuf,
    _open: File,
}

impl LoopDevice {
    fn of(file: &Path) -> Result<Self, RootfsError> {
        Self::read_only(file).map_err(|source| RootfsError::Open { path: file.to_owned(), source })
    }

    fn read_only(file: &Path) -> io::Result<Self> {
        let file = File::open(file)?;
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        for _ in 0..ATTEMPTS {
            // SAFETY: the request takes no argument.
            let number = Errno::result(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = File::open(&path)?;
            match configure(&device, &file) {
                Ok(()) => return Ok(Self { path, _open: device }),
                Err(Errno::EBUSY) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(io::Error::other("no loop device stays free"))
    }
}

fn configure(device: &File, file: &File) -> nix::Result<()> {
    let config = LoopConfig {
        file: file.as_raw_fd().cast_unsigned(),
        block_size: 0,
        places: [0; 5],
        kinds: [0; 3],
        flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
        names: [[0; 32]; 5],
        spare: [0; 2],
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads a `loop_config`, which outlives the call.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_is_the_kernels() {
        assert_eq!(size_of::<LoopConfig>(), 304);
        assert_eq!(std::mem::offset_of!(LoopConfig, flags), 8 + 52);
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = LoopDevice::of(Path::new("/no/such/layer.erofs")).err().unwrap().to_string();
        assert!(error.contains("/no/such/layer.erofs"), "{error}");
    }
}
