//! A member whose datagrams come from its overlay address: what it sends is authentic, where it comes from is forged.

use super::cable::{CABLE, block, index_of, link_layer_address};
use super::stage::{CHANGING, LISTEN_PORT, Member, Place, host, is_kernel, mesh};
use super::tap::Tap;
use crate::in_lab;
use mesh_cli::lab::Pings;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_millis(10);
/// Many pings, and time enough to begin handshakes anew.
const ATTACK: Duration = Duration::from_secs(6);

/// Where things are in an IPv4 header without options, and behind it.
const IPV4_CHECKSUM: usize = 10;
const IPV4_SOURCE: usize = 12;
const IPV4_DESTINATION: usize = 16;
const IPV4_HEADER: usize = 20;
const UDP_CHECKSUM: usize = IPV4_HEADER + 6;

#[test]
fn a_member_that_sends_from_its_overlay_address_is_not_answered_there() {
    in_lab("inside::forged::a_member_that_sends_from_its_overlay_address_is_not_answered_there", async |mut lab| {
        let [victim, attacker, third] = mesh(&mut lab, Place::Cable).await;
        let pings = |from: &Member, to: &[&Member]| {
            let to = to.iter().map(|member| IpAddr::from(member.overlay));
            Pings::start(&from.machine.host, to, INTERVAL).unwrap()
        };
        let mut others = pings(&third, &[&victim]);
        let mut towards = pings(&victim, &[&attacker, &third]);
        others.answered(&[victim.overlay.into()]).await.unwrap();
        towards.answered(&[attacker.overlay.into(), third.overlay.into()]).await.unwrap();

        let forger = Forger::start(&attacker, &victim).await;
        let pinged = pings(&attacker, &[&victim]);
        let [before, _] = victim.sent().await;
        tokio::time::sleep(ATTACK).await;
        let [after, _] = victim.sent().await;

        let forged = victim.strange();
        assert!(forged > 0, "nothing came from an overlay address: there was no attack");
        if !is_kernel() {
            victim.sends_to_the_underlay("under attack").await;
        }
        assert_eq!(victim.wrapped(), 0, "sent into the tunnel what is the tunnel: {}", victim.picture().await);
        let each = u64::try_from(ATTACK.as_millis() / INTERVAL.as_millis()).unwrap();
        let sent = after - before;
        assert!(sent.packets <= 8 * each, "{sent:?} in the tunnel for four flows of {each} pings");
        let now = Instant::now();
        others.answered_since(&[victim.overlay.into()], now).await.unwrap();
        println!("{forged} forged datagrams, or more; {sent:?} in the tunnel for four flows of {each} pings");
        // A kernel takes the next forged one's source as soon as it has been told better.
        forger.stop();
        victim.sends_to_the_underlay("after the attack").await;
        for pings in [others, towards, pinged] {
            println!("{:?}", pings.stop().await.unwrap());
        }
    });
}

/// Has the attacker's WireGuard datagrams to the victim come from the attacker's overlay address.
struct Forger {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Forger {
    async fn start(attacker: &Member, victim: &Member) -> Self {
        let tap = Tap::of_port(&attacker.machine.host, CABLE, LISTEN_PORT);
        let interface = index_of(&attacker.machine.links(), CABLE).await;
        let neighbour = link_layer_address(&victim.machine).await;
        let (to, source) = (host(CHANGING, 1), attacker.overlay);
        // The true ones are lost on the cable. Were they not, the forged ones would be taken for their repetition.
        block(&attacker.machine, to).await;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Some(packet) = tap.next().and_then(|packet| forge(packet, to, source)) {
                    tap.send(&packet, neighbour, interface).unwrap();
                }
            }
        });
        Self { stop, thread }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// A packet to `to` with another source; `None` if it is to anywhere else, or several in one.
fn forge(mut packet: Vec<u8>, to: Ipv4Addr, source: Ipv4Addr) -> Option<Vec<u8>> {
    const MTU: usize = 1_500;
    if packet.get(IPV4_DESTINATION..IPV4_HEADER)? != to.octets() || packet.len() > MTU {
        return None;
    }
    packet[IPV4_SOURCE..IPV4_DESTINATION].copy_from_slice(&source.octets());
    // None, which UDP over IPv4 allows: it covers the source.
    packet.get_mut(UDP_CHECKSUM..UDP_CHECKSUM + 2)?.fill(0);
    packet[IPV4_CHECKSUM..IPV4_CHECKSUM + 2].fill(0);
    let words = packet[..IPV4_HEADER].chunks_exact(2);
    let sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    // RFC 1071: ten words overflow once at most.
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[IPV4_CHECKSUM..IPV4_CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
    Some(packet)
}
