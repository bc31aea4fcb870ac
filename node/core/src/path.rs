//! The way to one peer: what is known of it, when to doubt it, and what to try next.
//!
//! Life-cycle: a path begins *seeking*. Whatever authenticated comes from the peer settles it. It is *asked* again when
//! this host moved, when much was sent and nothing came back, or when the peer lists other places; an answer settles
//! it, silence makes it seek. WireGuard roams by itself, so an existing endpoint is only changed after looking at the
//! device, and only if nothing authenticated came since the reason to change it.
//!
//! It decides only; sending, and changing the device, are its owner's.

use crate::allowance::Bucket;
use crate::barred::Barred;
use crate::budget::Budget;
use crate::clock::{BootTime, Now};
use crate::device::ActualPeer;
use crate::pace::Pace;
use crate::place::places;
use crate::probe::{Probe, ProbeKind};
use crate::random::Random;
use crate::view::{Online, View};
use mesh_types::limits::PROBE_ANSWERS;
use mesh_types::{Candidate, Incarnation, MeshTime};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// When the requests of one round go out, until one is answered.
const ROUND: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(50), Duration::from_millis(150), Duration::from_millis(400)];
/// A path that did not answer a round within this is given up.
const VERDICT: Duration = Duration::from_secs(1);
/// How long each place gets in the first turn: two round trips to the other side of the earth.
const FIRST_TURN: Duration = Duration::from_millis(400);
/// The first wait of the slower turns, doubled each time: WireGuard would not begin another handshake before.
const LATER_TURN: Duration = REKEY_TIMEOUT;
/// The longest wait between two tries with a peer that is online.
const LONGEST_ONLINE: Duration = Duration::from_secs(30);
/// The same where nobody can tell whether it is online.
const LONGEST_UNKNOWN: Duration = Duration::from_secs(120);
/// Slow tries with a peer that is offline, before waiting for news of it.
const TRIES_OFFLINE: u32 = 3;
/// WireGuard begins at most one handshake in this with a peer that it knows (REKEY_TIMEOUT).
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// WireGuard keeps trying a handshake this long for one packet (REKEY_ATTEMPT_TIME), with a little over.
const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(100);
/// A WireGuard session is of no use after this (REJECT_AFTER_TIME).
const SESSION_LIFE: Duration = Duration::from_secs(180);
/// Bytes that may go out without anything coming back: two keepalives, which draw no answer.
const QUIET_BYTES: u64 = 64;
/// How long more than that may stay without answer.
const SILENCE: Duration = Duration::from_secs(1);
/// The same for a peer that answers no probes (a firewall): WireGuard answers data within ten seconds by itself.
const SILENCE_WITHOUT_PROBES: Duration = Duration::from_secs(12);
/// Clocks of two nodes differ by what a tick is late: an answer so soon after a candidate was signed may be older.
const SKEW: Duration = Duration::from_millis(200);

/// What is known of the way to one peer.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    phase: Phase,
    version: Option<(Incarnation, u64)>,
    candidates: Vec<Candidate>,
    /// Where the device sends; none while that is where no endpoint may be.
    endpoint: Option<SocketAddr>,
    /// Where it sent when last looked, if it was left alone since: nothing but the peer can have brought it there.
    untouched: Option<SocketAddr>,
    seen: Option<Seen>,
    /// Something authenticated came at this moment or later.
    heard: Option<BootTime>,
    silence: Option<Silence>,
    round: Option<Round>,
    asked: Option<BootTime>,
    /// From the last request to its reply; none until one came.
    latency: Option<Duration>,
    answers: Bucket,
    budget: Budget,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// It answered, and nothing speaks against it.
    Settled,
    /// It probably works; to be asked when its turn comes.
    Waiting,
    /// It probably works; being asked.
    Asking { since: BootTime },
    /// It does not work, as far as is known.
    Seeking(Seek),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seek {
    /// What comes after this settles it.
    since: BootTime,
    /// How many tries were made.
    tries: u32,
    /// When to try next; without, only news of the peer makes it go on.
    due: Option<BootTime>,
    /// Where the peer is known not to be.
    away: Option<SocketAddr>,
    /// Whether to jump the queue.
    urgent: bool,
}

