//! The node's memory on disk, as bytes: a journal that is appended to and, now and then, written anew.
//!
//! The shell reads the file, hands it to [`Cache::replay`], writes [`Cache::compact`] to a new file in its place, and
//! from then on appends [`encode`] of every [`Record`], or [`encode_all`] of several, and syncs. Nothing here touches a
//! file.
//!
//! Layout, integers big-endian. Header, once: magic `MESHJRNL` (8 bytes), version (2), zero (2), mesh id (16), node id
//! (16), CRC-32 of all that (4). Then frames: length of the payload (4), CRC-32 of length and payload (4), payload:
//! version of the records (1) and one or more records in CBOR.
//!
//! What is written and synced together is one frame, because a crash may leave any part of one write behind, the end
//! without the beginning too. So a damaged frame at the end was cut by a crash, and what stands before it counts; one
//! with an intact frame behind it was damaged later, and is refused.

pub use crate::memory::{Cache, Intent, Record};

use mesh_types::{MeshId, NodeId};
use thiserror::Error;

const MAGIC: [u8; 8] = *b"MESHJRNL";
const HEADER_VERSION: u16 = 1;
const HEADER_LEN: usize = 48;
const FRAME_LEN: usize = 8;
const RECORD_VERSION: u8 = 1;
/// Bytes of one frame: a netmap of 65,536 nodes has some 30 million.
const MAX_FRAME: usize = 64 << 20;

/// Why a journal was not taken.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
pub enum ReplayError {
    /// Not a journal, or its header is damaged.
    #[error("not a journal of this product, or its header is damaged: put the file aside and start again")]
    Header,
    /// Written by a later version.
    #[error("journal is of version {0}, this daemon knows {HEADER_VERSION}: upgrade meshctl on this host")]
    Version(u16),
    /// Of another node or mesh.
    #[error("journal is of node {node} in mesh {mesh}, not of this node: it was copied here; put the file aside")]
    Foreign {
        /// The mesh in the header.
        mesh: MeshId,
        /// The node in the header.
        node: NodeId,
    },
    /// Damaged before its end.
    #[error(
        "journal is damaged at byte {offset} with intact records behind it, so that it was no crash: check the disk, \
         then put the file aside; the netmap comes back with the first session"
    )]
    Damaged {
        /// Where the damaged record begins.
        offset: usize,
    },
    /// Records of a later version, or not understood although their checksum holds.
    #[error("journal record at byte {offset} is not understood: it was written by a later version; upgrade meshctl")]
    Record {
        /// Where their frame begins.
        offset: usize,
    },
}

/// Encodes one record as it is appended to the journal.
pub fn encode(record: &Record) -> Vec<u8> {
    encode_all(std::slice::from_ref(record))
}

/// Encodes records that are appended in one write: after a crash all of them are there, or none.
pub fn encode_all(records: &[Record]) -> Vec<u8> {
    let mut out = vec![0; FRAME_LEN];
    out.push(RECORD_VERSION);
    for record in records {
        ciborium::into_writer(record, &mut out).expect("plain data encodes into memory");
    }
    let length = u32::try_from(out.len() - FRAME_LEN).expect("records are capped by the limits of the netmap");
    out[..4].copy_from_slice(&length.to_be_bytes());
    let check = checksum(&out[..4], &out[FRAME_LEN..]);
    out[4..FRAME_LEN].copy_from_slice(&check.to_be_bytes());
    out
}

impl Cache {
    /// Reads a journal of `node` in `mesh`: what it remembers, and how many of the bytes count.
    ///
    /// An empty file, or one cut within its header, is a journal that was never finished: nothing, 0 bytes.
    pub fn replay(bytes: &[u8], mesh: MeshId, node: NodeId) -> Result<(Self, usize), ReplayError> {
        let mut cache = Self::new(mesh, node);
        if bytes.len() < HEADER_LEN {
            return Ok((cache, 0));
        }
        cache.check_header(&bytes[..HEADER_LEN])?;
        let mut offset = HEADER_LEN;
        while offset < bytes.len() {
            let Some(payload) = intact(&bytes[offset..]) else {
                return if is_torn_tail(&bytes[offset..]) {
                    Ok((cache, offset))
                } else {
                    Err(ReplayError::Damaged { offset })
                };
            };
            let records = decode(payload).ok_or(ReplayError::Record { offset })?;
            records.iter().for_each(|record| cache.apply(record));
            offset += FRAME_LEN + payload.len();
        }
        Ok((cache, offset))
    }

