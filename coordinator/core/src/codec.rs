//! Versioned bytes: a format byte first, then fixed fields or CBOR.
//!
//! What a later version wrote is told apart from what is damaged, because the remedy differs: upgrade, or restore.

use mesh_types::Level;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Why bytes of the log, of a snapshot or of a reply could not be read.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
pub enum DecodeError {
    /// Written in a format of a later version.
    #[error("{what} has format {format}, which this version does not know: upgrade this coordinator")]
    UnknownFormat {
        /// What was being read.
        what: &'static str,
        /// The format met.
        format: u8,
    },
    /// Written in a later language.
    #[error(
        "the log has level {}, this version understands up to {}: upgrade this coordinator",
        .0.0,
        Level::SUPPORTED.0
    )]
    UnknownLevel(Level),
    /// A command that this version does not know.
    #[error("the log has command {0}, which this version does not know: upgrade this coordinator")]
    UnknownCommand(u16),
    /// Ends early, has bytes left over, or fields that do not fit.
    #[error("{0} cannot be read ({1}): the data is damaged, or of a later version")]
    Malformed(&'static str, String),
}

/// Takes fixed-size fields off the front.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn format(&mut self, what: &'static str, expected: u8) -> Result<(), DecodeError> {
        match self.take()? {
            [format] if format == expected => Ok(()),
            [format] => Err(DecodeError::UnknownFormat { what, format }),
        }
    }

    pub(crate) fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, tail) =
            self.rest.split_first_chunk::<N>().ok_or_else(|| DecodeError::Malformed("head", "ends early".into()))?;
        self.rest = tail;
        Ok(*head)
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }
}

/// The level, if it is understood.
pub(crate) fn within(understood: Level, level: Level) -> Result<Level, DecodeError> {
    if level > understood { Err(DecodeError::UnknownLevel(level)) } else { Ok(level) }
}

pub(crate) fn put_cbor<T: Serialize>(out: &mut Vec<u8>, value: &T) {
    ciborium::into_writer(value, out).expect("plain data has a CBOR form and a Vec takes any number of bytes");
}

pub(crate) fn from_cbor<T: DeserializeOwned>(what: &'static str, mut bytes: &[u8]) -> Result<T, DecodeError> {
    let value = ciborium::from_reader(&mut bytes).map_err(|error| DecodeError::Malformed(what, error.to_string()))?;
    if bytes.is_empty() { Ok(value) } else { Err(DecodeError::Malformed(what, "bytes left over".into())) }
}
