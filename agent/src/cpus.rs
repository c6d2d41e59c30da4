//! Processors that the guest has: how many of them run.
//!
//! Starting or stopping one takes the kernel a moment and the host another, so a child writes, and it is not waited for longer
//! than [`DEADLINE`].

use std::ffi::{CStr, CString};
use std::time::Duration;

use crate::error::Error;
use crate::helper::{self, HelperError, Work};
use crate::reap::Children;

/// How long all of them may take.
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
    /// The kernel did not start or stop one.
    #[error("cannot start or stop a processor: {0}")]
    Switch(#[from] HelperError),
}

/// Has so many processors run: starts those of the lowest numbers, stops those of the highest.
pub async fn online(children: &Children, wanted: u32) -> Result<(), Error> {
    if !(1..=CPUS).contains(&wanted) {
        return Err(Error::Range { what: "count", value: wanted.into() });
    }
    let (present, running) = (count("present"), count("online"));
    if wanted > present {
        return Err(CpuError::TooMany { wanted, present }.into());
    }
    let of_state = |wanted: &'static str| (0..CPUS).filter(move |cpu| state(*cpu).as_deref() == Some(wanted));
    let write = |cpu, text: &CStr| Work::WriteControl { path: file(cpu), text: text.to_owned() };
    let times = |count| usize::try_from(count).unwrap_or(usize::MAX);
    let work: Vec<Work> = if wanted >= running {
        of_state("0").take(times(wanted - running)).map(|cpu| write(cpu, c"1")).collect()
    } else {
        of_state("1").rev().take(times(running - wanted)).map(|cpu| write(cpu, c"0")).collect()
    };
    if work.is_empty() {
        return Ok(());
    }
    match tokio::time::timeout(DEADLINE, helper::run(children, &work)).await {
        Ok(result) => Ok(result.map_err(CpuError::from)?),
        Err(_elapsed) => Err(Error::Deadline("starting or stopping processors")),
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
