//! Processors that the guest has but did not start when it booted.
//!
//! Starting one takes the kernel a moment and the host another, so a child writes, and it is not waited for longer than
//! [`DEADLINE`].

use std::ffi::CString;
use std::time::Duration;

use crate::error::Error;
use crate::helper::{self, HelperError, Work};
use crate::reap::Children;

/// How long starting all of them may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// Processors that the monitor can give.
const CPUS: u32 = 32;

/// Why no further processor runs.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// The guest has fewer.
    #[error("{wanted} processors cannot run: the guest has {present}")]
    TooMany {
        /// How many should run.
        wanted: u32,
        /// How many there are.
        present: u32,
    },
    /// The kernel did not start one.
    #[error("cannot start a processor: {0}")]
    Start(#[from] HelperError),
}

/// Starts processors, lowest number first, until so many run. Those that run already stay.
pub async fn online(children: &Children, wanted: u32) -> Result<(), Error> {
    if !(1..=CPUS).contains(&wanted) {
        return Err(Error::Range { what: "count", value: wanted.into() });
    }
    let (present, running) = (count("present"), count("online"));
    if wanted > present {
        return Err(CpuError::TooMany { wanted, present }.into());
    }
    let stopped = (0..CPUS).filter(|cpu| state(*cpu).as_deref() == Some("0"));
    let start = |cpu| Work::WriteControl { path: file(cpu), text: c"1".to_owned() };
    let missing = usize::try_from(wanted.saturating_sub(running)).unwrap_or(usize::MAX);
    let work: Vec<Work> = stopped.take(missing).map(start).collect();
    if work.is_empty() {
        return Ok(());
    }
    match tokio::time::timeout(DEADLINE, helper::run(children, &work)).await {
        Ok(result) => Ok(result.map_err(CpuError::from)?),
        Err(_elapsed) => Err(Error::Deadline("starting processors")),
    }
}

fn file(cpu: u32) -> CString {
    CString::new(format!("/sys/devices/system/cpu/cpu{cpu}/online")).unwrap_or_default()
}

/// "0" or "1"; none for a processor that is not there, or can only run.
fn state(cpu: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/online")).ok()?;
    Some(text.trim().to_owned())
}

fn count(which: &str) -> u32 {
    let text = std::fs::read_to_string(format!("/sys/devices/system/cpu/{which}")).unwrap_or_default();
    count_in(&text)
}

/// How many numbers the kernel's list has: "0,2-4" has four.
fn count_in(list: &str) -> u32 {
    let numbers = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.trim().split(',').filter_map(numbers).fold(0, u32::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lists_are_counted() {
        for (list, expected) in [
            ("0\n", 1),
            ("0-7\n", 8),
            ("0,2-4", 4),
            ("", 0),
            ("x", 0),
            ("5-2", 0),
            ("0-4294967295", 0),
            ("1-4294967295,0", u32::MAX),
        ] {
            assert_eq!(count_in(list), expected, "{list:?}");
        }
    }
}
