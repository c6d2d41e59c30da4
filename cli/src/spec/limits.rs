//! The small options of a process and its mounts: `--ulimit`, `--tmpfs`, `--security-opt`, `--label`, signals.

use std::path::PathBuf;
use std::str::FromStr;

use oci_spec::runtime::PosixRlimitType;

/// Why an option is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// `--ulimit` without the shape of one.
    #[error("expected name=soft[:hard], for example nofile=1024:2048")]
    UlimitShape,
    /// No such limit.
    #[error(
        "there is no limit named {0:?}: known are as, core, cpu, data, fsize, locks, memlock, msgqueue, nice, nofile, nproc, rss, rtprio, rttime, sigpending, stack"
    )]
    UlimitName(String),
    /// The soft limit is above the hard one.
    #[error("the soft limit must not be above the hard limit")]
    UlimitOrder,
    /// `--tmpfs` with a relative path.
    #[error("expected an absolute path, and options behind a colon: /run:size=64m")]
    TmpfsPath,
    /// `--security-opt`.
    #[error("expected no-new-privileges, seccomp=unconfined or seccomp=FILE")]
    SecurityOption,
    /// Not a signal.
    #[error("{0:?} is not a signal: write a name like TERM or a number from 1 to 64")]
    Signal(String),
}

/// A resource limit (setrlimit(2)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rlimit {
    /// Which.
    pub kind: PosixRlimitType,
    /// What the process may use.
    pub soft: u64,
    /// How far it may raise that itself.
    pub hard: u64,
}

impl FromStr for Rlimit {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let (name, limits) = text.split_once('=').ok_or(OptionError::UlimitShape)?;
        let limit = |text: &str| match text {
            "-1" | "unlimited" => Ok(u64::MAX),
            number => number.parse::<u64>().map_err(|_| OptionError::UlimitShape),
        };
        let (soft, hard) = match limits.split_once(':') {
            Some((soft, hard)) => (limit(soft)?, limit(hard)?),
            None => (limit(limits)?, limit(limits)?),
        };
        if soft > hard {
            return Err(OptionError::UlimitOrder);
        }
        let kind = match name {
            "as" => PosixRlimitType::RlimitAs,
            "core" => PosixRlimitType::RlimitCore,
            "cpu" => PosixRlimitType::RlimitCpu,
            "data" => PosixRlimitType::RlimitData,
            "fsize" => PosixRlimitType::RlimitFsize,
            "locks" => PosixRlimitType::RlimitLocks,
            "memlock" => PosixRlimitType::RlimitMemlock,
            "msgqueue" => PosixRlimitType::RlimitMsgqueue,
            "nice" => PosixRlimitType::RlimitNice,
            "nofile" => PosixRlimitType::RlimitNofile,
            "nproc" => PosixRlimitType::RlimitNproc,
            "rss" => PosixRlimitType::RlimitRss,
            "rtprio" => PosixRlimitType::RlimitRtprio,
            "rttime" => PosixRlimitType::RlimitRttime,
            "sigpending" => PosixRlimitType::RlimitSigpending,
            "stack" => PosixRlimitType::RlimitStack,
            other => return Err(OptionError::UlimitName(other.to_owned())),
        };
        Ok(Self { kind, soft, hard })
    }
}

/// A tmpfs in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tmpfs {
    /// Where, absolute.
    pub path: String,
    /// Mount options.
    pub options: Vec<String>,
}

impl FromStr for Tmpfs {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let (path, given) = text.split_once(':').unwrap_or((text, ""));
        let below_root = path.starts_with('/') && path.split('/').any(|part| !part.is_empty());
        if !below_root || path.split('/').any(|part| part == "..") {
            return Err(OptionError::TmpfsPath);
        }
        // docker's defaults, each replaced by its opposite when that is given.
        let given: Vec<&str> = given.split(',').filter(|option| !option.is_empty()).collect();
        let mut options: Vec<String> = ["noexec", "nosuid", "nodev"]
            .into_iter()
            .filter(|default| !given.contains(&default.trim_start_matches("no")))
            .map(str::to_owned)
            .collect();
        options.extend(given.into_iter().map(str::to_owned));
        Ok(Self { path: path.to_owned(), options })
    }
}

/// `--security-opt`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecurityOption {
    /// `execve(2)` gives no privileges: setuid bits and file capabilities do nothing.
    NoNewPrivileges,
    /// All system calls are allowed.
    SeccompUnconfined,
    /// docker's default profile, after all.
    SeccompDefault,
    /// The profile in this file.
    SeccompFile(PathBuf),
}

