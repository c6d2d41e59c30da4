//! New limits of a container in a VM that has what they ask for. What cannot be had is refused before anything is changed.

use super::Pod;
use crate::error::TaskError;
use crate::process::Phase;
use crate::spec::{self, Limits};

impl Pod {
    /// Changes the limits of a container; a LinuxResources in JSON.
    pub async fn update(&self, id: &str, json: &[u8]) -> Result<(), TaskError> {
        let container = self.container(id)?;
        container.require_updatable()?;
        let _alone = self.updating.lock().await;
        let before = container.limits();
        let (resources, after) = spec::update(json, before)?;
        let others: Vec<Limits> = self
            .containers()
            .iter()
            .filter(|other| other.id != id && !matches!(other.init.phase(), Phase::Exited(_)))
            .map(|other| other.limits())
            .collect();
        let (size, vm) = (container.vm.size(), &self.config.vm);
        let needed = spec::needed(size.now(), (before, after), &others, vm);
        let most = size.room();
        if needed.vcpus > most.vcpus || needed.memory_mib > most.memory_mib {
            return Err(TaskError::VmTooSmall { needed, most, overhead_mib: vm.overhead_mib });
        }
        if needed != size.now() {
            container.vm.resize(needed).await?;
        }
        container.update(resources).await?;
        container.set_limits(after);
        // What nobody's limits need goes back, down to what the VM began with.
        let enough = spec::enough(size.began(), after, &others, vm).within(size.now());
        if enough != size.now() {
            container.vm.resize(enough).await?;
        }
        Ok(())
    }
}
