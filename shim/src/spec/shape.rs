//! How large a VM a container asks for: by annotation, else from its limits, else the default. A sandbox's limits are those
//! of its pod, which containerd's CRI plugin writes as annotations. And what else Hull's own annotations say.

use std::str::FromStr;

use hull_protocol::agent::api::agent::DeviceNodes;

use super::limits::Limits;
use super::{Role, Spec, SpecError};
use crate::config::VmDefaults;
use crate::record::{Lifecycle, annotation};

/// The least memory of a VM, in MiB.
pub(super) const MEMORY_MIB_MIN: u32 = 64;
/// The most.
pub(super) const MEMORY_MIB_MAX: u32 = 1 << 20;
/// The most vCPUs.
pub(super) const VCPUS_MAX: u8 = 32;

/// The size of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmShape {
    /// Number of vCPUs, 1 to 32.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u32,
}

impl std::fmt::Display for VmShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plural = if self.vcpus == 1 { "" } else { "s" };
        write!(f, "{} vCPU{plural} and {} MiB of memory", self.vcpus, self.memory_mib)
    }
}

impl VmShape {
    /// It, or what of it `most` has.
    #[must_use]
    pub fn within(self, most: Self) -> Self {
        Self { vcpus: self.vcpus.min(most.vcpus), memory_mib: self.memory_mib.min(most.memory_mib) }
    }

    /// The VM for a container, never larger than the administrator allows.
    pub fn of(spec: &Spec, role: &Role, defaults: &VmDefaults) -> Result<Self, SpecError> {
        let limits = if *role == Role::Sandbox { Limits::of_pod(spec) } else { Limits::of_container(spec) };
        Self::chosen(limits, |name| annotation(spec, name), defaults)
    }

    /// The VM for these limits, where no annotation of this name says otherwise.
    pub(super) fn chosen<'a>(
        limits: Limits,
        annotation: impl Fn(&str) -> Option<&'a str>,
        defaults: &VmDefaults,
    ) -> Result<Self, SpecError> {
        let memory_mib = match annotation(annotation::MEMORY_MIB) {
            Some(value) => {
                parse(annotation::MEMORY_MIB, value, "a number of MiB from 64 to 1048576", |mib: &u32| {
                    (MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(mib)
                })?
            }
            None => limits.memory_mib(defaults),
        };
        let vcpus = match annotation(annotation::VCPUS) {
            Some(value) => parse(annotation::VCPUS, value, "a number from 1 to 32", |count: &u8| {
                (1..=VCPUS_MAX).contains(count)
            })?,
            None => limits.vcpus().unwrap_or(defaults.vcpus),
        };
        Ok(Self { vcpus: vcpus.min(defaults.vcpus_max), memory_mib: memory_mib.min(defaults.memory_mib_max) })
    }
}

/// Who ends the pod.
pub fn lifecycle(spec: &Spec) -> Result<Lifecycle, SpecError> {
    annotation(spec, annotation::LIFECYCLE).map_or(Ok(Lifecycle::default()), |value| {
        parse(annotation::LIFECYCLE, value, "one of managed, keep, remove", |_| true)
    })
}

/// Which device nodes the container has.
pub fn device_nodes(spec: &Spec) -> Result<DeviceNodes, SpecError> {
    match annotation(spec, annotation::DEVICES) {
        None => Ok(DeviceNodes::OF_SPEC),
        Some(annotation::DEVICES_OF_GUEST) => Ok(DeviceNodes::OF_GUEST),
        Some(value) => Err(SpecError::Annotation {
            name: annotation::DEVICES,
            value: value.to_owned(),
            wanted: annotation::DEVICES_OF_GUEST,
        }),
    }
}

/// The value of an annotation.
pub(super) fn annotation<'a>(spec: &'a Spec, name: &str) -> Option<&'a str> {
    spec.annotations.as_ref()?.get(name).map(String::as_str)
}

