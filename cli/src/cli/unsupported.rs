//! docker's `run` flags that Hull does not have: recognised, so that the answer is one clear line and not a guess at a
//! misspelling. A flag leaves this table when it works.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

/// Long name, short name, and whether a value follows.
struct Flag(&'static str, Option<char>, Value);

/// Whether a value follows a flag.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Value {
    Takes,
    None,
}

use Value::{None as Alone, Takes};

const FLAGS: &[Flag] = &[
    Flag("annotation", None, Takes),
    Flag("attach", Some('a'), Takes),
    Flag("blkio-weight", None, Takes),
    Flag("cgroup-parent", None, Takes),
    Flag("cgroupns", None, Takes),
    Flag("cpu-period", None, Takes),
    Flag("cpu-quota", None, Takes),
    Flag("cpu-shares", Some('c'), Takes),
    Flag("cpuset-cpus", None, Takes),
    Flag("cpuset-mems", None, Takes),
    Flag("detach-keys", None, Takes),
    Flag("device-cgroup-rule", None, Takes),
    Flag("device-read-bps", None, Takes),
    Flag("device-write-bps", None, Takes),
    Flag("disable-content-trust", None, Alone),
    Flag("domainname", None, Takes),
    Flag("expose", None, Takes),
    Flag("gpus", None, Takes),
    Flag("health-cmd", None, Takes),
    Flag("health-interval", None, Takes),
    Flag("health-retries", None, Takes),
    Flag("health-timeout", None, Takes),
    Flag("init", None, Alone),
    Flag("ip", None, Takes),
    Flag("ip6", None, Takes),
    Flag("ipc", None, Takes),
    Flag("isolation", None, Takes),
    Flag("label-file", None, Takes),
    Flag("link", None, Takes),
    Flag("log-driver", None, Takes),
    Flag("log-opt", None, Takes),
    Flag("mac-address", None, Takes),
    Flag("memory-reservation", None, Takes),
    Flag("memory-swap", None, Takes),
    Flag("memory-swappiness", None, Takes),
    Flag("network-alias", None, Takes),
    Flag("no-healthcheck", None, Alone),
    Flag("oom-kill-disable", None, Alone),
    Flag("oom-score-adj", None, Takes),
    Flag("pid", None, Takes),
    Flag("publish-all", Some('P'), Alone),
    Flag("restart", None, Takes),
    Flag("runtime", None, Takes),
    Flag("sig-proxy", None, Alone),
    Flag("storage-opt", None, Takes),
    Flag("sysctl", None, Takes),
    Flag("userns", None, Takes),
    Flag("uts", None, Takes),
    Flag("volume-driver", None, Takes),
    Flag("volumes-from", None, Takes),
];

/// The unsupported flags that were given.
#[derive(Debug, Clone, Default)]
pub struct Unsupported {
    given: Vec<&'static str>,
}

impl Unsupported {
    /// The first one, without the dashes.
    pub fn first(&self) -> Option<&'static str> {
        self.given.first().copied()
    }
}

impl FromArgMatches for Unsupported {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given =
            |flag: &&Flag| matches.value_source(flag.0) == Some(clap::parser::ValueSource::CommandLine);
        Ok(Self { given: FLAGS.iter().filter(given).map(|flag| flag.0).collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Unsupported {
    fn augment_args(command: Command) -> Command {
        command.args(FLAGS.iter().map(|flag| {
            let argument = Arg::new(flag.0).long(flag.0).hide(true);
            let argument = match flag.1 {
                Some(short) => argument.short(short),
                None => argument,
            };
            match flag.2 {
                Takes => argument.action(ArgAction::Append).allow_hyphen_values(true),
                Alone => argument.action(ArgAction::Append).num_args(0..=1).require_equals(true),
            }
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(line: &[&str]) -> Option<&'static str> {
        let command = Unsupported::augment_args(Command::new("run")).arg(Arg::new("rest").num_args(0..));
        let matches = command.try_get_matches_from(line).unwrap();
        Unsupported::from_arg_matches(&matches).unwrap().first()
    }

    #[test]
    fn given_flags_are_found_with_and_without_values() {
        assert_eq!(first(&["run", "image"]), None);
        assert_eq!(first(&["run", "-a", "stdin", "image"]), Some("attach"));
        assert_eq!(first(&["run", "-astdin", "image"]), Some("attach"));
        assert_eq!(first(&["run", "--ip=10.0.0.1", "image"]), Some("ip"));
        assert_eq!(first(&["run", "--init", "image"]), Some("init"));
        assert_eq!(first(&["run", "--init=true", "image"]), Some("init"));
        assert_eq!(first(&["run", "-P", "-a", "stdin", "image"]), Some("attach"));
    }
}
