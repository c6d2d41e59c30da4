//! The jail: what the monitor gives up by itself, so that a guest that takes it over has gained nothing.
//!
//! Two steps, both for good. [`enter`] comes before anything that a guest can influence is read, while there is one
//! thread: leaked [`descriptors`], [`limits`], [`namespaces`], an empty [`root`], [`identity`], [`capabilities`], no new
//! privileges, [`landlock`]; and [`forbid`] what no thread ever does. The system call [`filters`](mod@filters), an allow-list
//! for each role of a thread, follow when the VM starts to run, whatever the configuration.
//!
//! Nothing here opens a path except `/` and `.`, so that there is no link to be led astray by. What the configuration
//! asks for and the host refuses is an error; what an older kernel does not have is logged.

use std::io;

use hull_protocol::vmm::JailConfig;
use nix::errno::Errno;

pub mod capabilities;
pub mod denied;
pub mod descriptors;
pub mod filters;
pub mod identity;
pub mod landlock;
pub mod limits;
pub mod namespaces;
pub mod root;
pub mod seccomp;

/// Why the jail does not close.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The host refused a step.
    #[error("the jail does not close: cannot {what}")]
    Refused {
        /// The step.
        what: &'static str,
        /// The host's reason.
        source: io::Error,
    },
    /// The configuration would leave privileges.
    #[error("the jail needs a user and a group other than 0")]
    Root,
    /// A step was taken, and a look around shows that it did nothing.
    #[error("the jail does not hold: the process still has {0}")]
    Left(&'static str),
    /// System calls cannot be denied.
    #[error(transparent)]
    Filter(#[from] seccomp::FilterError),
    /// The process that started this one has gone meanwhile.
    #[error("whoever started the monitor has gone")]
    Orphaned,
}

/// Names the step that was refused.
fn refused(what: &'static str) -> impl FnOnce(Errno) -> JailError {
    move |errno| JailError::Refused { what, source: errno.into() }
}

/// Gives up everything that `config` says. To be called once, while the process has one thread and no descriptors
/// besides the standard ones and the control socket.
pub fn enter(config: JailConfig) -> Result<(), JailError> {
    descriptors::close_leaked()?;
    limits::lower()?;
    match config {
        JailConfig::Full { uid, gid, network } => {
            let person = identity::Identity::new(uid, gid).ok_or(JailError::Root)?;
            namespaces::unshare(network)?;
            root::pivot_into_nothing()?;
            capabilities::bound_to(&[])?;
            identity::become_for_good(person, capabilities::drop_all)?;
        }
        JailConfig::Unprivileged => {
            if capabilities::may_drop_bounding()? {
                capabilities::bound_to(&[])?;
            }
            identity::keep(capabilities::drop_all)?;
        }
    }
    nix::sys::prctl::set_no_new_privs().map_err(refused("give up new privileges"))?;
    // Nobody without privileges may look into this process; and with it, no core is dumped.
    nix::sys::prctl::set_dumpable(false).map_err(refused("hide its memory"))?;
    landlock::restrict()?;
    look_around(config)
}

/// Denies for good what no thread does in there, and has every denied system call named.
pub fn forbid() -> Result<(), JailError> {
    denied::report(denied::Program::Monitor)?;
    Ok(seccomp::Filter::of_never()?.close()?)
}

/// Whether the walls stand, as the kernel sees them.
fn look_around(config: JailConfig) -> Result<(), JailError> {
    if !capabilities::are_gone()? {
        return Err(JailError::Left("capabilities"));
    }
    if let JailConfig::Full { uid, gid, .. } = config {
        if !identity::is(uid, gid)? {
            return Err(JailError::Left("another user or group"));
        }
        if !capabilities::bounding_is_empty()? {
            return Err(JailError::Left("capabilities within its bounds"));
        }
    }
    if !nix::sys::prctl::get_no_new_privs().map_err(refused("look at its privileges"))? {
        return Err(JailError::Left("a way to new privileges"));
    }
    Ok(())
}
