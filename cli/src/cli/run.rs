//! The arguments of `hull run`.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};

use super::RegistryArgs;
use super::unsupported::Unsupported;
use crate::network::NetworkArgs;
use crate::quantity::{Bytes, Cpus, PidsLimit};
use crate::spec::{DeviceFlag, MountFlag, Rlimit, SecurityOption, Tmpfs, VolumeFlag};

/// When `run` asks the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum PullPolicy {
    /// Every time.
    Always,
    /// When the image is not in the store.
    #[default]
    Missing,
    /// Never.
    Never,
}

/// The environment of a process.
#[derive(Debug, Clone, Default, Args)]
pub struct EnvArgs {
    /// Set an environment variable: NAME=VALUE, or NAME to take the value of Hull's own environment
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long = "env-file", value_name = "FILE")]
    pub env_files: Vec<PathBuf>,
}

/// `hull run`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct RunArgs {
    /// Show this help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
    /// Keep stdin open and forward it
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the process a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Run in the background and print the container's id
    #[arg(short, long)]
    pub detach: bool,
    /// Remove the container when it has stopped
    #[arg(long)]
    pub rm: bool,
    /// Name of the container
    #[arg(long)]
    pub name: Option<String>,
    /// The environment.
    #[command(flatten)]
    pub environment: EnvArgs,
    /// Working directory of the process
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User, and optionally group: name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Further groups of the user: name or number
    #[arg(long, value_name = "GROUP")]
    pub group_add: Vec<String>,
    /// Replace the image's entrypoint; "" clears it
    #[arg(long, value_name = "COMMAND")]
    pub entrypoint: Option<String>,
    /// Memory limit, with the suffix b, k, m or g
    #[arg(short, long, value_name = "BYTES")]
    pub memory: Option<Bytes>,
    /// Number of CPUs, as in 0.5
    #[arg(long, value_name = "N")]
    pub cpus: Option<Cpus>,
    /// The most processes; -1 for no limit [default: 4096]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub pids_limit: Option<PidsLimit>,
    /// Mount the image read-only
    #[arg(long)]
    pub read_only: bool,
    /// Mount a folder or a file of the host: HOST:PATH[:ro]
    #[arg(short, long, value_name = "HOST:PATH[:ro]")]
    pub volume: Vec<VolumeFlag>,
    /// Mount a folder or a file of the host: type=bind,source=HOST,target=PATH[,readonly]
    #[arg(long, value_name = "FIELDS")]
    pub mount: Vec<MountFlag>,
    /// Give a block device of the host: HOST[:PATH][:rwm]
    #[arg(long, value_name = "HOST[:PATH][:rwm]")]
    pub device: Vec<DeviceFlag>,
    /// Mount a tmpfs: /path[:option,...]
    #[arg(long, value_name = "PATH[:OPTIONS]")]
    pub tmpfs: Vec<Tmpfs>,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES", default_value = "64m")]
    pub shm_size: Bytes,
    /// Resource limit: name=soft[:hard], -1 for unlimited
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub ulimit: Vec<Rlimit>,
    /// Give a Linux capability, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_add: Vec<String>,
    /// Take a Linux capability away, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_drop: Vec<String>,
    /// Give every capability, every system call, and the devices of the VM; what is the host's stays out of reach
    #[arg(long)]
    pub privileged: bool,
    /// Security option: no-new-privileges, seccomp=unconfined or seccomp=FILE
    #[arg(long, value_name = "OPTION")]
    pub security_opt: Vec<SecurityOption>,
    /// The network.
    #[command(flatten)]
    pub network: NetworkArgs,
    /// When to pull the image
    #[arg(long, value_enum, default_value_t)]
    pub pull: PullPolicy,
    /// Where images come from.
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// Do not show the progress of a pull
    #[arg(short, long)]
    pub quiet: bool,
    /// Host name in the container
    #[arg(short = 'h', long)]
    pub hostname: Option<String>,
    /// Set a label
    #[arg(short, long = "label", value_name = "KEY[=VALUE]")]
    pub labels: Vec<String>,
    /// Signal that `hull stop` sends first
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// Seconds that `hull stop` waits before it kills
    #[arg(long, value_name = "SECONDS")]
    pub stop_timeout: Option<u32>,
    /// Write the container's id to this file, which must not exist
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// What docker has and Hull has not.
    #[command(flatten)]
    pub unsupported: Unsupported,
    /// The image, the command to run in it and its arguments
    #[arg(required = true, trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"])]
    pub image_and_command: Vec<String>,
}
