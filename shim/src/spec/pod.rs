//! A pod as one description, whoever wrote it down: the pause container's runtime-spec, or Kubernetes' own words for a pod,
//! which the sandbox API hands over ([`SandboxRequest`]). The second are translated here; what they mean is the same.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use hull_protocol::agent::is_valid_id;
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use super::limits::Limits;
use super::network::{self, NetworkChoice};
use super::{PodFiles, SpecError, VmShape, bounded_hostname, only_allowed};
use crate::cgroup::CgroupPath;
use crate::config::Config;

/// The messages.
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::restriction, unused_qualifications)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/cri_messages/messages.rs"));
}

use generated::cri::{DNSConfig, LinuxPodSandboxConfig, NamespaceMode, PodSandboxConfig};

/// The name of a [`PodSandboxConfig`] in an `Any`, behind whatever prefix.
const TYPE: &str = "runtime.v1.PodSandboxConfig";
/// The longest description of a pod, in bytes. Kubernetes allows 256 KiB of annotations.
const POD_MAX: usize = 1 << 20;
/// The most kernel parameters that a pod sets.
const SYSCTLS_MAX: usize = 256;
/// The longest file of the host that is handed on.
const HOST_FILE_MAX: u64 = hull_protocol::agent::FILE_SIZE_MAX as u64;

/// What containerd sets in every pod where it makes the sandbox itself, unless its administrator says otherwise: programs
/// without privileges may listen on any port, and ping.
const SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// What a pod asks of its VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    /// How large it is.
    pub shape: VmShape,
    /// The pod's network.
    pub network: NetworkChoice,
    /// Kernel parameters of that network.
    pub sysctls: HashMap<String, String>,
    /// The pod's host name.
    pub hostname: String,
    /// The pod's cgroup on the host, if it is to have one.
    pub cgroup: Option<CgroupPath>,
}

/// A pod as the sandbox API asks for it.
#[derive(Clone, Copy, Debug)]
pub struct SandboxRequest<'a> {
    /// Its id.
    pub id: &'a str,
    /// The namespace of the id.
    pub namespace: &'a str,
    /// Kubernetes' description of it.
    pub options: Option<&'a Any>,
    /// Its network namespace; empty for the host's.
    pub netns: &'a str,
}

impl SandboxRequest<'_> {
    /// What it asks of the VM, and which files the pod's containers have from it.
    pub fn translate(&self, config: &Config) -> Result<(PodSpec, PodFiles), SpecError> {
        let pod = self.parse()?;
        only_allowed(pod.annotations.keys(), config)?;
        let linux = pod.linux.as_ref().unwrap_or_default();
        let options = &linux.security_context.namespace_options;
        if options.userns_options.as_ref().is_some_and(|users| users.mode == NamespaceMode::POD.into()) {
            return Err(SpecError::Unsupported(
                "a user namespace for the pod (hostUsers: false) is not supported: the VM's users are not the host's anyway"
                    .to_owned(),
            ));
        }
        let network = match options.network.enum_value_or_default() {
            NamespaceMode::NODE => return Err(network::host("the mode NODE for its network")),
            _ => NetworkChoice::at(Path::new(self.netns))?,
        };
        let resources = linux.resources.as_ref().unwrap_or_default();
        let limits =
            Limits::of_numbers(resources.memory_limit_in_bytes, resources.cpu_quota, resources.cpu_period);
        let named = |name: &str| pod.annotations.get(name).map(String::as_str);
        let hostname = bounded_hostname(if pod.hostname.is_empty() { self.id } else { &pod.hostname });
        let files = PodFiles {
            resolv_conf: resolv_conf(pod.dns_config.as_ref())?,
            hosts: of_host("/etc/hosts"),
            hostname: format!("{hostname}\n").into_bytes(),
        };
        let spec = PodSpec {
            shape: VmShape::chosen(limits, named, &config.vm)?,
            network,
            sysctls: sysctls(linux)?,
            hostname,
            cgroup: Some(self.cgroup(&linux.cgroup_parent)?),
        };
        Ok((spec, files))
    }

    fn parse(&self) -> Result<PodSandboxConfig, SpecError> {
        let options = self.options.ok_or(SpecError::NoPod)?;
        if options.type_url.rsplit('/').next() != Some(TYPE) {
            return Err(SpecError::ForeignPod(super::shortened(&options.type_url)));
        }
        if options.value.len() > POD_MAX {
            return Err(SpecError::PodTooLong(options.value.len()));
        }
        PodSandboxConfig::parse_from_bytes(&options.value).map_err(SpecError::MalformedPod)
    }

    /// Where the pod's cgroup is, in the form of the driver that made its parent: as containerd names that of a pause
    /// container.
    fn cgroup(&self, parent: &str) -> Result<CgroupPath, SpecError> {
        let last = parent.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let path = if last.ends_with(".slice") {
            PathBuf::from(format!("{last}:cri-containerd:{}", self.id))
        } else if parent.is_empty() {
            Path::new("/").join(self.namespace).join(self.id)
        } else {
            Path::new(parent).join(self.id)
        };
        CgroupPath::parse(&path).map_err(|source| SpecError::Cgroup { path, source })
    }
}

