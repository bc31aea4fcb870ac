//! The few messages of nf_tables that the rule takes, as bytes (linux/netfilter/nf_tables.h). Pure.
//!
//! Integers are big-endian inside of attributes, but for what registers hold: a mark is compared as the host has it.

use crate::mark::Mark;

const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFNL_SUBSYS_NFTABLES`, in the upper byte of a message's type and as the subject of a batch.
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;

/// IPv4 and IPv6 in one table.
const INET: u8 = 1;
const POST_ROUTING: u32 = 4;
/// After everybody who still changes marks or addresses: the last word before a packet leaves.
const PRIORITY: i32 = 300;
const META_MARK: u32 = 3;
const META_OUT_NAME: u32 = 7;
const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;
const EQUAL: u32 = 0;
const DROP: u32 = 0;
/// Bytes of an interface's name, with zeros behind it.
const NAME_BYTES: usize = 16;

const CHAIN: &str = "own-datagrams";

/// Messages that are done as a whole.
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    /// How many of them the kernel answers.
    pub(super) acknowledged: usize,
}

/// What the kernel says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reply {
    /// A rule, with the packets that its counter has.
    Rule(Option<u64>),
    /// A negative error number, or 0: done.
    Error(i32),
    /// The end of a dump.
    Done,
    /// Nothing that matters here.
    Other,
}

/// One for each interface: several meshes live on one host.
fn table(interface: &str) -> String {
    format!("meshctl-{interface}")
}

/// The table with the rule, in the place of one that may be there.
pub(super) fn replace(interface: &str, mark: Mark) -> Batch {
    let name = table(interface);
    let table = text(1, &name);
    let hook = nested(4, &[number(1, POST_ROUTING), number(2, PRIORITY.cast_unsigned())]);
    let chain = [text(1, &name), text(3, CHAIN), hook, text(7, "filter")].concat();
    let rule = [text(1, &name), text(2, CHAIN), nested(4, &expressions(interface, mark))].concat();
    batch(&[
        // So that there is one to delete.
        (NEW_TABLE, NLM_F_CREATE, table.clone()),
        (DELETE_TABLE, 0, table.clone()),
        (NEW_TABLE, NLM_F_CREATE, table),
        (NEW_CHAIN, NLM_F_CREATE, chain),
        (NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, rule),
    ])
}

pub(super) fn remove(interface: &str) -> Batch {
    batch(&[(DELETE_TABLE, 0, text(1, &table(interface)))])
}

/// Asks for the rules of our chain.
pub(super) fn ask(interface: &str) -> Vec<u8> {
    let body = [text(1, &table(interface)), text(2, CHAIN)].concat();
    message(SUBSYSTEM << 8 | GET_RULE, NLM_F_DUMP, 1, [INET, 0, 0, 0], &body)
}

fn expressions(interface: &str, mark: Mark) -> [Vec<u8>; 7] {
    let mut name = interface.as_bytes().to_vec();
    name.resize(NAME_BYTES, 0);
    let load = |key| expression("meta", &[number(2, key), number(1, REGISTER)]);
    let equals = |value: &[u8]| {
        let value = nested(3, &[attribute(1, value)]);
        expression("cmp", &[number(1, REGISTER), number(2, EQUAL), value])
    };
    let verdict = nested(2, &[nested(2, &[number(1, DROP)])]);
    [
        load(META_OUT_NAME),
        equals(&name),
        load(META_MARK),
        expression(
            "bitwise",
            &[
                number(1, REGISTER),
                number(2, REGISTER),
                number(3, 4),
                nested(4, &[attribute(1, &mark.mask.to_ne_bytes())]),
                nested(5, &[attribute(1, &[0; 4])]),
            ],
        ),
        equals(&mark.value.to_ne_bytes()),
        expression("counter", &[attribute(1, &[0; 8]), attribute(2, &[0; 8])]),
        expression("immediate", &[number(1, VERDICT_REGISTER), verdict]),
    ]
}

fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
    nested(1, &[text(1, name), nested(2, data)])
}

fn batch(messages: &[(u16, u16, Vec<u8>)]) -> Batch {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    let mut bytes = message(BATCH_BEGIN, 0, 0, [0, 0, high, low], &[]);
    for (sequence, (kind, flags, body)) in (1..).zip(messages) {
        let kind = SUBSYSTEM << 8 | kind;
        bytes.extend(message(kind, flags | NLM_F_ACK, sequence, [INET, 0, 0, 0], body));
    }
    bytes.extend(message(BATCH_END, 0, 0, [0, 0, high, low], &[]));
    Batch { bytes, acknowledged: messages.len() }
}

fn message(kind: u16, flags: u16, sequence: u32, family: [u8; FAMILY_HEADER], body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + FAMILY_HEADER + body.len()).expect("messages of a few hundred bytes");
    let mut out = length.to_ne_bytes().to_vec();
    out.extend(kind.to_ne_bytes());
    out.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend([0; 4]);
    out.extend(family);
    out.extend(body);
    out
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("attributes of a few hundred bytes");
    let mut out = length.to_ne_bytes().to_vec();
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn nested(kind: u16, inside: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NESTED, &inside.concat())
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), &[0]].concat())
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

/// The messages in what was received. What is cut short ends them.
pub(super) fn replies(mut bytes: &[u8]) -> Vec<Reply> {
    let mut found = Vec::new();
    while let Some((head, _)) = bytes.split_first_chunk::<HEADER>() {
        let length = usize::try_from(u32::from_ne_bytes([head[0], head[1], head[2], head[3]])).unwrap_or(0);
        let Some(body) = bytes.get(HEADER..length) else { break };
        found.push(reply(u16::from_ne_bytes([head[4], head[5]]), body));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn reply(kind: u16, body: &[u8]) -> Reply {
    const RULE: u16 = SUBSYSTEM << 8 | NEW_RULE;
    match (kind, body) {
        (NLMSG_ERROR, [a, b, c, d, ..]) => Reply::Error(i32::from_ne_bytes([*a, *b, *c, *d])),
        (NLMSG_DONE, _) => Reply::Done,
        (RULE, _) => Reply::Rule(body.get(FAMILY_HEADER..).and_then(packets)),
        _ => Reply::Other,
    }
}

fn packets(rule: &[u8]) -> Option<u64> {
    let expressions = attributes(rule).find(|(kind, _)| *kind == 4)?.1;
    attributes(expressions).find_map(|(_, expression)| {
        let counter = attributes(expression).any(|(kind, name)| kind == 1 && name == b"counter\0");
        let data = attributes(expression).find(|(kind, _)| counter && *kind == 2)?.1;
        let packets = attributes(data).find(|(kind, _)| *kind == 2)?.1;
        Some(u64::from_be_bytes(packets.try_into().ok()?))
    })
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (head, _) = bytes.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([head[2], head[3]]) & !NESTED, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: Mark = Mark { value: 0x1000, mask: 0x3000 };

    #[test]
    fn the_count_of_a_rule_is_found_among_its_expressions() {
        let mut expressions = expressions("mesh0", MARK);
        expressions[5] = expression("counter", &[attribute(1, &[0; 8]), attribute(2, &77_u64.to_be_bytes())]);
        let body = [text(1, "meshctl-mesh0"), nested(4, &expressions)].concat();
        let mut answer = message(SUBSYSTEM << 8 | NEW_RULE, 0, 1, [INET, 0, 0, 0], &body);
        answer.extend(message(NLMSG_DONE, 0, 1, [0; 4], &[]));
        assert_eq!(replies(&answer), [Reply::Rule(Some(77)), Reply::Done]);
        for cut in 0..answer.len() {
            assert!(replies(&answer[..cut]).len() <= 1, "cut at {cut}");
        }
    }

    #[test]
    fn errors_and_acknowledgements_are_told_apart() {
        let answer = [message(NLMSG_ERROR, 0, 1, [0; 4], &[]), message(NLMSG_ERROR, 0, 1, (-2_i32).to_ne_bytes(), &[])];
        assert_eq!(replies(&answer.concat()), [Reply::Error(0), Reply::Error(-2)]);
    }
}
