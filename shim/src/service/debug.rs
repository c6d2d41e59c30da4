//! The debug console's method of the pod's own service.

use std::sync::Arc;

use async_trait::async_trait;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use ttrpc::asynchronous::{MethodHandler, TtrpcContext};
use ttrpc::proto::{Code, Request, Response};

use crate::metrics::TEXT_TYPE_URL;
use crate::pod::Pod;

/// The longest line, in bytes: a path and a word.
const LINE_MAX: usize = 8192;

/// The method: a line in an `Any`, and the guest's answer in another.
pub fn handler(pod: &Arc<Pod>) -> Box<dyn MethodHandler + Send + Sync> {
    Box::new(Debug { pod: Arc::clone(pod) })
}

struct Debug {
    pod: Arc<Pod>,
}

#[async_trait]
impl MethodHandler for Debug {
    async fn handler(&self, _: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        // A refusal too is a response, with its status.
        Ok(self.answer(&request.payload).await.unwrap_or_else(Response::from))
    }
}

impl Debug {
    async fn answer(&self, payload: &[u8]) -> ttrpc::Result<Response> {
        let invalid =
            |error: String| ttrpc::Error::RpcStatus(ttrpc::get_status(Code::INVALID_ARGUMENT, error));
        let line = Any::parse_from_bytes(payload).map_err(|error| invalid(error.to_string()))?;
        let line = String::from_utf8(line.value).ok().filter(|line| line.len() <= LINE_MAX);
        let line = line.ok_or_else(|| invalid("the line is too long, or no text".to_owned()))?;
        let value = self.pod.debug(line).await.map_err(|error| error.to_status())?;
        let answer = Any { type_url: TEXT_TYPE_URL.to_owned(), value, ..Any::default() };
        let mut response = Response::new();
        response.set_status(ttrpc::get_status(Code::OK, String::new()));
        response.payload = answer.write_to_bytes().map_err(|error| invalid(error.to_string()))?;
        Ok(response)
    }
}
