//! Peers that break every rule of HTTP/2, byte by byte, over a connection in memory and with time that only passes when
//! nothing else happens.

use super::{Accepted, Stay, attend, speak};
use crate::line::Line;
use crate::listen::{Caller, Hangup, Visit, WRITE_STALL};
use crate::terms::{LOCAL, NODE, STRANGER, Terms};
use http::{Request, Response};
use mesh_types::limits::MAX_STRANGER_CALLS;
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::time::Instant;
use tonic::body::Body;
use tower::service_fn;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: u8 = 4;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
/// Much less than what is sent, so that a peer that reads nothing is felt.
const ROOM: usize = 4 << 10;

/// Longer than any connection lasts that its owner ends.
const NEVER: Duration = Duration::from_secs(3_600);

/// The other end of a connection.
struct Peer {
    reads: ReadHalf<DuplexStream>,
    writes: WriteHalf<DuplexStream>,
}

impl Peer {
    fn new() -> (Self, DuplexStream) {
        let (ours, theirs) = duplex(ROOM);
        let (reads, writes) = split(ours);
        (Self { reads, writes }, theirs)
    }

    /// Sends the preface and then `frames` as often as they are taken, and reads nothing.
    async fn floods(mut self, frames: impl Fn(u32) -> Vec<u8>) {
        let mut stream = 1;
        let mut bytes = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        while self.writes.write_all(&bytes).await.is_ok() {
            bytes = frames(stream);
            stream += 2;
        }
    }

    /// Sends these bytes once and reads until the other side ends the connection; gives the kinds of frames read.
    async fn says(self, frames: Vec<u8>) -> Vec<u8> {
        let Self { mut reads, mut writes } = self;
        let says = async {
            let _ = writes.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &frames].concat()).await;
            writes
        };
        let hears = async {
            let (mut heard, mut kinds) = (Vec::new(), Vec::new());
            let _ = reads.read_to_end(&mut heard).await;
            let mut left = heard.as_slice();
            while let [a, b, c, kind, ..] = *left {
                kinds.push(kind);
                left = left.get(9 + usize::from(a) * 65_536 + usize::from(b) * 256 + usize::from(c)..).unwrap_or(&[]);
            }
            kinds
        };
        tokio::join!(says, hears).1
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[a, b, c, kind, flags], stream.to_be_bytes().as_slice(), payload].concat()
}

/// A call's head: POST, https, a path of one letter (RFC 7541, C), and more if it is wanted.
fn head(stream: u32, more: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &[&[0x83, 0x87, 0x04, 2, b'/', b'x', 0x01, 1, b'x'], more].concat())
}

fn ping() -> Vec<u8> {
    frame(PING, 0, 0, &[0; 8])
}

/// Counts calls, and answers none.
#[derive(Clone, Default)]
struct Unanswered(Arc<AtomicUsize>);

impl Unanswered {
    fn calls(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    fn service(&self) -> impl super::Answer + 'static + use<> {
        let calls = self.0.clone();
        service_fn(move |_: Request<Body>| {
            calls.fetch_add(1, Ordering::SeqCst);
            pending::<Result<Response<Body>, Infallible>>()
        })
    }
}

fn answering() -> impl super::Answer + 'static {
    service_fn(|_: Request<Body>| std::future::ready(Ok::<_, Infallible>(Response::new(Body::empty()))))
}

fn stranger(stream: DuplexStream) -> Accepted<DuplexStream> {
    let (hangup, hung_up) = Hangup::new();
    let visit = Visit::alone(hangup.clone());
    let remote = "192.0.2.1:1".parse().unwrap();
    let caller = Caller { remote, identity: None, exporter: [0; 32], hangup, visit: Some(visit.clone()) };
    Accepted { caller, hung_up, stream, stay: Stay::Stranger(visit) }
}