impl FromStr for SecurityOption {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let seccomp = text.strip_prefix("seccomp").and_then(|rest| rest.strip_prefix(['=', ':']));
        match seccomp {
            None => {}
            Some("") => return Err(OptionError::SecurityOption),
            Some("unconfined") => return Ok(Self::SeccompUnconfined),
            Some("builtin") => return Ok(Self::SeccompDefault),
            Some(path) => return Ok(Self::SeccompFile(PathBuf::from(path))),
        }
        match text {
            "no-new-privileges" | "no-new-privileges:true" | "no-new-privileges=true" => {
                Ok(Self::NoNewPrivileges)
            }
            _ => Err(OptionError::SecurityOption),
        }
    }
}

/// Parses a signal: `TERM`, `SIGTERM`, `sigterm`, `15`, `RTMIN+3`, `RTMAX-1`.
pub fn signal(text: &str) -> Result<u32, OptionError> {
    let bad = || OptionError::Signal(text.chars().take(40).collect());
    if let Ok(number) = text.parse::<u32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(bad()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    // Linux numbers: RTMIN as the C library counts, after the two that it keeps for itself.
    let offset = |rest: &str, sign: char| match rest {
        "" => Some(0),
        rest => rest.strip_prefix(sign)?.parse::<u32>().ok().filter(|n| *n <= 30),
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return offset(rest, '+').map(|n| 34 + n).ok_or_else(bad);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return offset(rest, '-').map(|n| 64 - n).ok_or_else(bad);
    }
    let number = format!("SIG{name}").parse::<nix::sys::signal::Signal>().map_err(|_| bad())?;
    Ok((number as i32).unsigned_abs())
}

/// Parses `--label KEY[=VALUE]`.
pub fn label(text: &str) -> (String, String) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    (key.to_owned(), value.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ulimits() {
        let nofile: Rlimit = "nofile=1024:2048".parse().unwrap();
        assert_eq!((nofile.kind, nofile.soft, nofile.hard), (PosixRlimitType::RlimitNofile, 1024, 2048));
        let core: Rlimit = "core=-1".parse().unwrap();
        assert_eq!((core.soft, core.hard), (u64::MAX, u64::MAX));
        assert_eq!("nofile=5:4".parse::<Rlimit>(), Err(OptionError::UlimitOrder));
        assert_eq!("wings=1".parse::<Rlimit>(), Err(OptionError::UlimitName("wings".into())));
        for text in ["nofile", "nofile=", "nofile=1:", "nofile=x", "nofile=1:2:3"] {
            assert_eq!(text.parse::<Rlimit>(), Err(OptionError::UlimitShape), "{text}");
        }
    }

    #[test]
    fn tmpfs() {
        let plain: Tmpfs = "/run".parse().unwrap();
        assert_eq!(
            (plain.path.as_str(), plain.options.join(",")),
            ("/run", "noexec,nosuid,nodev".to_owned())
        );
        let with: Tmpfs = "/run:exec,size=64m".parse().unwrap();
        assert_eq!(with.options, ["nosuid", "nodev", "exec", "size=64m"]);
        for text in ["", "run", "/", "//", "/a/../b", ":size=1"] {
            assert!(text.parse::<Tmpfs>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn security_options() {
        for (text, expected) in [
            ("no-new-privileges", SecurityOption::NoNewPrivileges),
            ("seccomp=unconfined", SecurityOption::SeccompUnconfined),
            ("seccomp:unconfined", SecurityOption::SeccompUnconfined),
            ("seccomp=builtin", SecurityOption::SeccompDefault),
            ("seccomp=a/b.json", SecurityOption::SeccompFile("a/b.json".into())),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["seccomp", "seccomp=", "seccompx=1", "apparmor=x", ""] {
            assert_eq!(text.parse::<SecurityOption>(), Err(OptionError::SecurityOption), "{text:?}");
        }
    }

    #[test]
    fn signals() {
        for (text, number) in [
            ("TERM", 15),
            ("SIGTERM", 15),
            ("sigint", 2),
            ("9", 9),
            ("64", 64),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(signal(text), Ok(number), "{text}");
        }
        for text in
            ["", "0", "65", "-1", "SIG", "NOSUCH", "RTMIN+31", "RTMIN-1", "RTMAX+1", "RTMIN+", "RTMIN+x"]
        {
            assert!(signal(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,30}") {
            let _ = text.parse::<Rlimit>();
            let _ = text.parse::<Tmpfs>();
            if let Ok(number) = signal(&text) {
                prop_assert!((1..=64).contains(&number));
            }
        }
    }
}