fn parse<T: FromStr>(
    name: &'static str,
    value: &str,
    wanted: &'static str,
    in_range: impl Fn(&T) -> bool,
) -> Result<T, SpecError> {
    value.parse().ok().filter(in_range).ok_or_else(|| SpecError::Annotation {
        name,
        value: value.to_owned(),
        wanted,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_device_nodes_are_those_of_the_spec_or_of_the_guest() {
        let of = |json: &str| device_nodes(&spec(json));
        assert_eq!(of(r#"{"ociVersion":"1.0.2"}"#).unwrap(), DeviceNodes::OF_SPEC);
        let annotated = |value: &str| {
            of(&format!(r#"{{"ociVersion":"1.0.2","annotations":{{"dev.hull.devices":"{value}"}}}}"#))
        };
        assert_eq!(annotated("guest").unwrap(), DeviceNodes::OF_GUEST);
        let error = annotated("host").unwrap_err();
        assert_eq!(error.to_string(), r#"annotation dev.hull.devices: "host" is not guest"#);
    }

    #[test]
    fn limits_size_the_vm() {
        let plain = spec(r#"{"ociVersion":"1.0.2"}"#);
        assert_eq!(
            VmShape::of(&plain, &Role::Alone, &VmDefaults::default()).unwrap(),
            VmShape { vcpus: 1, memory_mib: 512 }
        );
        let limited = spec(
            r#"{"ociVersion":"1.0.2","linux":{"resources":{"memory":{"limit":268435457},"cpu":{"quota":150000,"period":100000}}}}"#,
        );
        assert_eq!(
            VmShape::of(&limited, &Role::Alone, &VmDefaults::default()).unwrap(),
            VmShape { vcpus: 2, memory_mib: 394 }
        );
        let unlimited = spec(
            r#"{"ociVersion":"1.0.2","linux":{"resources":{"memory":{"limit":-1},"cpu":{"quota":-1,"period":0}}}}"#,
        );
        assert_eq!(
            VmShape::of(&unlimited, &Role::Alone, &VmDefaults::default()).unwrap(),
            VmShape { vcpus: 1, memory_mib: 512 }
        );
    }

    #[test]
    fn the_administrator_sets_defaults_and_bounds() {
        let defaults = VmDefaults {
            vcpus: 2,
            vcpus_max: 4,
            memory_mib: 100,
            memory_mib_max: 300,
            overhead_mib: 50,
            ..VmDefaults::default()
        };
        let of = |json| VmShape::of(&spec(json), &Role::Alone, &defaults).unwrap();
        assert_eq!(of(r#"{"ociVersion":"1.0.2"}"#), VmShape { vcpus: 2, memory_mib: 100 });
        let limited = r#"{"ociVersion":"1.0.2","linux":{"resources":{"memory":{"limit":104857600},"cpu":{"quota":900000}}}}"#;
        assert_eq!(of(limited), VmShape { vcpus: 4, memory_mib: 154 });
        let large = r#"{"ociVersion":"1.0.2","annotations":{"dev.hull.vm.vcpus":"32","dev.hull.vm.memory-mib":"4096"}}"#;
        assert_eq!(of(large), VmShape { vcpus: 4, memory_mib: 300 });
    }

    #[test]
    fn a_sandbox_has_the_size_of_its_pod() {
        let pod = spec(
            r#"{"ociVersion":"1.0.2","linux":{"resources":{"memory":{"limit":1}}},"annotations":{
                "io.kubernetes.cri.sandbox-memory":"1073741824","io.kubernetes.cri.sandbox-cpu-quota":"250000",
                "io.kubernetes.cri.sandbox-cpu-period":"100000"}}"#,
        );
        assert_eq!(
            VmShape::of(&pod, &Role::Sandbox, &VmDefaults::default()).unwrap(),
            VmShape { vcpus: 3, memory_mib: 1184 }
        );
        let best_effort = spec(
            r#"{"ociVersion":"1.0.2","annotations":{"io.kubernetes.cri.sandbox-memory":"0",
                "io.kubernetes.cri.sandbox-cpu-quota":"-1"}}"#,
        );
        assert_eq!(
            VmShape::of(&best_effort, &Role::Sandbox, &VmDefaults::default()).unwrap(),
            VmShape { vcpus: 1, memory_mib: 512 }
        );
    }

    #[test]
    fn annotations_win_and_are_checked() {
        let with = |name: &str, value: &str| {
            spec(&format!(r#"{{"ociVersion":"1.0.2","annotations":{{"{name}":"{value}"}}}}"#))
        };
        assert_eq!(
            VmShape::of(&with("dev.hull.vm.vcpus", "3"), &Role::Alone, &VmDefaults::default()).unwrap().vcpus,
            3
        );
        assert_eq!(lifecycle(&with("dev.hull.lifecycle", "keep")).unwrap(), Lifecycle::Keep);
        for (name, value) in [
            ("dev.hull.vm.vcpus", "0"),
            ("dev.hull.vm.vcpus", "33"),
            ("dev.hull.vm.vcpus", "300"),
            ("dev.hull.vm.memory-mib", "1"),
            ("dev.hull.vm.memory-mib", "512m"),
        ] {
            let error = VmShape::of(&with(name, value), &Role::Alone, &VmDefaults::default())
                .unwrap_err()
                .to_string();
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
        assert!(lifecycle(&with("dev.hull.lifecycle", "always")).is_err());
    }
}
