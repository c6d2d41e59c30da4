//! How large a VM a container asks for: by annotation, else from its limits, else the default.

use std::str::FromStr;

use oci_spec::runtime::Spec;

use super::SpecError;
use crate::config::VmDefaults;
use crate::record::{Lifecycle, annotation};

const MEMORY_MIB_MIN: u32 = 64;
const MEMORY_MIB_MAX: u32 = 1 << 20;
const VCPUS_MAX: u8 = 32;

/// The size of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmShape {
    /// Number of vCPUs, 1 to 32.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u32,
}

impl VmShape {
    /// The VM for a container, never larger than the administrator allows.
    pub fn of(spec: &Spec, defaults: &VmDefaults) -> Result<Self, SpecError> {
        let memory_mib = match annotation(spec, annotation::MEMORY_MIB) {
            Some(value) => {
                parse(annotation::MEMORY_MIB, value, "a number of MiB from 64 to 1048576", |mib: &u32| {
                    (MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(mib)
                })?
            }
            None => memory_from_limit(spec, defaults),
        };
        let vcpus = match annotation(spec, annotation::VCPUS) {
            Some(value) => parse(annotation::VCPUS, value, "a number from 1 to 32", |count: &u8| {
                (1..=VCPUS_MAX).contains(count)
            })?,
            None => vcpus_from_quota(spec).unwrap_or(defaults.vcpus),
        };
        Ok(Self { vcpus: vcpus.min(defaults.vcpus_max), memory_mib: memory_mib.min(defaults.memory_mib_max) })
    }

    /// The most that a writable layer in memory may take.
    pub fn tmpfs_bytes(self) -> u64 {
        u64::from(self.memory_mib) * (1 << 20) / 2
    }
}

/// Who ends the pod.
pub fn lifecycle(spec: &Spec) -> Result<Lifecycle, SpecError> {
    annotation(spec, annotation::LIFECYCLE).map_or(Ok(Lifecycle::default()), |value| {
        parse(annotation::LIFECYCLE, value, "one of managed, keep, remove", |_| true)
    })
}

fn annotation<'a>(spec: &'a Spec, name: &str) -> Option<&'a str> {
    spec.annotations().as_ref()?.get(name).map(String::as_str)
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

fn memory_from_limit(spec: &Spec, defaults: &VmDefaults) -> u32 {
    let limit = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref()?.memory().as_ref()?.limit())
        .and_then(|limit| u64::try_from(limit).ok())
        .filter(|&limit| limit > 0);
    match limit {
        Some(bytes) => u32::try_from(bytes.div_ceil(1 << 20))
            .unwrap_or(MEMORY_MIB_MAX)
            .saturating_add(defaults.overhead_mib)
            .clamp(MEMORY_MIB_MIN, MEMORY_MIB_MAX),
        None => defaults.memory_mib,
    }
}

fn vcpus_from_quota(spec: &Spec) -> Option<u8> {
    let quota = spec.linux().as_ref().and_then(|linux| {
        let cpu = linux.resources().as_ref()?.cpu().as_ref()?;
        let quota = u64::try_from(cpu.quota()?).ok()?;
        Some(quota.div_ceil(cpu.period().filter(|&period| period > 0).unwrap_or(100_000)))
    })?;
    Some(u8::try_from(quota).unwrap_or(VCPUS_MAX).clamp(1, VCPUS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn limits_size_the_vm() {
        let plain = spec(r#"{"ociVersion":"1.0.2"}"#);
        assert_eq!(
            VmShape::of(&plain, &VmDefaults::default()).unwrap(),
            VmShape { vcpus: 1, memory_mib: 512 }
        );
        let limited = spec(
            r#"{"ociVersion":"1.0.2","linux":{"resources":{"memory":{"limit":268435457},"cpu":{"quota":150000,"period":100000}}}}"#,
        );
        assert_eq!(
            VmShape::of(&limited, &VmDefaults::default()).unwrap(),
            VmShape { vcpus: 2, memory_mib: 385 }
        );
        let unlimited = spec(
            r#"{"ociVersion":"1.0.2","linux":{"resources":{"memory":{"limit":-1},"cpu":{"quota":-1,"period":0}}}}"#,
        );
        assert_eq!(
            VmShape::of(&unlimited, &VmDefaults::default()).unwrap(),
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
        let of = |json| VmShape::of(&spec(json), &defaults).unwrap();
        assert_eq!(of(r#"{"ociVersion":"1.0.2"}"#), VmShape { vcpus: 2, memory_mib: 100 });
        let limited = r#"{"ociVersion":"1.0.2","linux":{"resources":{"memory":{"limit":104857600},"cpu":{"quota":900000}}}}"#;
        assert_eq!(of(limited), VmShape { vcpus: 4, memory_mib: 150 });
        let large = r#"{"ociVersion":"1.0.2","annotations":{"dev.hull.vm.vcpus":"32","dev.hull.vm.memory-mib":"4096"}}"#;
        assert_eq!(of(large), VmShape { vcpus: 4, memory_mib: 300 });
    }

    #[test]
    fn annotations_win_and_are_checked() {
        let with = |name: &str, value: &str| {
            spec(&format!(r#"{{"ociVersion":"1.0.2","annotations":{{"{name}":"{value}"}}}}"#))
        };
        assert_eq!(VmShape::of(&with("dev.hull.vm.vcpus", "3"), &VmDefaults::default()).unwrap().vcpus, 3);
        assert_eq!(lifecycle(&with("dev.hull.lifecycle", "keep")).unwrap(), Lifecycle::Keep);
        for (name, value) in [
            ("dev.hull.vm.vcpus", "0"),
            ("dev.hull.vm.vcpus", "33"),
            ("dev.hull.vm.vcpus", "300"),
            ("dev.hull.vm.memory-mib", "1"),
            ("dev.hull.vm.memory-mib", "512m"),
        ] {
            let error = VmShape::of(&with(name, value), &VmDefaults::default()).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
        assert!(lifecycle(&with("dev.hull.lifecycle", "always")).is_err());
    }
}