/// How long a connection on these terms lasts against a peer that does this.
async fn lasts(
    terms: &Terms,
    answer: impl super::Answer + 'static,
    peer: impl Future,
    stream: DuplexStream,
) -> Duration {
    let begun = Instant::now();
    let speaks = speak(Line::new(stream, WRITE_STALL), terms, (), || true, answer);
    tokio::select! {
        _ = speaks => {}
        () = async { peer.await; tokio::time::sleep(NEVER).await } => {}
    }
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_member_that_floods_and_reads_nothing_is_ended_by_its_stalled_line() {
    let (peer, stream) = Peer::new();
    let calls = Unanswered::default();
    let floods = peer.floods(|stream| if stream == 1 { head(1, &[]) } else { ping() });
    assert_eq!(lasts(&NODE, calls.service(), floods, stream).await, WRITE_STALL);
    assert_eq!(calls.calls(), 1, "so that it is not silent");
}

#[tokio::test(start_paused = true)]
async fn a_stranger_that_floods_and_reads_nothing_goes_when_its_time_is_over() {
    let (peer, stream) = Peer::new();
    let calls = Unanswered::default();
    let begun = Instant::now();
    let floods = peer.floods(|stream| if stream == 1 { head(1, &[]) } else { ping() });
    tokio::select! {
        () = attend(stranger(stream), calls.service()) => {}
        () = floods => {}
        () = tokio::time::sleep(NEVER) => {}
    }
    assert_eq!(begun.elapsed(), crate::listen::STRANGER_STAY);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_makes_no_call_is_ended_whether_it_speaks_or_not() {
    for terms in [&STRANGER, &NODE, &LOCAL] {
        let (peer, stream) = Peer::new();
        assert_eq!(
            lasts(terms, answering(), async { drop(peer.reads.unsplit(peer.writes)) }, stream).await,
            Duration::ZERO
        );
        let (peer, stream) = Peer::new();
        let silent = async { std::mem::forget(peer) };
        assert!(lasts(terms, answering(), silent, stream).await <= terms.silence);
        let (peer, stream) = Peer::new();
        let incomplete = frame(HEADERS, 0, 1, &[0x83]);
        assert!(lasts(terms, answering(), peer.says(incomplete), stream).await <= terms.silence);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_under_way_is_no_silence() {
    let (peer, stream) = Peer::new();
    let calls = Unanswered::default();
    let begun = Instant::now();
    let ended =
        tokio::time::timeout(LOCAL.silence * 3, lasts(&LOCAL, calls.service(), peer.says(head(1, &[])), stream));
    assert!(ended.await.is_err());
    assert_eq!(begun.elapsed(), LOCAL.silence * 3);
}

#[tokio::test(start_paused = true)]
async fn no_more_calls_are_taken_at_once_than_the_terms_allow() {
    for terms in [&STRANGER, &NODE, &LOCAL] {
        for (tried, least) in [(terms.streams + 2, terms.streams), (1_000, 0)] {
            let (peer, stream) = Peer::new();
            let calls = Unanswered::default();
            let heads = (0..tried).flat_map(|number| head(2 * number + 1, &[])).collect();
            let over = lasts(terms, calls.service(), peer.says(heads), stream);
            let _ = tokio::time::timeout(WRITE_STALL, over).await;
            let taken = u32::try_from(calls.calls()).unwrap();
            assert!((least..=terms.streams).contains(&taken), "{terms:?}: {taken} of {tried}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_taken_back_at_once_end_the_connection_and_so_do_too_many_of_a_stranger() {
    let taken_back = (0..1_000).flat_map(|number| {
        let stream = 2 * number + 1;
        [head(stream, &[]), frame(RESET, 0, stream, &[0, 0, 0, 8])].concat()
    });
    let (peer, stream) = Peer::new();
    let calls = Unanswered::default();
    let begun = Instant::now();
    let (kinds, ()) = tokio::join!(peer.says(taken_back.collect()), attend(stranger(stream), calls.service()));
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert!(calls.calls() <= MAX_STRANGER_CALLS, "{}", calls.calls());
    assert!(kinds.len() < 100, "{kinds:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stranger_that_calls_again_and_again_is_hung_up_on() {
    let (ours, theirs) = duplex(ROOM);
    let begun = Instant::now();
    let calls = async {
        let (mut requests, connection) = h2::client::handshake(ours).await.unwrap();
        tokio::spawn(connection);
        let mut answered = 0;
        while answered <= MAX_STRANGER_CALLS {
            let Ok(ready) = requests.ready().await else { break };
            requests = ready;
            let request = Request::post("https://x/").body(()).unwrap();
            let Ok((answer, _)) = requests.send_request(request, true) else { break };
            answered += usize::from(answer.await.is_ok());
        }
        answered
    };
    let (answered, ()) = tokio::join!(calls, attend(stranger(theirs), answering()));
    assert_eq!(answered, MAX_STRANGER_CALLS);
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn headers_that_are_too_long_or_never_end_reach_no_service() {
    let name_and_value = [&[0x00, 1, b'a', 0x7f, 0xed, 0x0f][..], &[b'v'; 2_156]].concat();
    let long = head(1, &name_and_value.repeat(3));
    let mut endless = frame(HEADERS, 0, 1, &[0x83, 0x87, 0x04, 2, b'/', b'x']);
    for _ in 0..64 {
        endless.extend(frame(CONTINUATION, 0, 1, &name_and_value));
    }
    for frames in [long, endless] {
        let (peer, stream) = Peer::new();
        let calls = Unanswered::default();
        let begun = Instant::now();
        let (_, ()) = tokio::join!(peer.says(frames), attend(stranger(stream), calls.service()));
        assert_eq!(calls.calls(), 0);
        assert!(begun.elapsed() <= STRANGER.silence);
    }
}
