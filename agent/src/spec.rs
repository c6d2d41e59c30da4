//! The OCI runtime-spec's config.json, parsed once into types that cannot be wrong.
//!
//! What the specification allows to be ignored is ignored; what this agent cannot honour is an error that names the field.
//! Owns no resource and makes no system call.

mod capabilities;
mod config;
mod devices;
mod hooks;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod scheduling;
mod schema;
mod seccomp;
mod time;
mod users;

#[cfg(test)]
mod tests;

pub use capabilities::CapabilitySets;
pub use config::{ContainerSpec, DeviceNode, Sysctl};
pub use devices::{BlockNumbers, DeviceKind, DeviceRule, DeviceRules, DeviceVerdict};
pub use hooks::Hook;
pub use mounts::{Content, Filesystem, IdMapped, MountPoint, MountSpec, SharedTmpfs, Source};
pub use namespaces::{Origin, Statements};
pub use process::{Console, Credentials, ProcessSpec, Rlimit};
pub use resources::{Limits, Missing, Setting};
pub use scheduling::Scheduling;
pub use seccomp::SeccompFilter;
pub use users::{IdMap, IdMappings};

/// Why a spec was refused.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Not the JSON that the specification describes.
    #[error("the spec is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// A value that cannot be right.
    #[error("spec field {field}: {reason}")]
    Invalid {
        /// The field's name, in the specification's dotted form.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A field that means something which this agent cannot do.
    #[error("spec field {field}: {reason}")]
    Unsupported {
        /// The field's name, in the specification's dotted form.
        field: &'static str,
        /// What cannot be done.
        reason: String,
    },
}

impl SpecError {
    fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid { field, reason: reason.into() }
    }

    fn unsupported(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Unsupported { field, reason: reason.into() }
    }
}

/// The rules of a JSON list.
#[cfg(test)]
pub fn device_rules(json: &str) -> Result<DeviceRules, SpecError> {
    DeviceRules::parse(&serde_json::from_str::<Vec<schema::DeviceRule>>(json)?)
}

/// A string for the kernel.
fn c_string(field: &'static str, text: &str) -> Result<std::ffi::CString, SpecError> {
    std::ffi::CString::new(text).map_err(|_| SpecError::invalid(field, "contains a NUL byte"))
}
