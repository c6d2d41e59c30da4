//! What a process takes of the host, as the host counts it: memory, processor time, threads.

use std::io;

use crate::metrics::ProcessUsage;
use crate::proc_stat::ProcStat;

/// Why it cannot be said.
#[derive(Debug, thiserror::Error)]
#[error("cannot read what process {pid} uses: {source}")]
pub struct UsageError {
    pid: u32,
    source: io::Error,
}

/// What a process uses.
pub fn process_usage(pid: u32) -> Result<ProcessUsage, UsageError> {
    let failed = |source| UsageError { pid, source };
    let memory = std::fs::read_to_string(format!("/proc/{pid}/statm")).map_err(failed)?;
    let resident = memory.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    let stat = ProcStat::read(pid).map_err(failed)?;
    let (Some(resident), Some(user), Some(system), Some(threads)) =
        (resident, stat.field(14), stat.field(15), stat.field(20))
    else {
        return Err(failed(io::ErrorKind::InvalidData.into()));
    };
    // SAFETY: sysconf takes a number.
    let per_second = |name| u64::try_from(unsafe { libc::sysconf(name) }).unwrap_or(1).max(1);
    let micros = |ticks: u64| ticks.saturating_mul(1_000_000) / per_second(libc::_SC_CLK_TCK);
    Ok(ProcessUsage {
        resident_bytes: resident.saturating_mul(per_second(libc::_SC_PAGESIZE)),
        user_usec: micros(user),
        system_usec: micros(system),
        threads,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_something() {
        let usage = process_usage(std::process::id()).unwrap();
        assert!(usage.resident_bytes > 1 << 16 && usage.threads >= 1, "{usage:?}");
        assert!(process_usage(u32::MAX).is_err());
    }
}
