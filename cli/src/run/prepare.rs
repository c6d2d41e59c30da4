//! From the arguments of `run` to a bundle on disk. Whatever is wrong with them is found here, before anything is started.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::thread;

use hull_images::Image;
use hull_shim::client::messages::Mount;

use super::image;
use crate::cli::{Global, RunArgs};
use crate::error::CliError;
use crate::network;
use crate::progress::Volume;
use crate::quantity::PidsLimit;
use crate::spec::capabilities::CapabilitySet;
use crate::spec::seccomp::Seccomp;
use crate::spec::{
    self, Absent, Bind, ContainerRequest, Device, DeviceFlag, Lifecycle, MountFlag, Privileges, RootAccess,
    SecurityOption, Terminal, VmSize, VolumeFlag, env,
};
use crate::state::{BundleLock, Container, ContainerId, ContainerRecord, Name, State};
use crate::{paths, terminal};

const SIGTERM: u32 = 15;

/// A container that is ready to be started.
#[derive(Debug)]
pub struct Prepared {
    /// Where it is.
    pub container: Container,
    /// Where all are.
    pub state: State,
    /// Held until it runs.
    pub lock: BundleLock,
    /// Its root file system.
    pub rootfs: Vec<Mount>,
}

/// Checks everything, gets the image and writes the bundle.
pub fn prepare(global: &Global, args: &RunArgs) -> Result<Prepared, CliError> {
    check(args)?;
    let (image_name, command) =
        args.image_and_command.split_first().ok_or_else(|| CliError::NoSuchImage(String::new()))?;
    let name = args.name.as_deref().map(str::parse::<Name>).transpose()?;
    let privileges = if args.privileged { Privileges::All } else { Privileges::Usual };
    let capabilities = capabilities(args, privileges)?;
    let seccomp = seccomp(&args.security_opt, privileges)?;
    let vm = VmSize::for_limits(args.memory, args.cpus, host_cpus())?;
    let given_signal = args.stop_signal.as_deref().map(spec::signal).transpose()?;
    let environment =
        env::changes(&args.environment.env_files, &args.environment.env, |name| std::env::var(name).ok())?;
    if let Some(path) = &args.cidfile
        && path.exists()
    {
        return Err(CliError::CidFile {
            path: path.clone(),
            source: std::io::ErrorKind::AlreadyExists.into(),
        });
    }
    let binds = binds(args)?;
    let devices = args.device.iter().map(device).collect::<Result<Vec<_>, _>>()?;
    let network = network::plan(&args.network)?;
    let state = paths::state(global)?;
    let store = paths::store(global)?;
    let volume = if args.quiet { Volume::Silent } else { Volume::Normal };
    let image = image::obtain(&store, image_name, args.pull, &args.registry, volume)?;

    let config = image.config.config().clone().unwrap_or_default();
    let user = args.user.as_deref().or(config.user().as_deref()).unwrap_or_default();
    let identity = image::user_database(&image)?.resolve(user, &args.group_add)?;
    let stop_signal = match given_signal {
        Some(signal) => signal,
        // What an image says wrongly does not stop it from running.
        None => config.stop_signal().as_deref().and_then(|text| spec::signal(text).ok()).unwrap_or(SIGTERM),
    };
    let id = ContainerId::random().map_err(CliError::io("cannot make an id"))?;
    let namespace = network.namespace(id.as_str());
    let spec = spec::container(&ContainerRequest {
        id: id.as_str(),
        image: &image.config,
        entrypoint: args.entrypoint.as_deref(),
        command,
        identity,
        environment,
        workdir: args.workdir.as_deref(),
        terminal: if args.tty { Terminal::Sized(terminal::window_size()) } else { Terminal::None },
        hostname: args.hostname.as_deref(),
        memory: args.memory,
        cpus: args.cpus,
        pids: args.pids_limit.unwrap_or(PidsLimit::DEFAULT),
        root: if args.read_only { RootAccess::ReadOnly } else { RootAccess::ReadWrite },
        shm_size: args.shm_size,
        tmpfs: &args.tmpfs,
        network: namespace.as_deref(),
        files: &network::FILES,
        binds: &binds,
        devices: &devices,
        rlimits: &args.ulimit,
        privileges,
        capabilities,
        security: &args.security_opt,
        seccomp: &seccomp,
        vm,
        lifecycle: match (args.detach, args.rm) {
            (false, _) => Lifecycle::Managed,
            (true, false) => Lifecycle::Keep,
            (true, true) => Lifecycle::Remove,
        },
    })?;
    let mut labels: BTreeMap<String, String> =
        config.labels().clone().unwrap_or_default().into_iter().collect();
    labels.extend(args.labels.iter().map(|text| spec::label(text)));
    let record = ContainerRecord {
        id,
        name: String::new(),
        image: image_name.clone(),
        image_id: image.id.to_string(),
        created: crate::output::time::now(),
        command: spec.process().as_ref().and_then(|process| process.args().clone()).unwrap_or_default(),
        tty: args.tty,
        interactive: args.interactive,
        detached: args.detach,
        auto_remove: args.rm,
        labels,
        stop_signal,
        stop_timeout: args.stop_timeout,
    };
    let mut spec = spec;
    if let network::Plan::Bridge(_) = network {
        // The bundle's place is where the hook finds what to give back.
        let bundle = state.bundle(&record.id);
        let program = std::env::current_exe().map_err(CliError::io("cannot find hull's own program"))?;
        spec::release_at_the_end(&mut spec, &program, &bundle)?;
    }
    let hostname = spec.hostname().clone().unwrap_or_default();
    let (container, lock) = state.create(record, name.as_ref(), &serde_json::to_vec_pretty(&spec)?)?;
    let prepared = Prepared { container, state, lock, rootfs: vec![rootfs(&image)] };
    let bundle = &prepared.container.bundle;
    if let Err(error) = network.set_up(bundle, prepared.container.id.as_str(), &hostname, &args.network) {
        give_up(&prepared);
        return Err(error.into());
    }
    if let Some(path) = &args.cidfile {
        write_cidfile(path, prepared.container.id.as_str()).map_err(|source| {
            give_up(&prepared);
            CliError::CidFile { path: path.clone(), source }
        })?;
    }
    Ok(prepared)
}