/// The last look at the device.
#[derive(Clone, Copy, Debug)]
struct Seen {
    at: BootTime,
    rx: u64,
    tx: u64,
    handshake: Option<MeshTime>,
}

/// Bytes sent since something last came back.
#[derive(Clone, Copy, Debug)]
struct Silence {
    since: BootTime,
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Round {
    token: u64,
    started: BootTime,
    sent: usize,
    due: Option<BootTime>,
}

/// What to do about a path now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Nothing.
    Rest,
    /// Look at the device, then ask again.
    Look,
    /// Begin a round of probes.
    Ask,
    /// Change the device, then begin a round of probes.
    Aim(Aim),
}

/// A change of one peer's endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Aim {
    /// Where to send.
    pub(crate) endpoint: SocketAddr,
    /// Whether to make the peer anew, to start a handshake at once.
    pub(crate) recreate: bool,
}

impl Path {
    /// A peer of which nothing is known.
    pub(crate) fn new(now: BootTime) -> Self {
        Self {
            phase: Phase::Seeking(Seek { since: now, tries: 0, due: Some(now), away: None, urgent: false }),
            version: None,
            candidates: Vec::new(),
            endpoint: None,
            untouched: None,
            seen: None,
            heard: None,
            silence: None,
            round: None,
            asked: None,
            latency: None,
            answers: Bucket::new(PROBE_ANSWERS, now),
            budget: Budget::new(now),
        }
    }

    /// Whether a presence of this version says something new.
    pub(crate) fn is_news(&self, version: (Incarnation, u64)) -> bool {
        self.version.is_none_or(|held| held < version)
    }

    /// Takes where the peer says it may be reached, as signed at that moment.
    pub(crate) fn take_candidates(
        &mut self,
        version: (Incarnation, u64),
        candidates: Vec<Candidate>,
        signed: BootTime,
        now: BootTime,
    ) {
        self.version = Some(version);
        let lists = |list: &[Candidate], at: SocketAddr| list.iter().any(|c| c.endpoint == at);
        let same = candidates.len() == self.candidates.len() && candidates.iter().all(|c| self.candidates.contains(c));
        let old = std::mem::replace(&mut self.candidates, candidates);
        if same {
            return;
        }
        match self.endpoint {
            Some(at) if lists(&self.candidates, at) && !self.is_seeking() => {}
            Some(at) if lists(&old, at) && !lists(&self.candidates, at) && !self.heard_after(signed + SKEW) => {
                self.seek(signed + SKEW, Some(at), true, now);
            }
            // What is being asked already is judged by the answers.
            Some(_) if matches!(self.phase, Phase::Asking { .. }) => {}
            Some(_) if !self.is_seeking() => self.ask(now),
            _ => self.seek(now, None, false, now),
        }
    }

    /// Takes the news that a coordinator sees the peer.
    pub(crate) fn came_online(&mut self, now: BootTime) {
        if self.is_seeking() {
            self.seek(now, None, false, now);
        }
    }

    /// Takes the news that this host's addresses changed.
    pub(crate) fn we_moved(&mut self, underlay: &[IpAddr], now: Now) {
        let no_way = |at: SocketAddr| !underlay.iter().any(|own| own.is_ipv4() == at.is_ipv4());
        match self.phase {
            _ if self.endpoint.is_some_and(no_way) => self.seek(now.boot, self.endpoint, true, now.boot),
            Phase::Seeking(_) => self.seek(now.boot, None, false, now.boot),
            _ if self.is_active(now) => self.ask(now.boot),
            _ => self.phase = Phase::Waiting,
        }
    }

