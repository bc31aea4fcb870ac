//! Hosts whose primary address is replaced, again and again, while packets flow.
//!
//! Where routes stay and the addresses beside them go, Linux takes the address of any other interface as source: that
//! of the mesh. On a cable that is a moment: the primary address of a network is given up before a secondary one is
//! made primary (`promote_secondaries`). Where a host has its addresses beside the cable it lasts until the new one is
//! there.

use super::cable::Sent;
use super::stage::{CHANGING, Member, Place, STAYING, host, is_kernel, mesh};
use crate::in_lab_for;
use mesh_cli::lab::{Flow, Lab, Pings};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

const ROUNDS: u32 = 50;
/// How often the addresses of a cable change places in one round; a virtual machine takes its time.
const SWAPS: u32 = 200;
const SWAPS_IN_VM: u32 = 20;
/// How long a host has no address, beside the cable: some pings.
const BARE: Duration = Duration::from_millis(50);
const INTERVAL: Duration = Duration::from_millis(10);
/// Far above what any round takes on a busy machine.
const BACK: Duration = Duration::from_secs(30);
/// Pings that a flow may lose in a round: six seconds. Hosts that move all the time use up the handshakes that they may
/// begin at once, and then wait as long as WireGuard does before it tries again.
const LOST: u64 = 600;
/// Packets of a round that are none of ours: sessions, handshakes, probes, neighbours.
const OTHERS: u64 = 2_000;

#[test]
fn hosts_whose_cables_change_their_primary_address_never_send_the_tunnel_into_itself() {
    let name = "inside::primary::hosts_whose_cables_change_their_primary_address_never_send_the_tunnel_into_itself";
    replace_again_and_again(name, Place::Cable);
}

#[test]
fn hosts_whose_only_address_is_replaced_never_send_the_tunnel_into_itself() {
    let name = "inside::primary::hosts_whose_only_address_is_replaced_never_send_the_tunnel_into_itself";
    replace_again_and_again(name, Place::Beside);
}

/// One way to replace the primary address.
#[derive(Clone, Copy, Debug)]
struct Round {
    place: Place,
    /// Whether the kernel makes a secondary address primary; otherwise they go with the primary.
    promote: bool,
    /// Whether the new address comes before the old one goes.
    add_first: bool,
    /// Which of the second and the third host.
    who: Who,
    third_floods: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    Second,
    Third,
    Both,
    /// The third while the second is at it.
    Overlapping,
}

impl Round {
    /// All ways, one after the other.
    fn new(place: Place, number: u32) -> Self {
        let who = [Who::Both, Who::Second, Who::Overlapping, Who::Third][number as usize / 4 % 4];
        let promote = number.is_multiple_of(2);
        Self { place, promote, add_first: number / 2 % 2 == 1, who, third_floods: number / 16 % 2 == 1 }
    }
}

fn replace_again_and_again(name: &str, place: Place) {
    let rounds = std::env::var("MESH_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    in_lab_for(name, BACK * (rounds + 2), async |mut lab| play_all(&mut lab, place, rounds).await);
}

async fn play_all(lab: &mut Lab, place: Place, rounds: u32) {
    let members = mesh(lab, place).await;
    let [first, second, third] = &members;
    let mut movers = [Mover::new(second, 2), Mover::new(third, 3)];
    let to = |members: &[&Member]| members.iter().map(|member| IpAddr::from(member.overlay)).collect::<Vec<_>>();
    let pairs = [(first, to(&[second, third])), (second, to(&[first, third])), (third, to(&[first, second]))];
    let start = |(from, to): &(&Member, Vec<IpAddr>)| {
        (Pings::start(&from.machine.host, to.clone(), INTERVAL).unwrap(), to.clone())
    };
    let mut pings: Vec<_> = pairs.iter().map(start).collect();
    back(&mut pings, &members, "before anything moves").await;

    let (mut slowest, mut strange) = (Duration::ZERO, 0);
    for number in 0..rounds {
        let round = Round::new(place, number);
        let said = format!("round {number}, {round:?}");
        let (begun, before) = (Instant::now(), sent(&members).await);
        let flooded = play(round, &mut movers).await;
        let moved = Instant::now();
        back(&mut pings, &members, &said).await;
        slowest = slowest.max(moved.elapsed());
        strange += members.iter().map(Member::strange).sum::<usize>();
        for member in &members {
            member.sends_to_the_underlay(&said).await;
            let wrapped = member.wrapped();
            assert_eq!(wrapped, 0, "{said}: {} sent into its tunnel what is the tunnel", member.machine.host.name());
        }
        let pinged = u64::try_from(begun.elapsed().as_millis() / INTERVAL.as_millis()).unwrap() * 6;
        let [tunnel, cable] = sent(&members).await;
        in_proportion(&said, "through the tunnel", tunnel - before[0], pinged, flooded);
        in_proportion(&said, "by cable", cable - before[1], pinged, flooded);
    }

    let mut flows: Vec<Flow> = Vec::new();
    for (pings, _) in pings {
        flows.extend(pings.stop().await.unwrap());
    }
    let lost: u64 = flows.iter().map(|flow| flow.lost).sum();
    let pinged: u64 = flows.iter().map(|flow| flow.sent).sum();
    println!("{rounds} rounds: {lost} of {pinged} pings lost, back after {slowest:?} at most");
    println!("{strange} packets came by cable from an overlay address");
    for flow in flows {
        assert!(flow.lost <= LOST * u64::from(rounds), "{flow:?}");
    }
}

/// A host whose addresses change.
struct Mover<'a> {
    member: &'a Member,
    /// Its addresses as the kernel has them: the primary one, then those that are secondary to it.
    held: VecDeque<Ipv4Addr>,
    /// Its address in a network of which it has no other, and whether the cable has it now.
    staying: Ipv4Addr,
    stays: bool,
    unused: std::iter::Cycle<std::ops::Range<u8>>,
}

