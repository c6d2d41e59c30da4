//! Who the process is. Changing that clears the signal that ends it with its parent: it is armed again here.

use nix::sys::prctl;
use nix::unistd::{Gid, Pid, Uid, getppid, getresgid, getresuid, setgroups, setresgid, setresuid};

use super::{JailError, refused};

/// A user and a group that are not root's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    uid: Uid,
    gid: Gid,
}

impl Identity {
    /// `None` for root, and for the number that means "unchanged" to the system calls.
    pub fn new(uid: u32, gid: u32) -> Option<Self> {
        let someone = |id: u32| (1..u32::MAX).contains(&id);
        (someone(uid) && someone(gid)).then(|| Self { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid) })
    }
}

/// Becomes `person` in all respects, and then does `and_then`, which gives up the means to go back.
pub fn become_for_good(
    person: Identity,
    and_then: impl FnOnce() -> Result<(), JailError>,
) -> Result<(), JailError> {
    keep(|| {
        setgroups(&[]).map_err(refused("leave its groups"))?;
        setresgid(person.gid, person.gid, person.gid).map_err(refused("change its group"))?;
        setresuid(person.uid, person.uid, person.uid).map_err(refused("change its user"))?;
        and_then()
    })
}

/// Does `change`, and sees to it that the process still ends with its parent, if it was to.
pub fn keep(change: impl FnOnce() -> Result<(), JailError>) -> Result<(), JailError> {
    let parent: Pid = getppid();
    let signal = prctl::get_pdeathsig().map_err(refused("ask how it ends with its parent"))?;
    change()?;
    prctl::set_pdeathsig(signal).map_err(refused("end with its parent"))?;
    // The parent may have gone in between.
    if getppid() == parent { Ok(()) } else { Err(JailError::Orphaned) }
}

/// Whether the process is this user and group, and has no way back.
pub fn is(uid: u32, gid: u32) -> Result<bool, JailError> {
    let what = "ask who it is";
    let (users, groups) = (getresuid().map_err(refused(what))?, getresgid().map_err(refused(what))?);
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    Ok([users.real, users.effective, users.saved].iter().all(|id| *id == uid)
        && [groups.real, groups.effective, groups.saved].iter().all(|id| *id == gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_no_identity() {
        for (uid, gid) in [(0, 5), (5, 0), (0, 0), (u32::MAX, 5), (5, u32::MAX)] {
            assert_eq!(Identity::new(uid, gid), None);
        }
        assert!(Identity::new(1, u32::MAX - 1).is_some());
    }
}
