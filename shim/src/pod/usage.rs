//! What a VM takes of the host, as the host counts it: memory and processor time of the monitor's process.

use std::io;

use hull_protocol::agent::api::agent::{ContainerStatsResponse, CpuStats, MemoryStats, PidsStats};

/// Why it cannot be said.
#[derive(Debug, thiserror::Error)]
#[error("cannot read what process {pid} uses: {source}")]
pub struct UsageError {
    pid: u32,
    source: io::Error,
}

/// What a monitor uses.
pub fn usage_of(pid: u32) -> Result<ContainerStatsResponse, UsageError> {
    let failed = |source| UsageError { pid, source };
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).map_err(failed);
    let malformed = || failed(io::ErrorKind::InvalidData.into());
    let memory = read("statm")?;
    let resident = memory.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    let stat = read("stat")?;
    // Fields 14 and 15 of proc(5), in clock ticks; the name in parentheses may itself hold spaces and parentheses.
    let (_, fields) = stat.rsplit_once(')').ok_or_else(malformed)?;
    let mut times = fields.split_whitespace().skip(11).map_while(|ticks| ticks.parse::<u64>().ok());
    let (Some(resident), Some(user), Some(system)) = (resident, times.next(), times.next()) else {
        return Err(malformed());
    };
    // SAFETY: sysconf takes a number.
    let per_second = |name| u64::try_from(unsafe { libc::sysconf(name) }).unwrap_or(1).max(1);
    let micros = |ticks: u64| ticks.saturating_mul(1_000_000) / per_second(libc::_SC_CLK_TCK);
    let cpu = CpuStats {
        usage_usec: micros(user + system),
        user_usec: micros(user),
        system_usec: micros(system),
        ..CpuStats::default()
    };
    let usage_bytes = resident.saturating_mul(per_second(libc::_SC_PAGESIZE));
    let memory = MemoryStats { usage_bytes, anon_bytes: usage_bytes, ..MemoryStats::default() };
    let pids = PidsStats { current: 1, ..PidsStats::default() };
    Ok(ContainerStatsResponse {
        memory: Some(memory).into(),
        cpu: Some(cpu).into(),
        pids: Some(pids).into(),
        ..ContainerStatsResponse::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_something() {
        let usage = usage_of(std::process::id()).unwrap();
        assert!(usage.memory.usage_bytes > 1 << 16, "{usage:?}");
        assert!(usage_of(u32::MAX).is_err());
    }
}