impl<'a> Mover<'a> {
    fn new(member: &'a Member, number: u8) -> Self {
        let unused = (60 * number..60 * number + 60).cycle();
        Self { member, held: [host(CHANGING, number)].into(), staying: host(STAYING, number), stays: false, unused }
    }

    /// Gives the host's cable what a round begins with: a second address. Where the others go with the primary one, also
    /// an address in another network, without which all routes over the cable would go too.
    async fn prepare(&mut self, round: Round) {
        self.member.set_promotion(round.promote);
        if round.place == Place::Beside {
            return;
        }
        if self.held.len() < 2 {
            self.add_new().await;
        }
        match (self.stays, round.promote) {
            (false, false) => self.member.holder.add(self.staying).await,
            (true, true) => self.member.holder.delete(self.staying).await,
            _ => {}
        }
        self.stays = !round.promote;
    }

    async fn add_new(&mut self) {
        let address = host(CHANGING, self.unused.next().expect("it goes round and round"));
        self.add(address).await;
    }

    async fn add(&mut self, address: Ipv4Addr) {
        self.member.holder.add(address).await;
        self.held.push_back(address);
    }

    /// Takes the primary address away, and the others with it unless they are promoted.
    async fn delete_primary(&mut self, promote: bool) -> Ipv4Addr {
        let address = self.held.pop_front().expect("it has one");
        self.member.holder.delete(address).await;
        if !promote {
            self.held.clear();
        }
        address
    }

    /// Replaces the primary address, after it has changed places with the others many times.
    async fn replace(&mut self, round: Round) {
        if round.place == Place::Beside {
            self.delete_primary(round.promote).await;
            tokio::time::sleep(BARE).await;
            return self.add_new().await;
        }
        for _ in 0..if is_kernel() { SWAPS_IN_VM } else { SWAPS } {
            let address = self.delete_primary(round.promote).await;
            self.add(address).await;
        }
        if round.add_first {
            self.add_new().await;
        }
        self.delete_primary(round.promote).await;
        if !round.add_first || !round.promote {
            self.add_new().await;
        }
    }
}

/// Plays a round, and says how many datagrams of the flood went meanwhile.
async fn play(round: Round, movers: &mut [Mover<'_>; 2]) -> u64 {
    let [second, third] = movers;
    for mover in [&mut *second, &mut *third] {
        mover.prepare(round).await;
    }
    // One way only: what comes back tells the engine which source address to use.
    let flood = if round.third_floods { third.member.flood(second.member) } else { second.member.flood(third.member) };
    match round.who {
        Who::Second => second.replace(round).await,
        Who::Third => third.replace(round).await,
        Who::Both => {
            let ((), ()) = futures::join!(second.replace(round), third.replace(round));
        }
        Who::Overlapping => {
            let later = async {
                tokio::time::sleep(BARE / 2).await;
                third.replace(round).await;
            };
            let ((), ()) = futures::join!(second.replace(round), later);
        }
    }
    flood.stop()
}

/// Waits until everyone is answered again.
async fn back(pings: &mut [(Pings, Vec<IpAddr>)], members: &[Member], when: &str) {
    let since = Instant::now();
    for (pings, targets) in pings {
        if tokio::time::timeout(BACK, pings.answered_since(targets, since)).await.is_err() {
            let mut picture = String::new();
            for member in members {
                picture += &format!("\n{}: {}", member.machine.host.name(), member.picture().await);
            }
            panic!("{when}: {targets:?} do not answer within {BACK:?}{picture}");
        }
    }
}

/// What all have sent through the tunnel, and by cable.
async fn sent(members: &[Member]) -> [Sent; 2] {
    let mut sum = [Sent::default(); 2];
    for member in members {
        let [tunnel, cable] = member.sent().await;
        sum = [sum[0] + tunnel, sum[1] + cable];
    }
    sum
}

/// Fails if more was sent than pings, their replies and the flood can account for.
fn in_proportion(when: &str, what: &str, sent: Sent, pinged: u64, flooded: u64) {
    let packets = 2 * (2 * pinged + flooded) + OTHERS;
    assert!(sent.packets <= packets, "{when}: {sent:?} {what} for {pinged} pings and {flooded} datagrams");
    assert!(sent.bytes <= packets * 200, "{when}: {sent:?} {what} for {pinged} pings and {flooded} datagrams");
}
