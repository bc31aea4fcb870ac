//! A tonic channel over one connection that exists already, and over no other: when it ends, its owner dials again.

use hyper_util::rt::TokioIo;
use std::io;
use std::sync::Mutex;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Channel, Endpoint, Uri};

/// A coordinator that died without a word is noticed within this and [`KEEPALIVE_TIMEOUT`] together.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Never resolved or sent to: the connection is there.
const ORIGIN: &str = "http://mesh.invalid";

/// Whether HTTP/2 pings watch over a connection.
pub(crate) enum Keepalive {
    /// Over a network.
    On,
    /// Within a host, where the end of the other side closes the connection.
    Off,
}

pub(crate) async fn over<S>(stream: S, keepalive: Keepalive) -> Result<Channel, tonic::transport::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut endpoint = Endpoint::from_static(ORIGIN);
    if let Keepalive::On = keepalive {
        endpoint = endpoint
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
    }
    let only = Mutex::new(Some(TokioIo::new(stream)));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = only.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        std::future::ready(
            stream.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the connection has ended")),
        )
    });
    endpoint.connect_with_connector(connector).await
}