fn sysctls(linux: &LinuxPodSandboxConfig) -> Result<HashMap<String, String>, SpecError> {
    if linux.sysctls.len() > SYSCTLS_MAX {
        return Err(SpecError::Unsupported(format!("more than {SYSCTLS_MAX} kernel parameters are set")));
    }
    let own: HashMap<_, _> =
        linux.sysctls.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let own = network::only_network(own)?;
    let mut all: HashMap<_, _> =
        SYSCTLS.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
    // The same parameter may be written with slashes.
    all.retain(|name, _| !own.keys().any(|other| other.replace('/', ".") == *name));
    all.extend(own);
    Ok(all)
}

/// /etc/resolv.conf: the pod's, or the host's where the pod says nothing.
fn resolv_conf(dns: Option<&DNSConfig>) -> Result<Vec<u8>, SpecError> {
    let Some(dns) =
        dns.filter(|dns| !dns.servers.is_empty() || !dns.searches.is_empty() || !dns.options.is_empty())
    else {
        return Ok(of_host("/etc/resolv.conf"));
    };
    let mut text = String::new();
    let lines = |text: &mut String, name: &str, words: &[String]| {
        if !words.is_empty() {
            text.push_str(&format!("{name} {}\n", words.join(" ")));
        }
    };
    lines(&mut text, "search", &dns.searches);
    for server in &dns.servers {
        lines(&mut text, "nameserver", std::slice::from_ref(server));
    }
    lines(&mut text, "options", &dns.options);
    let words = || dns.searches.iter().chain(&dns.servers).chain(&dns.options);
    if words().any(|word| word.contains(char::is_whitespace)) || text.len() as u64 > HOST_FILE_MAX {
        return Err(SpecError::Unsupported(
            "the DNS configuration of the pod is no list of words, or too long".to_owned(),
        ));
    }
    Ok(text.into_bytes())
}

/// A file of the host that containerd gives to pods which have none of their own. What cannot be read, or is too long, is
/// empty.
fn of_host(path: &str) -> Vec<u8> {
    let mut content = Vec::new();
    let read = File::open(path).and_then(|file| file.take(HOST_FILE_MAX + 1).read_to_end(&mut content));
    match read {
        Ok(_) if content.len() as u64 <= HOST_FILE_MAX => content,
        Ok(_) => {
            log::warn!("{path} is too long for pods");
            Vec::new()
        }
        Err(error) => {
            log::warn!("{path} cannot be read for pods: {error}");
            Vec::new()
        }
    }
}

/// Whether a sandbox may have this id.
pub fn check_id(id: &str, own: &str) -> Result<(), SpecError> {
    if is_valid_id(id) && id == own { Ok(()) } else { Err(SpecError::ForeignId(super::shortened(id))) }
}

#[cfg(test)]
mod tests {
    use super::generated::cri::{LinuxContainerResources, UserNamespace};
    use super::*;
    use crate::record::annotation;

    fn any(pod: &PodSandboxConfig) -> Any {
        let value = pod.write_to_bytes().unwrap();
        Any { type_url: format!("type.googleapis.com/{TYPE}"), value, ..Any::default() }
    }

