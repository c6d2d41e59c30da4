//! Build and development commands; the Makefile's targets call these.
//!
//! Everything here drives other programs (cargo, the guest kernel's build script, the test host). It holds no part of
//! Hull itself.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod build;
mod initramfs;
mod packages;
mod run;
mod shell;
mod test;

use shell::Error;

#[derive(Parser)]
#[command(name = "xtask", about = "Build and development commands of Hull")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install the Debian packages that a step needs and that are missing.
    Packages {
        /// Lists to install from: build, host, tests. All of them when none is named.
        lists: Vec<packages::List>,
    },
    /// Host binaries to target/release, guest kernel and initramfs to target/guest.
    Build,
    /// Pack a static agent into an initramfs.
    Initramfs {
        /// The agent's binary.
        agent: PathBuf,
        /// Where the archive goes.
        output: PathBuf,
    },
    /// Run a container from a registry in a microVM.
    Run {
        /// The image; a small one from a registry of our own on loopback when none is named.
        #[arg(long)]
        image: Option<String>,
        /// The command, in a shell's words.
        #[arg(long)]
        cmd: Option<String>,
    },
    /// Formatting, lints and licences.
    Lint,
    /// Every test, with a closing count.
    Test {
        /// Only these layers.
        #[arg(long, value_delimiter = ',')]
        only: Vec<test::Layer>,
        /// Only end-to-end tests whose name contains this.
        #[arg(long)]
        filter: Option<String>,
    },
    /// The benchmarks; prints tables.
    Bench {
        /// A Firecracker, to start beside the monitor.
        #[arg(long)]
        peer: Option<PathBuf>,
    },
    /// Writes the tables in docs/ that the tests of the OCI runtime check.
    OciTable,
    /// Containers, pods, execs and output by the thousand; hours.
    Soak {
        /// Only this.
        #[arg(long, value_delimiter = ',')]
        only: Vec<test::soak::Part>,
        /// How much of it, in percent.
        #[arg(long, default_value_t = 100)]
        percent: u32,
        /// How many pods at a time.
        #[arg(long, default_value_t = 20)]
        at_once: u32,
    },
}

fn main() -> ExitCode {
    match dispatch(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode, Error> {
    match command {
        Command::Packages { lists } => packages::install(&lists)?,
        Command::Build => build::all()?,
        Command::Initramfs { agent, output } => initramfs::write(&agent, &output)?,
        Command::Run { image, cmd } => return run::container(image.as_deref(), cmd.as_deref()),
        Command::Lint => test::lint()?,
        Command::Test { only, filter } => return test::all(&only, filter.as_deref()),
        Command::Bench { peer } => return test::bench(peer.as_deref()),
        Command::OciTable => return test::oci::tables(),
        Command::Soak { only, percent, at_once } => return test::soak::run(&only, percent, at_once),
    }
    Ok(ExitCode::SUCCESS)
}
