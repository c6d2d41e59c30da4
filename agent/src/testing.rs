//! For tests: what the agent makes of bytes before it does anything with them, and what must hold of what it accepts.

use std::ffi::CStr;

use hull_protocol::agent::Opening;
use hull_protocol::agent::api::agent as api;
use protobuf::Message;

use crate::server::checked as server;
use crate::spec::{ContainerSpec, Limits, ProcessSpec, Statements};

/// A container's init comes to be only with a program to run, from a tree that its paths do not leave, within limits that
/// are files of its own cgroup.
///
/// # Panics
///
/// Where that is not so.
pub fn check_spec(spec: &ContainerSpec) {
    let paths = spec.masked_paths.iter().chain(&spec.readonly_paths).map(std::ffi::CString::as_c_str);
    let paths = paths.chain(spec.mounts.iter().map(|mount| mount.target.path()));
    let paths = paths.chain(spec.devices.iter().map(|device| device.path.path()));
    paths.chain(spec.sysctls.iter().map(|sysctl| sysctl.path.as_c_str())).for_each(check_path);
    check_process(&spec.process);
    check_limits(&spec.limits);
}

/// Every path stays below the root that it is opened from.
fn check_path(path: &CStr) {
    let text = path.to_bytes();
    let parts = || text.split(|byte| *byte == b'/');
    assert!(!text.starts_with(b"/") && parts().all(|part| part != b".."), "{path:?}");
}

fn check_process(process: &ProcessSpec) {
    assert!(!process.args.is_empty(), "a process without a program");
}

/// A setting is a file of this cgroup, and none that moves processes or delegates.
///
/// # Panics
///
/// Where that is not so.
pub fn check_limits(limits: &Limits) {
    for setting in &limits.settings {
        let file = &setting.file;
        assert!(!file.contains('/') && !file.starts_with("cgroup.") && file.contains('.'), "{setting:?}");
    }
}

/// A config.json, or why it is refused.
pub fn config(json: &[u8]) -> Result<(), String> {
    let spec = ContainerSpec::from_json(json, None, &Statements::default());
    spec.map(|(spec, _)| check_spec(&spec)).map_err(|error| error.to_string())
}

/// The process of an exec, or why it is refused.
pub fn process(json: &[u8]) -> Result<(), String> {
    let process = ProcessSpec::from_json(json);
    process.map(|(process, _)| check_process(&process)).map_err(|error| error.to_string())
}

/// The resources of an update, or why they are refused.
pub fn resources(json: &[u8]) -> Result<(), String> {
    let limits = Limits::from_json(json);
    limits.map(|(limits, _)| check_limits(&limits)).map_err(|error| error.to_string())
}

/// What [`message`] knows.
pub const MESSAGES: u8 = 18;

/// Bytes that are a message of the API of this number: a request, with everything in it that is checked; an answer, as
/// the host gets it; or the first line of a stream.
pub fn message(number: u8, bytes: &[u8]) {
    match number % MESSAGES {
        0 => {
            let creation = decoded::<api::CreateContainerRequest>(bytes);
            if let Some(Ok(creation)) = creation.map(server::creation) {
                check_spec(&creation.spec);
            }
        }
        1 => {
            if let Some(Ok(process)) = decoded(bytes).map(|request| server::exec(&request)) {
                check_process(&process);
            }
        }
        2 => {
            if let Some(Ok(limits)) = decoded(bytes).map(|request| server::update(&request)) {
                check_limits(&limits);
            }
        }
        3 => {
            if let Some(Ok((_, signal))) = decoded(bytes).map(|request| server::signal(&request)) {
                assert!((1..=64).contains(&signal), "signal {signal}");
            }
        }
        4 => drop(decoded(bytes).map(|request| server::size(&request))),
        5 => {
            if let Some(Ok((_, sysctls))) = decoded(bytes).map(|request| crate::pod::check(&request)) {
                sysctls.iter().for_each(|sysctl| check_path(&sysctl.path));
            }
        }
        6 => drop(decoded(bytes).map(|request| crate::network::check(&request))),
        7 => drop(decoded::<api::InfoRequest>(bytes)),
        8 => drop(decoded::<api::ProcessRequest>(bytes)),
        9 => drop(decoded::<api::ContainerRequest>(bytes)),
        10 => drop(decoded::<api::SlotRequest>(bytes)),
        11 => drop(decoded::<api::OnlineCpusRequest>(bytes)),
        12 => drop(decoded::<api::ShutdownRequest>(bytes)),
        13 => drop(decoded::<api::InfoResponse>(bytes)),
        14 => drop(decoded::<api::ExitStatus>(bytes)),
        15 => drop(decoded::<api::ContainerStatsResponse>(bytes)),
        16 => drop(decoded::<api::ListProcessesResponse>(bytes)),
        _ => {
            if let Some(opening) =
                std::str::from_utf8(bytes).ok().and_then(|line| line.parse::<Opening>().ok())
                && let Opening::Stream(header) = opening
            {
                assert_eq!(header.to_string().parse(), Ok(Opening::Stream(header)));
            }
        }
    }
}

/// What is accepted can be written down again, and read.
fn decoded<M: Message>(bytes: &[u8]) -> Option<M> {
    let message = M::parse_from_bytes(bytes).ok()?;
    let again = message.write_to_bytes().ok().and_then(|written| M::parse_from_bytes(&written).ok());
    let again = again.map(|again| again.compute_size());
    assert_eq!(again, Some(message.compute_size()), "it changes when it is written");
    Some(message)
}
