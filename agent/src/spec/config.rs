//! The whole config.json.

use std::collections::BTreeMap;
use std::ffi::CString;

use super::devices::{BlockNumbers, DeviceRules};
use super::hooks::Hooks;
use super::mounts::{MountPoint, MountSpec, SharedTmpfs, Source, root_propagation};
use super::namespaces::{Namespaces, Origin, Statements};
use super::process::{Console, ProcessSpec};
use super::resources::Limits;
use super::scheduling;
use super::seccomp::SeccompFilter;
use super::time;
use super::users::IdMappings;
use super::{SpecError, c_string, schema};
use crate::sys::mount::ATTR_RDONLY;

/// A container as its config.json describes it. It always has mount and cgroup namespaces of its own.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    /// The init process.
    pub process: ProcessSpec,
    /// Whether the root file system is mounted read-only.
    pub root_readonly: bool,
    /// For a UTS namespace that is not the guest's.
    pub hostname: Option<CString>,
    /// For a UTS namespace that is not the guest's.
    pub domainname: Option<CString>,
    /// In order.
    pub mounts: Vec<MountSpec>,
    /// Where they come from.
    pub namespaces: Namespaces,
    /// Its ids, for a user namespace that is not the guest's. One that is its own or the pod's has them.
    pub users: Option<IdMappings>,
    /// For a time namespace of its own: the offsets of its clocks, as the kernel takes them.
    pub time: Option<Vec<u8>>,
    /// Execution domain, for every process.
    pub personality: Option<u64>,
    /// Besides the default devices.
    pub devices: Vec<DeviceNode>,
    /// Relative to the root.
    pub masked_paths: Vec<CString>,
    /// Relative to the root.
    pub readonly_paths: Vec<CString>,
    /// Kernel parameters of the container's namespaces.
    pub sysctls: Vec<Sysctl>,
    /// `MS_SLAVE` and so on for the root, with `MS_REC` for the whole tree; 0 leaves every mount as its own options made it.
    pub propagation: u64,
    /// Resource limits.
    pub limits: Limits,
    /// Which devices may be used.
    pub device_rules: DeviceRules,
    /// Those that run here.
    pub hooks: Hooks,
    /// For the hooks to read.
    pub annotations: BTreeMap<String, String>,
    /// For every process.
    pub seccomp: Option<SeccompFilter>,
}

/// A device node to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceNode {
    /// Where.
    pub path: MountPoint,
    /// Type and permission bits.
    pub mode: u32,
    /// Major and minor number as the kernel packs them.
    pub device: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A kernel parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// Below /proc: `sys/net/ipv4/ip_forward`.
    pub path: CString,
    /// What is written.
    pub value: Vec<u8>,
}

impl ContainerSpec {
    /// Makes these nodes too, but for those whose places the spec has a node for.
    pub fn add_devices(&mut self, nodes: Vec<DeviceNode>) {
        let listed = self.devices.len();
        for node in nodes {
            if !self.devices[..listed].iter().any(|own| own.path == node.path) {
                self.devices.push(node);
            }
        }
    }

    /// Has nodes and rules that name block devices of the host speak of the disks that stand for them.
    pub fn translate_devices(&mut self, disks: &[BlockNumbers]) {
        for node in self.devices.iter_mut().filter(|node| node.mode & libc::S_IFMT == libc::S_IFBLK) {
            let number = |(major, minor): (u32, u32)| libc::makedev(major, minor);
            if let Some(disk) = disks.iter().find(|disk| number(disk.host) == node.device) {
                node.device = number(disk.guest);
            }
        }
        self.device_rules.translate(disks);
    }

    /// Whether the pod's volumes must be mounted first.
    pub fn uses_volumes(&self) -> bool {
        self.mounts.iter().any(|mount| matches!(mount.source, Source::Volume(_)))
    }

    /// The pod's tmpfs that must be mounted first.
    pub fn shared_tmpfs(&self) -> impl Iterator<Item = &SharedTmpfs> {
        self.mounts.iter().filter_map(|mount| match &mount.source {
            Source::Shared(shared) => Some(shared),
            Source::New(_) | Source::Volume(_) | Source::File(_) => None,
        })
    }

    /// Whether the container may make cgroups of its own below the one it is given.
    pub fn delegates_cgroup(&self) -> bool {
        self.mounts.iter().any(|mount| match &mount.source {
            Source::New(filesystem) => {
                filesystem.kind.as_c_str() == c"cgroup2" && !mount.attributes.all_set(ATTR_RDONLY)
            }
            Source::Volume(_) | Source::Shared(_) | Source::File(_) => false,
        })
    }

