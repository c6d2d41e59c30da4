//! The OCI runtime-spec of a container: read from the bundle, asked for the shape of the VM, and translated into what
//! the guest can honour.
//!
//! The translation is one explicit table, [`translate`]: what has no meaning in a VM is stripped with a log line,
//! what would silently change the container's meaning is an error.

mod devices;
mod files;
mod limits;
mod namespaces;
mod network;
mod pod;
mod role;
mod schema;
mod seccomp;
mod shape;
mod translate;
mod volumes;

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use hull_protocol::agent::api::agent::{DeviceNodes, File as GuestFile, Namespaces};
use oci_spec::runtime::LinuxResources;
use ttrpc::proto::Code;

pub use devices::BlockDevice;
pub use files::PodFiles;
pub use limits::{Limits, enough, needed};
pub use namespaces::Issued;
pub use network::NetworkChoice;
pub use pod::{PodSpec, SandboxRequest, check_id};
pub use role::Role;
pub use schema::Spec;
pub use shape::VmShape;
pub use volumes::{Volume, VolumeAccess};

use crate::cgroup::{CgroupPath, CgroupPathError};
use crate::config::{Config, FILE};
use crate::record::{Lifecycle, annotation};
use schema::Process;

/// The longest config.json, in bytes; it must fit in one message to the agent.
const CONFIG_MAX: u64 = 2 << 20;

/// The kernel's limit (`__NEW_UTS_LEN`); an id may be longer.
const HOSTNAME_MAX: usize = 64;

/// The longest word of a client's that an error repeats, in characters.
const WORD_MAX: usize = 256;

