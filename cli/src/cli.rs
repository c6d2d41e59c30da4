//! The command line: names, flags and help texts, spelled as docker spells them. Nothing here does any work.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use hull_images::Platform;

mod exec;
mod run;
mod unsupported;

pub use exec::ExecArgs;
pub use run::{PullPolicy, RunArgs};

use crate::error;

/// What a wrong command line and a failing `run` or `exec` exit with: docker's status for "the engine, not the container".
pub const ENGINE_FAILURE: u8 = 125;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "hull",
    version,
    about = "Run containers, each in its own microVM",
    disable_help_subcommand = true
)]
pub struct Cli {
    /// Settings that every command understands.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Settings that every command understands.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Where images are kept
    #[arg(long, global = true, value_name = "DIR", env = "HULL_DATA_DIR", default_value = "/var/lib/hull")]
    pub data_dir: PathBuf,
    /// Where running containers are kept
    #[arg(long, global = true, value_name = "DIR", env = "HULL_STATE_DIR", default_value = "/run/hull")]
    pub state_dir: PathBuf,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create and run a new container from an image
    Run(Box<RunArgs>),
    /// Execute a command in a running container
    Exec(ExecArgs),
    /// List containers
    #[command(visible_alias = "ls")]
    Ps(PsArgs),
    /// Show what a container has written
    Logs(LogsArgs),
    /// Stop running containers
    Stop(StopArgs),
    /// Send a signal to running containers
    Kill(KillArgs),
    /// Remove containers
    Rm(RmArgs),
    /// Wait until containers stop, then print their exit codes
    Wait(ContainersArgs),
    /// Show everything known about containers or images, as JSON
    Inspect(InspectArgs),
    /// Download an image from a registry
    Pull(PullArgs),
    /// List images
    Images(ImagesArgs),
    /// Remove images
    Rmi(RmiArgs),
    /// Load images from an OCI layout, an OCI archive or a docker archive
    Load(LoadArgs),
    /// Say whether this host can run microVMs, and why not
    Check(CheckArgs),
    /// Print what the pods of this host measure, those of containerd included, for Prometheus
    Metrics(MetricsArgs),
    /// Ask the guest of a pod about itself, where the configuration has debug.console = true
    Debug(DebugArgs),
    /// Show the version
    Version(VersionArgs),
    /// Give the network of a container back: what the shim runs when the container has ended
    #[command(name = crate::network::RELEASE, hide = true)]
    ReleaseNetwork(ReleaseArgs),
    /// Print a completion script for a shell
    Completion(CompletionArgs),
}

impl Command {
    /// The exit status of a failure of Hull itself: 125 where the container's own status could be meant, else 1.
    pub fn failure_status(&self) -> u8 {
        match self {
            Self::Run(_) | Self::Exec(_) => ENGINE_FAILURE,
            _ => 1,
        }
    }
}

/// How a list is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// One JSON object a line.
    Json,
}

/// `hull ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Show stopped containers too
    #[arg(short, long)]
    pub all: bool,
    /// Only show ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Do not shorten ids and commands
    #[arg(long)]
    pub no_trunc: bool,
    /// How to print the list
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Only show containers that match: name=, id=, status=, ancestor=, label=
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// Only show the N newest containers, in any state
    #[arg(short = 'n', long, value_name = "N")]
    pub last: Option<usize>,
}

/// `hull logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Go on as the container writes, until it stops
    #[arg(short, long)]
    pub follow: bool,
    /// Only show this many lines from the end of each stream
    #[arg(short = 'n', long, value_name = "N", default_value = "all")]
    pub tail: Tail,
    /// Show the console of the container's VM instead
    #[arg(long)]
    pub boot: bool,
    /// The container
    pub container: String,
}

/// How much of a log is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// Everything.
    All,
    /// That many lines from the end.
    Lines(usize),
}

impl std::str::FromStr for Tail {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            number => number
                .parse()
                .map(Self::Lines)
                .map_err(|_| "expected a number of lines or \"all\"".to_owned()),
        }
    }
}

/// `hull stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Seconds to wait before the container is killed [default: the container's, or 10]
    #[arg(short, long, visible_alias = "time", value_name = "SECONDS")]
    pub timeout: Option<u32>,
    /// The signal to send first [default: the container's, or TERM]
    #[arg(short, long, value_name = "SIGNAL")]
    pub signal: Option<String>,
    /// The containers
    #[arg(required = true)]
    pub containers: Vec<String>,
}

/// `hull kill`.
#[derive(Debug, Args)]
pub struct KillArgs {
    /// The signal to send
    #[arg(short, long, default_value = "KILL")]
    pub signal: String,
    /// The containers
    #[arg(required = true)]
    pub containers: Vec<String>,
}

/// `hull rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Kill a container that is running; do not complain about one that does not exist
    #[arg(short, long)]
    pub force: bool,
    /// The containers
    #[arg(required = true)]
    pub containers: Vec<String>,
}

/// `hull wait`.
#[derive(Debug, Args)]
pub struct ContainersArgs {
    /// The containers
    #[arg(required = true)]
    pub containers: Vec<String>,
}

