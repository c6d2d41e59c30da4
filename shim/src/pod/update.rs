//! New limits of a container in a VM that has what they ask for. What cannot be had is refused before anything is changed; where the
//! guest fails half-way, all is put back.

use super::Pod;
use crate::container::Container;
use crate::error::TaskError;
use crate::process::Phase;
use crate::spec::{self, Limits, VmShape};

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
        let began = size.now();
        let needed = spec::needed(size.now(), (before, after), &others, vm);
        let most = size.room();
        if needed.vcpus > most.vcpus || needed.memory_mib > most.memory_mib {
            return Err(TaskError::VmTooSmall { needed, most, overhead_mib: vm.overhead_mib });
        }
        if needed != began
            && let Err(error) = container.vm.resize(needed).await
        {
            put_back(&container, began).await;
            return Err(error.into());
        }
        if let Err(error) = container.update(resources).await {
            put_back(&container, began).await;
            return Err(error);
        }
        container.set_limits(after);
        // What nobody's limits need goes back, down to what the VM began with.
        let enough = spec::enough(size.began(), after, &others, vm).within(size.now());
        if enough != size.now()
            && let Err(error) = container.vm.resize(enough).await
        {
            // Its limits were smaller: the memory comes before them.
            put_back(&container, began).await;
            container
                .revert_update()
                .await
                .map_err(|kept| TaskError::LimitsStay { error: error.to_string(), kept: kept.to_string() })?;
            container.set_limits(before);
            return Err(error.into());
        }
        Ok(())
    }
}

/// The VM as it was before an update that has failed. That it is not is in the log, as the client is told why the update failed.
async fn put_back(container: &Container, size: VmShape) {
    if size != container.vm.size().now()
        && let Err(error) = container.vm.resize(size).await
    {
        log::error!(container:% = container.id; "after a failed update the VM has not the size of before: {error}");
    }
}
