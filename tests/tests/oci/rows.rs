//! The rows: for each field of the specification what to ask for, and what the checker must then say.

mod linux;
mod mounts;
mod process;
mod resources;

use std::path::Path;

use serde_json::{Value, json};

/// One row of the table.
pub struct Row {
    /// As the specification names it.
    pub field: &'static str,
    /// Merged into docker's default config.json.
    pub patch: Value,
    /// The checker's arguments.
    pub probes: Vec<&'static str>,
    pub through: Through,
    pub expect: Vec<Expect>,
    /// For the reader; a refusal explains itself.
    pub remark: &'static str,
    /// Changes the bundle's folder.
    pub prepare: fn(&Path),
}

/// Which process the checker is.
pub enum Through {
    Init,
    Terminal,
    /// An exec, whose process is the container's own merged with this.
    Exec(Value),
}

type Judge = fn(&Value, &Path) -> Result<(), String>;

/// What must be so.
pub enum Expect {
    /// The report has this at a JSON pointer.
    Is(&'static str, Value),
    /// A probe went so.
    Probe(&'static str, Value),
    /// A mount is there, with these options and of this type.
    Mount(&'static str, &'static str, &'static [&'static str]),
    /// Anything else.
    Holds(Judge),
    /// The container must not be made, with these words in the reason.
    Refused(&'static str),
}

impl Expect {
    /// What is not so.
    pub fn failure(&self, report: &Value, bundle: &Path) -> Option<String> {
        let differs = |what: &str, found: Option<&Value>, wanted: &Value| {
            (found != Some(wanted))
                .then(|| format!("{what} is {}, not {wanted}", found.unwrap_or(&Value::Null)))
        };
        match self {
            Self::Is(pointer, wanted) => differs(pointer, report.pointer(pointer), wanted),
            Self::Probe(word, wanted) => differs(word, report["probes"].get(word), wanted),
            Self::Mount(at, kind, options) => {
                let Some(mount) = mount(report, at) else {
                    return Some(format!("nothing is mounted at {at}"));
                };
                let has = |option: &&&str| {
                    ["options", "super"]
                        .iter()
                        .any(|list| mount[list].as_array().unwrap().contains(&json!(option)))
                };
                if mount["type"] != *kind {
                    return Some(format!("{at} is {}, not {kind}", mount["type"]));
                }
                let missing: Vec<_> = options.iter().filter(|option| !has(option)).collect();
                (!missing.is_empty())
                    .then(|| format!("{at} is not {missing:?} but {} {}", mount["options"], mount["super"]))
            }
            Self::Holds(judge) => judge(report, bundle).err(),
            Self::Refused(_) => Some("it was not refused".to_owned()),
        }
    }
}

/// The last mount at `at`.
pub fn mount<'a>(report: &'a Value, at: &str) -> Option<&'a Value> {
    report["mounts"].as_array()?.iter().rev().find(|mount| mount["at"] == at)
}

/// Every row, in the specification's order.
pub fn rows() -> Vec<Row> {
    [process::rows(), mounts::rows(), linux::rows(), resources::rows()].into_iter().flatten().collect()
}

/// A row of the simplest kind.
fn row(field: &'static str, patch: Value, probes: &[&'static str], expect: Vec<Expect>) -> Row {
    Row { field, patch, probes: probes.to_vec(), through: Through::Init, expect, remark: "", prepare: |_| {} }
}

impl Row {
    fn remark(self, remark: &'static str) -> Self {
        Self { remark, ..self }
    }

    fn through(self, through: Through) -> Self {
        Self { through, ..self }
    }

    fn prepare(self, prepare: fn(&Path)) -> Self {
        Self { prepare, ..self }
    }
}

/// For a [`Judge`].
fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// docker's default mounts and one more.
fn with_mount(mount: Value) -> Value {
    with_mounts(vec![mount])
}

fn with_mounts(more: Vec<Value>) -> Value {
    let mut mounts = hull_tests::oci::default_config()["mounts"].take();
    mounts.as_array_mut().unwrap().extend(more);
    json!({ "mounts": mounts })
}

/// docker's default namespaces and one more.
fn with_namespace(namespace: Value) -> Vec<Value> {
    let mut namespaces = hull_tests::oci::default_config()["linux"]["namespaces"].take();
    let list = namespaces.as_array_mut().unwrap();
    list.retain(|present| present["type"] != namespace["type"]);
    list.push(namespace);
    std::mem::take(list)
}
