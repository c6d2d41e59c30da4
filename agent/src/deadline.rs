//! The rule that every request is answered in time, kept in one place: around each method of the service, whatever it does.
//!
//! What takes longer is not cut off. It runs to its end, or undoes itself, apart from the answer, so nothing is left half made;
//! who asked learns that it took too long, and can ask about the container, kill or delete it meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hull_protocol::agent::ANSWER_DEADLINE;
use ttrpc::r#async::{MethodHandler, Service, TtrpcContext};
use ttrpc::{Request, Response};

use crate::error::Error;

/// The longest time that processes get between SIGTERM and SIGKILL at a shutdown.
pub const GRACE_MAX: Duration = Duration::from_secs(600);
/// How long a process may take from its making to its program, hooks included. Then it is killed.
pub const PROCESS: Duration = Duration::from_secs(40);

/// A method that may be asked for.
type Method = Arc<dyn MethodHandler + Send + Sync>;

/// How long a method may take to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    /// So long at most.
    Within(Duration),
    /// It waits for what a container or the kernel does, and ends with the connection. It makes nothing.
    Waits,
}

/// The limit of each method. One that is not named has the common one.
fn limit(method: &str) -> Limit {
    match method {
        "WaitProcess" | "NextEvent" => Limit::Waits,
        // It gives processes as long as the request says.
        "Shutdown" => Limit::Within(GRACE_MAX.saturating_add(ANSWER_DEADLINE)),
        _ => Limit::Within(ANSWER_DEADLINE),
    }
}

/// The same services, each method within its limit.
pub fn enforce(services: HashMap<String, Service>) -> HashMap<String, Service> {
    let bound = |(name, inner): (String, Box<dyn MethodHandler + Send + Sync>)| {
        let method: Box<dyn MethodHandler + Send + Sync> = match limit(&name) {
            Limit::Waits => inner,
            Limit::Within(limit) => Box::new(Bounded { limit, inner: inner.into() }),
        };
        (name, method)
    };
    let services = services.into_iter();
    services
        .map(|(name, Service { methods, streams })| {
            (name, Service { methods: methods.into_iter().map(bound).collect(), streams })
        })
        .collect()
}

struct Bounded {
    limit: Duration,
    inner: Method,
}

#[async_trait]
impl MethodHandler for Bounded {
    async fn handler(&self, context: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let (inner, name) = (self.inner.clone(), request.method.clone());
        // A task of its own: neither the limit nor a caller that goes away ends the work.
        let work = tokio::spawn(async move { inner.handler(context, request).await });
        let error = match tokio::time::timeout(self.limit, work).await {
            // A refusal too: it is a response with a status.
            Ok(Ok(Ok(response))) => return Ok(response),
            Ok(Ok(Err(error))) => Error::Message(error.to_string()),
            Ok(Err(ended)) => Error::system("answer")(std::io::Error::other(ended)),
            Err(_elapsed) => Error::Unanswered { method: name, limit: self.limit },
        };
        log::error!("{error}");
        Ok(ttrpc::Error::from(error).into())
    }
}