    /// Parses config.json, whose seccomp profile comes compiled and whose namespaces' origins are stated beside it. Also returns
    /// remarks for the log.
    pub fn from_json(
        json: &[u8],
        seccomp: Option<SeccompFilter>,
        statements: &Statements,
    ) -> Result<(Self, Vec<String>), SpecError> {
        let config: schema::Config = serde_json::from_slice(json)?;
        if !config.oci_version.starts_with("1.") {
            return Err(SpecError::unsupported(
                "ociVersion",
                format!("{:?} is not a version 1 of the specification", config.oci_version),
            ));
        }
        let mut notes = Vec::new();
        let linux = config.linux;
        refuse_unsupported(&linux)?;
        let hooks = Hooks::parse(&config.hooks, &mut notes)?;
        if linux.seccomp.is_some() && seccomp.is_none() {
            return Err(SpecError::unsupported("linux.seccomp", "the agent takes compiled filters only"));
        }
        if !linux.mount_label.is_empty() {
            notes.push(format!("mount label {:?} ignored: the guest has no SELinux", linux.mount_label));
        }
        if linux.intel_rdt.is_some() {
            notes.push("linux.intelRdt ignored: it concerns the host".to_owned());
        }
        let namespaces = Namespaces::parse(&linux.namespaces, statements)?;
        if namespaces.uts == Origin::Guest && !(config.hostname.is_empty() && config.domainname.is_empty()) {
            return Err(SpecError::invalid("hostname", "needs a uts namespace that is not the guest's"));
        }
        let offsets = time::offsets(&linux.time_offsets)?;
        if !offsets.is_empty() && namespaces.time == Origin::Guest {
            return Err(SpecError::invalid("linux.timeOffsets", "needs a time namespace of its own"));
        }
        let users = users(&linux, &namespaces)?;
        let process = ProcessSpec::parse(config.process, &mut notes)?;
        let mounts = config.mounts.iter().map(MountSpec::parse).collect::<Result<Vec<_>, _>>()?;
        let has_devpts = mounts.iter().any(|mount| mount.target.path() == c"dev/pts");
        if process.console != Console::Pipes && !has_devpts {
            return Err(SpecError::invalid("process.terminal", "needs a devpts mounted on /dev/pts"));
        }
        let name = |field, text: &str| (!text.is_empty()).then(|| c_string(field, text)).transpose();
        let paths = |field, list: &[String]| {
            list.iter()
                .map(|path| MountPoint::parse(field, path).map(|point| point.path().to_owned()))
                .collect::<Result<Vec<_>, _>>()
        };
        Ok((
            Self {
                process,
                root_readonly: config.root.readonly,
                hostname: name("hostname", &config.hostname)?,
                domainname: name("domainname", &config.domainname)?,
                mounts,
                users,
                time: (namespaces.time == Origin::Own).then_some(offsets),
                personality: linux.personality.as_ref().map(scheduling::personality).transpose()?,
                devices: linux.devices.iter().map(DeviceNode::parse).collect::<Result<_, _>>()?,
                masked_paths: paths("linux.maskedPaths", &linux.masked_paths)?,
                readonly_paths: paths("linux.readonlyPaths", &linux.readonly_paths)?,
                sysctls: linux
                    .sysctl
                    .iter()
                    .map(|(name, value)| Sysctl::parse(name, value, &namespaces))
                    .collect::<Result<_, _>>()?,
                propagation: root_propagation(&linux.rootfs_propagation)?,
                device_rules: DeviceRules::parse(
                    linux.resources.as_ref().map_or(&[], |resources| resources.devices.as_slice()),
                )?,
                limits: linux
                    .resources
                    .map(|resources| Limits::parse(&resources, &mut notes))
                    .transpose()?
                    .unwrap_or_default(),
                namespaces,
                hooks,
                annotations: config.annotations,
                seccomp,
            },
            notes,
        ))
    }
}

