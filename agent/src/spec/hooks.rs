//! `hooks`: the two kinds that run where the container runs. The others (prestart, createRuntime, poststart, poststop) belong to the
//! host, whose shim runs them; here they are passed over.

use std::ffi::CString;
use std::time::Duration;

use super::{SpecError, c_string, schema};

/// How long a hook without a timeout may take.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The most hooks of one kind.
const HOOKS_MAX: usize = 64;

/// A program to run at a point of a container's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Absolute.
    pub path: CString,
    /// Never empty.
    pub args: Vec<CString>,
    /// All of its environment.
    pub env: Vec<CString>,
    /// How long it may take.
    pub timeout: Duration,
}

/// The hooks of a container, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// In the container's namespaces, with the guest's files, when the container's tree is built and not entered.
    pub create_container: Vec<Hook>,
    /// In the container, as its process, right before the program.
    pub start_container: Vec<Hook>,
}

impl Hooks {
    pub(super) fn parse(hooks: &schema::Hooks, notes: &mut Vec<String>) -> Result<Self, SpecError> {
        let others = [
            ("prestart", &hooks.prestart),
            ("createRuntime", &hooks.create_runtime),
            ("poststart", &hooks.poststart),
            ("poststop", &hooks.poststop),
        ];
        for (kind, list) in others.iter().filter(|(_, list)| !list.is_empty()) {
            notes.push(format!(
                "{} {kind} hooks are not run in the guest: they belong to the host",
                list.len()
            ));
        }
        Ok(Self {
            create_container: parse("hooks.createContainer", &hooks.create_container)?,
            start_container: parse("hooks.startContainer", &hooks.start_container)?,
        })
    }
}

fn parse(field: &'static str, hooks: &[schema::Hook]) -> Result<Vec<Hook>, SpecError> {
    if hooks.len() > HOOKS_MAX {
        return Err(SpecError::invalid(field, format!("more than {HOOKS_MAX} hooks")));
    }
    let strings =
        |list: &[String]| list.iter().map(|text| c_string(field, text)).collect::<Result<Vec<_>, _>>();
    hooks
        .iter()
        .map(|hook| {
            if !hook.path.starts_with('/') {
                return Err(SpecError::invalid(field, format!("{:?} is not an absolute path", hook.path)));
            }
            let timeout = match hook.timeout {
                None => TIMEOUT,
                Some(seconds) if (1..=i64::from(i32::MAX / 1000)).contains(&seconds) => {
                    Duration::from_secs(seconds.unsigned_abs())
                }
                Some(seconds) => {
                    return Err(SpecError::invalid(field, format!("{seconds} is not a timeout in seconds")));
                }
            };
            let path = c_string(field, &hook.path)?;
            let mut args = strings(&hook.args)?;
            if args.is_empty() {
                args.push(path.clone());
            }
            Ok(Hook { path, args, env: strings(&hook.env)?, timeout })
        })
        .collect()
}
