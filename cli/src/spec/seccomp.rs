//! `--security-opt seccomp=...`: from a profile as docker writes it, which speaks of capabilities, machines and kernels, to the
//! `linux.seccomp` of one container.
//!
//! Pure: who wants a profile from a file reads the file.

use std::collections::HashSet;

use oci_spec::runtime::{Capability, LinuxSeccomp};
use serde::Deserialize;
use serde_json::{Value, json};

/// docker's default: the system calls that containers are known to need, and with each capability those that it is for.
const DEFAULT: &str = include_str!("seccomp/default.json");
/// Hull's guests.
const MACHINE: &str = "amd64";
const ARCHITECTURE: &str = "SCMP_ARCH_X86_64";
/// Major and minor version of the guest's kernel.
const KERNEL: (u32, u32) = (6, 12);

/// A profile that is none.
#[derive(Debug, thiserror::Error)]
#[error("not a seccomp profile: {0}")]
pub struct ProfileError(String);

/// Which system calls a container may make.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Seccomp {
    /// Those of docker's default profile.
    #[default]
    Default,
    /// All.
    Unconfined,
    /// Those of this profile, JSON.
    Profile(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: Value,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Vec<Machine>,
    flags: Option<Value>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Machine {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    /// The older form, for one call.
    #[serde(default)]
    name: String,
    #[serde(default)]
    names: Vec<String>,
    action: Value,
    errno_ret: Option<u32>,
    args: Option<Value>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

/// When a rule is part of the profile, or is not.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
    min_kernel: Option<String>,
}

impl Seccomp {
    /// The `linux.seccomp` for a container with the bounding set `capabilities`.
    pub fn resolve(&self, capabilities: &HashSet<Capability>) -> Result<Option<LinuxSeccomp>, ProfileError> {
        match self {
            Self::Unconfined => Ok(None),
            Self::Default => resolve(DEFAULT, capabilities).map(Some),
            Self::Profile(json) => resolve(json, capabilities).map(Some),
        }
    }
}

fn resolve(json: &str, capabilities: &HashSet<Capability>) -> Result<LinuxSeccomp, ProfileError> {
    let wrong = |error: serde_json::Error| ProfileError(error.to_string());
    let profile: Profile = serde_json::from_str(json).map_err(wrong)?;
    if !profile.architectures.is_empty() && !profile.arch_map.is_empty() {
        return Err(ProfileError("it has both architectures and archMap".to_owned()));
    }
    let mut architectures = profile.architectures;
    for machine in profile.arch_map.into_iter().filter(|machine| machine.architecture == ARCHITECTURE) {
        architectures.push(machine.architecture);
        architectures.extend(machine.sub_architectures.into_iter().flatten());
    }
    let mut syscalls = Vec::new();
    for rule in profile.syscalls {
        if !rule.name.is_empty() && !rule.names.is_empty() {
            return Err(ProfileError(format!("the rule for {:?} has both name and names", rule.name)));
        }
        let applies = rule.includes.all_hold(capabilities)? && !rule.excludes.any_holds(capabilities)?;
        if applies {
            let names = if rule.name.is_empty() { rule.names } else { vec![rule.name] };
            let mut syscall = json!({"names": names, "action": rule.action});
            set(&mut syscall, "errnoRet", rule.errno_ret.map(Value::from));
            set(&mut syscall, "args", rule.args);
            syscalls.push(syscall);
        }
    }
    let mut seccomp = json!({"defaultAction": profile.default_action, "syscalls": syscalls});
    set(&mut seccomp, "defaultErrnoRet", profile.default_errno_ret.map(Value::from));
    set(&mut seccomp, "architectures", (!architectures.is_empty()).then(|| json!(architectures)));
    set(&mut seccomp, "flags", profile.flags);
    serde_json::from_value(seccomp).map_err(wrong)
}

fn set(object: &mut Value, key: &str, value: Option<Value>) {
    if let Some(value) = value {
        object[key] = value;
    }
}

impl Condition {
    fn all_hold(&self, capabilities: &HashSet<Capability>) -> Result<bool, ProfileError> {
        Ok((self.arches.is_empty() || self.names_machine())
            && self.caps.iter().all(|name| has(capabilities, name))
            && self.kernel_is_new_enough()?.unwrap_or(true))
    }

    fn any_holds(&self, capabilities: &HashSet<Capability>) -> Result<bool, ProfileError> {
        Ok(self.names_machine()
            || self.caps.iter().any(|name| has(capabilities, name))
            || self.kernel_is_new_enough()?.unwrap_or(false))
    }

    fn names_machine(&self) -> bool {
        self.arches.iter().any(|machine| machine == MACHINE)
    }

    fn kernel_is_new_enough(&self) -> Result<Option<bool>, ProfileError> {
        let Some(text) = self.min_kernel.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
        let numbers = text.split_once('.').and_then(|(major, minor)| {
            let minor = minor.split('.').next()?;
            Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
        });
        let wrong = || ProfileError(format!("minKernel {text:?} is not a kernel's version"));
        numbers.map(|numbers| Some(KERNEL >= numbers)).ok_or_else(wrong)
    }
}

/// A capability that does not exist is not had.
fn has(capabilities: &HashSet<Capability>, name: &str) -> bool {
    serde_json::from_value::<Capability>(Value::from(name))
        .is_ok_and(|capability| capabilities.contains(&capability))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(json: &str, capabilities: &[Capability]) -> Value {
        let set = capabilities.iter().copied().collect();
        serde_json::to_value(resolve(json, &set).unwrap()).unwrap()
    }

    /// The actions of the rules for one call.
    fn actions(profile: &Value, name: &str) -> Vec<String> {
        let of = |rule: &&Value| rule["names"].as_array().unwrap().contains(&name.into());
        let action = |rule: &Value| rule["action"].as_str().unwrap().to_owned();
        profile["syscalls"].as_array().unwrap().iter().filter(of).map(action).collect()
    }

    #[test]
    fn the_default_allows_by_capability() {
        let plain = rules(DEFAULT, &[Capability::SysChroot]);
        assert_eq!(plain["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(plain["defaultErrnoRet"], 1);
        assert_eq!(plain["architectures"], json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]));
        for (name, expected) in [
            ("read", &["SCMP_ACT_ALLOW"][..]),
            ("chroot", &["SCMP_ACT_ALLOW"]),
            ("ptrace", &["SCMP_ACT_ALLOW"]),
            ("clone", &["SCMP_ACT_ALLOW"]),
            ("clone3", &["SCMP_ACT_ERRNO"]),
            ("mount", &[]),
            ("unshare", &[]),
            ("keyctl", &[]),
            ("reboot", &[]),
        ] {
            assert_eq!(actions(&plain, name), expected, "{name}");
        }
        let admin = rules(DEFAULT, &[Capability::SysAdmin]);
        for (name, expected) in [
            ("mount", &["SCMP_ACT_ALLOW"][..]),
            ("clone3", &["SCMP_ACT_ALLOW"]),
            ("clone", &["SCMP_ACT_ALLOW"]),
            ("chroot", &[]),
            ("keyctl", &[]),
        ] {
            assert_eq!(actions(&admin, name), expected, "{name}");
        }
        let flagless = |profile: &Value| {
            let all = profile["syscalls"].as_array().unwrap().clone();
            all.into_iter().find(|rule| rule["names"].as_array().unwrap().contains(&"clone".into())).unwrap()
                ["args"]
                .clone()
        };
        assert_eq!(flagless(&plain)[0]["value"], 2_114_060_288u64);
        assert!(flagless(&admin).is_null());
    }

    #[test]
    fn conditions_of_a_file_are_resolved() {
        let file = r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"], "syscalls": [
            {"name": "old", "action": "SCMP_ACT_LOG"},
            {"names": ["new"], "action": "SCMP_ACT_LOG", "includes": {"minKernel": "99.0"}},
            {"names": ["here"], "action": "SCMP_ACT_LOG", "includes": {"minKernel": "6.12", "arches": ["amd64"]}},
            {"names": ["there"], "action": "SCMP_ACT_LOG", "includes": {"arches": ["arm64"]}},
            {"names": ["elsewhere"], "action": "SCMP_ACT_LOG", "excludes": {"arches": ["amd64"]}},
            {"names": ["capable"], "action": "SCMP_ACT_LOG", "includes": {"caps": ["CAP_KILL", "CAP_NONE"]}}]}"#;
        let profile = rules(file, &[Capability::Kill]);
        let all: Vec<&Value> =
            profile["syscalls"].as_array().unwrap().iter().map(|rule| &rule["names"]).collect();
        assert_eq!(all, [&json!(["old"]), &json!(["here"])]);
        assert_eq!(profile["flags"], json!(["SECCOMP_FILTER_FLAG_LOG"]));
        assert!(profile.get("architectures").is_none());
    }

    #[test]
    fn a_file_that_is_no_profile_says_why() {
        for (json, text) in [
            ("{}", "defaultAction"),
            ("[", "EOF"),
            (r#"{"defaultAction": "SCMP_ACT_FLY"}"#, "SCMP_ACT_FLY"),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"name": "a", "names": ["b"], "action": "SCMP_ACT_LOG"}]}"#,
                "both",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"name": "a", "action": "SCMP_ACT_LOG", "includes": {"minKernel": "x"}}]}"#,
                "minKernel",
            ),
        ] {
            let error = resolve(json, &HashSet::new()).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
