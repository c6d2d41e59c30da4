//! A registry on loopback that answers what the test says.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::image::{INDEX, MANIFEST, TestImage};
use crate::reference::Reference;

/// What was asked.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn is_blob(&self, digest: &str) -> bool {
        self.target.ends_with(&format!("/blobs/{digest}"))
    }
}

/// What is answered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub(crate) cut: Option<usize>,
    /// Send in chunks instead of announcing the length.
    pub(crate) chunked: bool,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..Self::status(200) }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn cut(mut self, after: usize) -> Self {
        self.cut = Some(after);
        self
    }

    fn send(&self, stream: &mut TcpStream) -> io::Result<()> {
        let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        let announced = self.headers.iter().any(|(name, _)| *name == "Content-Length");
        head += &match (self.chunked, announced) {
            (true, _) => "Transfer-Encoding: chunked\r\n\r\n".to_owned(),
            (false, true) => "\r\n".to_owned(),
            (false, false) => format!("Content-Length: {}\r\n\r\n", self.body.len()),
        };
        stream.write_all(head.as_bytes())?;
        let body = &self.body[..self.cut.unwrap_or(self.body.len()).min(self.body.len())];
        if !self.chunked {
            return stream.write_all(body);
        }
        for chunk in body.chunks(1000) {
            write!(stream, "{:x}\r\n", chunk.len())?;
            stream.write_all(chunk)?;
            stream.write_all(b"\r\n")?;
        }
        stream.write_all(b"0\r\n\r\n")
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// Stops when dropped.
pub(crate) struct FakeRegistry {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl FakeRegistry {
    pub(crate) fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let handler: Arc<Handler> = Arc::new(handler);
        let (seen, stopped) = (Arc::clone(&requests), Arc::clone(&stop));
        let acceptor = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (handler, seen) = (Arc::clone(&handler), Arc::clone(&seen));
                std::thread::spawn(move || {
                    // A client that goes away in the middle is part of many tests.
                    let _ = serve(stream, &handler, &seen);
                });
            }
        });
        Self { address, requests, stop, acceptor: Some(acceptor) }
    }

    /// A registry that behaves, with `image` as test/image:1.
    pub(crate) fn with(image: TestImage) -> Self {
        Self::start(move |request| serve_image(&image, request))
    }

    /// `host:port`
    pub(crate) fn name(&self) -> String {
        self.address.to_string()
    }

    /// A reference in this registry.
    pub(crate) fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.address).parse().unwrap()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// How often a blob was asked for.
    pub(crate) fn count_blob(&self, digest: &str) -> usize {
        self.requests().iter().filter(|r| r.is_blob(digest)).count()
    }
}

impl Drop for FakeRegistry {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().unwrap();
        }
    }
}

fn serve(stream: TcpStream, handler: &Arc<Handler>, seen: &Mutex<Vec<Request>>) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    // A TLS hello: this registry speaks plain HTTP only, and hangs up.
    if reader.fill_buf()?.first() == Some(&0x16) {
        return Ok(());
    }
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut words = lines[0].split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let headers: Vec<_> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(n, _)| n == "content-length").map_or(0, |(_, v)| v.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let request = Request { method, target, headers, body };
    seen.lock().unwrap().push(request.clone());
    handler(&request).send(reader.get_mut())
}

/// What a registry that behaves answers; understands ranges.
pub(crate) fn serve_image(image: &TestImage, request: &Request) -> Reply {
    let target = request.target.as_str();
    if target == "/v2/" {
        return Reply::ok("{}");
    }
    if let Some(which) = target.strip_prefix("/v2/test/image/manifests/") {
        if which == "1" || which == image.manifest_digest().to_string() {
            return Reply::ok(image.manifest_bytes()).with("Content-Type", MANIFEST);
        }
        return match image.blobs.get(which) {
            Some(index) => Reply::ok(index.clone()).with("Content-Type", INDEX),
            None => unknown("MANIFEST_UNKNOWN", "manifest unknown"),
        };
    }
    let Some(blob) = target.rsplit_once("/blobs/").and_then(|(_, digest)| image.blobs.get(digest)) else {
        return unknown("BLOB_UNKNOWN", "blob unknown to registry");
    };
    let from = request
        .header("range")
        .map(|r| r.strip_prefix("bytes=").unwrap().trim_end_matches('-').parse().unwrap());
    match from {
        Some(from) => Reply { status: 206, ..Reply::ok(&blob[from..]) }
            .with("Content-Range", format!("bytes {from}-{}/{}", blob.len() - 1, blob.len())),
        None => Reply::ok(blob.clone()),
    }
}

fn unknown(code: &str, message: &str) -> Reply {
    let mut reply = Reply::ok(format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#));
    reply.status = 404;
    reply
}
