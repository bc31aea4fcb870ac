//! What waits for the reader of one session: bounded, with room for a farewell, and emptied at once when the reader is
//! given up.
//!
//! HTTP/2 takes from [`Waiting`] only what its peer has room for, and whoever holds it may not let go for long: a peer
//! that reads nothing but answers pings keeps its connection. So the writer can reach what waits too.

use futures::Stream;
use mesh_types::limits::SESSION_QUEUE;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// The end that fills.
pub(crate) struct Queue<T> {
    sender: mpsc::Sender<T>,
    waiting: Shared<T>,
}

/// The end that HTTP/2 empties; it ends behind the farewell.
pub(crate) struct Waiting<T>(Shared<T>);

type Shared<T> = Arc<Mutex<mpsc::Receiver<T>>>;

/// A new queue.
pub(crate) fn queue<T>() -> (Queue<T>, Waiting<T>) {
    // The last place is for the farewell.
    let (sender, receiver) = mpsc::channel(SESSION_QUEUE + 1);
    let waiting = Arc::new(Mutex::new(receiver));
    (Queue { sender, waiting: waiting.clone() }, Waiting(waiting))
}

impl<T> Queue<T> {
    /// Puts a message last; whether there was room for it.
    #[must_use]
    pub(crate) fn send(&self, message: T) -> bool {
        self.sender.capacity() > 1 && self.sender.try_send(message).is_ok()
    }

    /// Ends with a farewell behind everything that waits.
    pub(crate) fn end(self, farewell: T) {
        // A reader that is gone needs none.
        let _ = self.sender.try_send(farewell);
    }

    /// Ends with a farewell in the place of everything that waits.
    pub(crate) fn cut(self, farewell: T) {
        {
            let mut waiting = lock(&self.waiting);
            while waiting.try_recv().is_ok() {}
        }
        self.end(farewell);
    }
}

impl<T> Stream for Waiting<T> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        lock(&self.0).poll_recv(cx)
    }
}

impl<T> Drop for Waiting<T> {
    /// Nobody will read what waits, and the writer shall notice.
    fn drop(&mut self) {
        let mut waiting = lock(&self.0);
        waiting.close();
        while waiting.try_recv().is_ok() {}
    }
}

fn lock<T>(waiting: &Shared<T>) -> MutexGuard<'_, mpsc::Receiver<T>> {
    waiting.lock().expect("no code panics while it holds what waits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt as _;

    /// A message whose copies can be counted.
    fn full() -> (Queue<Arc<()>>, Waiting<Arc<()>>, Arc<()>) {
        let (queue, waiting) = queue();
        let message = Arc::new(());
        while queue.send(message.clone()) {}
        assert_eq!(Arc::strong_count(&message), SESSION_QUEUE + 1);
        (queue, waiting, message)
    }

    #[tokio::test]
    async fn a_queue_that_is_cut_is_freed_at_once_though_nobody_reads_and_ends_with_its_farewell() {
        let (queue, mut waiting, message) = full();
        let farewell = Arc::new(());
        queue.cut(farewell.clone());
        assert_eq!(Arc::strong_count(&message), 1);
        assert!(Arc::ptr_eq(&waiting.next().await.unwrap(), &farewell));
        assert!(waiting.next().await.is_none());
    }

    #[tokio::test]
    async fn a_queue_that_ends_says_all_that_waits_before_its_farewell() {
        let (queue, mut waiting, message) = full();
        queue.end(Arc::new(()));
        for _ in 0..SESSION_QUEUE {
            assert!(Arc::ptr_eq(&waiting.next().await.unwrap(), &message));
        }
        assert!(!Arc::ptr_eq(&waiting.next().await.unwrap(), &message));
        assert!(waiting.next().await.is_none());
    }

    #[test]
    fn a_reader_that_is_gone_frees_what_waits_and_is_noticed() {
        let (queue, waiting, message) = full();
        drop(waiting);
        assert_eq!(Arc::strong_count(&message), 1);
        assert!(!queue.send(message));
    }
}
