//! From what the user asks and what the image says to an OCI runtime specification (runtime-spec 1.2, `config.json`).
//!
//! Pure: nothing here touches a file, a process or the network, except that environment files are read in `env`.

use std::collections::HashMap;
use std::path::Path;

use hull_shim::record::annotation;
use oci_spec::OciSpecError;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    BoxBuilder, HookBuilder, HooksBuilder, LinuxBuilder, LinuxCpuBuilder, LinuxMemoryBuilder,
    LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder, PosixRlimitBuilder, Process, ProcessBuilder,
    RootBuilder, Spec, SpecBuilder, UserBuilder,
};

mod binds;
pub mod capabilities;
mod command;
mod defaults;
mod devices;
pub mod env;
mod limits;
pub mod seccomp;
#[cfg(test)]
mod tests;
pub mod user;
mod vm;

pub use binds::{Absent, Bind, MountFlag, VolumeFlag};
pub use devices::{Device, DeviceFlag};
pub use limits::{OptionError, Rlimit, SecurityOption, Tmpfs, label, signal};
pub use vm::{Lifecycle, VmSize, VmSizeError};

use crate::quantity::{Bytes, Cpus, PidsLimit};
use capabilities::CapabilitySet;
use env::{Change, Environment};
use seccomp::Seccomp;
use user::Identity;

/// Why no specification can be made.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Nothing to run.
    #[error(transparent)]
    NoCommand(#[from] command::NoCommand),
    /// The working directory.
    #[error("the working directory {0:?} is not an absolute path")]
    WorkingDirectory(String),
    /// The host name.
    #[error("{0:?} is not a host name: use 1 to 63 letters, digits, dots and hyphens")]
    Hostname(String),
    /// The kernel ends strings at a NUL.
    #[error("an argument contains a NUL character")]
    Nul,
    /// The memory limit is below what docker takes too.
    #[error("the minimum memory limit is 6m")]
    LittleMemory,
    /// A size that the VM cannot have.
    #[error(transparent)]
    VmSize(#[from] VmSizeError),
    /// `--security-opt seccomp=FILE`.
    #[error(transparent)]
    Seccomp(#[from] seccomp::ProfileError),
    /// The builder missed something.
    #[error("the container's specification is not complete")]
    Builder(#[from] OciSpecError),
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// Whether the process has a terminal, and how large it is at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terminal {
    /// Pipes.
    None,
    /// A terminal; the size is unknown when Hull itself has none.
    Sized(Option<WindowSize>),
}

/// What a container shall be, everything parsed and resolved.
#[derive(Debug, Clone)]
pub struct ContainerRequest<'a> {
    /// 64 hexadecimal digits.
    pub id: &'a str,
    /// The image's configuration.
    pub image: &'a ImageConfiguration,
    /// `--entrypoint`.
    pub entrypoint: Option<&'a str>,
    /// What stands behind the image's name.
    pub command: &'a [String],
    /// The resolved user.
    pub identity: Identity,
    /// The user's changes of the environment.
    pub environment: Vec<Change>,
    /// `-w`.
    pub workdir: Option<&'a str>,
    /// `-t`.
    pub terminal: Terminal,
    /// `-h`.
    pub hostname: Option<&'a str>,
    /// `-m`.
    pub memory: Option<Bytes>,
    /// `--cpus`.
    pub cpus: Option<Cpus>,
    /// `--pids-limit`.
    pub pids: PidsLimit,
    /// `--read-only`.
    pub root: RootAccess,
    /// `--shm-size`.
    pub shm_size: Bytes,
    /// `--tmpfs`.
    pub tmpfs: &'a [Tmpfs],
    /// The path of the network namespace; a new one with nothing in it where there is none.
    pub network: Option<&'a Path>,
    /// Files of the bundle, and where they are in the container unless the user mounts something else there.
    pub files: &'a [(&'a str, &'a str)],
    /// `-v`, `--mount`, with absolute sources.
    pub binds: &'a [Bind],
    /// `--device`.
    pub devices: &'a [Device],
    /// `--ulimit`.
    pub rlimits: &'a [Rlimit],
    /// `--privileged`.
    pub privileges: Privileges,
    /// `--cap-add`, `--cap-drop`.
    pub capabilities: CapabilitySet,
    /// `--security-opt`.
    pub security: &'a [SecurityOption],
    /// Which system calls it may make.
    pub seccomp: &'a Seccomp,
    /// The VM around the container.
    pub vm: VmSize,
    /// Who cleans up.
    pub lifecycle: Lifecycle,
}

/// Whether the container may write to its root file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootAccess {
    /// It may not.
    ReadOnly,
    /// It may; the image itself stays as it is.
    ReadWrite,
}

/// What stands between the container and its VM's kernel. The VM itself confines both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privileges {
    /// What docker gives by default.
    Usual,
    /// Nothing (`--privileged`): all devices of the VM, no path hidden or read-only.
    All,
}