    /// Takes what the device says of the peer. An endpoint that is reached through the mesh is as good as none: whatever
    /// comes from there, the peer is to be looked for.
    pub(crate) fn observe(&mut self, actual: &ActualPeer, barred: &Barred, now: Now) {
        let seen = Seen { at: now.boot, rx: actual.rx_bytes, tx: actual.tx_bytes, handshake: actual.last_handshake };
        let before = self.seen.replace(seen);
        let (aimed, untouched) = (self.endpoint, self.untouched);
        self.endpoint = actual.endpoint.filter(|at| barred.permits(*at));
        self.untouched = self.endpoint;
        let astray = actual.endpoint.is_some() && self.endpoint.is_none();
        let handshake = seen.handshake.filter(|&h| before.is_none_or(|b| b.handshake != Some(h)));
        let handshake = handshake.and_then(|h| to_boot(h, now));
        let received = before.filter(|b| seen.rx > b.rx).map(|b| b.at);
        if let Some(since) = handshake.max(received) {
            if astray {
                self.heard = self.heard.max(Some(since));
                self.silence = None;
            } else {
                self.take_proof(since);
            }
            if let Phase::Seeking(Seek { tries: 0, away: None, .. }) = self.phase
                && !astray
            {
                self.phase = Phase::Waiting;
            }
            if let Some(at) = self.endpoint.filter(|_| aimed != self.endpoint || untouched == self.endpoint) {
                self.budget.prove(at.ip());
            }
        } else if let Some(before) = before.filter(|b| seen.tx > b.tx) {
            let bytes = seen.tx - before.tx;
            let silence = self.silence.get_or_insert(Silence { since: before.at, bytes: 0 });
            silence.bytes = silence.bytes.saturating_add(bytes);
        }
        if astray && !self.is_seeking() {
            self.seek(now.boot, None, true, now.boot);
        }
        self.doubt(now.boot);
    }

    /// Takes something authenticated from the peer that came just now.
    pub(crate) fn take_probe(&mut self, probe: &Probe, now: BootTime) {
        self.take_proof(now);
        if let Some(round) = self.round
            && probe.kind == ProbeKind::Reply
            && probe.token == round.token
            && probe.sent >= round.started
            && probe.sent <= now
        {
            self.latency = Some(now.since(probe.sent));
            self.round = None;
            self.phase = Phase::Settled;
        }
    }

    /// Whether a request of the peer is answered: only so many in a second are.
    pub(crate) fn may_answer(&mut self, now: BootTime) -> bool {
        self.answers.take(now)
    }

    /// Takes the measure of a ping.
    pub(crate) fn take_latency(&mut self, latency: Duration) {
        self.latency = Some(latency);
    }

    /// Takes the news that the device sends elsewhere now.
    pub(crate) fn take_endpoint(&mut self, endpoint: Option<SocketAddr>) {
        (self.endpoint, self.untouched) = (endpoint, None);
    }

    /// Takes the news that the peer is new on the device: it has counted nothing and has no session.
    pub(crate) fn put_on_device(&mut self, endpoint: Option<SocketAddr>, now: BootTime) {
        self.take_endpoint(endpoint);
        self.seen = Some(Seen { at: now, rx: 0, tx: 0, handshake: None });
        self.silence = None;
    }

    /// Takes the news that the device, or the peer on it, is gone.
    pub(crate) fn forget_device(&mut self, now: BootTime) {
        (self.endpoint, self.untouched, self.seen, self.silence, self.round) = (None, None, None, None, None);
        self.seek(now, None, false, now);
    }

    /// What to do now. Called whenever something happened, and when [`Path::due`] comes.
    pub(crate) fn step(&mut self, view: &View<'_>, pace: &mut Pace, random: &mut Random, now: Now) -> Step {
        match self.phase {
            Phase::Settled => Step::Rest,
            Phase::Waiting if pace.take(false, now.boot).is_err() => Step::Rest,
            Phase::Waiting => {
                self.phase = Phase::Asking { since: now.boot };
                Step::Ask
            }
            Phase::Asking { .. } if self.round.is_none() => Step::Ask,
            Phase::Asking { since } if now.boot < since + VERDICT => Step::Rest,
            Phase::Asking { .. } if !view.fresh => Step::Look,
            Phase::Asking { .. } => {
                self.seek(now.boot, self.endpoint, true, now.boot);
                self.attempt(view, pace, random, now)
            }
            Phase::Seeking(_) => self.attempt(view, pace, random, now),
        }
    }

