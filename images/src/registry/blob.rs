//! One blob as a stream: asked for again from where it broke, and never longer than it may be.

use std::io::{self, Read};

use super::retry::{Attempts, Notify, Outcome};
use super::transport::{Request, Response};
use super::{Client, RegistryError};
use crate::digest::Digest;

/// Most connections that one blob may take. A server that sends a few bytes at a time makes progress, but not for ever.
const MAX_CONNECTIONS: u32 = 100;

/// Reads exactly the announced number of bytes or fails with a [`RegistryError`] inside the [`io::Error`].
pub(crate) struct BlobReader<'a> {
    client: &'a Client,
    digest: Digest,
    path: String,
    size: u64,
    position: u64,
    body: Option<Box<dyn Read + Send>>,
    /// The length of the body was not announced, so its end has to be looked for.
    open_ended: bool,
    attempts: Attempts<'a>,
    connections: u32,
    notify: &'a Notify<'a>,
}

impl<'a> BlobReader<'a> {
    pub(super) fn new(client: &'a Client, digest: Digest, size: u64, notify: &'a Notify<'a>) -> Self {
        let path = format!("/v2/{}/blobs/{digest}", client.repository);
        let attempts = Attempts::new(&client.retry, &client.cancel);
        Self {
            client,
            digest,
            path,
            size,
            position: 0,
            body: None,
            open_ended: false,
            attempts,
            connections: 0,
            notify,
        }
    }

    fn open(&mut self) -> Result<(), Outcome> {
        let from = (self.position > 0).then_some(self.position);
        let response = self.client.send_once(&Request { path: &self.path, accept: None, from })?;
        let partial = response.status() == 206;
        let expected = if partial { self.size - self.position } else { self.size };
        if partial && !self.is_the_right_part(&response) {
            return Err(self.protocol("it answers with another part of the blob than asked for").into());
        }
        let announced = response.content_length();
        if let Some(got) = announced.filter(|got| *got != expected) {
            return Err(RegistryError::SizeMismatch { digest: self.digest.clone(), expected, got }.into());
        }
        self.open_ended = announced.is_none();
        let mut body: Box<dyn Read + Send> = Box::new(response.into_body());
        if !partial && self.position > 0 {
            // The server does not know ranges: what is there already is read again and dropped.
            let skipped = io::copy(&mut (&mut body).take(self.position), &mut io::sink());
            if skipped.map_err(|e| self.cut_off(&e.to_string()))? < self.position {
                return Err(self.cut_off("the connection was closed").into());
            }
        }
        self.body = Some(body);
        Ok(())
    }

    /// Checks `Content-Range: bytes FIRST-LAST/TOTAL` (RFC 9110 §14.4).
    fn is_the_right_part(&self, response: &Response) -> bool {
        let range = response.header("content-range").and_then(|r| r.strip_prefix("bytes "));
        let Some((first, rest)) = range.and_then(|r| r.split_once('-')) else { return false };
        let total = rest.split_once('/').map(|(_, total)| total);
        first.parse() == Ok(self.position) && total.is_some_and(|t| t == "*" || t.parse() == Ok(self.size))
    }

    fn protocol(&self, reason: &str) -> RegistryError {
        RegistryError::Protocol {
            registry: self.client.transport.endpoint().name.clone(),
            reason: reason.to_owned(),
        }
    }

    fn cut_off(&self, reason: &str) -> RegistryError {
        RegistryError::Truncated {
            digest: self.digest.clone(),
            expected: self.size,
            received: self.position,
            reason: reason.to_owned(),
        }
    }

    /// Looks behind the last byte when the server did not say how much it would send.
    fn check_end(&mut self) -> Result<(), RegistryError> {
        let Some(mut body) = self.body.take().filter(|_| self.open_ended) else { return Ok(()) };
        match body.read(&mut [0]) {
            Ok(0) | Err(_) => Ok(()),
            Ok(_) => Err(RegistryError::SizeMismatch {
                digest: self.digest.clone(),
                expected: self.size,
                got: self.size.saturating_add(1),
            }),
        }
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, RegistryError> {
        loop {
            if self.position == self.size {
                self.check_end()?;
                return Ok(0);
            }
            if self.client.cancel.is_cancelled() {
                return Err(RegistryError::Cancelled);
            }
            let outcome = match &mut self.body {
                None if self.connections == MAX_CONNECTIONS => {
                    return Err(self.cut_off("the connection broke too many times"));
                }
                None => {
                    self.connections += 1;
                    match self.open() {
                        Ok(()) => continue,
                        Err(outcome) => outcome,
                    }
                }
                Some(body) => {
                    let left = usize::try_from(self.size - self.position).unwrap_or(usize::MAX);
                    let window = left.min(buffer.len());
                    match body.read(&mut buffer[..window]) {
                        Ok(0) => self.cut_off("the connection was closed").into(),
                        Ok(n) => {
                            self.position += n as u64;
                            self.attempts.progressed();
                            return Ok(n);
                        }
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                        Err(e) => self.cut_off(&e.to_string()).into(),
                    }
                }
            };
            self.body = None;
            let Outcome { error, retry_after } = outcome;
            self.attempts.again(error, retry_after, self.notify)?;
        }
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        self.read_some(buffer).map_err(io::Error::other)
    }
}
