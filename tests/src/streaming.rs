//! A client of a CRI server's streaming side, by WebSocket with the subprotocol `v4.channel.k8s.io`: each message is a channel's
//! number and bytes of that channel.

use std::net::TcpStream;
use std::time::Duration;

use tungstenite::client::IntoClientRequest;
use tungstenite::http::HeaderValue;
use tungstenite::{Bytes, Error, Message, WebSocket};

/// Of exec and attach.
pub const STDIN: u8 = 0;
/// Of exec and attach.
pub const STDOUT: u8 = 1;
/// Of exec and attach.
pub const STDERR: u8 = 2;
/// Of exec and attach: how it ended, as JSON.
pub const STATUS: u8 = 3;
/// Of exec and attach: the terminal's size, as JSON.
pub const RESIZE: u8 = 4;

/// No answer takes as long.
const NEVER: Duration = Duration::from_secs(90);

/// A connection with all of its channels.
pub struct Channels {
    socket: WebSocket<TcpStream>,
    /// What each channel has brought so far.
    received: Vec<Vec<u8>>,
}

impl Channels {
    /// Connects to where the server said.
    pub fn connect(url: &str) -> Self {
        let mut request = url.replacen("http://", "ws://", 1).into_client_request().unwrap();
        request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("v4.channel.k8s.io"));
        let address = request.uri().authority().unwrap().to_string();
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(NEVER)).unwrap();
        let (socket, _) = tungstenite::client(request, stream).unwrap();
        Self { socket, received: vec![Vec::new(); 5] }
    }

    /// Sends bytes on a channel.
    pub fn send(&mut self, channel: u8, bytes: &[u8]) {
        self.socket.send(Message::Binary([&[channel], bytes].concat().into())).unwrap();
    }

    /// Everything that a channel has brought.
    pub fn received(&self, channel: u8) -> &[u8] {
        &self.received[usize::from(channel)]
    }

    /// The same, as text.
    pub fn text(&self, channel: u8) -> String {
        String::from_utf8_lossy(self.received(channel)).into_owned()
    }

    /// Takes the next message; whether there was one.
    fn next(&mut self) -> bool {
        let bytes: Bytes = match self.socket.read() {
            Ok(Message::Binary(bytes)) => bytes,
            Ok(Message::Text(text)) => text.into(),
            Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => return false,
            Ok(_) => return true,
            Err(Error::Protocol(_)) => return false,
            Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => return false,
            Err(error) => panic!("{error}: {:?}", self.received),
        };
        if let Some((channel, bytes)) = bytes.split_first() {
            self.received[usize::from(*channel)].extend_from_slice(bytes);
        }
        true
    }

    /// Waits until what a channel has brought contains this.
    #[track_caller]
    pub fn until(&mut self, channel: u8, text: &str) {
        while !self.text(channel).contains(text) {
            assert!(self.next(), "no {text:?}: {:?}", self.received);
        }
    }

    /// Waits until the channel has brought so many bytes.
    #[track_caller]
    pub fn until_length(&mut self, channel: u8, length: usize) {
        while self.received(channel).len() < length {
            assert!(self.next(), "{} bytes of {length}", self.received(channel).len());
        }
    }

    /// Waits for the other side to close.
    pub fn end(&mut self) {
        while self.next() {}
    }
}
