//! Mesh time: the coordinators' clock, in milliseconds since the Unix epoch.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;
use std::time::Duration;
use thiserror::Error;

/// A moment by the coordinators' clock: milliseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug, Default)]
#[serde(transparent)]
pub struct MeshTime(pub u64);

/// A span of mesh time in milliseconds. Reads and prints as `30d`, `1h 30m`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug, Default)]
#[serde(transparent)]
pub struct MeshDuration(pub u64);

/// Why a text is not a duration.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
#[error("duration {0:?} not understood: write a number with a unit, as in 90s, 15m, 12h or 30d")]
pub struct ParseDurationError(pub String);

impl MeshTime {
    /// The time left until `deadline`; zero if it has passed.
    pub fn until(self, deadline: MeshTime) -> MeshDuration {
        MeshDuration(deadline.0.saturating_sub(self.0))
    }

    /// The time since `earlier`; zero if it lies ahead.
    pub fn since(self, earlier: MeshTime) -> MeshDuration {
        MeshDuration(self.0.saturating_sub(earlier.0))
    }

    /// As a system time, for certificates and for people.
    pub fn to_system(self) -> std::time::SystemTime {
        std::time::UNIX_EPOCH + Duration::from_millis(self.0)
    }

    /// From a system time; times before 1970 become zero.
    pub fn from_system(time: std::time::SystemTime) -> Self {
        let millis = time.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_millis());
        Self(u64::try_from(millis).unwrap_or(u64::MAX))
    }
}

impl MeshDuration {
    /// A span of whole seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1000))
    }

    /// As the standard library's type.
    pub const fn to_std(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl Add<MeshDuration> for MeshTime {
    type Output = Self;

    fn add(self, span: MeshDuration) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

impl Sub<MeshDuration> for MeshTime {
    type Output = Self;

    fn sub(self, span: MeshDuration) -> Self {
        Self(self.0.saturating_sub(span.0))
    }
}

/// RFC 3339, UTC, whole seconds.
impl fmt::Display for MeshTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Beyond the year 9999 RFC 3339 has no form; such a time is shown as that year's end.
        const LAST: u64 = 253_402_300_799_000;
        write!(f, "{}", humantime::format_rfc3339_seconds(Self(self.0.min(LAST)).to_system()))
    }
}

impl FromStr for MeshDuration {
    type Err = ParseDurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let span = humantime::parse_duration(text).map_err(|_| ParseDurationError(text.to_owned()))?;
        u64::try_from(span.as_millis()).map(Self).map_err(|_| ParseDurationError(text.to_owned()))
    }
}

impl fmt::Display for MeshDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", humantime::format_duration(self.to_std()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_write_them() {
        assert_eq!("30d".parse::<MeshDuration>().unwrap(), MeshDuration::from_secs(30 * 86_400));
        assert_eq!("1h".parse::<MeshDuration>().unwrap(), MeshDuration::from_secs(3_600));
        assert!("soon".parse::<MeshDuration>().is_err());
    }

    #[test]
    fn any_time_prints_without_panic() {
        for millis in [0, 1, u64::MAX / 2, u64::MAX] {
            assert!(!MeshTime(millis).to_string().is_empty());
        }
        assert_eq!(MeshTime(0).to_string(), "1970-01-01T00:00:00Z");
    }
}
