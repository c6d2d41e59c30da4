//! `hull`: containers in microVMs from a command line that reads like docker's.
//!
//! This file parses the command line, runs one command and turns its end into an exit status. Everything else has its
//! own module; see `cli` for the arguments and `commands` for what they do.

use std::process::ExitCode;

mod check;
mod cli;
mod commands;
mod engine;
mod error;
mod metrics;
mod network;
mod output;
mod paths;
mod progress;
mod quantity;
mod run;
mod spec;
mod state;
mod streams;
mod terminal;

fn main() -> ExitCode {
    let arguments = match cli::parse(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(end) => return end,
    };
    let failure = arguments.command.failure_status();
    match commands::execute(arguments) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            let status = error.exit_status().unwrap_or(failure);
            error::report(&error);
            ExitCode::from(status)
        }
    }
}
