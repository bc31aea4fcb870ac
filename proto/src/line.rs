//! The bytes of an accepted connection, below TLS: ends one whose peer takes nothing, whatever else it does.
//!
//! A peer that reads nothing can keep HTTP/2 from reading, writing and closing alike, with pings that want an answer. So
//! a write that makes no progress for long ends the connection here, by an error that nothing above can put off.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// A connection under watch.
#[derive(Debug)]
pub(crate) struct Line<S> {
    inner: S,
    /// Bytes that may still be read; any number if none is set.
    readable: Option<usize>,
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Line<S> {
    /// Ends when a write makes no progress for `patience`.
    pub(crate) fn new(inner: S, patience: Duration) -> Self {
        Self { inner, readable: None, patience, stalled: None }
    }

    /// Ends also when more than `most` bytes come before [`Line::trust`].
    pub(crate) fn within(self, most: usize) -> Self {
        Self { readable: Some(most), ..self }
    }

    /// Lets any number of bytes come from now on.
    pub(crate) fn trust(&mut self) {
        self.readable = None;
    }

    /// The connection itself.
    pub(crate) fn inner(&self) -> &S {
        &self.inner
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        stalled.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Line<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        std::task::ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        if let Some(left) = self.readable {
            let left = left.checked_sub(buf.filled().len() - before);
            self.readable = Some(left.ok_or(io::ErrorKind::InvalidData)?);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Line<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    /// Sockets have nothing to flush, so that this tells nothing of progress.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.watch(cx, shut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::Instant;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_write_without_progress_ends_the_line_and_one_that_is_only_slow_does_not() {
        let (ours, mut theirs) = duplex(8);
        let mut line = Line::new(ours, PATIENCE);
        let slow = async {
            for _ in 0..2 {
                tokio::time::sleep(PATIENCE - Duration::from_secs(1)).await;
                theirs.read_exact(&mut [0; 8]).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(line.write_all(&[0; 24]), slow);
        written.unwrap();
        let begun = Instant::now();
        assert_eq!(line.write_all(&[0; 8]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_is_allowed_is_not_read_until_the_line_is_trusted() {
        let (ours, mut theirs) = duplex(64);
        let mut line = Line::new(ours, PATIENCE).within(8);
        theirs.write_all(&[0; 9]).await.unwrap();
        line.read_exact(&mut [0; 8]).await.unwrap();
        assert_eq!(line.read(&mut [0; 8]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        theirs.write_all(&[0; 9]).await.unwrap();
        line.trust();
        line.read_exact(&mut [0; 9]).await.unwrap();
    }
}
