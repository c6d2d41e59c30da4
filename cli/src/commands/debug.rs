//! `hull debug`: lines for the debug console of a pod's guest.

use std::io::{self, BufRead, IsTerminal, Write};

use hull_shim::client::TaskClient;

use super::DONE;
use crate::cli::{DebugArgs, Global};
use crate::error::{self, CliError};
use crate::{engine, metrics, output, paths};

const PROMPT: &str = "hull> ";

/// Asks one line, or those that are typed.
pub fn debug(global: &Global, args: &DebugArgs) -> Result<u8, CliError> {
    // A container of Hull's own has a name, too.
    let own = paths::state(global)?.find(&args.pod).ok();
    let id = own.map_or_else(|| args.pod.clone(), |container| container.id.to_string());
    let runtime = engine::runtime()?;
    runtime.block_on(async {
        let pod = metrics::find(&global.state_dir, &id).await?;
        let pod = pod.ok_or_else(|| CliError::NoSuchObject(args.pod.clone()))?;
        if !args.command.is_empty() {
            ask(&pod, &args.command.join(" ")).await?;
            return Ok(DONE);
        }
        prompt()?;
        for line in io::stdin().lock().lines() {
            let line = line.map_err(CliError::io("cannot read standard input"))?;
            if !line.trim().is_empty()
                && let Err(error) = ask(&pod, &line).await
            {
                error::report(&error);
            }
            prompt()?;
        }
        Ok(DONE)
    })
}

fn prompt() -> Result<(), CliError> {
    if io::stdin().is_terminal() { output::print(PROMPT) } else { Ok(()) }
}

/// Prints the guest's answer: as it is into a file, without control characters on a terminal, which would obey them.
async fn ask(pod: &TaskClient, line: &str) -> Result<(), CliError> {
    let answer = pod.debug(line).await?;
    if io::stdout().is_terminal() {
        return output::print(&harmless(&String::from_utf8_lossy(&answer)));
    }
    let mut out = io::stdout();
    out.write_all(&answer).and_then(|()| out.flush()).map_err(CliError::io("cannot write to stdout"))
}

fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_obeys_nothing_of_the_guests() {
        assert_eq!(harmless("a\tb\x1b[2J\r\u{9b}\n"), "a\tb?[2J??\n");
    }
}
