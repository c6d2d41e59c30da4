//! Capabilities: docker's fourteen, and what `--cap-add` and `--cap-drop` make of them.

use std::collections::HashSet;
use std::str::FromStr;

use oci_spec::runtime::{Capability, LinuxCapabilities, LinuxCapabilitiesBuilder};

/// No such capability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a capability: write for example NET_ADMIN, or ALL")]
pub struct UnknownCapability(String);

/// What a container has when nothing else is said.
const DEFAULT: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// All that exist (capabilities(7), Linux 5.9 and later).
const ALL: [Capability; 41] = [
    Capability::AuditControl,
    Capability::AuditRead,
    Capability::AuditWrite,
    Capability::BlockSuspend,
    Capability::Bpf,
    Capability::CheckpointRestore,
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::Kill,
    Capability::Lease,
    Capability::LinuxImmutable,
    Capability::MacAdmin,
    Capability::MacOverride,
    Capability::Mknod,
    Capability::NetAdmin,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetRaw,
    Capability::Perfmon,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysChroot,
    Capability::SysModule,
    Capability::SysNice,
    Capability::SysPacct,
    Capability::SysPtrace,
    Capability::SysRawio,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Syslog,
    Capability::WakeAlarm,
];

/// A set on its way to the specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapabilitySet(HashSet<Capability>);

enum Named {
    All,
    One(Capability),
}

fn parse(text: &str) -> Result<Named, UnknownCapability> {
    let name = text.to_ascii_uppercase();
    if name == "ALL" {
        return Ok(Named::All);
    }
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    Capability::from_str(name).map(Named::One).map_err(|_| UnknownCapability(text.to_owned()))
}

impl CapabilitySet {
    /// Every capability, whatever else is said: `--privileged`.
    pub fn all() -> Self {
        Self(ALL.into_iter().collect())
    }

    /// docker's order: `--cap-add ALL` or the default, minus what is dropped, plus what is added by name. So
    /// `--cap-drop ALL --cap-add CHOWN` is CHOWN alone, and `--cap-add ALL --cap-drop CHOWN` all but CHOWN.
    pub fn resolve(add: &[String], drop: &[String]) -> Result<Self, UnknownCapability> {
        let add = add.iter().map(|text| parse(text)).collect::<Result<Vec<_>, _>>()?;
        let drop = drop.iter().map(|text| parse(text)).collect::<Result<Vec<_>, _>>()?;
        let mut set: HashSet<Capability> = if add.iter().any(|named| matches!(named, Named::All)) {
            ALL.into_iter().collect()
        } else {
            DEFAULT.into_iter().collect()
        };
        for named in &drop {
            match named {
                Named::All => set.clear(),
                Named::One(capability) => {
                    set.remove(capability);
                }
            }
        }
        for named in add {
            if let Named::One(capability) = named {
                set.insert(capability);
            }
        }
        Ok(Self(set))
    }

    /// For a process of user `uid`. Root gets the set; another user starts without effective ones, as after `execve(2)`.
    /// The inheritable and ambient sets stay empty.
    pub fn for_user(&self, uid: u32) -> Result<LinuxCapabilities, oci_spec::OciSpecError> {
        let held = if uid == 0 { self.0.clone() } else { HashSet::new() };
        LinuxCapabilitiesBuilder::default()
            .bounding(self.0.clone())
            .effective(held.clone())
            .permitted(held)
            .inheritable(HashSet::new())
            .ambient(HashSet::new())
            .build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(add: &[&str], drop: &[&str]) -> HashSet<Capability> {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        CapabilitySet::resolve(&owned(add), &owned(drop)).unwrap().0
    }

    #[test]
    fn add_and_drop() {
        assert_eq!(resolve(&[], &[]).len(), 14);
        assert_eq!(resolve(&["all"], &[]).len(), 41);
        assert!(resolve(&[], &["ALL"]).is_empty());
        assert_eq!(resolve(&["chown"], &["ALL"]), HashSet::from([Capability::Chown]));
        assert_eq!(resolve(&["ALL"], &["CAP_SYS_ADMIN"]).len(), 40);
        assert!(resolve(&["NET_ADMIN"], &[]).contains(&Capability::NetAdmin));
        assert!(!resolve(&[], &["mknod"]).contains(&Capability::Mknod));
        assert!(CapabilitySet::resolve(&["CAP_FLY".to_owned()], &[]).is_err());
        assert!(CapabilitySet::resolve(&[], &[String::new()]).is_err());
    }

    #[test]
    fn another_user_than_root_holds_nothing_at_first() {
        let set = CapabilitySet::resolve(&[], &[]).unwrap();
        let root = set.for_user(0).unwrap();
        assert_eq!(root.effective().as_ref().map(HashSet::len), Some(14));
        let other = set.for_user(1000).unwrap();
        assert_eq!(other.effective().as_ref().map(HashSet::len), Some(0));
        assert_eq!(other.bounding().as_ref().map(HashSet::len), Some(14));
    }
}
