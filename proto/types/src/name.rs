//! Node names: DNS labels, so that they can be host names later.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Longest DNS label (RFC 1035, 2.3.4).
pub const MAX_LABEL: usize = 63;

/// A node's or coordinator's name: a lower-case DNS label (RFC 1123: letters, digits, inner hyphens).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

/// Why a text is not a node name.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
#[error(
    "node name {0:?} is not a DNS label: use 1 to 63 letters, digits and hyphens, not starting or ending with a hyphen"
)]
pub struct ParseNameError(pub String);

impl NodeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Makes a name of whatever a host calls itself: the first label, lower-cased, other characters to hyphens.
    /// `None` if nothing usable is left.
    pub fn from_hostname(hostname: &str) -> Option<Self> {
        let label = hostname.split('.').next().unwrap_or_default().to_ascii_lowercase();
        let label: String = label.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let label: String = label.trim_matches('-').chars().take(MAX_LABEL).collect();
        label.trim_end_matches('-').parse().ok()
    }

    /// The name with `-number` behind it, cut so that it stays a label; for resolving collisions.
    pub fn with_suffix(&self, number: u32) -> Self {
        let suffix = format!("-{number}");
        let keep = self.0.len().min(MAX_LABEL - suffix.len());
        Self(format!("{}{suffix}", self.0[..keep].trim_end_matches('-')))
    }
}

impl FromStr for NodeName {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let lower = text.to_ascii_lowercase();
        let fits = !lower.is_empty() && lower.len() <= MAX_LABEL && lower.bytes().all(inner);
        if !fits || lower.starts_with('-') || lower.ends_with('-') {
            return Err(ParseNameError(text.chars().take(80).collect()));
        }
        Ok(Self(lower))
    }
}

impl TryFrom<String> for NodeName {
    type Error = ParseNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_dns_labels_are_names() {
        for good in ["a", "node-1", "X9", &"a".repeat(63)] {
            assert!(good.parse::<NodeName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "a.b", "a_b", "ä", "a b", &"a".repeat(64)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn host_names_become_labels() {
        assert_eq!(NodeName::from_hostname("Web_01.example.org").unwrap().as_str(), "web-01");
        assert_eq!(NodeName::from_hostname("..."), None);
    }

    proptest! {
        #[test]
        fn whatever_is_made_of_a_host_name_is_a_name(text in ".{0,90}", number in 0u32..) {
            if let Some(name) = NodeName::from_hostname(&text) {
                prop_assert_eq!(name.as_str().parse::<NodeName>().unwrap(), name.clone());
                let suffixed = name.with_suffix(number);
                prop_assert_eq!(suffixed.as_str().parse::<NodeName>().unwrap(), suffixed);
            }
        }
    }
}
