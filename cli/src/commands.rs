//! What the commands do, one file each. They return the exit status of the program.

use crate::cli::{self, Cli, Command};
use crate::error::{self, CliError};
use crate::output;

mod debug;
mod ending;
mod exec;
mod images;
mod inspect;
mod kill;
mod load;
mod logs;
mod metrics;
mod ps;
mod pull;
mod rm;
mod rmi;
mod run;
mod stop;
mod version;
mod wait;

/// Success.
const DONE: u8 = 0;

/// Runs the command.
pub fn execute(cli: Cli) -> Result<u8, CliError> {
    let global = &cli.global;
    match cli.command {
        Command::Run(args) => run::run(global, &args),
        Command::Exec(args) => exec::exec(global, &args),
        Command::Ps(args) => ps::ps(global, &args),
        Command::Logs(args) => logs::logs(global, &args),
        Command::Stop(args) => stop::stop(global, &args),
        Command::Kill(args) => kill::kill(global, &args),
        Command::Rm(args) => rm::rm(global, &args),
        Command::Wait(args) => wait::wait(global, &args),
        Command::Inspect(args) => inspect::inspect(global, &args),
        Command::Pull(args) => pull::pull(global, &args),
        Command::Images(args) => images::images(global, &args),
        Command::Rmi(args) => rmi::rmi(global, &args),
        Command::Load(args) => load::load(global, &args),
        Command::Check(args) => crate::check::command(global, &args),
        Command::Metrics(args) => metrics::metrics(global, &args),
        Command::Debug(args) => debug::debug(global, &args),
        Command::Version(args) => version::version(&args),
        Command::ReleaseNetwork(args) => {
            crate::network::release(&args.bundle)?;
            Ok(DONE)
        }
        Command::Completion(args) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut cli::description(), "hull", &mut script);
            output::print(&String::from_utf8_lossy(&script)).map(|()| DONE)
        }
    }
}

/// Does `action` for each name. A failure is reported and does not keep the others from being done.
fn for_each(names: &[String], mut action: impl FnMut(&str) -> Result<(), CliError>) -> Result<u8, CliError> {
    let mut failed = false;
    for name in names {
        if let Err(error) = action(name) {
            error::report(&error);
            failed = true;
        }
    }
    if failed { Err(CliError::Reported) } else { Ok(DONE) }
}

/// Shortens to `length` characters, as docker does in tables.
fn shorten(text: &str, length: usize) -> String {
    if text.chars().count() <= length {
        return text.to_owned();
    }
    text.chars().take(length - 1).chain(['…']).collect()
}

/// `sha256:0123456789ab...` as docker shows it in tables.
fn short_digest(digest: &str) -> &str {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.get(..12).unwrap_or(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_shortened() {
        assert_eq!(shorten("abcdef", 6), "abcdef");
        assert_eq!(shorten("äbcdefg", 6), "äbcde…");
        assert_eq!(short_digest("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short_digest("sha256:01"), "01");
    }

    #[test]
    fn one_failure_does_not_stop_the_rest() {
        let names = ["a", "b", "c"].map(str::to_owned);
        let mut seen = Vec::new();
        let result = for_each(&names, |name| {
            seen.push(name.to_owned());
            if name == "b" { Err(CliError::NoSuchObject(name.to_owned())) } else { Ok(()) }
        });
        assert!(matches!(result, Err(CliError::Reported)));
        assert_eq!(seen, names);
    }
}
