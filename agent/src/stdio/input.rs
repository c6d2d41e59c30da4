//! From a connection into a process. The connection's half-close is the end of a pipe; a terminal has no end of input.

use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::sync::{oneshot, watch};

use super::{Attachment, CHUNK, Endpoint, Phase};

/// Moves bytes until either side ends. The pipe stays open, and its reader waiting, until something is attached.
pub async fn run(
    sink: Arc<Endpoint>,
    attachment: oneshot::Receiver<Attachment>,
    mut phase: watch::Receiver<Phase>,
) {
    tokio::select! {
        () = copy(&sink, attachment) => {}
        // Nobody reads any more. An error means that the process was forgotten.
        _ = phase.wait_for(|phase| *phase != Phase::Running) => {}
    }
}

async fn copy(sink: &Endpoint, attachment: oneshot::Receiver<Attachment>) {
    let Ok(Attachment { mut connection, early }) = attachment.await else { return };
    if sink.write_all(&early).await.is_err() {
        return;
    }
    let mut buffer = vec![0; CHUNK];
    loop {
        match connection.read(&mut buffer).await {
            Ok(0) => return,
            Ok(count) => {
                // The process closed its end: what is left has no reader.
                if sink.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                log::debug!("a standard input ended with an error: {error}");
                return;
            }
        }
    }
}
