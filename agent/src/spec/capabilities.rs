//! Capability names (capabilities(7)) and the five sets (OCI runtime-spec, config.md "Linux Process").

use super::schema;

/// In the order of their numbers.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A process's capability sets, each a bit mask of capability numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapabilitySets {
    /// What may ever be gained.
    pub bounding: u64,
    /// What is in force.
    pub effective: u64,
    /// What survives exec of a file that has them too.
    pub inheritable: u64,
    /// What may be put in force.
    pub permitted: u64,
    /// What survives exec of any file.
    pub ambient: u64,
}

impl CapabilitySets {
    /// Names that no Linux has are skipped and noted, as runc does.
    pub(super) fn parse(sets: &schema::Capabilities, notes: &mut Vec<String>) -> Self {
        let mut mask = |names: &[String]| {
            names.iter().fold(0, |mask, name| match number(name) {
                Some(number) => mask | 1u64 << number,
                None => {
                    notes.push(format!("capability {name:?} is unknown and ignored"));
                    mask
                }
            })
        };
        let mut parsed = Self {
            bounding: mask(&sets.bounding),
            effective: mask(&sets.effective),
            inheritable: mask(&sets.inheritable),
            permitted: mask(&sets.permitted),
            ambient: mask(&sets.ambient),
        };
        // `runc spec` writes such sets, and runc takes no notice.
        let possible = parsed.ambient & parsed.permitted & parsed.inheritable;
        if possible != parsed.ambient {
            notes.push("ambient capabilities that are not permitted and inheritable are ignored".to_owned());
            parsed.ambient = possible;
        }
        parsed
    }
}

fn number(name: &str) -> Option<usize> {
    let name = name.strip_prefix("CAP_")?;
    NAMES.iter().position(|known| *known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_kernels_numbers() {
        assert_eq!(number("CAP_CHOWN"), Some(0));
        assert_eq!(number("CAP_SYS_ADMIN"), Some(21));
        assert_eq!(number("CAP_SETFCAP"), Some(31));
        assert_eq!(number("CAP_CHECKPOINT_RESTORE"), Some(40));
        assert_eq!(number("SYS_ADMIN"), None);
        assert_eq!(number("CAP_NONSENSE"), None);
    }

    #[test]
    fn an_unknown_name_is_noted_and_skipped() {
        let sets = schema::Capabilities {
            bounding: vec!["CAP_KILL".into(), "CAP_NONSENSE".into()],
            ..schema::Capabilities::default()
        };
        let mut notes = Vec::new();
        assert_eq!(CapabilitySets::parse(&sets, &mut notes).bounding, 1 << 5);
        assert_eq!(notes.len(), 1);
    }
}
