//! Requests as they come, and what they ask for once everything in them has been checked. Does nothing else.

use hull_protocol::agent::api::agent as api;
use hull_protocol::agent::is_valid_id;

use crate::container::{Creation, ProcessName, Target};
use crate::error::Error;
use crate::spec::{ContainerSpec, Limits, ProcessSpec, SeccompFilter, Statements};
use crate::sys::terminal::WindowSize;

/// A container to make.
pub fn creation(request: api::CreateContainerRequest) -> Result<Creation, Error> {
    let id = request.container_id;
    check_id(&id)?;
    let filter = request.seccomp.as_ref();
    let filter = filter.map(|filter| SeccompFilter::from_bytes(&filter.program, filter.flags)).transpose()?;
    let statements = request.namespaces.as_ref().map(Statements::from_api).transpose()?.unwrap_or_default();
    let (spec, notes) = ContainerSpec::from_json(&request.spec, filter, &statements)?;
    for note in notes {
        log::info!("container {id}: {note}");
    }
    let (rootfs, stdio) = (request.rootfs.unwrap_or_default(), request.stdio.unwrap_or_default());
    Ok(Creation { id, spec, rootfs, stdio })
}

/// A further process, whose id is checked.
pub fn exec(request: &api::CreateExecRequest) -> Result<ProcessSpec, Error> {
    check_id(&request.exec_id)?;
    let (spec, notes) = ProcessSpec::from_json(&request.process)?;
    for note in notes {
        log::info!("container {} exec {}: {note}", request.container_id, request.exec_id);
    }
    Ok(spec)
}

/// New limits.
pub fn update(request: &api::UpdateContainerRequest) -> Result<Limits, Error> {
    let (limits, notes) = Limits::from_json(&request.resources)?;
    for note in notes {
        log::info!("container {}: {note}", request.container_id);
    }
    Ok(limits)
}

/// A signal, and whom it is for.
pub fn signal(request: &api::SignalProcessRequest) -> Result<(Target, i32), Error> {
    let signal = i32::try_from(request.signal)
        .ok()
        .filter(|signal| (1..=64).contains(signal))
        .ok_or(Error::Range { what: "signal", value: request.signal.into() })?;
    let target = if request.all { Target::All } else { Target::One(name(&request.exec_id)) };
    Ok((target, signal))
}

/// A terminal's size.
pub fn size(request: &api::ResizeTerminalRequest) -> Result<WindowSize, Error> {
    let fit = |what, value: u32| u16::try_from(value).map_err(|_| Error::Range { what, value: value.into() });
    Ok(WindowSize { columns: fit("columns", request.columns)?, rows: fit("rows", request.rows)? })
}

/// A process of a container.
pub fn name(exec_id: &str) -> ProcessName {
    if exec_id.is_empty() { ProcessName::Init } else { ProcessName::Exec(exec_id.to_owned()) }
}

fn check_id(id: &str) -> Result<(), Error> {
    if is_valid_id(id) { Ok(()) } else { Err(Error::Id(id.to_owned())) }
}