    /// A whole journal that says just this.
    pub fn compact(&self) -> Vec<u8> {
        let mut out = self.header();
        let netmap = self.netmap.clone().map(|n| Record::Netmap(Box::new(n)));
        let clock = self.clock.map(Record::Clock);
        let endpoints = self.endpoints.iter().map(|(&node, &endpoint)| Record::Endpoint { node, endpoint });
        let rest = [Record::Intent(self.intent), Record::Incarnation(self.incarnation)];
        for record in netmap.into_iter().chain(clock).chain(endpoints).chain(rest) {
            out.extend_from_slice(&encode(&record));
        }
        out
    }

    fn header(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&HEADER_VERSION.to_be_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(self.mesh.as_bytes());
        out.extend_from_slice(self.node.as_bytes());
        let check = crc32fast::hash(&out);
        out.extend_from_slice(&check.to_be_bytes());
        out
    }

    fn check_header(&self, header: &[u8]) -> Result<(), ReplayError> {
        let (content, check) = header.split_last_chunk::<4>().ok_or(ReplayError::Header)?;
        if content[..MAGIC.len()] != MAGIC || crc32fast::hash(content) != u32::from_be_bytes(*check) {
            return Err(ReplayError::Header);
        }
        let version = u16::from_be_bytes([content[8], content[9]]);
        if version != HEADER_VERSION {
            return Err(ReplayError::Version(version));
        }
        let mesh = MeshId::try_from(&content[12..28]).map_err(|_| ReplayError::Header)?;
        let node = NodeId::try_from(&content[28..44]).map_err(|_| ReplayError::Header)?;
        if (mesh, node) != (self.mesh, self.node) {
            return Err(ReplayError::Foreign { mesh, node });
        }
        Ok(())
    }
}

fn checksum(length: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(length);
    hasher.update(payload);
    hasher.finalize()
}

/// The payload of the frame at the start of `bytes`, if it is whole and its checksum holds.
fn intact(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (check, rest) = rest.split_first_chunk::<4>()?;
    let size = usize::try_from(u32::from_be_bytes(*length)).ok().filter(|size| (1..=MAX_FRAME).contains(size))?;
    let payload = rest.get(..size)?;
    (checksum(length, payload) == u32::from_be_bytes(*check)).then_some(payload)
}

/// Whether nothing intact stands anywhere behind the damaged frame at the start of `bytes`.
fn is_torn_tail(bytes: &[u8]) -> bool {
    // The version first: a checksum at every place of a large frame would take minutes.
    let begins = |at: usize| bytes.get(at + FRAME_LEN) == Some(&RECORD_VERSION);
    (1..bytes.len()).all(|at| !begins(at) || intact(&bytes[at..]).is_none())
}

