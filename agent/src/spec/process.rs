//! The `process` object: of a container's init in config.json, and of an exec by itself.

use std::ffi::CString;

use super::capabilities::CapabilitySets;
use super::scheduling::Scheduling;
use super::{SpecError, c_string, schema};
use crate::sys::terminal::WindowSize;

/// What runs, as whom, and with which rights.
#[derive(Clone, Debug)]
pub struct ProcessSpec {
    /// The program's name or path, then its arguments. Never empty.
    pub args: Vec<CString>,
    /// `NAME=value` each; of a repeated name the last counts.
    pub env: Vec<CString>,
    /// Absolute.
    pub cwd: CString,
    /// User and groups.
    pub credentials: Credentials,
    /// `None`: the spec says nothing.
    pub capabilities: Option<CapabilitySets>,
    /// `None`: the spec says nothing.
    pub rlimits: Option<Vec<Rlimit>>,
    /// `None`: the spec says nothing.
    pub no_new_privileges: Option<bool>,
    /// `None`: the spec says nothing.
    pub oom_score_adj: Option<i32>,
    /// When and where it runs.
    pub scheduling: Scheduling,
    /// What the standard streams are.
    pub console: Console,
}

/// Whose rights a process has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
    /// File mode creation mask.
    pub umask: u32,
}

/// One resource limit (setrlimit(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rlimit {
    /// `RLIMIT_*`.
    pub resource: u32,
    /// The limit in force.
    pub soft: u64,
    /// What the process may raise it to.
    pub hard: u64,
}

/// What the standard streams of a process are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// Pipes.
    Pipes,
    /// A pseudo-terminal, of this size at first if one is given.
    Terminal(Option<WindowSize>),
}

impl ProcessSpec {
    /// Parses the JSON of an exec's process. Also returns remarks for the log.
    pub fn from_json(json: &[u8]) -> Result<(Self, Vec<String>), SpecError> {
        let mut notes = Vec::new();
        let process = Self::parse(serde_json::from_slice(json)?, &mut notes)?;
        Ok((process, notes))
    }

    pub(super) fn parse(process: schema::Process, notes: &mut Vec<String>) -> Result<Self, SpecError> {
        if process.args.first().is_none_or(String::is_empty) {
            return Err(SpecError::invalid("process.args", "must name a program"));
        }
        if !process.cwd.starts_with('/') {
            return Err(SpecError::invalid(
                "process.cwd",
                format!("{:?} is not an absolute path", process.cwd),
            ));
        }
        if let Some(bad) = process.env.iter().find(|entry| !entry.contains('=')) {
            // The name alone: values can be secrets.
            return Err(SpecError::invalid("process.env", format!("entry {bad:?} has no '='")));
        }
        let scheduling = Scheduling::parse(&process)?;
        if !process.apparmor_profile.is_empty() {
            notes.push(format!(
                "apparmor profile {:?} ignored: the guest has no AppArmor",
                process.apparmor_profile
            ));
        }
        if !process.selinux_label.is_empty() {
            notes
                .push(format!("selinux label {:?} ignored: the guest has no SELinux", process.selinux_label));
        }
        if let Some(adjustment) = process.oom_score_adj.filter(|value| !(-1000..=1000).contains(value)) {
            return Err(SpecError::invalid(
                "process.oomScoreAdj",
                format!("{adjustment} is not in -1000..=1000"),
            ));
        }
        let user = process.user;
        if user.umask.is_some_and(|umask| umask > 0o777) {
            return Err(SpecError::invalid("process.user.umask", "must be at most 0777"));
        }
        let rlimits = process.rlimits.map(|limits| rlimits(&limits)).transpose()?;
        let strings = |field, list: &[String]| {
            list.iter().map(|text| c_string(field, text)).collect::<Result<Vec<_>, _>>()
        };
        let mut env = strings("process.env", &process.env)?;
        keep_last_of_each_name(&mut env);
        Ok(Self {
            args: strings("process.args", &process.args)?,
            env,
            cwd: c_string("process.cwd", &process.cwd)?,
            credentials: Credentials {
                uid: user.uid,
                gid: user.gid,
                groups: user.additional_gids,
                umask: user.umask.unwrap_or(0o022),
            },
            capabilities: process.capabilities.as_ref().map(|sets| CapabilitySets::parse(sets, notes)),
            rlimits,
            no_new_privileges: process.no_new_privileges,
            oom_score_adj: process.oom_score_adj,
            scheduling,
            console: console(process.terminal, process.console_size.as_ref())?,
        })
    }
}

