//! What a container is to its pod, by the annotations that containerd's CRI plugin writes.

use std::collections::HashMap;

use super::SpecError;
use crate::record::annotation::CRI_CONTAINER_TYPE;

/// The id of the pod's sandbox, on the sandbox itself too.
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

/// What a container is to its pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// It is the pod: the VM is its own.
    Alone,
    /// It stands for the pod, and runs nothing: the VM is there as long as it is.
    Sandbox,
    /// One of those in the sandbox's VM.
    Member {
        /// The sandbox's id.
        sandbox: String,
    },
}

impl Role {
    /// The role of container `id`.
    pub fn of(annotations: Option<&HashMap<String, String>>, id: &str) -> Result<Self, SpecError> {
        let annotation = |name| annotations.and_then(|all| all.get(name)).map(String::as_str);
        match (annotation(CRI_CONTAINER_TYPE), annotation(SANDBOX_ID)) {
            (None, _) => Ok(Self::Alone),
            (Some("sandbox"), _) => Ok(Self::Sandbox),
            (Some("container"), Some(sandbox)) if sandbox != id => {
                Ok(Self::Member { sandbox: sandbox.to_owned() })
            }
            (Some("container"), _) => Err(SpecError::Missing("the annotation io.kubernetes.cri.sandbox-id")),
            (Some(other), _) => Err(SpecError::Annotation {
                name: CRI_CONTAINER_TYPE,
                value: other.to_owned(),
                wanted: "one of sandbox, container",
            }),
        }
    }

    /// The id that names the pod.
    pub fn pod<'a>(&'a self, id: &'a str) -> &'a str {
        match self {
            Self::Alone | Self::Sandbox => id,
            Self::Member { sandbox } => sandbox,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_say_what_a_container_is() {
        let role = |pairs: &[(&str, &str)]| {
            let all = pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
            Role::of(Some(&all), "c")
        };
        assert_eq!(Role::of(None, "c").unwrap(), Role::Alone);
        assert_eq!(role(&[(SANDBOX_ID, "s")]).unwrap(), Role::Alone);
        assert_eq!(role(&[(CRI_CONTAINER_TYPE, "sandbox"), (SANDBOX_ID, "c")]).unwrap(), Role::Sandbox);
        let member = role(&[(CRI_CONTAINER_TYPE, "container"), (SANDBOX_ID, "s")]).unwrap();
        assert_eq!((member.pod("c"), Role::Sandbox.pod("c")), ("s", "c"));
        assert!(role(&[(CRI_CONTAINER_TYPE, "container")]).is_err());
        assert!(role(&[(CRI_CONTAINER_TYPE, "container"), (SANDBOX_ID, "c")]).is_err());
        assert!(role(&[(CRI_CONTAINER_TYPE, "pod")]).unwrap_err().to_string().contains("\"pod\""));
    }
}