    fn translated(pod: &PodSandboxConfig, config: &Config) -> Result<(PodSpec, PodFiles), SpecError> {
        let options = any(pod);
        let request =
            SandboxRequest { id: "abc", namespace: "k8s.io", options: Some(&options), netns: "/run/netns/x" };
        request.translate(config)
    }

    #[test]
    fn a_pod_that_says_nothing_is_as_one_of_a_pause_container() {
        let (spec, files) = translated(&PodSandboxConfig::new(), &Config::default()).unwrap();
        assert_eq!(spec.shape, VmShape { vcpus: 1, memory_mib: 512 });
        assert_eq!(spec.network, NetworkChoice::At("/run/netns/x".into()));
        assert_eq!((spec.hostname.as_str(), &files.hostname[..]), ("abc", &b"abc\n"[..]));
        assert_eq!(spec.cgroup.unwrap().as_path(), Path::new("k8s.io/abc"));
        assert_eq!(spec.sysctls.len(), SYSCTLS.len());
        assert_eq!(files.resolv_conf, of_host("/etc/resolv.conf"));
    }

    #[test]
    fn what_a_pod_says_counts() {
        let mut pod = PodSandboxConfig { hostname: "x".repeat(80), ..PodSandboxConfig::default() };
        let linux = pod.linux.mut_or_insert_default();
        linux.resources = Some(LinuxContainerResources {
            memory_limit_in_bytes: 1 << 30,
            cpu_quota: 250_000,
            cpu_period: 100_000,
            ..LinuxContainerResources::default()
        })
        .into();
        linux.sysctls = [("net/ipv4/ip_unprivileged_port_start".to_owned(), "1024".to_owned())].into();
        for (parent, wanted) in [
            ("/kubepods/burstable/pod1", "kubepods/burstable/pod1/abc"),
            (
                "/kubepods.slice/kubepods-pod1.slice/",
                "kubepods.slice/kubepods-pod1.slice/cri-containerd-abc.scope",
            ),
        ] {
            pod.linux.mut_or_insert_default().cgroup_parent = parent.to_owned();
            let (spec, _) = translated(&pod, &Config::default()).unwrap();
            assert_eq!(spec.cgroup.unwrap().as_path(), Path::new(wanted));
            assert_eq!(spec.shape, VmShape { vcpus: 3, memory_mib: 1184 });
            assert_eq!(spec.hostname, "x".repeat(64));
            let mut sysctls: Vec<_> = spec.sysctls.keys().map(String::as_str).collect();
            sysctls.sort_unstable();
            assert_eq!(sysctls, ["net.ipv4.ping_group_range", "net/ipv4/ip_unprivileged_port_start"]);
        }
        pod.annotations = [(annotation::VCPUS.to_owned(), "2".to_owned())].into();
        let error = translated(&pod, &Config::default()).unwrap_err();
        assert!(matches!(&error, SpecError::NotAllowed(name) if name == annotation::VCPUS), "{error}");
        let allowing =
            Config { allowed_annotations: [annotation::VCPUS.to_owned()].into(), ..Config::default() };
        assert_eq!(translated(&pod, &allowing).unwrap().0.shape.vcpus, 2);
    }

    #[test]
    fn users_are_the_vms() {
        let mut pod = PodSandboxConfig::new();
        let context = pod.linux.mut_or_insert_default().security_context.mut_or_insert_default();
        let users = UserNamespace { mode: NamespaceMode::NODE.into(), ..UserNamespace::default() };
        context.namespace_options.mut_or_insert_default().userns_options = Some(users).into();
        translated(&pod, &Config::default()).unwrap();
        let context = pod.linux.mut_or_insert_default().security_context.mut_or_insert_default();
        context.namespace_options.mut_or_insert_default().userns_options = Some(UserNamespace::new()).into();
        let error = translated(&pod, &Config::default()).unwrap_err();
        assert!(error.to_string().contains("hostUsers: false"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(value in proptest::collection::vec(0_u8.., 0..200)) {
            let options = Any { type_url: TYPE.to_owned(), value, ..Any::default() };
            let request = SandboxRequest { id: "a", namespace: "n", options: Some(&options), netns: "/x" };
            let _ = request.translate(&Config::default());
        }
    }
}
