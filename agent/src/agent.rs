//! The running agent: one control connection, many stream connections, and the end of both.
//!
//! Knows nothing of vsock: who starts it brings the connections, so that tests can use unix sockets.

mod control;

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use hull_protocol::agent::api::agent_ttrpc::create_agent;
use tokio::sync::mpsc;
use tokio::time::timeout;
use ttrpc::r#async::transport::Listener;

use crate::container::{Registry, Request};
use crate::environment::Environment;
use crate::server::Service;
use crate::stdio::Connection;
use crate::{deadline, reap, streams};

/// After the answer to a shutdown request, how long the host may take to hang up before the guest ends anyway.
const HANG_UP: Duration = Duration::from_millis(500);
/// How long the containers may take to end when the host is gone.
const ORPHANED: Duration = Duration::from_secs(20);

/// Why the agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The host asked for it.
    ShutDown,
    /// The host is gone.
    HungUp,
}

/// Why the agent could not serve.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The runtime cannot watch for ended children.
    #[error("cannot watch children: {0}")]
    Children(#[source] std::io::Error),
    /// The service did not start.
    #[error("cannot serve the API: {0}")]
    Serve(#[from] ttrpc::Error),
}

/// Serves until the host asks for the end or hangs up. All containers are gone afterwards.
pub async fn run(
    environment: Arc<Environment>,
    connection: impl Connection + Sync + 'static,
    incoming: impl Stream<Item = Box<dyn Connection>> + Send + 'static,
) -> Result<Outcome, AgentError> {
    let containers = Registry::default();
    let reaper = tokio::spawn(reap::run(environment.children.clone()));
    let streams = tokio::spawn(accept(containers.clone(), incoming));

    let (power_off, mut power_off_asked) = mpsc::channel(1);
    let service = Service::new(environment, containers.clone(), power_off);
    let (connection, mut hung_up) = control::watched(connection);
    // One connection, and then no other for ever.
    let only = futures::stream::once(async { Ok(connection) }).chain(futures::stream::pending());
    let mut server = ttrpc::r#async::Server::new()
        .add_listener(Listener::new(only))
        .register_service(deadline::enforce(create_agent(Arc::new(service))));
    server.start().await?;

    let outcome = tokio::select! {
        _ = power_off_asked.recv() => {
            // The answer must be out of the guest before the guest ends; a host that has it hangs up.
            let _ = timeout(HANG_UP, &mut hung_up).await;
            Outcome::ShutDown
        }
        // The other end tells by closing, or by being dropped: the same.
        _ = &mut hung_up => Outcome::HungUp,
        ended = reaper => match ended {
            Ok(Err(error)) => return Err(AgentError::Children(error)),
            _ => return Err(AgentError::Children(std::io::ErrorKind::Interrupted.into())),
        },
    };
    streams.abort();
    if timeout(ORPHANED, end_all(&containers)).await.is_err() {
        log::error!("some containers did not end in time");
    }
    Ok(outcome)
}

async fn accept(containers: Registry, incoming: impl Stream<Item = Box<dyn Connection>> + Send) {
    let mut incoming = std::pin::pin!(incoming);
    while let Some(connection) = incoming.next().await {
        tokio::spawn(streams::serve(containers.clone(), connection));
    }
}

async fn end_all(containers: &Registry) {
    let ends = containers.all().into_iter().map(|container| async move {
        if let Err(error) = container.ask("", |reply| Request::Delete { reply }).await {
            log::warn!("ending a container: {error}");
        }
    });
    futures::future::join_all(ends).await;
}
