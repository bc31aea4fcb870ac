//! Longest-prefix match over the bits of one IP version.
//!
//! Path-compressed: a node is a prefix that has a value or in which two others part, so that there are fewer than twice
//! as many nodes as prefixes. All lie in one arena, the root, which is the empty prefix, first. A node is small, for a
//! lookup waits for one after the other; the values lie beside.

/// The index of no node.
const NONE: u32 = u32::MAX;
const ROOT: u32 = 0;

/// An address, most significant bit first.
pub(super) trait Bits: Copy + PartialEq {
    const WIDTH: u8;

    /// The bit at a place below [`Bits::WIDTH`].
    fn bit(self, at: u8) -> usize;

    /// How many leading bits are the same.
    fn common(self, other: Self) -> u8;
}

impl Bits for u32 {
    const WIDTH: u8 = 32;

    fn bit(self, at: u8) -> usize {
        (self >> (Self::WIDTH - 1 - at) & 1) as usize
    }

    fn common(self, other: Self) -> u8 {
        (self ^ other).leading_zeros() as u8
    }
}

impl Bits for u128 {
    const WIDTH: u8 = 128;

    fn bit(self, at: u8) -> usize {
        (self >> (Self::WIDTH - 1 - at) & 1) as usize
    }

    fn common(self, other: Self) -> u8 {
        (self ^ other).leading_zeros() as u8
    }
}

pub(super) struct Trie<K, V> {
    nodes: Vec<Node<K>>,
    /// Of the node with the same index.
    values: Vec<Option<V>>,
    /// Nodes out of use.
    free: Vec<u32>,
}

struct Node<K> {
    /// The prefix; what is behind `length` bits has no meaning.
    bits: K,
    /// By the bit behind the prefix.
    children: [u32; 2],
    length: u8,
    has_value: bool,
}

impl<K: Bits + Default, V: Copy> Trie<K, V> {
    pub(super) fn new() -> Self {
        let root = Node { bits: K::default(), children: [NONE; 2], length: 0, has_value: false };
        Self { nodes: vec![root], values: vec![None], free: Vec::new() }
    }

    /// The value of the longest prefix that covers an address.
    pub(super) fn lookup(&self, address: K) -> Option<V> {
        let mut node = &self.nodes[ROOT as usize];
        let mut best = ROOT;
        while node.length < K::WIDTH {
            let child = node.children[address.bit(node.length)];
            // There is no node at NONE.
            let Some(next) = self.nodes.get(child as usize) else { break };
            if next.bits.common(address) < next.length {
                break;
            }
            best = if next.has_value { child } else { best };
            node = next;
        }
        self.values[best as usize]
    }

    /// Sets the value of a prefix; returns the former one.
    pub(super) fn insert(&mut self, bits: K, length: u8, value: V) -> Option<V> {
        let mut at = ROOT;
        while self.node(at).length < length {
            let node = self.node(at);
            let side = bits.bit(node.length);
            let child = node.children[side];
            if child == NONE {
                let leaf = self.add(bits, length, Some(value), [NONE; 2]);
                self.node_mut(at).children[side] = leaf;
                return None;
            }
            let next = self.node(child);
            let common = next.bits.common(bits).min(next.length).min(length);
            if common < next.length {
                let between = self.part(child, common, bits, length, value);
                self.node_mut(at).children[side] = between;
                return None;
            }
            at = child;
        }
        self.node_mut(at).has_value = true;
        self.values[at as usize].replace(value)
    }

    /// Takes a prefix out; returns its value.
    pub(super) fn remove(&mut self, bits: K, length: u8) -> Option<V> {
        let (mut above, mut at) = (None, ROOT);
        while self.node(at).length < length {
            let node = self.node(at);
            let child = node.children[bits.bit(node.length)];
            if child == NONE || self.node(child).bits.common(bits) < self.node(child).length.min(length) {
                return None;
            }
            (above, at) = (Some((above.map_or(ROOT, |(_, parent)| parent), at)), child);
        }
        if self.node(at).length != length {
            return None;
        }
        self.node_mut(at).has_value = false;
        let value = self.values[at as usize].take();
        if let Some((grandparent, parent)) = above {
            self.shorten(parent, at);
            self.shorten(grandparent, parent);
        }
        value
    }

    /// Nodes in use.
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// A node above `child`, `common` bits long, in which the new prefix begins or is itself.
    fn part(&mut self, child: u32, common: u8, bits: K, length: u8, value: V) -> u32 {
        let old = self.node(child).bits.bit(common);
        let mut children = [NONE; 2];
        children[old] = child;
        if common == length {
            return self.add(bits, length, Some(value), children);
        }
        children[1 - old] = self.add(bits, length, Some(value), [NONE; 2]);
        self.add(bits, common, None, children)
    }

    /// Takes a node out from below its parent if it says nothing any more.
    fn shorten(&mut self, parent: u32, at: u32) {
        let node = self.node(at);
        let below = match node.children {
            _ if at == ROOT || node.has_value => return,
            [NONE, child] | [child, NONE] => child,
            _ => return,
        };
        let side = node.bits.bit(self.node(parent).length);
        self.node_mut(parent).children[side] = below;
        self.free.push(at);
    }

    fn add(&mut self, bits: K, length: u8, value: Option<V>, children: [u32; 2]) -> u32 {
        let node = Node { bits, children, length, has_value: value.is_some() };
        if let Some(at) = self.free.pop() {
            *self.node_mut(at) = node;
            self.values[at as usize] = value;
            return at;
        }
        self.nodes.push(node);
        self.values.push(value);
        (self.nodes.len() - 1) as u32
    }

    fn node(&self, at: u32) -> &Node<K> {
        &self.nodes[at as usize]
    }

    fn node_mut(&mut self, at: u32) -> &mut Node<K> {
        &mut self.nodes[at as usize]
    }
}