fn console(terminal: bool, size: Option<&schema::ConsoleSize>) -> Result<Console, SpecError> {
    if !terminal {
        return Ok(Console::Pipes);
    }
    // 0 by 0 is how clients say that they do not know the size.
    let size = size.filter(|size| size.width != 0 || size.height != 0);
    let size = size
        .map(|size| {
            let fit = |length: u32| {
                u16::try_from(length).map_err(|_| {
                    SpecError::invalid("process.consoleSize", format!("{length} is more than 65535"))
                })
            };
            Ok::<_, SpecError>(WindowSize { columns: fit(size.width)?, rows: fit(size.height)? })
        })
        .transpose()?;
    Ok(Console::Terminal(size))
}

fn keep_last_of_each_name(env: &mut Vec<CString>) {
    let name = |entry: &CString| entry.as_bytes().split(|byte| *byte == b'=').next().map(<[u8]>::to_vec);
    let mut seen = std::collections::HashSet::new();
    let mut kept: Vec<CString> = Vec::with_capacity(env.len());
    for entry in env.drain(..).rev() {
        if seen.insert(name(&entry)) {
            kept.push(entry);
        }
    }
    kept.reverse();
    *env = kept;
}

fn rlimits(limits: &[schema::Rlimit]) -> Result<Vec<Rlimit>, SpecError> {
    const FIELD: &str = "process.rlimits";
    let mut parsed: Vec<Rlimit> = Vec::with_capacity(limits.len());
    for limit in limits {
        let resource = rlimit_number(&limit.kind)
            .ok_or_else(|| SpecError::invalid(FIELD, format!("{:?} is not a resource limit", limit.kind)))?;
        if limit.soft > limit.hard {
            return Err(SpecError::invalid(FIELD, format!("{}: soft limit above the hard one", limit.kind)));
        }
        if parsed.iter().any(|other| other.resource == resource) {
            return Err(SpecError::invalid(FIELD, format!("{} is given twice", limit.kind)));
        }
        parsed.push(Rlimit { resource, soft: limit.soft, hard: limit.hard });
    }
    Ok(parsed)
}

fn rlimit_number(name: &str) -> Option<u32> {
    Some(match name {
        "RLIMIT_CPU" => libc::RLIMIT_CPU,
        "RLIMIT_FSIZE" => libc::RLIMIT_FSIZE,
        "RLIMIT_DATA" => libc::RLIMIT_DATA,
        "RLIMIT_STACK" => libc::RLIMIT_STACK,
        "RLIMIT_CORE" => libc::RLIMIT_CORE,
        "RLIMIT_RSS" => libc::RLIMIT_RSS,
        "RLIMIT_NPROC" => libc::RLIMIT_NPROC,
        "RLIMIT_NOFILE" => libc::RLIMIT_NOFILE,
        "RLIMIT_MEMLOCK" => libc::RLIMIT_MEMLOCK,
        "RLIMIT_AS" => libc::RLIMIT_AS,
        "RLIMIT_LOCKS" => libc::RLIMIT_LOCKS,
        "RLIMIT_SIGPENDING" => libc::RLIMIT_SIGPENDING,
        "RLIMIT_MSGQUEUE" => libc::RLIMIT_MSGQUEUE,
        "RLIMIT_NICE" => libc::RLIMIT_NICE,
        "RLIMIT_RTPRIO" => libc::RLIMIT_RTPRIO,
        "RLIMIT_RTTIME" => libc::RLIMIT_RTTIME,
        _ => return None,
    })
}
