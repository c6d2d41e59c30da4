//! A client of Kubernetes' container runtime interface: gRPC (HTTP/2) on a unix socket, one call after another.

use std::path::Path;
use std::time::Duration;

use h2::client::SendRequest;
use http::{HeaderMap, Request};
use protobuf::Message;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

/// The messages.
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::restriction, unused_qualifications)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/cri_messages/messages.rs"));
}

pub use generated::cri::*;

/// After this long a call is not answered, however slow the host.
const NEVER: Duration = Duration::from_secs(240);

/// A connection to a CRI server.
pub struct Cri {
    runtime: Runtime,
    sender: SendRequest<bytes::Bytes>,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// gRPC's status code.
    pub code: u32,
    /// In the server's words.
    pub message: String,
}

impl Cri {
    /// Connects to the server at this socket.
    pub fn connect(socket: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let sender = runtime.block_on(async {
            let stream = UnixStream::connect(socket).await.unwrap();
            let (sender, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            sender
        });
        Self { runtime, sender }
    }

    /// Calls a method of the runtime service.
    pub fn call<R: Message>(&self, method: &str, request: &impl Message) -> Result<R, Refused> {
        self.service("runtime.v1.RuntimeService", method, request)
    }

    /// Calls a method of the runtime service that must succeed.
    #[track_caller]
    pub fn ok<R: Message>(&self, method: &str, request: &impl Message) -> R {
        self.call(method, request).unwrap_or_else(|error| panic!("{method}: {error:?}"))
    }

    /// Has an image pulled.
    #[track_caller]
    pub fn pull(&self, image: &str) {
        let image = ImageSpec { image: image.to_owned(), ..ImageSpec::default() };
        let request = PullImageRequest { image: Some(image).into(), ..PullImageRequest::default() };
        let pulled: PullImageResponse =
            self.service("runtime.v1.ImageService", "PullImage", &request).unwrap();
        assert!(!pulled.image_ref.is_empty());
    }

    fn service<R: Message>(&self, service: &str, method: &str, request: &impl Message) -> Result<R, Refused> {
        let call =
            self.exchange(format!("http://localhost/{service}/{method}"), request.write_to_bytes().unwrap());
        let answer = self.runtime.block_on(async { tokio::time::timeout(NEVER, call).await });
        let bytes = answer.unwrap_or_else(|_| panic!("{method} is never answered"))?;
        Ok(R::parse_from_bytes(&bytes).unwrap())
    }

    /// One message there, one back: each behind a byte of flags and its length.
    async fn exchange(&self, uri: String, message: Vec<u8>) -> Result<Vec<u8>, Refused> {
        let request = Request::post(uri)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let mut sender = self.sender.clone().ready().await.unwrap();
        let (response, mut stream) = sender.send_request(request, false).unwrap();
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let framed = [&[0][..], &length, &message].concat();
        stream.send_data(framed.into(), true).unwrap();
        let response = response.await.unwrap();
        // A refusal may come without a body, its status among the headers.
        status(response.headers())?;
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            bytes.extend_from_slice(&data);
        }
        status(&body.trailers().await.unwrap().unwrap_or_default())?;
        Ok(bytes.get(5..).unwrap_or_default().to_vec())
    }
}

fn status(headers: &HeaderMap) -> Result<(), Refused> {
    let text = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    match text("grpc-status").map(|code| code.parse().unwrap()) {
        None | Some(0) => Ok(()),
        Some(code) => Err(Refused { code, message: text("grpc-message").unwrap_or_default() }),
    }
}