/// Makes the specification.
pub fn container(request: &ContainerRequest<'_>) -> Result<Spec, SpecError> {
    let hostname = hostname(request)?;
    let mut mounts = defaults::mounts(request.shm_size, request.privileges)?;
    for tmpfs in request.tmpfs {
        mounts.retain(|mount| mount.destination().as_os_str() != tmpfs.path.as_str());
        mounts.push(defaults::mount("tmpfs", &tmpfs.path, "tmpfs", tmpfs.options.clone())?);
    }
    for (name, target) in request.files {
        let options = ["rbind", "rprivate", "rw"].map(str::to_owned).into();
        mounts.push(defaults::mount(name, target, "bind", options)?);
    }
    for bind in request.binds {
        mounts.retain(|mount| mount.destination().as_os_str() != bind.target.as_str());
        let access = if bind.access == RootAccess::ReadOnly { "ro" } else { "rw" };
        let options = ["rbind", "rprivate", access].map(str::to_owned).into();
        mounts.push(defaults::mount(&bind.source.to_string_lossy(), &bind.target, "bind", options)?);
    }
    let process = first_process(request, &hostname)?;
    let bounding = process.capabilities().as_ref().and_then(|sets| sets.bounding().clone());
    let mut linux = LinuxBuilder::default()
        .namespaces(defaults::namespaces(request.network)?)
        .resources(resources(request)?)
        .masked_paths(defaults::masked_paths(request.privileges))
        .readonly_paths(defaults::readonly_paths(request.privileges))
        .cgroups_path(format!("/hull/{}", request.id))
        .build()?;
    devices::add(&mut linux, request.devices)?;
    linux.set_seccomp(request.seccomp.resolve(&bounding.unwrap_or_default())?);
    let mut annotations: HashMap<String, String> = request.vm.annotations().into();
    annotations.insert(Lifecycle::ANNOTATION.to_owned(), request.lifecycle.as_str().to_owned());
    if request.privileges == Privileges::All {
        annotations.insert(annotation::DEVICES.to_owned(), annotation::DEVICES_OF_GUEST.to_owned());
    }
    let root = RootBuilder::default()
        .path(defaults::root_path())
        .readonly(request.root == RootAccess::ReadOnly)
        .build()?;
    Ok(SpecBuilder::default()
        .version("1.2.0")
        .root(root)
        .hostname(hostname.clone())
        .mounts(mounts)
        .process(process)
        .linux(linux)
        .annotations(annotations)
        .build()?)
}

/// Has the shim run `hull release-network BUNDLE` when the container has ended (runtime-spec, config.md "Poststop").
pub fn release_at_the_end(spec: &mut Spec, program: &Path, bundle: &Path) -> Result<(), SpecError> {
    let args = [program, Path::new(crate::network::RELEASE), bundle].map(|word| word.display().to_string());
    let hook = HookBuilder::default().path(program).args(args.to_vec()).build()?;
    spec.set_hooks(Some(HooksBuilder::default().poststop(vec![hook]).build()?));
    Ok(())
}

fn hostname(request: &ContainerRequest<'_>) -> Result<String, SpecError> {
    let Some(given) = request.hostname else { return Ok(request.id.chars().take(12).collect()) };
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'-';
    let good = (1..=63).contains(&given.len()) && given.bytes().all(inner) && !given.starts_with(['-', '.']);
    if good { Ok(given.to_owned()) } else { Err(SpecError::Hostname(given.to_owned())) }
}

