//! One layer: from its compressed stream to a verified EROFS blob in the store, by two threads.
//!
//! The calling thread reads, hashes the blob and decompresses; the other one hashes the tar stream and converts it. Between them is a
//! bounded queue, so memory does not grow with the layer and neither side can run away.

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::LayerSpec;
use crate::compression::Decoder;
use crate::digest::{Digest, HashingReader};
use crate::erofs::{LayerTree, SidecarError, WriteError};
use crate::layer::{ConvertError, Limits, convert_layer};
use crate::registry::RegistryError;
use crate::store::{Layout, StoreError, is_full};

/// Bytes that travel between the threads at a time.
const CHUNK: usize = 256 << 10;
/// Chunks on the way at most.
const QUEUE: usize = 8;
/// A layer may always be this large uncompressed, ...
const BOMB_FREE: u64 = 4 << 30;
/// ... and beyond that at most so many times its compressed size. Real layers stay below 20.
const BOMB_RATIO: u64 = 250;

/// Why a layer cannot be had or used.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The file it is loaded from cannot be read, or is too short.
    #[error("cannot be read: {0}")]
    Read(io::Error),
    /// Not gzip, zstd or tar, or damaged.
    #[error("cannot be decompressed: {0}")]
    Decompress(io::Error),
    /// Far more content than any real layer has for its size.
    #[error("unpacks to more than {BOMB_RATIO} times its size: this is a decompression bomb")]
    Bomb,
    /// The blob is not the one in the manifest.
    #[error("the content does not match its digest: expected {expected}, got {got}")]
    BlobDigest {
        /// In the manifest.
        expected: Digest,
        /// Of what came.
        got: Digest,
    },
    /// The tar stream is not the one in the configuration.
    #[error(
        "the unpacked content does not match the image configuration: expected diffID {expected}, got {got}"
    )]
    DiffId {
        /// In the configuration.
        expected: Digest,
        /// Of what came.
        got: Digest,
    },
    /// The tar stream cannot be used.
    #[error(transparent)]
    Convert(ConvertError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl LayerError {
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Registry(error) => error.is_transient() || matches!(error, RegistryError::Cancelled),
            _ => false,
        }
    }
}

/// Remembers a failure of the stream underneath, which decoders and converters only pass on as their own.
struct Source<R> {
    inner: R,
    failed: Option<io::Error>,
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.failed.is_some() {
            return Err(io::Error::other("the source failed"));
        }
        match self.inner.read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(e),
            Err(e) => {
                self.failed = Some(e);
                Err(io::Error::other("the source failed"))
            }
            ok => ok,
        }
    }
}

/// How the decompressing thread ended.
enum Pumped {
    /// All of the stream went over.
    All,
    /// The other thread wants no more: it has failed.
    Unwanted,
    Failed(LayerError),
}

/// What the converting thread found.
type Converted = (Result<LayerTree, ConvertError>, Digest);

/// Transfers one layer and puts it into the store. `report` gets compressed and uncompressed bytes so far.
pub(super) fn ingest(
    spec: &LayerSpec,
    stream: impl Read + Send,
    layout: &Layout,
    limits: &Limits,
    report: &dyn Fn(u64, u64),
) -> Result<LayerTree, LayerError> {
    let blob = layout.temp_file()?;
    let algorithm = spec.blob.as_ref().unwrap_or(&spec.diff_id).algorithm();
    let mut stream = HashingReader::new(Source { inner: stream, failed: None }, algorithm);
    let (pumped, converted) = thread::scope(|scope| {
        let (sender, receiver) = sync_channel(QUEUE);
        let converter = scope.spawn(|| convert(receiver, spec, &blob, limits));
        let pumped = pump(&mut stream, &sender, report);
        drop(sender);
        (pumped, converter.join())
    });
    let (tree, diff_id) = match converted {
        Ok(converted) => converted,
        Err(panic) => std::panic::resume_unwind(panic),
    };
    if let Some(error) = tree.as_ref().err().and_then(disk_failure) {
        return Err(StoreError::io(blob.path(), error).into());
    }
    // A wrong blob usually fails to decompress or convert first. That it is wrong is the better explanation, so it is hashed to its end.
    let drained = io::copy(&mut stream, &mut io::sink());
    if let Some(error) = stream.get_mut().failed.take() {
        return Err(match error.downcast::<RegistryError>() {
            Ok(typed) => LayerError::Registry(typed),
            Err(other) => LayerError::Read(other),
        });
    }
    drained.map_err(LayerError::Read)?;
    let got = stream.finish();
    if let Some(expected) = spec.blob.clone().filter(|expected| *expected != got) {
        return Err(LayerError::BlobDigest { expected, got });
    }
    if let Pumped::Failed(error) = pumped {
        return Err(error);
    }
    let tree = tree.map_err(LayerError::Convert)?;
    if diff_id != spec.diff_id {
        return Err(LayerError::DiffId { expected: spec.diff_id.clone(), got: diff_id });
    }
    let sidecar = layout.temp_file()?;
    write_tree(&tree, &sidecar)?;
    sidecar.commit(&layout.tree(&spec.diff_id))?;
    // The blob last: a layer is there when both files are.
    blob.commit(&layout.layer(&spec.diff_id))?;
    Ok(tree)
}

