//! Mappings of user and group ids: `linux.uidMappings` and those of a mount (user_namespaces(7)).

use super::{SpecError, schema};

/// How many lines the kernel takes.
const LINES_MAX: usize = 340;

/// A range of ids, the same both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first one inside: of a container, or of a mount's file system.
    pub inside: u32,
    /// The first one outside, in the guest.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The ids of one kind that are mapped. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMap(Vec<IdRange>);

impl IdMap {
    fn parse(field: &'static str, list: &[schema::IdMapping]) -> Result<Self, SpecError> {
        let invalid = |reason: &str| SpecError::invalid(field, reason);
        if list.is_empty() {
            return Err(invalid("is empty: user and group ids must both be mapped"));
        }
        if list.len() > LINES_MAX {
            return Err(invalid("has more ranges than the kernel takes"));
        }
        let mut ranges: Vec<IdRange> = Vec::with_capacity(list.len());
        for mapping in list {
            let range =
                IdRange { inside: mapping.container_id, outside: mapping.host_id, count: mapping.size };
            let fits = |first: u32| range.count > 0 && first.checked_add(range.count).is_some();
            if !fits(range.inside) || !fits(range.outside) {
                return Err(invalid("has a range that is empty or ends above the largest id"));
            }
            let overlap = |a: u32, b: u32, count: u32| a < b + count && b < a + range.count;
            if ranges.iter().any(|other| {
                overlap(range.inside, other.inside, other.count)
                    || overlap(range.outside, other.outside, other.count)
            }) {
                return Err(invalid("has ranges that overlap"));
            }
            ranges.push(range);
        }
        Ok(Self(ranges))
    }

    /// The id in the guest of one inside.
    pub fn outside(&self, inside: u32) -> Option<u32> {
        self.0.iter().find_map(|range| {
            let offset = inside.checked_sub(range.inside)?;
            (offset < range.count).then_some(range.outside + offset)
        })
    }

    /// As the kernel takes it, for `/proc/PID/uid_map`.
    pub fn lines(&self) -> String {
        self.0
            .iter()
            .map(|IdRange { inside, outside, count }| format!("{inside} {outside} {count}\n"))
            .collect()
    }
}

/// The mapped users and groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMappings {
    /// User ids.
    pub users: IdMap,
    /// Group ids.
    pub groups: IdMap,
}

impl IdMappings {
    /// `None` where neither is given.
    pub(super) fn parse(
        field: &'static str,
        users: &[schema::IdMapping],
        groups: &[schema::IdMapping],
    ) -> Result<Option<Self>, SpecError> {
        if users.is_empty() && groups.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self { users: IdMap::parse(field, users)?, groups: IdMap::parse(field, groups)? }))
    }

    /// Who is root inside, if anybody is: user and group id in the guest.
    pub fn root(&self) -> Option<(u32, u32)> {
        Some((self.users.outside(0)?, self.groups.outside(0)?))
    }
}
