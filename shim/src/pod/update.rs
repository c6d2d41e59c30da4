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
        let size = container.vm.size();
        let needed = spec::needed(size, (before, after), &others, &self.config.vm);
        if needed != size {
            return Err(TaskError::VmTooSmall { needed, size, overhead_mib: self.config.vm.overhead_mib });
        }
        container.update(resources).await?;
        container.set_limits(after);
        Ok(())
    }
}
