//! What may be asked of a VM that runs.

use std::ops::ControlFlow;
use std::os::fd::OwnedFd;

use hull_protocol::vmm::{ExitReason, Failure, FailureCode, Message, Request, Unplug};

use super::description::file_system;
use super::{invalid, no_descriptors, slot_failure, wrong_state};
use crate::error::chain;
use crate::event_loop::Watch;
use crate::machine::Machine;
use crate::virtio::VirtioDevice;
use crate::virtio::block::Block;
use crate::virtio::net;

/// An answer, and whether the VM goes on.
type Answer = (Message, ControlFlow<ExitReason>);

/// Obeys a request.
pub fn obey(machine: &Machine, watch: &Watch, request: Request, fds: Vec<OwnedFd>) -> Answer {
    let result = match request {
        Request::Stop if fds.is_empty() => return (Message::Done, ControlFlow::Break(ExitReason::Stopped)),
        Request::AddDisk(config) => Block::without_ring(&config, fds)
            .map_err(|error| invalid(chain(&error)))
            .and_then(|disk| plug(machine, watch, Box::new(disk))),
        Request::AddNetwork(config) => net::device(&config, fds)
            .map_err(|error| invalid(chain(&error)))
            .and_then(|net| plug(machine, watch, net)),
        Request::AddFs(config) => file_system(&config, fds, machine.file_thread())
            .and_then(|device| plug(machine, watch, Box::new(device))),
        other => no_descriptors(&fds).and_then(|()| without_descriptors(machine, watch, other)),
    };
    (result.unwrap_or_else(Message::Failed), ControlFlow::Continue(()))
}

fn without_descriptors(machine: &Machine, watch: &Watch, request: Request) -> Result<Message, Failure> {
    match request {
        Request::Stats => Ok(Message::Stats(machine.stats())),
        Request::Unplug { name, how } => unplug(machine, watch, &name, how),
        Request::SetBalloon { mib } => set_balloon(machine, mib).map(|()| Message::Done),
        Request::SetHotplugMemory { mib } => set_hotplug_memory(machine, mib).map(|()| Message::Done),
        Request::PlugHotplugMemory => {
            check_not_paused(machine)?;
            let reserved = || wrong_state("no memory to plug is reserved, or its device is there");
            plug(machine, watch, machine.take_reserved().ok_or_else(reserved)?)
        }
        Request::Pause => pause(machine, watch),
        Request::Resume => resume(machine, watch),
        Request::Hello { .. }
        | Request::Jail(_)
        | Request::Machine(_)
        | Request::AddDisk(_)
        | Request::AddNetwork(_)
        | Request::AddVsock(_)
        | Request::AddEntropy
        | Request::AddPmem(_)
        | Request::AddFs(_)
        | Request::AddHotplugMemory { .. }
        | Request::ReserveHotplugMemory { .. }
        | Request::AddBalloon
        | Request::Boot
        | Request::Stop => Err(wrong_state("the VM runs already")),
    }
}

fn plug(machine: &Machine, watch: &Watch, device: Box<dyn VirtioDevice>) -> Result<Message, Failure> {
    check_not_paused(machine)?;
    let name = device.name().to_owned();
    let slot = machine.plug(device).map_err(|error| slot_failure(&error))?;
    let watched = machine.devices().with(slot, |device| watch.add_device(slot, device));
    if let Some(Err(error)) = watched {
        machine.unplug(&name, Unplug::Forced).map_err(|error| slot_failure(&error))?;
        return Err(resources(format!("cannot watch the device {name}: {error}")));
    }
    let slot = u8::try_from(slot).map_err(|_| resources(format!("slot {slot} has no name")))?;
    Ok(Message::Plugged { slot })
}

fn unplug(machine: &Machine, watch: &Watch, name: &str, how: Unplug) -> Result<Message, Failure> {
    check_not_paused(machine)?;
    let device = machine.unplug(name, how).map_err(|error| slot_failure(&error))?;
    watch.remove_device(&device).map_err(|error| resources(format!("cannot forget the device: {error}")))?;
    Ok(Message::Done)
}

fn pause(machine: &Machine, watch: &Watch) -> Result<Message, Failure> {
    machine.pause().map_err(|error| wrong_state(chain(&error)))?;
    watch.remove_devices(machine).map_err(|error| resources(format!("cannot stop the devices: {error}")))?;
    Ok(Message::Done)
}

fn resume(machine: &Machine, watch: &Watch) -> Result<Message, Failure> {
    if !machine.is_paused() {
        return Err(wrong_state("the VM is not paused"));
    }
    watch.add_devices(machine).map_err(|error| resources(format!("cannot start the devices: {error}")))?;
    machine.resume().map_err(|error| wrong_state(chain(&error)))?;
    Ok(Message::Done)
}

fn set_balloon(machine: &Machine, mib: u32) -> Result<(), Failure> {
    let balloon = machine.balloon().ok_or_else(|| wrong_state("the VM has no balloon"))?;
    let most = machine.ram().bytes() >> 20;
    if u64::from(mib) >= most {
        return Err(invalid(format!("a balloon of {mib} MiB leaves nothing of the VM's {most} MiB")));
    }
    balloon.set_target(mib);
    Ok(())
}

fn set_hotplug_memory(machine: &Machine, mib: u32) -> Result<(), Failure> {
    let memory = machine.hotplug().ok_or_else(|| wrong_state("the VM has no memory to plug"))?;
    let most = memory.most_mib();
    if u64::from(mib) > most {
        return Err(invalid(format!("{mib} MiB are more than the {most} MiB that can be plugged")));
    }
    memory.request(mib);
    Ok(())
}

fn check_not_paused(machine: &Machine) -> Result<(), Failure> {
    if machine.is_paused() { Err(wrong_state("the VM is paused")) } else { Ok(()) }
}

fn resources(message: String) -> Failure {
    Failure { code: FailureCode::Resources, message }
}
