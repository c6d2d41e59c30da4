//! Namespaces that are to be joined: on the host their paths lead through the process ids that this shim has issued; in the
//! guest they are the pod's, or another container's.

use hull_protocol::agent::api::agent::{Empty, Namespace, Namespaces, namespace};
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType};

use super::SpecError;

/// The process ids that stand for a pod's containers on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Issued {
    /// The sandbox's: for the pod's own namespaces.
    pub sandbox: u32,
    /// Other containers', with their ids.
    pub containers: Vec<(u32, String)>,
}

/// Takes the paths out of a spec; what they mean is returned. The network is the VM's, whatever the spec says.
pub fn join(linux: &mut Linux, issued: Option<&Issued>) -> Result<Namespaces, SpecError> {
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Network);
    let mut joined = Namespaces::new();
    for namespace in &mut namespaces {
        if namespace.path().is_none() {
            continue;
        }
        let origin = origin(namespace, issued)?;
        match namespace.typ() {
            LinuxNamespaceType::Ipc => joined.ipc = Some(origin).into(),
            LinuxNamespaceType::Uts => joined.uts = Some(origin).into(),
            _ => joined.pid = Some(origin).into(),
        }
        namespace.set_path(None);
    }
    linux.set_namespaces(Some(namespaces));
    Ok(joined)
}

fn origin(namespace: &LinuxNamespace, issued: Option<&Issued>) -> Result<Namespace, SpecError> {
    let path = namespace.path().as_deref().and_then(std::path::Path::to_str).unwrap_or_default();
    let kind = match namespace.typ() {
        LinuxNamespaceType::Ipc => Some("ipc"),
        LinuxNamespaceType::Uts => Some("uts"),
        LinuxNamespaceType::Pid => Some("pid"),
        _ => None,
    };
    // /proc/PID/ns/KIND
    let pid = path.strip_prefix("/proc/").and_then(|rest| rest.split_once("/ns/"));
    let pid = pid.filter(|(_, named)| Some(*named) == kind).and_then(|(pid, _)| pid.parse::<u32>().ok());
    let meant = issued.zip(pid).and_then(|(issued, pid)| {
        if pid == issued.sandbox {
            return Some(namespace::Origin::Pod(Empty::new()));
        }
        let container = issued.containers.iter().find(|(number, _)| *number == pid);
        container.map(|(_, id)| namespace::Origin::Container(id.clone()))
    });
    match meant {
        Some(origin) => Ok(Namespace { origin: Some(origin), ..Namespace::default() }),
        None => Err(SpecError::Unsupported(format!(
            "the {} namespace {path:?} cannot be joined: it is not of a container in this VM",
            namespace.typ()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_through_issued_numbers_are_the_pods_and_its_containers() {
        let issued = Issued { sandbox: 7, containers: vec![(4_194_311, "app".into())] };
        let linux =
            |namespaces| -> Linux { serde_json::from_value(json!({ "namespaces": namespaces })).unwrap() };
        let mut spec = linux(json!([
            {"type": "mount"}, {"type": "network", "path": "/proc/7/ns/net"}, {"type": "ipc", "path": "/proc/7/ns/ipc"},
            {"type": "uts"}, {"type": "pid", "path": "/proc/4194311/ns/pid"}
        ]));
        let joined = join(&mut spec, Some(&issued)).unwrap();
        assert!(matches!(joined.ipc.origin, Some(namespace::Origin::Pod(_))));
        assert!(matches!(&joined.pid.origin, Some(namespace::Origin::Container(id)) if id == "app"));
        assert!(joined.uts.is_none());
        let left = serde_json::to_value(spec.namespaces()).unwrap();
        assert_eq!(left, json!([{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "pid"}]));

        for (kind, path) in [
            ("ipc", "/proc/8/ns/ipc"),
            ("ipc", "/proc/7/ns/uts"),
            ("ipc", "/proc/self/ns/ipc"),
            ("user", "/proc/7/ns/user"),
            ("mount", "/proc/7/ns/"),
        ] {
            let mut spec = linux(json!([{"type": kind, "path": path}]));
            let error = join(&mut spec, Some(&issued)).unwrap_err();
            assert!(error.to_string().contains(path), "{error}");
        }
        let mut alone = linux(json!([{"type": "ipc", "path": "/proc/7/ns/ipc"}]));
        assert!(join(&mut alone, None).is_err());
    }
}
