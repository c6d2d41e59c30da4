//! What only an emulated processor does: `tests/host/README.md` tells of guests that end by it. No test passes because of what is
//! found here, but the thousands of a soak may lose as many guests as it accounts for.

use std::collections::BTreeSet;

/// Flags of a processor that none has (Intel SDM, volume 1, 3.4.3), and NT, which Linux never has in 64-bit mode.
const IMPOSSIBLE: u64 = 0xffc0_8028 | 1 << 14;
/// The flag that is always set.
const ALWAYS: u64 = 1 << 1;

/// The pods whose guest's registers, in a trace that shims have logged, show such flags.
pub fn pods_with_impossible_flags(log: &str) -> BTreeSet<String> {
    let flags = |line: &str| {
        let (_, rest) = line.split_once("EFLAGS: ")?;
        u64::from_str_radix(rest.get(..8)?, 16).ok()
    };
    let impossible = |line: &&str| flags(line).is_some_and(|it| it & IMPOSSIBLE != 0 || it & ALWAYS == 0);
    let pod = |line: &str| {
        let (_, rest) = line.split_once(" pod=\"")?;
        rest.split('"').next().map(str::to_owned)
    };
    log.lines().filter(impossible).filter_map(pod).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_that_no_processor_has_are_told_from_others() {
        let log = "the guest's console: RIP: 0010:x RSP: 0 EFLAGS: 0040066e\" namespace=\"k8s.io\" pod=\"aa\"\n\
                   the guest's console: RSP: 0018:ff EFLAGS: 00145086 ORIG_RAX: 0 namespace=\"k8s.io\" pod=\"bb\"\n\
                   the guest's console: RSP: 0018:ff EFLAGS: 00000246 namespace=\"k8s.io\" pod=\"cc\"\n\
                   the guest's console: RSP: 0018:ff EFLAGS: 0004 namespace=\"k8s.io\" pod=\"dd\"\n";
        assert_eq!(pods_with_impossible_flags(log), ["aa", "bb"].map(str::to_owned).into());
    }
}
