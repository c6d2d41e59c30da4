//! Resource limits. Lowered in both their values, so that they stay.
//!
//! There is no limit on the size of files: a disk may be as large as its image, and the console log counts for itself.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{JailError, refused};

/// Descriptors: the most vsock connections (1,024) and disks of 253 pieces, with room.
pub const FILES: u64 = 8192;

/// No core dumps, a bound on descriptors.
pub fn lower() -> Result<(), JailError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(refused("forbid core dumps"))?;
    let what = "limit its descriptors";
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(refused(what))?;
    if most < FILES {
        log::warn!("the host allows {most} descriptors, fewer than the {FILES} of a large VM");
    }
    let files = most.min(FILES);
    setrlimit(Resource::RLIMIT_NOFILE, files, files).map_err(refused(what))
}
