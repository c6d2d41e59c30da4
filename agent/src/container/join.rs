//! Whose namespaces a container joins: those of the pod, or of another container.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::handle::{Registry, Request};
use crate::environment::Environment;
use crate::error::Error;
use crate::launch::{Joined, Kept, LaunchError, UserNamespace};
use crate::spec::{ContainerSpec, IdMapped, IdMappings, Origin};

/// Finds the processes that are in the namespaces which `spec` asks for, and makes the pod's if they are not there yet.
pub async fn resolve(
    environment: &Environment,
    registry: &Registry,
    spec: &ContainerSpec,
) -> Result<Joined, Error> {
    let namespaces = &spec.namespaces;
    let new = |users: &IdMappings| Ok::<_, LaunchError>(Arc::new(UserNamespace::new(environment, users)?));
    // The pod's namespaces belong to the user namespace of the container that first asks for any.
    let pods_users = spec.users.as_ref().filter(|_| namespaces.user == Origin::Pod);
    let find = async |origin: &Origin| -> Result<Option<Kept>, Error> {
        match origin {
            Origin::Own | Origin::Guest => Ok(None),
            Origin::Pod => Ok(Some(environment.keeper.namespaces(environment, pods_users).await?)),
            Origin::Container(id) => {
                let container = registry.find(id)?;
                Ok(Some(container.ask(id, |reply| Request::Join { reply }).await?))
            }
        }
    };
    let user = match (&namespaces.user, &spec.users) {
        (Origin::Guest, _) => None,
        (Origin::Own, Some(users)) => Some(new(users)?),
        (origin, users) => find(origin).await?.and_then(|found| found.user).map_or(
            Err(Error::ForeignUsers("there is no user namespace to join")),
            |found| match users {
                Some(users) if *users != found.mappings => {
                    Err(Error::ForeignUsers("the user namespace to join maps other ids"))
                }
                _ => Ok(Some(found)),
            },
        )?,
    };
    let of = async |origin: &Origin| -> Result<Option<Arc<OwnedFd>>, Error> {
        let Some(found) = find(origin).await? else { return Ok(None) };
        let same = match (&found.user, &user) {
            (None, None) => true,
            (Some(theirs), Some(own)) => Arc::ptr_eq(theirs, own),
            _ => false,
        };
        if same {
            Ok(Some(found.process))
        } else {
            Err(Error::ForeignUsers("a namespace to join belongs to another user namespace"))
        }
    };
    let mapped = |ids: &IdMapped| -> Result<Arc<UserNamespace>, Error> {
        let same = |users: &&IdMappings, own: &&Arc<UserNamespace>| **users == own.mappings;
        match (&ids.mappings, &user) {
            (None, Some(own)) => Ok(own.clone()),
            (None, None) => {
                Err(Error::ForeignUsers("a mount with ids mapped needs mappings, or a user namespace"))
            }
            (Some(users), Some(own)) if same(&users, &own) => Ok(own.clone()),
            (Some(users), _) => Ok(new(users)?),
        }
    };
    Ok(Joined {
        ipc: of(&namespaces.ipc).await?,
        uts: of(&namespaces.uts).await?,
        pid: of(&namespaces.pid).await?,
        mounts: spec
            .mounts
            .iter()
            .map(|mount| mount.ids.as_ref().map(mapped).transpose())
            .collect::<Result<_, _>>()?,
        user,
    })
}
