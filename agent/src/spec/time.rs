//! `linux.timeOffsets`: what the clocks of a time namespace are ahead of the guest's (time_namespaces(7)).

use std::collections::BTreeMap;

use super::{SpecError, schema};

/// The content of `/proc/self/timens_offsets`; nothing for a namespace without offsets.
pub(super) fn offsets(offsets: &BTreeMap<String, schema::TimeOffset>) -> Result<Vec<u8>, SpecError> {
    const FIELD: &str = "linux.timeOffsets";
    let mut lines = String::new();
    for (clock, schema::TimeOffset { secs, nanosecs }) in offsets {
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            return Err(SpecError::invalid(FIELD, format!("{clock:?} is not a clock")));
        }
        if *nanosecs >= 1_000_000_000 {
            return Err(SpecError::invalid(FIELD, format!("{nanosecs} nanoseconds are a second or more")));
        }
        lines.push_str(&format!("{clock} {secs} {nanosecs}\n"));
    }
    Ok(lines.into_bytes())
}
