//! `linux.resources.devices`: which devices a container may make, read and write. As in cgroup v1, whose rules these are, a
//! later rule overrides an earlier one.

use super::{SpecError, schema};

const FIELD: &str = "linux.resources.devices";

/// Kinds of access, a set of bits (`BPF_DEVCG_ACC_*`).
pub const MKNOD: u8 = 1;
/// To open for reading.
pub const READ: u8 = 2;
/// To open for writing.
pub const WRITE: u8 = 4;

/// What sort of device (`BPF_DEVCG_DEV_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// Block.
    Block,
    /// Character.
    Char,
}

/// One rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    /// Whether it allows or refuses.
    pub verdict: DeviceVerdict,
    /// `None`: any.
    pub kind: Option<DeviceKind>,
    /// `None`: any.
    pub major: Option<i32>,
    /// `None`: any.
    pub minor: Option<i32>,
    /// Of which kinds of access it speaks.
    pub access: u8,
}

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceVerdict {
    /// The access is allowed.
    Allow,
    /// The access fails with `EPERM`.
    Deny,
}

/// What every container may do, whatever its spec says, as runc has it: make any node, and use the default devices and
/// terminals.
const ALWAYS: [DeviceRule; 10] = [
    always(DeviceKind::Char, None, None, MKNOD),
    always(DeviceKind::Block, None, None, MKNOD),
    always(DeviceKind::Char, Some(1), Some(3), MKNOD | READ | WRITE), // null
    always(DeviceKind::Char, Some(1), Some(5), MKNOD | READ | WRITE), // zero
    always(DeviceKind::Char, Some(1), Some(7), MKNOD | READ | WRITE), // full
    always(DeviceKind::Char, Some(1), Some(8), MKNOD | READ | WRITE), // random
    always(DeviceKind::Char, Some(1), Some(9), MKNOD | READ | WRITE), // urandom
    always(DeviceKind::Char, Some(5), Some(0), MKNOD | READ | WRITE), // tty
    always(DeviceKind::Char, Some(5), Some(2), MKNOD | READ | WRITE), // ptmx
    always(DeviceKind::Char, Some(136), None, MKNOD | READ | WRITE),  // terminals
];

const fn always(kind: DeviceKind, major: Option<i32>, minor: Option<i32>, access: u8) -> DeviceRule {
    DeviceRule { verdict: DeviceVerdict::Allow, kind: Some(kind), major, minor, access }
}

/// All rules of a container, in order. What no rule speaks of is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRules(pub Vec<DeviceRule>);

impl DeviceRules {
    pub(super) fn parse(rules: &[schema::DeviceRule]) -> Result<Self, SpecError> {
        /// Each rule is a few instructions of a program whose length the kernel bounds.
        const RULES_MAX: usize = 1024;
        if rules.len() > RULES_MAX {
            return Err(SpecError::invalid(FIELD, format!("more than {RULES_MAX} rules")));
        }
        let mut parsed = rules.iter().map(DeviceRule::parse).collect::<Result<Vec<_>, _>>()?;
        parsed.extend(ALWAYS);
        Ok(Self(parsed))
    }

    /// Has the rules that name the host's number of a block device speak of the guest's: `disks` has both, the host's first.
    pub(super) fn translate(&mut self, disks: &[BlockNumbers]) {
        for rule in self.0.iter_mut().filter(|rule| rule.kind == Some(DeviceKind::Block)) {
            let of = |number: u32| i32::try_from(number).ok();
            let named = |disk: &&BlockNumbers| {
                (rule.major, rule.minor) == (of(disk.host.0), of(disk.host.1)) && rule.major.is_some()
            };
            if let Some(disk) = disks.iter().find(named) {
                (rule.major, rule.minor) = (of(disk.guest.0), of(disk.guest.1));
            }
        }
    }
}

/// Major and minor number of a block device on the host, and of the disk that stands for it in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockNumbers {
    /// On the host.
    pub host: (u32, u32),
    /// In the guest.
    pub guest: (u32, u32),
}

impl DeviceRule {
    fn parse(rule: &schema::DeviceRule) -> Result<Self, SpecError> {
        let access = rule.access.bytes().try_fold(0, |access, letter| match letter {
            b'r' => Ok(access | READ),
            b'w' => Ok(access | WRITE),
            b'm' => Ok(access | MKNOD),
            _ => Err(SpecError::invalid(FIELD, format!("{:?} is not a kind of access", rule.access))),
        })?;
        let verdict = if rule.allow { DeviceVerdict::Allow } else { DeviceVerdict::Deny };
        let kind = match rule.kind.as_str() {
            "c" | "u" => Some(DeviceKind::Char),
            "b" => Some(DeviceKind::Block),
            // Numbers mean nothing here; cgroup v1 ignores them too.
            "a" | "" => return Ok(Self { verdict, kind: None, major: None, minor: None, access }),
            other => return Err(SpecError::invalid(FIELD, format!("{other:?} is not a device type"))),
        };
        // Absent and -1 both mean any.
        let number = |number: Option<i64>| match number {
            None | Some(-1) => Ok(None),
            Some(number) => i32::try_from(number)
                .ok()
                .filter(|number| *number >= 0)
                .map(Some)
                .ok_or_else(|| SpecError::invalid(FIELD, format!("{number} is not a device number"))),
        };
        Ok(Self { verdict, kind, major: number(rule.major)?, minor: number(rule.minor)?, access })
    }

    /// Whether the rule speaks of this device.
    #[cfg(test)]
    pub fn covers(&self, kind: DeviceKind, major: i32, minor: i32) -> bool {
        self.kind.is_none_or(|own| own == kind)
            && self.major.is_none_or(|own| own == major)
            && self.minor.is_none_or(|own| own == minor)
    }
}
