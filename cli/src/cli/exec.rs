//! The arguments of `hull exec`.

use clap::Args;

use super::run::EnvArgs;

/// `hull exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Keep stdin open and forward it
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the process a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Run in the background
    #[arg(short, long)]
    pub detach: bool,
    /// The environment, added to the container's.
    #[command(flatten)]
    pub environment: EnvArgs,
    /// Give the process every capability; devices, hidden paths and the system call filter stay the container's
    #[arg(long)]
    pub privileged: bool,
    /// Working directory of the process
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User, and optionally group: name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// The container, the command to run in it and its arguments
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, value_names = ["CONTAINER", "COMMAND"])]
    pub container_and_command: Vec<String>,
}
