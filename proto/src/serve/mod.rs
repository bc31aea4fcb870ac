//! Serves gRPC over accepted connections, on terms that depend on who is at the other end.
//!
//! Each connection has one task that owns it, and ends it when it is hung up, when a stranger's time is over, or when it
//! has been silent for long: its peer has no say in that. Tonic's server is not used because it has one set of limits for
//! all, and leaves a connection to itself.

use crate::certificate::Member;
use crate::listen::{Accepted, Listener, Stay};
use crate::local::{LocalListener, LocalStream};
use crate::terms::{COORDINATOR, LOCAL, NODE, STRANGER, Terms};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::body::Body;
use tower::{Service, ServiceExt as _};

/// What answers calls, such as tonic's `Routes`. It finds in each request who makes it.
pub trait Answer:
    Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send
{
}

impl<S> Answer for S where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send
{
}

/// Why a connection was ended from this side, or broke.
#[derive(Debug, Error)]
enum End {
    #[error("no call for {} s", .0.as_secs())]
    Silent(Duration),
    #[error("its time is over")]
    Overstayed,
    #[error("hung up")]
    HungUp,
    #[error(transparent)]
    Broken(#[from] hyper::Error),
}

/// Serves all that `listener` accepts, for ever. What is under way ends when this is dropped.
pub async fn serve(mut listener: Listener, answer: impl Answer + 'static) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.next() => { connections.spawn(attend(accepted, answer.clone())); }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Serves all that `listener` accepts, for ever. Answers under way go on when this is dropped.
pub async fn serve_local(mut listener: LocalListener, answer: impl Answer + 'static) -> Infallible {
    loop {
        let LocalStream { peer, line, share } = listener.next().await;
        let answer = answer.clone();
        tokio::spawn(async move {
            if let Err(end) = speak(line, &LOCAL, peer, || true, answer).await {
                tracing::debug!(uid = peer.uid, %end, "local connection ended");
            }
            drop(share);
        });
    }
}

async fn attend<S: AsyncRead + AsyncWrite + Unpin>(accepted: Accepted<S>, answer: impl Answer + 'static) {
    let Accepted { caller, hung_up, stream, stay } = accepted;
    let (remote, hangup) = (caller.remote, caller.hangup.clone());
    let terms = match caller.identity.map(|identity| identity.member) {
        None => &STRANGER,
        Some(Member::Node(_)) => &NODE,
        Some(Member::Coordinator(_)) => &COORDINATOR,
    };
    let visit = caller.visit.clone();
    let may_call = move || {
        let may = visit.as_ref().is_none_or(|visit| visit.may_call());
        if !may {
            hangup.now();
        }
        may
    };
    let is_over = async {
        match &stay {
            Stay::Stranger(visit) => visit.is_over().await,
            Stay::Member { .. } => pending().await,
        }
    };
    let ended = tokio::select! {
        biased;
        _ = hung_up => Err(End::HungUp),
        () = is_over => Err(End::Overstayed),
        ended = speak(stream, terms, caller, may_call, answer) => ended,
    };
    if let Err(end) = ended {
        tracing::debug!(%remote, %end, "connection ended");
    }
}

/// Speaks HTTP/2 until either side ends it. `caller` is put into each request; `may_call` is asked before each.
async fn speak<C: Clone + Send + Sync + 'static>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    terms: &Terms,
    caller: C,
    may_call: impl Fn() -> bool,
    answer: impl Answer + 'static,
) -> Result<(), End> {
    let calls = Calls::default();
    let silence = terms.silence;
    let is_silent = is_silent(calls.0.subscribe(), silence);
    let service = service_fn(move |request: Request<Incoming>| {
        // gRPC has no other method, and HTTP/2 gives CONNECT a meaning of its own.
        let answer = (request.method() == Method::POST && may_call()).then(|| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(caller.clone());
            answer.clone().oneshot(request)
        });
        async {
            match answer {
                Some(answer) => answer.await,
                None => {
                    let mut refusal = Response::new(Body::empty());
                    *refusal.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
                    Ok(refusal)
                }
            }
        }
    });
    let connection = terms.builder(calls).serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        biased;
        () = is_silent => Err(End::Silent(silence)),
        ended = connection => ended.map_err(End::Broken),
    }
}

/// Ready when there was no call for so long.
async fn is_silent(mut calls: watch::Receiver<usize>, silence: Duration) {
    // The sender is gone only with the connection, which ends this as well.
    while calls.wait_for(|count| *count == 0).await.is_ok() {
        if tokio::time::timeout(silence, calls.wait_for(|count| *count > 0)).await.is_err() {
            return;
        }
    }
    pending().await
}

/// Runs the calls of one connection, from their head to the end of their answer, and counts them.
#[derive(Clone)]
struct Calls(Arc<watch::Sender<usize>>);

impl Default for Calls {
    fn default() -> Self {
        Self(Arc::new(watch::channel(0).0))
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Calls {
    fn execute(&self, call: F) {
        self.0.send_modify(|count| *count += 1);
        let under_way = UnderWay(self.0.clone());
        tokio::spawn(async move {
            call.await;
            drop(under_way);
        });
    }
}

struct UnderWay(Arc<watch::Sender<usize>>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests;