/// Why a container's configuration cannot be honoured.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The file cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Too long.
    #[error("{path} is longer than {CONFIG_MAX} bytes", path = .0.display())]
    TooLong(PathBuf),
    /// No runtime-spec.
    #[error("{what} is no valid OCI runtime-spec: {source}")]
    Malformed {
        /// Which document.
        what: &'static str,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// A part without which no container can run.
    #[error("config.json lacks {0}")]
    Missing(&'static str),
    /// An annotation of ours with a value that cannot be right.
    #[error("annotation {name}: {value:?} is not {wanted}")]
    Annotation {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// An annotation of ours that a pod's specification must not carry.
    #[error("annotation {0} is not allowed: an administrator allows it by annotations.allow in {FILE}")]
    NotAllowed(String),
    /// The pod's cgroup.
    #[error("linux.cgroupsPath {path:?} names no cgroup: {source}")]
    Cgroup {
        /// As it is written.
        path: PathBuf,
        /// What is wrong with it.
        source: CgroupPathError,
    },
    /// No description of the pod.
    #[error("the pod to create is not described: options are missing")]
    NoPod,
    /// A description in other words than Kubernetes'.
    #[error("the pod is described by a {0:?}, which is no runtime.v1.PodSandboxConfig")]
    ForeignPod(String),
    /// Its description is too long.
    #[error("the description of the pod is {0} bytes long: too long")]
    PodTooLong(usize),
    /// Its description is damaged.
    #[error("the description of the pod is no valid PodSandboxConfig: {0}")]
    MalformedPod(protobuf::Error),
    /// A pod of another shim.
    #[error("{0:?} is not the id of this shim's pod")]
    ForeignId(String),
    /// The seccomp profile.
    #[error(transparent)]
    Seccomp(#[from] hull_seccomp::Error),
    /// Something that a VM cannot do, at least not yet.
    #[error("{0}")]
    Unsupported(String),
}

impl SpecError {
    /// The status code for the client.
    pub fn code(&self) -> Code {
        match self {
            Self::Unsupported(_) | Self::Seccomp(hull_seccomp::Error::Unsupported { .. }) => {
                Code::UNIMPLEMENTED
            }
            Self::Seccomp(_)
            | Self::Malformed { .. }
            | Self::Missing(_)
            | Self::Annotation { .. }
            | Self::NotAllowed(_)
            | Self::Cgroup { .. }
            | Self::NoPod
            | Self::ForeignPod(_)
            | Self::PodTooLong(_)
            | Self::MalformedPod(_)
            | Self::ForeignId(_)
            | Self::TooLong(_) => Code::INVALID_ARGUMENT,
            Self::Read { .. } => Code::UNKNOWN,
        }
    }
}

/// `config.json` of a bundle, as it is.
pub struct Document {
    spec: Spec,
    id: String,
    /// What its pod gives it.
    files: Vec<GuestFile>,
    /// What the container is to its pod.
    pub role: Role,
}

/// A container's configuration, parsed and checked.
#[derive(Clone, Debug)]
pub struct ContainerConfig {
    /// The runtime-spec as the guest gets it, JSON.
    pub guest_spec: Vec<u8>,
    /// Its seccomp profile, compiled.
    pub seccomp: Option<hull_seccomp::Filter>,
    /// What of the host's files it uses, in the order of their names in the guest.
    pub volumes: Vec<Volume>,
    /// What of the host's block devices it uses.
    pub devices: Vec<BlockDevice>,
    /// Files of its own, which go to the guest.
    pub files: Vec<GuestFile>,
    /// The namespaces that it joins.
    pub namespaces: Namespaces,
    /// The path of the root file system, absolute or below the bundle.
    pub root: PathBuf,
    /// Who ends the pod.
    pub lifecycle: Lifecycle,
    /// Which device nodes it has.
    pub device_nodes: DeviceNodes,
    /// What the size of its VM depends on.
    pub limits: Limits,
}

impl Document {
    /// Reads `config.json` of a bundle.
    pub fn read(bundle: &Path, id: &str) -> Result<Self, SpecError> {
        let path = bundle.join("config.json");
        let failed = |source| SpecError::Read { path: path.clone(), source };
        let mut bytes = Vec::new();
        let file = std::fs::File::open(&path).map_err(failed)?;
        file.take(CONFIG_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > CONFIG_MAX {
            return Err(SpecError::TooLong(path));
        }
        let malformed = |source| SpecError::Malformed { what: "config.json", source };
        let spec: Spec = serde_json::from_slice(&bytes).map_err(malformed)?;
        let role = Role::of(spec.annotations.as_ref(), id)?;
        Ok(Self { spec, id: id.to_owned(), files: Vec::new(), role })
    }

    /// The pod that it stands for.
    pub fn pod(mut self, config: &Config) -> Result<PodSpec, SpecError> {
        Ok(PodSpec {
            shape: self.shape(config)?,
            network: self.network()?,
            sysctls: self.take_network_sysctls()?,
            hostname: self.hostname(),
            cgroup: self.cgroup()?,
        })
    }

    /// Gives the container what its pod has for all of them, where no client has given it that.
    pub fn complete(&mut self, pod: &PodFiles) {
        self.files = pod.give(&mut self.spec);
    }

    /// The VM that it asks for.
    pub fn shape(&self, config: &Config) -> Result<VmShape, SpecError> {
        VmShape::of(&self.spec, &self.role, &config.vm)
    }

    /// Whether it asks for nothing that is the administrator's to choose.
    pub fn check(&self, config: &Config) -> Result<(), SpecError> {
        annotations_allowed(&self.spec, config)
    }

    /// The network that it asks for.
    pub fn network(&self) -> Result<NetworkChoice, SpecError> {
        NetworkChoice::of(&self.spec)
    }

    /// The cgroup on the host that it asks for, which is the pod's.
    pub fn cgroup(&self) -> Result<Option<CgroupPath>, SpecError> {
        let path = self.spec.linux.as_ref().and_then(|linux| linux.cgroups_path().as_ref());
        let path = path.filter(|path| !path.as_os_str().is_empty());
        let parse = |path: &PathBuf| {
            CgroupPath::parse(path).map_err(|source| SpecError::Cgroup { path: path.clone(), source })
        };
        path.map(parse).transpose()
    }

    /// Takes out the kernel parameters of the network, which are set for the pod.
    pub fn take_network_sysctls(&mut self) -> Result<HashMap<String, String>, SpecError> {
        network::take_sysctls(&mut self.spec, &self.role)
    }

    /// The pod's host name.
    pub fn hostname(&self) -> String {
        bounded_hostname(self.spec.hostname.as_deref().unwrap_or(&self.id))
    }

    /// The container in the guest. `issued` are the numbers of the pod's containers, if it is in one.
    pub fn translate(self, bundle: &Path, issued: Option<&Issued>) -> Result<ContainerConfig, SpecError> {
        let Self { mut spec, id, files: given, .. } = self;
        let (lifecycle, device_nodes) = (shape::lifecycle(&spec)?, shape::device_nodes(&spec)?);
        let limits = Limits::of_container(&spec);
        let root = spec.root.as_ref().ok_or(SpecError::Missing("root"))?.path().clone();
        let files = files::take(&mut spec, bundle, given)?;
        let translate::Beside { volumes, namespaces, devices } =
            translate::container(&mut spec, &id, issued)?;
        let seccomp = spec.linux.as_mut().map(seccomp::compile).transpose()?.flatten();
        let malformed = |source| SpecError::Malformed { what: "config.json", source };
        let guest_spec = serde_json::to_vec(&spec).map_err(malformed)?;
        Ok(ContainerConfig {
            guest_spec,
            seccomp,
            volumes,
            devices,
            files,
            namespaces,
            root,
            lifecycle,
            device_nodes,
            limits,
        })
    }
}

/// Whoever may write a pod's specification is not the administrator: of Hull's annotations it may carry those on the
/// administrator's list. Other clients of containerd, and `hull`, are the host's root.
fn annotations_allowed(spec: &Spec, config: &Config) -> Result<(), SpecError> {
    let Some(annotations) = &spec.annotations else { return Ok(()) };
    if !annotations.contains_key(annotation::CRI_CONTAINER_TYPE) {
        return Ok(());
    }
    only_allowed(annotations.keys(), config)
}

/// The same of the names of annotations that are a pod's.
fn only_allowed<'a>(mut names: impl Iterator<Item = &'a String>, config: &Config) -> Result<(), SpecError> {
    let refused = names
        .find(|name| name.starts_with(annotation::PREFIX) && !config.allowed_annotations.contains(*name));
    refused.map_or(Ok(()), |name| Err(SpecError::NotAllowed(shortened(name))))
}

/// As much of a host name as a kernel takes.
fn bounded_hostname(name: &str) -> String {
    let ends = 0..=HOSTNAME_MAX.min(name.len());
    let end = ends.rev().find(|&end| name.is_char_boundary(end)).unwrap_or_default();
    name[..end].to_owned()
}

/// A client's word, fit for an error.
fn shortened(word: &str) -> String {
    word.chars().take(WORD_MAX).collect()
}

/// Translates the Process of an exec: JSON in, JSON out.
pub fn exec_process(json: &[u8], terminal: crate::container::Terminal) -> Result<Vec<u8>, SpecError> {
    let malformed = |source| SpecError::Malformed { what: "the exec's process", source };
    let mut process: Process = serde_json::from_slice(json).map_err(malformed)?;
    translate::process(&mut process)?;
    process.set_terminal(terminal == crate::container::Terminal::Yes);
    serde_json::to_vec(&process).map_err(malformed)
}

/// New limits of a container: as the guest gets them, JSON, and all of its limits that the VM's size depends on, where
/// they were `before`.
pub fn update(json: &[u8], before: Limits) -> Result<(Vec<u8>, Limits), SpecError> {
    let malformed = |source| SpecError::Malformed { what: "the update", source };
    let mut resources: LinuxResources = serde_json::from_slice(json).map_err(malformed)?;
    translate::resources(&mut resources);
    Ok((serde_json::to_vec(&resources).map_err(malformed)?, before.updated(&resources)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_specification_carries_only_what_the_administrator_allows() {
        let spec = |annotations: &str| -> Spec {
            serde_json::from_str(&format!(r#"{{"ociVersion":"1.0.2","annotations":{{{annotations}}}}}"#))
                .unwrap()
        };
        let by_cri =
            spec(r#""io.kubernetes.cri.container-type":"sandbox","dev.hull.vm.vcpus":"8","other":"x""#);
        let error = annotations_allowed(&by_cri, &Config::default()).unwrap_err();
        assert!(matches!(&error, SpecError::NotAllowed(name) if name == "dev.hull.vm.vcpus"), "{error}");
        assert_eq!(error.code(), Code::INVALID_ARGUMENT);
        let allowing =
            Config { allowed_annotations: [annotation::VCPUS.to_owned()].into(), ..Config::default() };
        annotations_allowed(&by_cri, &allowing).unwrap();
        // Life cycles are the host's business, whatever the list says; ctr and hull are the host's.
        let lifecycle = spec(r#""io.kubernetes.cri.container-type":"container","dev.hull.lifecycle":"keep""#);
        annotations_allowed(&lifecycle, &allowing).unwrap_err();
        annotations_allowed(&spec(r#""dev.hull.vm.vcpus":"8""#), &Config::default()).unwrap();
    }
}
