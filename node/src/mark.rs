//! The mark on all packets that this node sends outside the mesh, and which of its bits tell it.

use std::fmt;
use std::str::FromStr;

/// A packet mark, and the bits of it that count: others set theirs on the same packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// As it is set; 0 is none.
    pub value: u32,
    /// The bits that are compared.
    pub mask: u32,
}

/// Two bits that nobody else claims, one of them set: kube-proxy marks with 0x4000 and 0x8000, Calico with 0xffff0000,
/// Cilium with 0x0f00 and the upper half, Tailscale with 0xff0000, Weave with 0x20000, Istio with 0x539, Amazon's VPC CNI
/// with 0x80, wg-quick with 0xca6c, NetBird with 0x1bd00.
pub const DEFAULT_MARK: &str = "0x1000/0x3000";

/// Why a text is no mark.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseMarkError {
    /// Not numbers.
    #[error("expected MARK or MARK/MASK, each from 0 to 4294967295, or 0x and hex digits")]
    NoNumber,
    /// The mark has bits that the mask has not.
    #[error("mark {0:#x} has bits outside of its mask {1:#x}: it would never be recognised")]
    OutsideMask(u32, u32),
}

impl Mark {
    /// What sockets are given; `None` if packets are not marked.
    pub fn on_sockets(self) -> Option<u32> {
        (self.value != 0).then_some(self.value)
    }
}

impl FromStr for Mark {
    type Err = ParseMarkError;

    fn from_str(text: &str) -> Result<Self, ParseMarkError> {
        let number = |text: &str| match text.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16),
            None => text.parse(),
        };
        let (value, mask) = text.split_once('/').map_or((text, None), |(value, mask)| (value, Some(mask)));
        let value = number(value).map_err(|_| ParseMarkError::NoNumber)?;
        let mask = mask.map_or(Ok(u32::MAX), number).map_err(|_| ParseMarkError::NoNumber)?;
        if value & !mask == 0 { Ok(Self { value, mask }) } else { Err(ParseMarkError::OutsideMask(value, mask)) }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}/{:#x}", self.value, self.mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_read_as_decimal_and_hex_with_a_mask_or_without() {
        for (text, value, mask) in [
            ("0xca6c", 0xca6c, u32::MAX),
            ("51820", 51_820, u32::MAX),
            ("0", 0, u32::MAX),
            (DEFAULT_MARK, 0x1000, 0x3000),
        ] {
            assert_eq!(text.parse(), Ok(Mark { value, mask }), "{text}");
        }
        for bad in ["", "0xg", "1/", "1/x", "-1"] {
            assert_eq!(bad.parse::<Mark>(), Err(ParseMarkError::NoNumber), "{bad}");
        }
        assert_eq!("0x4000/0x3000".parse::<Mark>(), Err(ParseMarkError::OutsideMask(0x4000, 0x3000)));
    }

    #[test]
    fn the_default_is_told_from_the_marks_of_others() {
        let ours: Mark = DEFAULT_MARK.parse().unwrap();
        let others = [0x4000, 0x8000, 0xffff_0000, 0x0f00, 0xff_0000, 0x2_0000, 0x539, 0x80, 0xca6c, 0x1_bd00, 0];
        for other in others {
            assert_ne!(other & ours.mask, ours.value, "{other:#x}");
            assert_eq!((ours.value | other & !ours.mask) & ours.mask, ours.value, "set by another on top: {other:#x}");
        }
    }
}
