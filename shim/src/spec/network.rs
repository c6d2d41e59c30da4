//! Which network a container's spec asks for, and with which kernel parameters.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxNamespaceType;

use super::{Role, Spec, SpecError};

/// The network of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkChoice {
    /// A new namespace, into which a client may put something until the start: docker since version 26, `ctr --cni`.
    Own,
    /// The namespace at this path, which others have made and will take away.
    At(PathBuf),
}

impl NetworkChoice {
    /// What the spec says of it. The host's own network is an error: a VM has a network stack of its own.
    pub fn of(spec: &Spec) -> Result<Self, SpecError> {
        let namespaces =
            spec.linux.as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
        let Some(network) =
            namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::Network)
        else {
            return Err(host("no network namespace"));
        };
        match network.path() {
            None => Ok(Self::Own),
            Some(path) if path.as_os_str().is_empty() => Ok(Self::Own),
            Some(path) => Self::at(path),
        }
    }

    /// The namespace at a path, which others have made. Without one, or where it is the host's, an error.
    pub(super) fn at(path: &Path) -> Result<Self, SpecError> {
        if path.as_os_str().is_empty() {
            Err(host("no network namespace"))
        } else if is_ours(path) {
            Err(host(&path.display().to_string()))
        } else {
            Ok(Self::At(path.to_owned()))
        }
    }
}

pub(super) fn host(what: &str) -> SpecError {
    SpecError::Unsupported(format!(
        "hostNetwork is not supported: the spec has {what}, which is the host's network, and a VM cannot be in it; give the container a network namespace of its own"
    ))
}

/// Whether this is the namespace that the shim itself is in.
fn is_ours(path: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    identity(path).is_some_and(|found| Some(found) == identity(Path::new("/proc/self/ns/net")))
}

/// Takes out the kernel parameters of the network: it is the whole guest's, so they are set for the pod, not by the
/// container. A sandbox, which is no container in the guest, cannot have any others.
pub fn take_sysctls(spec: &mut Spec, role: &Role) -> Result<HashMap<String, String>, SpecError> {
    let Some(linux) = &mut spec.linux else { return Ok(HashMap::new()) };
    let all = linux.sysctl_mut().take().unwrap_or_default();
    if *role == Role::Sandbox {
        return only_network(all);
    }
    let (network, rest) = all.into_iter().partition(|(name, _)| is_network(name));
    linux.set_sysctl(Some(rest));
    Ok(network)
}

/// The kernel parameters of a pod, which are its network's.
pub(super) fn only_network(all: HashMap<String, String>) -> Result<HashMap<String, String>, SpecError> {
    match all.keys().find(|name| !is_network(name)) {
        None => Ok(all),
        Some(name) => Err(SpecError::Unsupported(format!(
            "the kernel parameter {name} cannot be set for a pod, only those of its network (net.*)"
        ))),
    }
}

fn is_network(name: &str) -> bool {
    name.starts_with("net.") || name.starts_with("net/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_the_network_are_the_pods() {
        let spec = || -> Spec {
            let json = r#"{"ociVersion":"1.0.2","linux":{"sysctl":{
                "net.core.somaxconn":"9","net/ipv4/ip_forward":"1","kernel.shmmax":"7"}}}"#;
            serde_json::from_str(json).unwrap()
        };
        let mut alone = spec();
        let taken = take_sysctls(&mut alone, &Role::Alone).unwrap();
        assert_eq!((taken.len(), taken["net.core.somaxconn"].as_str()), (2, "9"));
        let left = alone.linux.as_ref().unwrap().sysctl().clone().unwrap();
        assert_eq!(left.keys().collect::<Vec<_>>(), ["kernel.shmmax"]);
        let error = take_sysctls(&mut spec(), &Role::Sandbox).unwrap_err().to_string();
        assert!(error.contains("kernel.shmmax") && error.contains("net.*"), "{error}");
    }

    fn of(namespaces: &str) -> Result<NetworkChoice, SpecError> {
        let json = format!(r#"{{"ociVersion":"1.0.2","linux":{{"namespaces":[{namespaces}]}}}}"#);
        NetworkChoice::of(&serde_json::from_str(&json).unwrap())
    }

    #[test]
    fn a_spec_chooses() {
        assert_eq!(of(r#"{"type":"network"}"#).unwrap(), NetworkChoice::Own);
        assert_eq!(of(r#"{"type":"network","path":""}"#).unwrap(), NetworkChoice::Own);
        let at = NetworkChoice::At("/var/run/netns/cni-1".into());
        assert_eq!(of(r#"{"type":"pid"},{"type":"network","path":"/var/run/netns/cni-1"}"#).unwrap(), at);
        for hosts in ["", r#"{"type":"pid"}"#, r#"{"type":"network","path":"/proc/self/ns/net"}"#] {
            let error = of(hosts).unwrap_err();
            assert!(error.to_string().starts_with("hostNetwork is not supported"), "{error}");
            assert_eq!(error.code(), ttrpc::proto::Code::UNIMPLEMENTED);
        }
    }
}