/// Takes back what was made; the error that led here is the one to report.
fn give_up(prepared: &Prepared) {
    prepared.container.release_network();
    if let Err(error) = prepared.state.remove(&prepared.container) {
        crate::error::say(&crate::error::describe(&error));
    }
}

/// What does not fit together.
fn check(args: &RunArgs) -> Result<(), CliError> {
    if let Some(flag) = args.unsupported.first() {
        return Err(CliError::Unsupported(flag));
    }
    if args.tty && args.interactive && !args.detach && !terminal::stdin_is_terminal() {
        return Err(CliError::NotATerminal);
    }
    Ok(())
}

/// With every privilege, a name that is none is still an error, and nothing is dropped, as docker has it.
fn capabilities(args: &RunArgs, privileges: Privileges) -> Result<CapabilitySet, CliError> {
    let named = CapabilitySet::resolve(&args.cap_add, &args.cap_drop)?;
    Ok(if privileges == Privileges::All { CapabilitySet::all() } else { named })
}

/// The last word counts. A profile that is asked for holds with every privilege too.
fn seccomp(options: &[SecurityOption], privileges: Privileges) -> Result<Seccomp, CliError> {
    /// No profile is longer.
    const PROFILE_MAX: u64 = 1 << 20;
    let chosen = options.iter().rev().find(|option| !matches!(option, SecurityOption::NoNewPrivileges));
    match chosen {
        None if privileges == Privileges::All => Ok(Seccomp::Unconfined),
        None | Some(SecurityOption::SeccompDefault | SecurityOption::NoNewPrivileges) => Ok(Seccomp::Default),
        Some(SecurityOption::SeccompUnconfined) => Ok(Seccomp::Unconfined),
        Some(SecurityOption::SeccompFile(path)) => {
            let mut json = String::new();
            fs::File::open(path)
                .and_then(|file| file.take(PROFILE_MAX).read_to_string(&mut json))
                .map_err(CliError::io(format!("cannot read the seccomp profile {}", path.display())))?;
            Ok(Seccomp::Profile(json))
        }
    }
}

/// What of the host's files the container shall have, by absolute paths.
fn binds(args: &RunArgs) -> Result<Vec<Bind>, CliError> {
    let volumes = args.volume.iter().map(|VolumeFlag(bind)| bind);
    let mounts = args.mount.iter().map(|MountFlag(bind)| bind);
    volumes
        .chain(mounts)
        .map(|bind| {
            let failed = |source| CliError::Bind { path: bind.source.clone(), source };
            let source = std::path::absolute(&bind.source).map_err(failed)?;
            if bind.absent == Absent::Make {
                match fs::create_dir_all(&source) {
                    // A file, which is as good.
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                    made => made.map_err(failed)?,
                }
            }
            // Seen here, it is an error before anything is started.
            fs::metadata(&source).map_err(failed)?;
            if source.to_str().is_none() {
                return Err(failed(std::io::ErrorKind::InvalidFilename.into()));
            }
            Ok(Bind { source, ..bind.clone() })
        })
        .collect()
}

/// A block device of the host. Seen here, what is none is an error before anything is started.
fn device(flag: &DeviceFlag) -> Result<Device, CliError> {
    let failed = |source| CliError::Device { path: flag.source.clone(), source };
    let found = fs::metadata(&flag.source).map_err(failed)?;
    if !found.file_type().is_block_device() {
        return Err(failed(std::io::Error::other(
            "it is not a block device, and a VM has no other devices of the host",
        )));
    }
    let (number, owner) = (found.rdev(), (found.uid(), found.gid()));
    let number = (libc::major(number), libc::minor(number));
    Ok(Device { flag: flag.clone(), number, mode: found.mode() & 0o777, owner })
}

fn host_cpus() -> u64 {
    thread::available_parallelism().map_or(1, |count| count.get() as u64)
}

/// One read-only disk: the fused index and the layers behind it.
fn rootfs(image: &Image) -> Mount {
    let mut options = vec!["ro".to_owned()];
    options.extend(image.disk.layers.iter().map(|layer| format!("device={}", layer.display())));
    let mut mount = Mount::new();
    mount.type_ = "erofs".to_owned();
    mount.source = image.disk.index.display().to_string();
    mount.options = options;
    mount
}

fn write_cidfile(path: &std::path::Path, id: &str) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(id.as_bytes())
}