fn decode(payload: &[u8]) -> Option<Vec<Record>> {
    let (&version, mut cbor) = payload.split_first()?;
    let mut records = Vec::new();
    while version == RECORD_VERSION && !cbor.is_empty() {
        records.push(ciborium::from_reader(&mut cbor).ok()?);
    }
    Some(records).filter(|records| !records.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::StoredClock;
    use crate::netmap::{Delta, Netmap};
    use mesh_types::{
        Epoch, IdentityKey, Incarnation, MeshConfig, MeshDuration, MeshTime, NodeRecord, Overlay, PublicKey, Revision,
    };
    use proptest::prelude::*;

    const MESH: MeshId = MeshId::from_bytes([1; 16]);
    const NODE: NodeId = NodeId::from_bytes([2; 16]);

    fn node(n: u8) -> NodeRecord {
        NodeRecord {
            id: NodeId::from_bytes([n; 16]),
            name: format!("n{n}").parse().unwrap(),
            public_key: PublicKey::from_bytes([n; 32]),
            identity_key: IdentityKey::from_bytes([n; 32]),
            addresses: overlay().addresses(u32::from(n) + 1).unwrap(),
            expires_at: MeshTime(77),
            revision: Revision(1),
        }
    }

    fn overlay() -> Overlay {
        Overlay::new("10.1.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()).unwrap()
    }

    fn netmap(nodes: &[u8]) -> Record {
        let config = MeshConfig {
            mesh: MESH,
            overlay: overlay(),
            authorities: vec![mesh_types::netmap::Certificate(vec![3; 40])],
            coordinators: Vec::new(),
            key_ttl: MeshDuration(1),
            revision: Revision(1),
        };
        let nodes = nodes.iter().map(|&n| (node(n).id, node(n))).collect();
        Record::Netmap(Box::new(Netmap { epoch: Epoch { counter: 1, id: 2 }, revision: Revision(3), config, nodes }))
    }

    fn record() -> impl Strategy<Value = Record> {
        let n = 3u8..7;
        prop_oneof![
            proptest::collection::vec(n.clone(), 0..4).prop_map(|nodes| netmap(&nodes)),
            (n.clone(), n.clone()).prop_map(|(add, remove)| Record::Delta(Delta {
                to: Revision(9),
                upserts: vec![node(add)],
                removals: vec![node(remove).id],
                config: None,
            })),
            (n, any::<bool>()).prop_map(|(n, six)| Record::Endpoint {
                node: node(n).id,
                endpoint: if six { "[2001:db8::1]:9" } else { "192.0.2.1:9" }.parse().unwrap(),
            }),
            (any::<u64>(), any::<i64>())
                .prop_map(|(highest, offset)| Record::Clock(StoredClock { highest: MeshTime(highest), offset })),
            any::<bool>().prop_map(|up| Record::Intent(if up { Intent::Up } else { Intent::Down })),
            any::<u64>().prop_map(|n| Record::Incarnation(Incarnation(n))),
        ]
    }

    fn journal(records: &[Record]) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = Cache::new(MESH, NODE).compact();
        let mut ends = vec![bytes.len()];
        for record in records {
            bytes.extend(encode(record));
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    fn after(records: &[Record]) -> Cache {
        let mut cache = Cache::new(MESH, NODE);
        records.iter().for_each(|record| cache.apply(record));
        cache
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_replay_gives_what_was_remembered_and_so_does_a_compacted_journal(
            records in proptest::collection::vec(record(), 0..12),
        ) {
            let (bytes, _) = journal(&records);
            let (cache, valid) = Cache::replay(&bytes, MESH, NODE).unwrap();
            prop_assert_eq!(&cache, &after(&records));
            prop_assert_eq!(valid, bytes.len());
            let compact = cache.compact();
            prop_assert_eq!(Cache::replay(&compact, MESH, NODE), Ok((cache, compact.len())));
        }

        #[test]
        fn a_journal_cut_anywhere_gives_all_that_was_whole(
            records in proptest::collection::vec(record(), 1..6),
            cut in any::<prop::sample::Index>(),
            zeros in 0usize..40,
        ) {
            let (bytes, ends) = journal(&records);
            let cut = ends[0] + cut.index(bytes.len() - ends[0]);
            let whole = ends.iter().filter(|&&end| end <= cut).count() - 1;
            // Some file systems grow the file before the data is there.
            let torn: Vec<u8> = bytes[..cut].iter().copied().chain(std::iter::repeat_n(0, zeros)).collect();
            let expected = (after(&records[..whole]), ends[whole]);
            let got = Cache::replay(&torn, MESH, NODE).unwrap();
            // Zeros may stand for the zeros that were cut.
            prop_assert!(got == expected || torn.starts_with(&bytes[..ends[whole + 1]]));
        }

        #[test]
        fn a_write_of_several_records_is_there_whole_or_not_at_all(
            before in proptest::collection::vec(record(), 0..4),
            together in proptest::collection::vec(record(), 2..6),
            lost in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        ) {
            let (mut bytes, ends) = journal(&before);
            let begins = *ends.last().unwrap();
            bytes.extend(encode_all(&together));
            let all: Vec<Record> = before.iter().chain(&together).cloned().collect();
            prop_assert_eq!(Cache::replay(&bytes, MESH, NODE), Ok((after(&all), bytes.len())));
            // The disk took some blocks of the last write and not others: those read as zeros.
            let written = bytes.len() - begins;
            let (a, b) = (lost.0.index(written), lost.1.index(written));
            let hole = begins + a.min(b)..=begins + a.max(b);
            prop_assume!(bytes[hole.clone()].iter().any(|&byte| byte != 0));
            bytes[hole].fill(0);
            prop_assert_eq!(Cache::replay(&bytes, MESH, NODE), Ok((after(&before), begins)));
        }

        #[test]
        fn damage_before_the_last_record_is_refused(
            records in proptest::collection::vec(record(), 2..6),
            at in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            let (mut bytes, ends) = journal(&records);
            let at = at.index(ends[ends.len() - 2]);
            bytes[at] ^= 1 << bit;
            match Cache::replay(&bytes, MESH, NODE) {
                Err(ReplayError::Header) => prop_assert!(at < HEADER_LEN),
                Err(ReplayError::Damaged { offset }) => prop_assert!(offset <= at),
                other => prop_assert!(false, "{other:?}"),
            }
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Cache::replay(&bytes, MESH, NODE);
            let mut journal = Cache::new(MESH, NODE).header();
            journal.extend(&bytes);
            let _ = Cache::replay(&journal, MESH, NODE);
        }
    }

    #[test]
    fn an_empty_file_is_a_journal_that_says_nothing() {
        assert_eq!(Cache::replay(&[], MESH, NODE), Ok((Cache::new(MESH, NODE), 0)));
        assert_eq!(Cache::replay(b"MESHJ", MESH, NODE), Ok((Cache::new(MESH, NODE), 0)));
    }

    #[test]
    fn the_journal_of_another_node_or_mesh_is_refused() {
        let bytes = Cache::new(MESH, NODE).compact();
        for (mesh, node) in [(MESH, NodeId::from_bytes([9; 16])), (MeshId::from_bytes([9; 16]), NODE)] {
            assert_eq!(Cache::replay(&bytes, mesh, node), Err(ReplayError::Foreign { mesh: MESH, node: NODE }));
        }
    }

    #[test]
    fn what_a_later_version_wrote_is_refused_as_such() {
        let mut header = Cache::new(MESH, NODE).header();
        header[9] = 2;
        let check = crc32fast::hash(&header[..HEADER_LEN - 4]);
        header[HEADER_LEN - 4..].copy_from_slice(&check.to_be_bytes());
        assert_eq!(Cache::replay(&header, MESH, NODE), Err(ReplayError::Version(2)));

        let mut record = encode(&Record::Intent(Intent::Down));
        record[FRAME_LEN] = RECORD_VERSION + 1;
        let check = checksum(&record[..4], &record[FRAME_LEN..]);
        record[4..FRAME_LEN].copy_from_slice(&check.to_be_bytes());
        let mut bytes = Cache::new(MESH, NODE).header();
        bytes.extend(record);
        assert_eq!(Cache::replay(&bytes, MESH, NODE), Err(ReplayError::Record { offset: HEADER_LEN }));
    }

    #[test]
    fn a_journal_written_by_the_first_version_is_read_for_ever_and_still_written_so() {
        let delta = Delta { to: Revision(4), upserts: vec![node(5)], removals: vec![node(4).id], config: None };
        let records = [
            netmap(&[3, 4]),
            Record::Delta(delta),
            Record::Endpoint { node: node(3).id, endpoint: "192.0.2.1:9".parse().unwrap() },
            Record::Endpoint { node: node(5).id, endpoint: "[2001:db8::1]:9".parse().unwrap() },
            Record::Clock(StoredClock { highest: MeshTime(5), offset: -6 }),
            Record::Intent(Intent::Down),
            Record::Incarnation(Incarnation(7)),
        ];
        let golden = include_str!("../testdata/journal-1.hex").split_whitespace().collect::<String>();
        let (written, _) = journal(&records);
        let hex: String = written.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, golden);
        assert_eq!(Cache::replay(&written, MESH, NODE), Ok((after(&records), written.len())));
    }
}
