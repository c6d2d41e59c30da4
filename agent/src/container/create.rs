//! Making a container: cgroup, root file system, init process up to its start gate. All of it or nothing.

use std::sync::Arc;

use hull_protocol::agent::api::agent as api;
use tokio::sync::oneshot;

use super::handle::Registry;
use super::join;
use crate::cgroup::{Cgroup, Writer};
use crate::deadline;
use crate::environment::Environment;
use crate::error::Error;
use crate::launch::{self, Launched, UserNamespace};
use crate::rootfs::{Rootfs, RootfsError};
use crate::spec::ContainerSpec;
use crate::stdio::{Expected, Prepared};

/// What a container is made from.
#[derive(Debug)]
pub struct Creation {
    /// Checked to be an id.
    pub id: String,
    /// From config.json.
    pub spec: ContainerSpec,
    /// Where its files come from.
    pub rootfs: api::Rootfs,
    /// Which streams will be attached.
    pub stdio: api::Stdio,
}

/// A container whose init stands before its start gate.
#[derive(Debug)]
pub struct Created {
    pub cgroup: Arc<Cgroup>,
    pub rootfs: Rootfs,
    pub user: Option<Arc<UserNamespace>>,
    pub init: Launched,
    pub stdio: Prepared,
    pub terminal: Option<std::os::fd::OwnedFd>,
}

/// Creates a container, unless `cancel` fires first. After an error nothing is left of it.
pub async fn run(
    environment: &Environment,
    registry: &Registry,
    id: &str,
    spec: &ContainerSpec,
    request: &api::Rootfs,
    expected: Expected,
    cancel: oneshot::Receiver<()>,
) -> Result<Created, Error> {
    let cgroup = Arc::new(environment.cgroups.create(id)?);
    let rootfs = Rootfs::new(&environment.run, id);
    let mut launched = None;
    let steps = async {
        environment.memory.follow(&environment.cgroups, &environment.children).await?;
        cgroup.apply(&spec.limits, Writer::Caller).await?;
        cgroup.limit_devices(&spec.device_rules)?;
        let joined = join::resolve(environment, registry, spec).await?;
        let user = joined.user.as_ref();
        if let Some((uid, gid)) = user.and_then(|user| user.mappings.root())
            && spec.delegates_cgroup()
        {
            cgroup.delegate(uid, gid)?;
        }
        let Environment { disks, volumes, children, .. } = environment;
        rootfs.mount(disks, volumes, children, request, user).await?;
        if spec.uses_volumes() {
            volumes.mount(children).await.map_err(RootfsError::Work)?;
        }
        for tmpfs in spec.shared_tmpfs() {
            let children = &environment.children;
            environment.shared.mount(children, tmpfs).await.map_err(RootfsError::Work)?;
        }
        let (stdio, child) = Prepared::new(expected, spec.process.console, &environment.null)
            .map_err(Error::system("make pipes"))?;
        let init = launched.insert(launch::init(environment, id, spec, &joined, &rootfs, &cgroup, &child)?);
        // Only the process may hold these open from now on, or its streams would never end.
        drop(child);
        Ok((stdio, init.ready(environment).await?, joined.user))
    };
    let result = tokio::select! {
        result = tokio::time::timeout(deadline::PROCESS, steps) => result.unwrap_or(Err(Error::Deadline("the creation"))),
        _ = cancel => Err(Error::Cancelled),
    };
    match (result, launched) {
        (Ok((stdio, terminal, user)), Some(init)) => {
            Ok(Created { cgroup, rootfs, user, init, stdio, terminal })
        }
        (result, launched) => {
            if let Some(launched) = launched {
                launched.abort(&environment.children).await;
            }
            undo(environment, id, &cgroup, &rootfs).await;
            Err(result.err().unwrap_or(Error::Cancelled))
        }
    }
}

async fn undo(environment: &Environment, id: &str, cgroup: &Cgroup, rootfs: &Rootfs) {
    if let Err(error) = cgroup.remove().await {
        log::error!("container {id}: undoing its creation: {error}");
    }
    if let Err(error) = rootfs.remove(&environment.children).await {
        log::error!("container {id}: undoing its creation: {error}");
    }
}
