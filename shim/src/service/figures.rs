//! The pod's own service: what it measures, for whoever may use the socket.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use ttrpc::asynchronous::{MethodHandler, Service, TtrpcContext};
use ttrpc::proto::{Code, Request, Response};

use crate::metrics::{METHOD, SERVICE, TYPE_URL};
use crate::pod::Pod;

/// The service, by its name.
pub fn service(pod: &Arc<Pod>, id: &str) -> (String, Service) {
    let handler = Figures { pod: Arc::clone(pod), id: id.to_owned() };
    let methods: HashMap<String, Box<dyn MethodHandler + Send + Sync>> =
        [(METHOD.to_owned(), Box::new(handler) as Box<_>)].into();
    (SERVICE.to_owned(), Service { methods, streams: HashMap::new() })
}

struct Figures {
    pod: Arc<Pod>,
    id: String,
}

#[async_trait]
impl MethodHandler for Figures {
    async fn handler(&self, _: TtrpcContext, _: Request) -> ttrpc::Result<Response> {
        let internal = |error: String| ttrpc::Error::RpcStatus(ttrpc::get_status(Code::INTERNAL, error));
        let figures = self.pod.figures(&self.id).await;
        let value = serde_json::to_vec(&figures).map_err(|error| internal(error.to_string()))?;
        let answer = Any { type_url: TYPE_URL.to_owned(), value, ..Any::default() };
        let mut response = Response::new();
        response.set_status(ttrpc::get_status(Code::OK, String::new()));
        response.payload = answer.write_to_bytes().map_err(|error| internal(error.to_string()))?;
        Ok(response)
    }
}
