//! `hull metrics --listen`: the same text over HTTP, made anew for each request.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::page;
use crate::error::CliError;

/// How many clients are served at once; more wait to be accepted.
const CLIENTS_MAX: usize = 8;
/// How long a client may take for its request.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// How long a client is served altogether.
const CLIENT_DEADLINE: Duration = Duration::from_secs(300);
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Answers `GET /metrics` on an address until the process is ended. `ready` is told the address once it is bound.
pub async fn listen(
    address: SocketAddr,
    root: &Path,
    ready: impl FnOnce(SocketAddr) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let bound = async {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    let (listener, address) = bound.await.map_err(CliError::io(format!("cannot listen on {address}")))?;
    ready(address)?;
    let root: Arc<Path> = root.into();
    let clients = Arc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        // It is never closed.
        let Ok(room) = Arc::clone(&clients).acquire_owned().await else { return Ok(()) };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let root = root.to_path_buf();
        tokio::spawn(async move {
            // A client that goes away or is slow is no error of ours.
            let _ = tokio::time::timeout(CLIENT_DEADLINE, serve(stream, root)).await;
            drop(room);
        });
    }
}

async fn serve(stream: TcpStream, root: PathBuf) -> hyper::Result<()> {
    let answer = service_fn(move |request: Request<Incoming>| {
        let root = root.clone();
        async move { Ok::<_, Infallible>(answer(request.method(), request.uri().path(), &root).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_DEADLINE)
        .serve_connection(TokioIo::new(stream), answer)
        .await
}

async fn answer(method: &Method, path: &str, root: &Path) -> Response<Full<Bytes>> {
    let (status, kind, body) = match (method, path) {
        (&Method::GET | &Method::HEAD, "/metrics") => match page(root).await {
            Ok(text) => (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error}\n")),
        },
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "there is only /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}
