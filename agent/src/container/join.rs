//! Whose namespaces a container joins: those of the pod, or of another container.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::handle::{Registry, Request};
use crate::environment::Environment;
use crate::error::Error;
use crate::launch::Joined;
use crate::spec::{ContainerSpec, Origin};

/// Finds the processes that are in the namespaces which `spec` asks for, and makes the pod's if they are not there yet.
pub async fn resolve(
    environment: &Environment,
    registry: &Registry,
    spec: &ContainerSpec,
) -> Result<Joined, Error> {
    let of = async |origin: &Origin| -> Result<Option<Arc<OwnedFd>>, Error> {
        match origin {
            Origin::Own | Origin::Guest => Ok(None),
            Origin::Pod => Ok(Some(environment.keeper.process(environment).await?)),
            Origin::Container(id) => {
                let container = registry.find(id)?;
                Ok(Some(container.ask(id, |reply| Request::Join { reply }).await?))
            }
        }
    };
    let namespaces = &spec.namespaces;
    Ok(Joined {
        ipc: of(&namespaces.ipc).await?,
        uts: of(&namespaces.uts).await?,
        pid: of(&namespaces.pid).await?,
    })
}