fn write_tree(tree: &LayerTree, sidecar: &crate::store::TempFile) -> Result<(), StoreError> {
    let mut out = BufWriter::with_capacity(CHUNK, sidecar.file());
    let written = tree.write_to(&mut out).map_err(|error| match error {
        SidecarError::Io(e) => e,
        other => io::Error::other(other),
    });
    written.and_then(|()| out.flush()).map_err(|e| StoreError::io(sidecar.path(), e))
}

/// The failure of the store's disk inside a failed conversion, if that is what it was.
fn disk_failure(error: &ConvertError) -> Option<io::Error> {
    match error {
        ConvertError::Write(e) | ConvertError::Image(WriteError::Io(e)) if is_full(e) => {
            Some(e.kind().into())
        }
        _ => None,
    }
}

/// Decompresses into the queue.
fn pump<R: Read>(
    stream: &mut HashingReader<Source<R>>,
    queue: &SyncSender<Vec<u8>>,
    report: &dyn Fn(u64, u64),
) -> Pumped {
    let mut decoder = match Decoder::new(BufReader::with_capacity(CHUNK, stream)) {
        Ok(decoder) => decoder,
        Err(e) => return Pumped::Failed(LayerError::Decompress(e)),
    };
    let mut unpacked = 0;
    loop {
        let mut chunk = vec![0; CHUNK];
        let filled = match fill(&mut decoder, &mut chunk) {
            Ok(filled) => filled,
            Err(e) => return Pumped::Failed(LayerError::Decompress(e)),
        };
        unpacked += filled as u64;
        let received = decoder.get_mut().get_mut().count();
        report(received, unpacked);
        if is_bomb(received, unpacked) {
            return Pumped::Failed(LayerError::Bomb);
        }
        chunk.truncate(filled);
        if filled == 0 {
            return Pumped::All;
        }
        if queue.send(chunk).is_err() {
            return Pumped::Unwanted;
        }
    }
}

fn is_bomb(received: u64, unpacked: u64) -> bool {
    unpacked > BOMB_FREE && unpacked / BOMB_RATIO > received
}

/// Reads until `buffer` is full or the stream ends.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// The converting thread.
fn convert(
    queue: Receiver<Vec<u8>>,
    spec: &LayerSpec,
    blob: &crate::store::TempFile,
    limits: &Limits,
) -> Converted {
    let mut tar =
        HashingReader::new(QueueReader { queue, chunk: Vec::new(), at: 0 }, spec.diff_id.algorithm());
    let tree = convert_layer(&mut tar, blob.file(), limits);
    (tree, tar.finish())
}

/// The receiving end of the queue as a stream.
struct QueueReader {
    queue: Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
}

impl Read for QueueReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.chunk.len() {
            // A closed queue is the end, good or bad: the other thread knows which, and the digest decides.
            let Ok(chunk) = self.queue.recv() else { return Ok(0) };
            (self.chunk, self.at) = (chunk, 0);
        }
        let n = buffer.len().min(self.chunk.len() - self.at);
        buffer[..n].copy_from_slice(&self.chunk[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_large_and_absurd_ratios_are_bombs() {
        assert!(!is_bomb(1, BOMB_FREE));
        assert!(!is_bomb(BOMB_FREE / 20, BOMB_FREE * 4));
        assert!(is_bomb(1 << 20, BOMB_FREE + 1));
    }
}
