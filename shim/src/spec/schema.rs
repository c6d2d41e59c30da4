//! The runtime-spec's outermost shape. What the shim looks into has types. The process goes to the guest as it came: its
//! runtime checks it, whoever wrote it, and what the shim does not parse it need not carry the code for.

use std::collections::HashMap;

use oci_spec::runtime::{Hooks, Linux, Mount, Root};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// `config.json`. What configures other operating systems is left out.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// Of the specification that it follows.
    #[serde(default)]
    pub oci_version: String,
    /// The root file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// What else is mounted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mounts: Option<Vec<Mount>>,
    /// The program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The host name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The NIS domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domainname: Option<String>,
    /// What runs beside the program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// What engines say of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotations: Option<HashMap<String, String>>,
    /// Namespaces, limits, devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linux: Option<Linux>,
}

/// A program and what it runs with, of a container or an exec.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Process(Map<String, Value>);

impl Process {
    /// Whether it says what to run.
    pub fn has_program(&self) -> bool {
        self.0.get("args").and_then(Value::as_array).is_some_and(|args| !args.is_empty())
    }

    /// Takes a member out. Returns whether it was there and said something.
    pub fn remove(&mut self, name: &str) -> bool {
        self.0.remove(name).is_some_and(|value| !value.is_null())
    }

    /// Whether it has a terminal.
    pub fn set_terminal(&mut self, terminal: bool) {
        self.0.insert("terminal".to_owned(), terminal.into());
    }

    /// Takes out every member that is null, which is the same as one that is not there.
    pub fn drop_nulls(&mut self) {
        drop_nulls(&mut self.0);
    }
}

/// The depth is bounded: the parser's is.
fn drop_nulls(members: &mut Map<String, Value>) {
    members.retain(|_, value| !value.is_null());
    for value in members.values_mut() {
        match value {
            Value::Object(members) => drop_nulls(members),
            Value::Array(list) => list.iter_mut().filter_map(Value::as_object_mut).for_each(drop_nulls),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_process_is_kept_but_for_what_says_nothing() {
        let json = json!({"args": ["a"], "env": null, "user": {"uid": 18_446_744_073_709_551_615_u64, "additionalGids": null},
            "rlimits": [{"type": "RLIMIT_CORE", "soft": 1, "hard": null}], "newer": [null, 1.5], "selinuxLabel": null});
        let mut process: Process = serde_json::from_value(json).unwrap();
        assert!(process.has_program() && !process.remove("selinuxLabel"));
        process.drop_nulls();
        process.set_terminal(true);
        let kept = json!({"args": ["a"], "user": {"uid": 18_446_744_073_709_551_615_u64},
            "rlimits": [{"type": "RLIMIT_CORE", "soft": 1}], "newer": [null, 1.5], "terminal": true});
        assert_eq!(serde_json::to_value(&process).unwrap(), kept);
    }

    #[test]
    fn a_program_is_a_list_of_words() {
        for args in [json!([]), json!("sh"), json!(null), json!({})] {
            let process: Process = serde_json::from_value(json!({"args": args})).unwrap();
            assert!(!process.has_program());
        }
        assert!(serde_json::from_value::<Process>(json!(["sh"])).is_err());
    }
}