/// The mappings, checked against where the user namespace comes from.
fn users(linux: &schema::Linux, namespaces: &Namespaces) -> Result<Option<IdMappings>, SpecError> {
    const FIELD: &str = "linux.uidMappings";
    let users = IdMappings::parse(FIELD, &linux.uid_mappings, &linux.gid_mappings)?;
    match (&namespaces.user, &users) {
        (Origin::Guest, Some(_)) => Err(SpecError::invalid(FIELD, "needs a user namespace")),
        (Origin::Own | Origin::Pod, None) => {
            Err(SpecError::invalid(FIELD, "a user namespace needs mappings of user and group ids"))
        }
        (_, Some(users)) if users.root().is_none() => {
            Err(SpecError::invalid(FIELD, "user and group 0 of the container must be mapped"))
        }
        _ => Ok(users),
    }
}

fn refuse_unsupported(linux: &schema::Linux) -> Result<(), SpecError> {
    if !linux.net_devices.is_empty() {
        const WHY: &str = "a network device of the host cannot move into a VM; one in the pod's network namespace is joined to it";
        return Err(SpecError::unsupported("linux.netDevices", WHY));
    }
    if linux.memory_policy.is_some() {
        const WHY: &str = "a VM has one memory node, so there is none to choose";
        return Err(SpecError::unsupported("linux.memoryPolicy", WHY));
    }
    Ok(())
}

impl DeviceNode {
    fn parse(device: &schema::Device) -> Result<Self, SpecError> {
        const FIELD: &str = "linux.devices";
        let kind = match device.kind.as_str() {
            "c" | "u" => libc::S_IFCHR,
            "b" => libc::S_IFBLK,
            "p" => libc::S_IFIFO,
            other => {
                return Err(SpecError::invalid(
                    FIELD,
                    format!("{}: {other:?} is not a device type", device.path),
                ));
            }
        };
        let number = |number: i64| {
            u32::try_from(number).map_err(|_| {
                SpecError::invalid(FIELD, format!("{}: {number} is not a device number", device.path))
            })
        };
        let permissions = device.file_mode.unwrap_or(0o666);
        if permissions & !(libc::S_IFMT | 0o7777) != 0 {
            return Err(SpecError::invalid(
                FIELD,
                format!("{}: {permissions:o} is not a file mode", device.path),
            ));
        }
        Ok(Self {
            path: MountPoint::parse(FIELD, &device.path)?,
            mode: kind | (permissions & 0o7777),
            device: libc::makedev(number(device.major)?, number(device.minor)?),
            uid: device.uid,
            gid: device.gid,
        })
    }
}

impl Sysctl {
    /// Only parameters that belong to a namespace of the container's, or one that it shares with other containers, may be set.
    fn parse(name: &str, value: &str, namespaces: &Namespaces) -> Result<Self, SpecError> {
        const FIELD: &str = "linux.sysctl";
        const IPC: [&str; 7] = [
            "kernel.msgmax",
            "kernel.msgmnb",
            "kernel.msgmni",
            "kernel.sem",
            "kernel.shmall",
            "kernel.shmmax",
            "kernel.shmmni",
        ];
        // runc accepts both separators; with slashes, a dot belongs to an interface's name.
        let dotted =
            if name.contains('/') { name.replace('.', "\u{0}").replace('/', ".") } else { name.to_owned() };
        let owner = if IPC.contains(&dotted.as_str())
            || dotted == "kernel.shm_rmid_forced"
            || dotted.starts_with("fs.mqueue.")
        {
            Some(("ipc", &namespaces.ipc))
        } else if dotted.starts_with("net.") {
            Some(("network", &namespaces.network))
        } else if dotted == "kernel.domainname" {
            Some(("uts", &namespaces.uts))
        } else {
            None
        };
        match owner {
            Some((kind, Origin::Guest)) => {
                return Err(SpecError::invalid(
                    FIELD,
                    format!("{name}: needs a {kind} namespace of its own"),
                ));
            }
            Some(_) => {}
            None => {
                return Err(SpecError::invalid(
                    FIELD,
                    format!("{name}: does not belong to a namespace, so it cannot be set"),
                ));
            }
        }
        Ok(Self { path: sysctl_path(FIELD, name)?, value: value.as_bytes().to_vec() })
    }

    /// A parameter of the whole guest: any.
    pub fn of_pod(name: &str, value: &str) -> Result<Self, SpecError> {
        Ok(Self { path: sysctl_path("sysctls", name)?, value: value.as_bytes().to_vec() })
    }
}

/// The file of a kernel parameter, below /proc.
fn sysctl_path(field: &'static str, name: &str) -> Result<CString, SpecError> {
    let path = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err(SpecError::invalid(field, format!("{name:?} is not the name of a kernel parameter")));
    }
    c_string(field, &format!("sys/{path}"))
}
