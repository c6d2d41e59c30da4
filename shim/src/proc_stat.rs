//! `/proc/<pid>/stat` (proc_pid_stat(5)), read once.

use std::io;

/// What the kernel says of a process.
pub struct ProcStat(String);

impl ProcStat {
    /// Reads it.
    pub fn read(pid: u32) -> io::Result<Self> {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).map(Self)
    }

    /// The number that is the field of this number; those up to the name, 1 and 2, are none.
    pub fn field(&self, number: usize) -> Option<u64> {
        // The name in parentheses may itself hold spaces and parentheses.
        let (_, fields) = self.0.rsplit_once(')')?;
        fields.split_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
    }
}

/// When a process started, in clock ticks since the host's boot.
pub fn start_ticks(pid: u32) -> Option<u64> {
    ProcStat::read(pid).ok()?.field(22)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_from_behind_the_name() {
        let stat = ProcStat("7 (a) b) 3) S 1 2 3".to_owned());
        assert_eq!((stat.field(4), stat.field(6)), (Some(1), Some(3)));
        assert_eq!([0, 2, 3, 7].map(|number| stat.field(number)), [None; 4]);
        assert!(start_ticks(std::process::id()).is_some_and(|ticks| ticks > 0));
        assert_eq!(start_ticks(u32::MAX), None);
    }
}