    fn attempt(&mut self, view: &View<'_>, pace: &mut Pace, random: &mut Random, now: Now) -> Step {
        let Phase::Seeking(seek) = &mut self.phase else { return Step::Rest };
        // Without an endpoint there is nothing to ask; the device gets one as soon as one is known.
        let Some(endpoint) = self.endpoint.filter(|_| seek.due.is_some_and(|due| due <= now.boot)) else {
            return Step::Rest;
        };
        let found = places(&self.candidates, view, seek.away);
        let turn = usize::try_from(seek.tries).unwrap_or(usize::MAX);
        if found.is_empty() {
            seek.due = None;
            return Step::Rest;
        }
        let skip = match self.budget.pick(&found, turn, view.worked, now.boot) {
            Ok(skip) => skip,
            Err(later) => {
                seek.due = Some(later);
                return Step::Rest;
            }
        };
        let place = found[turn.wrapping_add(skip) % found.len()];
        let first = seek.tries == 0 && seek.away != Some(endpoint) && place == endpoint;
        if !first && !view.fresh {
            return Step::Look;
        }
        if seek.tries == 0 && seek.away.is_some_and(|away| away != endpoint) {
            // WireGuard has followed the peer by itself meanwhile.
            self.phase = Phase::Asking { since: now.boot };
            return Step::Ask;
        }
        if let Err(later) = pace.take(seek.urgent, now.boot) {
            seek.due = Some(later);
            return Step::Rest;
        }
        self.budget.take(place.ip(), now.boot);
        let throttled = self.asked.is_some_and(|asked| now.boot.since(asked) < REKEY_TIMEOUT);
        let live = self.seen.is_some_and(|seen| is_live(seen.handshake, now));
        let again = seek.tries > 0 || place == endpoint;
        // A peer that is made anew forgets which initiations it has seen, so that an old one may be played back to it:
        // only while every moment counts, which is the first turn and once more, as a packet may be lost. Later ones are
        // as far apart as WireGuard's own handshakes.
        let prompt = turn <= found.len();
        let recreate = prompt && !first && if live { again } else { throttled };
        seek.tries = seek.tries.saturating_add(u32::try_from(skip).unwrap_or(u32::MAX)).saturating_add(1);
        seek.urgent = false;
        seek.due = next_try(seek.tries, found.len(), view.online).map(|wait| now.boot + random.jitter(wait));
        self.asked = Some(now.boot);
        if place == endpoint && !recreate { Step::Ask } else { Step::Aim(Aim { endpoint: place, recreate }) }
    }

    /// The place to send to while the device has none.
    pub(crate) fn first_place(&self, view: &View<'_>) -> Option<SocketAddr> {
        places(&self.candidates, view, None).first().copied()
    }

    /// Begins a round of probes: the first request.
    pub(crate) fn begin_round(&mut self, token: u64, now: BootTime) -> Probe {
        self.round = Some(Round { token, started: now, sent: 1, due: Some(now + ROUND[1]) });
        self.asked = Some(now);
        Probe { kind: ProbeKind::Request, token, sent: now }
    }

    /// The next request of the round, if it is time.
    pub(crate) fn next_probe(&mut self, now: BootTime) -> Option<Probe> {
        let settled = self.phase == Phase::Settled;
        let round = self.round.as_mut().filter(|r| r.due.is_some_and(|due| due <= now))?;
        if settled {
            round.due = None;
            return None;
        }
        round.sent += 1;
        round.due = ROUND.get(round.sent).map(|&after| round.started + after);
        self.asked = Some(now);
        Some(Probe { kind: ProbeKind::Request, token: round.token, sent: now })
    }

    /// When something is to be done without anything happening.
    pub(crate) fn due(&self, pace: &Pace) -> Option<BootTime> {
        let phase = match self.phase {
            Phase::Settled => None,
            Phase::Waiting => Some(pace.next()),
            Phase::Asking { since } => Some(since + VERDICT),
            Phase::Seeking(seek) => seek.due,
        };
        phase.into_iter().chain(self.round.and_then(|r| r.due)).min()
    }

