//! Conversions between the generated messages and the words of the mesh: the wire is parsed here, once, and trusted
//! from here on.
//!
//! Every field from outside is checked against its type and its cap in `mesh_types::limits`. Nothing is logged or
//! answered here: the caller decides what an error means for its stream.

mod exchange;
mod record;
mod session;

pub use record::{addresses, certificate};
pub use session::{ids_from_wire, ids_to_wire};

use mesh_types::key::ParseBytesError;
use thiserror::Error;

/// A word of the mesh that has a message on the wire.
pub trait Wire: Sized {
    /// The generated message.
    type Message;

    /// Makes the message; never fails, whoever made the value kept to the caps.
    fn to_wire(&self) -> Self::Message;

    /// Parses the message.
    fn from_wire(message: Self::Message) -> Result<Self, WireError>;
}

/// Why a message was not taken; every variant names the field.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
pub enum WireError {
    /// A field that must be there is not.
    #[error("{field} is missing")]
    Missing {
        /// The field, as `Message.field`.
        field: &'static str,
    },
    /// A field holds nonsense.
    #[error("{field} is not valid: {reason}")]
    Invalid {
        /// The field, as `Message.field`.
        field: &'static str,
        /// What its parser said.
        reason: String,
    },
    /// A field is longer than any honest sender makes it.
    #[error("{field} has {got} entries or bytes: at most {most} are taken")]
    TooMany {
        /// The field, as `Message.field`.
        field: &'static str,
        /// How many came.
        got: usize,
        /// The cap.
        most: usize,
    },
    /// A kind of message that a later version may know: skip it and go on.
    #[error("{message} of a kind that this version does not know")]
    Unknown {
        /// The message that holds alternatives.
        message: &'static str,
    },
}

impl WireError {
    /// Whether the sender may only be newer than we are, so that the message is skipped and the stream goes on.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }
}

/// Parses a fixed-size byte string: an id, a key, a signature.
///
/// For the messages of single calls, which are read field by field where they are served.
pub fn field<'a, T>(field: &'static str, bytes: &'a [u8]) -> Result<T, WireError>
where
    T: TryFrom<&'a [u8], Error = ParseBytesError>,
{
    T::try_from(bytes).map_err(|error| invalid(field, error))
}

/// Parses a field from its text form: a name, an address, a role.
pub fn text<T>(field: &'static str, text: &str) -> Result<T, WireError>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    text.parse().map_err(|error| invalid(field, error))
}

/// Parses a nested message that must be there.
pub fn nested<T: Wire>(field: &'static str, message: Option<T::Message>) -> Result<T, WireError> {
    T::from_wire(message.ok_or(WireError::Missing { field })?)
}

/// Refuses more than `most` of something.
pub fn capped(field: &'static str, got: usize, most: usize) -> Result<(), WireError> {
    if got > most { Err(WireError::TooMany { field, got, most }) } else { Ok(()) }
}

fn invalid(field: &'static str, reason: impl std::fmt::Display) -> WireError {
    WireError::Invalid { field, reason: reason.to_string() }
}

fn all_to_wire<T: Wire>(items: &[T]) -> Vec<T::Message> {
    items.iter().map(Wire::to_wire).collect()
}

fn all_from_wire<T: Wire>(items: Vec<T::Message>) -> Result<Vec<T>, WireError> {
    items.into_iter().map(T::from_wire).collect()
}
