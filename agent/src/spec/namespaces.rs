//! Where a container's namespaces come from: `linux.namespaces`, and what the request states instead of the spec's paths.

use std::collections::HashSet;

use hull_protocol::agent::api::agent as api;
use hull_protocol::agent::is_valid_id;

use super::{SpecError, schema};

const FIELD: &str = "linux.namespaces";

/// Where a namespace comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It is a new one.
    Own,
    /// It is the guest's, which is the agent's too.
    Guest,
    /// It is the one that the agent keeps for the pod.
    Pod,
    /// It is the one that this container uses.
    Container(String),
}

impl Origin {
    /// For clone3(2): the flag, if the namespace is a new one.
    pub fn clone_flag(&self, flag: libc::c_int) -> libc::c_int {
        if *self == Self::Own { flag } else { 0 }
    }

    fn from_api(namespace: &api::Namespace) -> Result<Self, SpecError> {
        match &namespace.origin {
            Some(api::namespace::Origin::Own(_)) => Ok(Self::Own),
            Some(api::namespace::Origin::Pod(_)) => Ok(Self::Pod),
            Some(api::namespace::Origin::Container(id)) if is_valid_id(id) => Ok(Self::Container(id.clone())),
            Some(api::namespace::Origin::Container(id)) => {
                Err(SpecError::invalid("namespaces", format!("{id:?} is not the id of a container")))
            }
            _ => Err(SpecError::unsupported("namespaces", "an origin that this agent does not know")),
        }
    }
}

/// What a request states besides the spec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statements {
    ipc: Option<Origin>,
    uts: Option<Origin>,
    pid: Option<Origin>,
    user: Option<Origin>,
}

impl Statements {
    /// From the request.
    pub fn from_api(namespaces: &api::Namespaces) -> Result<Self, SpecError> {
        let origin = |stated: Option<&api::Namespace>| stated.map(Origin::from_api).transpose();
        Ok(Self {
            ipc: origin(namespaces.ipc.as_ref())?,
            uts: origin(namespaces.uts.as_ref())?,
            pid: origin(namespaces.pid.as_ref())?,
            user: origin(namespaces.user.as_ref())?,
        })
    }

    fn of(&self, kind: &str) -> Option<&Origin> {
        match kind {
            "ipc" => self.ipc.as_ref(),
            "uts" => self.uts.as_ref(),
            "pid" => self.pid.as_ref(),
            "user" => self.user.as_ref(),
            _ => None,
        }
    }
}

/// The namespaces of a container whose origin can differ; mount and cgroup namespaces are always its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespaces {
    /// Own or the guest's.
    pub network: Origin,
    /// System V IPC and POSIX message queues.
    pub ipc: Origin,
    /// Host and domain name.
    pub uts: Origin,
    /// Process ids. Never the guest's.
    pub pid: Origin,
    /// Own or the guest's.
    pub time: Origin,
    /// Users and groups.
    pub user: Origin,
}

impl Namespaces {
    pub(super) fn parse(list: &[schema::Namespace], statements: &Statements) -> Result<Self, SpecError> {
        let mut kinds = HashSet::new();
        for namespace in list {
            let kind = namespace.kind.as_str();
            match kind {
                "pid" | "mount" | "network" | "ipc" | "uts" | "cgroup" | "time" | "user" => {}
                other => return Err(SpecError::invalid(FIELD, format!("{other:?} is not a namespace"))),
            }
            if !namespace.path.is_empty() && statements.of(kind).is_none() {
                return Err(SpecError::unsupported(
                    FIELD,
                    format!("{kind}: the path {:?} means nothing in the guest", namespace.path),
                ));
            }
            if !kinds.insert(kind) {
                return Err(SpecError::invalid(FIELD, format!("{kind} is given twice")));
            }
        }
        for needed in ["pid", "mount"] {
            if !kinds.contains(needed) && statements.of(needed).is_none() {
                return Err(SpecError::unsupported(
                    FIELD,
                    format!("{needed} is missing: a container cannot share the guest's {needed} namespace"),
                ));
            }
        }
        let origin = |kind| {
            let listed = || if kinds.contains(kind) { Origin::Own } else { Origin::Guest };
            statements.of(kind).cloned().unwrap_or_else(listed)
        };
        Ok(Self {
            network: origin("network"),
            ipc: origin("ipc"),
            uts: origin("uts"),
            pid: origin("pid"),
            time: origin("time"),
            user: origin("user"),
        })
    }
}
