//! The control connection, watched for its end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use crate::stdio::Connection;

/// A connection that tells when the other side has closed it.
pub struct Watched<C> {
    inner: C,
    hung_up: Option<oneshot::Sender<()>>,
}

/// Wraps `connection`; the receiver resolves when its other side closes it or it breaks.
pub fn watched<C: Connection>(connection: C) -> (Watched<C>, oneshot::Receiver<()>) {
    let (sender, receiver) = oneshot::channel();
    (Watched { inner: connection, hung_up: Some(sender) }, receiver)
}

impl<C: Connection> AsyncRead for Watched<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let room = buffer.remaining() > 0;
        let result = ready!(Pin::new(&mut self.inner).poll_read(cx, buffer));
        let ended = result.is_err() || (room && buffer.filled().len() == before);
        if ended && let Some(hung_up) = self.hung_up.take() {
            // The agent may be ending already.
            let _ = hung_up.send(());
        }
        Poll::Ready(result)
    }
}

impl<C: Connection> AsyncWrite for Watched<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
