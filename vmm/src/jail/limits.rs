//! Resource limits. Lowered in both their values, so that they stay.
//!
//! There is no limit on the size of files: a disk may be as large as its image, and the console log counts for itself.

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{JailError, refused};

/// Descriptors: the most vsock connections (1,024) and disks of 253 pieces, with room.
pub const FILES: u64 = 8192;

/// No core dumps, a bound on descriptors.
pub fn lower() -> Result<(), JailError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(refused("forbid core dumps"))?;
    let what = "limit its descriptors";
    match setrlimit(Resource::RLIMIT_NOFILE, FILES, FILES) {
        // The host's own limit is lower, and who started this process may not raise it.
        Err(Errno::EPERM) => {
            let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(refused(what))?;
            log::warn!("the host allows {most} descriptors, fewer than the {FILES} of a large VM");
            setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(refused(what))
        }
        result => result.map_err(refused(what)),
    }
}