/// `hull inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Look for containers or for images only
    #[arg(long = "type", value_enum)]
    pub kind: Option<Kind>,
    /// How to print: only json is there
    #[arg(short, long, value_parser = ["json"], default_value = "json")]
    pub format: String,
    /// Names or ids
    #[arg(required = true)]
    pub names: Vec<String>,
}

/// What `inspect` looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Containers.
    Container,
    /// Images.
    Image,
}

/// Where images come from.
#[derive(Debug, Clone, Default, Args)]
pub struct RegistryArgs {
    /// Which variant of a multi-platform image: os/architecture[/variant]
    #[arg(long, value_name = "PLATFORM", env = "DOCKER_DEFAULT_PLATFORM")]
    pub platform: Option<Platform>,
    /// Registries that may be used over plain HTTP; those on this host's loopback always may
    #[arg(
        long = "insecure-registry",
        value_name = "HOST[:PORT]",
        env = "HULL_INSECURE_REGISTRIES",
        value_delimiter = ','
    )]
    pub insecure_registries: Vec<String>,
}

/// `hull pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// Only print the name of the image
    #[arg(short, long)]
    pub quiet: bool,
    /// Where from.
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// The image: [registry/]name[:tag][@digest]
    pub image: String,
}

/// `hull images`.
#[derive(Debug, Args)]
pub struct ImagesArgs {
    /// Only show ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Do not shorten ids
    #[arg(long)]
    pub no_trunc: bool,
    /// Show digests
    #[arg(long)]
    pub digests: bool,
    /// How to print the list
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Only show images of this repository, or this repository:tag
    pub repository: Option<String>,
}

/// `hull rmi`.
#[derive(Debug, Args)]
pub struct RmiArgs {
    /// Remove an image that stopped containers were made from; do not complain about one that does not exist
    #[arg(short, long)]
    pub force: bool,
    /// The images
    #[arg(required = true)]
    pub images: Vec<String>,
}

/// `hull load`.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// An OCI layout directory, an OCI archive or a docker archive
    #[arg(short, long, value_name = "PATH")]
    pub input: PathBuf,
    /// Only print what was loaded
    #[arg(short, long)]
    pub quiet: bool,
}

/// `hull check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Look also whether the containerd that runs here finds Hull, and whether its settings fit
    #[arg(long)]
    pub containerd: bool,
    /// Boot a VM, and tell what a pod takes beside the memory of its containers
    #[arg(long)]
    pub overhead: bool,
    /// How to print the checks
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// `hull metrics`.
#[derive(Debug, Args)]
pub struct MetricsArgs {
    /// Serve them at http://ADDRESS:PORT/metrics instead, until ended
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
}

/// `hull debug`.
#[derive(Debug, Args)]
pub struct DebugArgs {
    /// A container or a pod, also of containerd: its name or id, or the beginning of its id
    pub pod: String,
    /// What is asked; without it, lines of standard input are. "help" tells what can be
    #[arg(trailing_var_arg = true)]
    pub command: Vec<String>,
}

/// `hull version`.
#[derive(Debug, Args)]
pub struct VersionArgs {
    /// How to print the version
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// `hull release-network`.
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// The container's bundle
    pub bundle: PathBuf,
}

/// `hull completion`.
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Parses the command line. `Err` is the end of the program: help or version was asked for, or the line is wrong and a
/// reason is on stderr.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, ExitCode> {
    Cli::try_parse_from(arguments).map_err(|error| {
        if !error.use_stderr() {
            // Help and version: clap writes them to stdout. If that fails there is nobody to tell.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        error::report_usage(&error);
        ExitCode::from(ENGINE_FAILURE)
    })
}

/// The command line's description, for completion scripts.
pub fn description() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &[&str]) -> Cli {
        Cli::try_parse_from(line).unwrap()
    }

    #[test]
    fn the_description_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_after_the_image_belong_to_the_command() {
        let cli = parsed(&["hull", "run", "-it", "--rm", "debian", "-i", "--rm", "-x"]);
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert!(run.interactive && run.tty && run.rm && !run.detach);
        assert_eq!(run.image_and_command, ["debian", "-i", "--rm", "-x"]);
    }

    #[test]
    fn an_unknown_flag_is_not_taken_for_an_image() {
        assert!(Cli::try_parse_from(["hull", "run", "--frobnicate", "debian"]).is_err());
        assert!(Cli::try_parse_from(["hull", "exec", "-q", "c", "ls"]).is_err());
    }

    #[test]
    fn exec_keeps_the_commands_flags() {
        let Command::Exec(exec) = parsed(&["hull", "exec", "-u", "1", "c", "ls", "-t", "-u"]).command else {
            panic!("not exec")
        };
        assert_eq!(exec.container_and_command, ["c", "ls", "-t", "-u"]);
        assert!(!exec.tty);
    }

    #[test]
    fn h_is_the_hostname_in_run() {
        let Command::Run(run) = parsed(&["hull", "run", "-h", "box", "debian"]).command else {
            panic!("not run")
        };
        assert_eq!(run.hostname.as_deref(), Some("box"));
    }
}