fn first_process(request: &ContainerRequest<'_>, hostname: &str) -> Result<Process, SpecError> {
    let image = request.image.config().clone().unwrap_or_default();
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let args =
        command::resolve(&list(image.entrypoint()), &list(image.cmd()), request.entrypoint, request.command)?;
    let workdir =
        request.workdir.or(image.working_dir().as_deref()).filter(|dir| !dir.is_empty()).unwrap_or("/");

    let mut environment: Environment =
        [env::DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")].into_iter().collect();
    if request.terminal != Terminal::None {
        environment.set("TERM=xterm".to_owned());
    }
    list(image.env()).into_iter().for_each(|variable| environment.set(variable));
    request.environment.iter().cloned().for_each(|change| environment.apply(change));
    environment.set_default(format!("HOME={}", request.identity.home));

    let rlimits = request
        .rlimits
        .iter()
        .map(|limit| PosixRlimitBuilder::default().typ(limit.kind).soft(limit.soft).hard(limit.hard).build())
        .collect::<Result<Vec<_>, _>>()?;
    let mut process = process(args, &request.identity, environment, workdir, request.terminal)?;
    process.set_capabilities(Some(request.capabilities.for_user(request.identity.uid)?));
    process.set_no_new_privileges(Some(request.security.contains(&SecurityOption::NoNewPrivileges)));
    process.set_rlimits((!rlimits.is_empty()).then_some(rlimits));
    Ok(process)
}

/// The parts that the first process and those of `exec` have in common. Capabilities and limits are left out.
fn process(
    args: Vec<String>,
    identity: &Identity,
    environment: Environment,
    workdir: &str,
    terminal: Terminal,
) -> Result<Process, SpecError> {
    if !workdir.starts_with('/') {
        return Err(SpecError::WorkingDirectory(workdir.to_owned()));
    }
    let variables = environment.into_variables();
    if args.iter().chain(&variables).any(|text| text.contains('\0')) || workdir.contains('\0') {
        return Err(SpecError::Nul);
    }
    let user = UserBuilder::default()
        .uid(identity.uid)
        .gid(identity.gid)
        .additional_gids(identity.groups.clone())
        .build()?;
    let mut process = ProcessBuilder::default()
        .args(args)
        .env(variables)
        .cwd(workdir)
        .user(user)
        .terminal(terminal != Terminal::None);
    if let Terminal::Sized(Some(size)) = terminal {
        process = process.console_size(
            BoxBuilder::default().height(u64::from(size.rows)).width(u64::from(size.columns)).build()?,
        );
    }
    let mut process = process.build()?;
    // What the builder puts in where nothing was said is meant for another kind of container.
    process.set_capabilities(None).set_rlimits(None).set_no_new_privileges(None);
    Ok(process)
}

/// What `exec` changes of the container's first process.
#[derive(Debug, Clone)]
pub struct ExecRequest<'a> {
    /// The arguments, at least one.
    pub args: Vec<String>,
    /// Another user, resolved.
    pub identity: Option<Identity>,
    /// The user's changes of the environment.
    pub environment: Vec<Change>,
    /// `-w`.
    pub workdir: Option<&'a str>,
    /// `-t`.
    pub terminal: Terminal,
    /// `--privileged`: every capability. Nothing else about the container changes.
    pub privileges: Privileges,
}

/// The process of an `exec`: the first process's environment, directory and bounds, with the user's changes.
pub fn exec(first: &Process, request: ExecRequest<'_>) -> Result<Process, SpecError> {
    let mut environment: Environment = first.env().clone().unwrap_or_default().into_iter().collect();
    let other_user = request.identity.is_some();
    let identity = request.identity.unwrap_or_else(|| Identity {
        uid: first.user().uid(),
        gid: first.user().gid(),
        groups: first.user().additional_gids().clone().unwrap_or_default(),
        home: "/".to_owned(),
    });
    if other_user {
        environment.set(format!("HOME={}", identity.home));
    }
    if request.terminal != Terminal::None {
        environment.set_default("TERM=xterm".to_owned());
    }
    request.environment.into_iter().for_each(|change| environment.apply(change));
    let first_dir = first.cwd().to_string_lossy();
    let workdir = request.workdir.unwrap_or(&first_dir);
    let mut process = process(request.args, &identity, environment, workdir, request.terminal)?;
    let capabilities = match request.privileges {
        Privileges::All => Some(CapabilitySet::all().for_user(identity.uid)?),
        Privileges::Usual => {
            let mut capabilities = first.capabilities().clone();
            if let Some(capabilities) = &mut capabilities {
                // Root may hold what the container is bounded by, others start with nothing.
                let held = if identity.uid == 0 {
                    capabilities.bounding().clone()
                } else {
                    Some(Default::default())
                };
                capabilities.set_effective(held.clone()).set_permitted(held);
            }
            capabilities
        }
    };
    process.set_capabilities(capabilities);
    process.set_no_new_privileges(first.no_new_privileges());
    process.set_rlimits(first.rlimits().clone());
    Ok(process)
}

fn resources(request: &ContainerRequest<'_>) -> Result<LinuxResources, SpecError> {
    let mut resources = LinuxResourcesBuilder::default()
        .devices(defaults::device_rules(request.privileges)?)
        .pids(LinuxPidsBuilder::default().limit(request.pids.to_spec()).build()?);
    if let Some(Bytes(bytes)) = request.memory {
        if bytes < 6 << 20 {
            return Err(SpecError::LittleMemory);
        }
        let limit = i64::try_from(bytes).map_err(|_| VmSizeError::Memory)?;
        resources = resources.memory(LinuxMemoryBuilder::default().limit(limit).swap(limit).build()?);
    }
    if let Some(cpus) = request.cpus {
        let quota = i64::try_from(cpus.quota_us()).map_err(|_| VmSizeError::Cpus)?;
        resources = resources.cpu(LinuxCpuBuilder::default().quota(quota).period(Cpus::PERIOD_US).build()?);
    }
    Ok(resources.build()?)
}