    /// Whether the peer answered and nothing speaks against it.
    pub(crate) fn is_good(&self) -> bool {
        !self.is_seeking() && self.heard.is_some()
    }

    /// Whether the device's endpoint is known to be right.
    pub(crate) fn is_settled(&self) -> bool {
        self.phase == Phase::Settled
    }

    /// Whether something came from the peer in the last minutes.
    pub(crate) fn was_heard(&self, now: BootTime) -> bool {
        self.heard.is_some_and(|heard| now.since(heard) < SESSION_LIFE)
    }

    /// From the last probe to its reply.
    pub(crate) fn latency(&self) -> Option<Duration> {
        self.latency
    }

    fn is_seeking(&self) -> bool {
        matches!(self.phase, Phase::Seeking(_))
    }

    /// Whether there is a session that would be missed.
    fn is_active(&self, now: Now) -> bool {
        self.was_heard(now.boot) || self.seen.is_some_and(|seen| is_live(seen.handshake, now))
    }

    fn heard_after(&self, at: BootTime) -> bool {
        self.heard.is_some_and(|heard| heard >= at)
    }

    /// Doubts the path: a new round, and until its verdict nothing that came earlier counts.
    fn ask(&mut self, now: BootTime) {
        self.phase = Phase::Asking { since: now };
        self.round = None;
    }

    fn seek(&mut self, since: BootTime, away: Option<SocketAddr>, urgent: bool, now: BootTime) {
        self.phase = Phase::Seeking(Seek { since, tries: 0, due: Some(now), away, urgent });
    }

    fn take_proof(&mut self, at: BootTime) {
        self.heard = self.heard.max(Some(at));
        self.silence = None;
        match self.phase {
            Phase::Asking { since } | Phase::Seeking(Seek { since, .. }) if at >= since => self.phase = Phase::Settled,
            Phase::Settled | Phase::Waiting | Phase::Asking { .. } | Phase::Seeking(_) => {}
        }
    }

    /// Much was sent and nothing came back: ask, or, if seeking has ended, go on.
    fn doubt(&mut self, now: BootTime) {
        let longest = if self.latency.is_some() { SILENCE } else { SILENCE_WITHOUT_PROBES };
        if !self.silence.is_some_and(|s| s.bytes > QUIET_BYTES && now.since(s.since) >= longest) {
            return;
        }
        let ours = self.asked.is_some_and(|asked| now.since(asked) < REKEY_ATTEMPT_TIME);
        match &mut self.phase {
            Phase::Settled => {
                self.silence = None;
                self.ask(now);
            }
            // WireGuard's own tries for our last probe are no sign of traffic.
            Phase::Seeking(seek) if seek.due.is_none() && !ours => {
                seek.due = Some(now);
                self.silence = None;
            }
            Phase::Seeking(_) | Phase::Waiting | Phase::Asking { .. } => {}
        }
    }
}

/// How long to wait after so many tries; `None` is for news of the peer.
fn next_try(tries: u32, places: usize, online: Online) -> Option<Duration> {
    let slow = tries.saturating_sub(u32::try_from(places).unwrap_or(u32::MAX));
    if slow == 0 {
        return Some(FIRST_TURN);
    }
    let longest = match online {
        Online::Yes => LONGEST_ONLINE,
        Online::Unknown => LONGEST_UNKNOWN,
        Online::No if slow > TRIES_OFFLINE => return None,
        Online::No => LONGEST_ONLINE,
    };
    Some(LATER_TURN.saturating_mul(1 << (slow - 1).min(10)).min(longest))
}

pub(crate) fn is_live(handshake: Option<MeshTime>, now: Now) -> bool {
    handshake.is_some_and(|at| now.wall.since(at).to_std() < SESSION_LIFE)
}

/// When a recent moment of the wall clock was, since boot; `None` if it is no session's any more.
fn to_boot(at: MeshTime, now: Now) -> Option<BootTime> {
    let ago = now.wall.since(at).to_std();
    let micros = u64::try_from(ago.as_micros()).ok().filter(|_| ago < SESSION_LIFE)?;
    Some(BootTime::from_micros(now.boot.as_micros().saturating_sub(micros)))
}
