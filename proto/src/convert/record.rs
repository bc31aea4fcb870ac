//! What the registry and presence hold: epochs, ranges, records, settings, signed words.

use super::{Wire, WireError, all_from_wire, all_to_wire, capped, field, invalid, nested, text};
use crate::v1;
use bytes::Bytes;
use mesh_types::limits::{
    MAX_AUTHORITIES, MAX_CERTIFICATE, MAX_COORDINATOR_ADDRESSES, MAX_COORDINATORS, MAX_PRESENCE_PAYLOAD,
};
use mesh_types::netmap::Certificate;
use mesh_types::{
    CoordinatorId, CoordinatorRecord, Epoch, MeshConfig, MeshDuration, MeshTime, NodeRecord, Overlay, OverlayAddresses,
    Revision, SignedPresence,
};

impl Wire for Epoch {
    type Message = v1::Epoch;

    fn to_wire(&self) -> v1::Epoch {
        v1::Epoch { counter: self.counter, id: self.id }
    }

    fn from_wire(message: v1::Epoch) -> Result<Self, WireError> {
        Ok(Self { counter: message.counter, id: message.id })
    }
}

impl Wire for Overlay {
    type Message = v1::Overlay;

    fn to_wire(&self) -> v1::Overlay {
        v1::Overlay { v4: self.v4.to_string(), v6: self.v6.to_string() }
    }

    fn from_wire(message: v1::Overlay) -> Result<Self, WireError> {
        let (v4, v6) = (text("Overlay.v4", &message.v4)?, text("Overlay.v6", &message.v6)?);
        Self::new(v4, v6).map_err(|error| invalid("Overlay", error))
    }
}

impl Wire for CoordinatorRecord {
    type Message = v1::CoordinatorRecord;

    fn to_wire(&self) -> v1::CoordinatorRecord {
        v1::CoordinatorRecord {
            id: self.id.0,
            name: self.name.to_string(),
            identity_key: bytes(self.identity_key.as_bytes()),
            addresses: self.addresses.iter().map(ToString::to_string).collect(),
        }
    }

    fn from_wire(message: v1::CoordinatorRecord) -> Result<Self, WireError> {
        const ADDRESSES: &str = "CoordinatorRecord.addresses";
        capped(ADDRESSES, message.addresses.len(), MAX_COORDINATOR_ADDRESSES)?;
        if message.addresses.is_empty() {
            return Err(WireError::Missing { field: ADDRESSES });
        }
        Ok(Self {
            id: CoordinatorId(message.id),
            name: text("CoordinatorRecord.name", &message.name)?,
            identity_key: field("CoordinatorRecord.identity_key", &message.identity_key)?,
            addresses: message.addresses.iter().map(|address| text(ADDRESSES, address)).collect::<Result<_, _>>()?,
        })
    }
}

impl Wire for NodeRecord {
    type Message = v1::NodeRecord;

    fn to_wire(&self) -> v1::NodeRecord {
        v1::NodeRecord {
            id: bytes(self.id.as_bytes()),
            name: self.name.to_string(),
            public_key: bytes(self.public_key.as_bytes()),
            identity_key: bytes(self.identity_key.as_bytes()),
            address_v4: bytes(&self.addresses.v4.octets()),
            address_v6: bytes(&self.addresses.v6.octets()),
            expires_at: self.expires_at.0,
            revision: self.revision.0,
        }
    }

    fn from_wire(message: v1::NodeRecord) -> Result<Self, WireError> {
        Ok(Self {
            id: field("NodeRecord.id", &message.id)?,
            name: text("NodeRecord.name", &message.name)?,
            public_key: field("NodeRecord.public_key", &message.public_key)?,
            identity_key: field("NodeRecord.identity_key", &message.identity_key)?,
            addresses: addresses(&message.address_v4, &message.address_v6)?,
            expires_at: MeshTime(message.expires_at),
            revision: Revision(message.revision),
        })
    }
}

/// Parses a pair of overlay addresses: 4 and 16 bytes, in network order.
pub fn addresses(v4: &[u8], v6: &[u8]) -> Result<OverlayAddresses, WireError> {
    let v4 = <[u8; 4]>::try_from(v4).map_err(|_| invalid("address_v4", format!("{} bytes, not 4", v4.len())))?;
    let v6 = <[u8; 16]>::try_from(v6).map_err(|_| invalid("address_v6", format!("{} bytes, not 16", v6.len())))?;
    Ok(OverlayAddresses { v4: v4.into(), v6: v6.into() })
}

impl Wire for MeshConfig {
    type Message = v1::MeshConfig;

    fn to_wire(&self) -> v1::MeshConfig {
        v1::MeshConfig {
            mesh: bytes(self.mesh.as_bytes()),
            overlay: Some(self.overlay.to_wire()),
            authorities: self.authorities.iter().map(|certificate| bytes(&certificate.0)).collect(),
            coordinators: all_to_wire(&self.coordinators),
            key_ttl: self.key_ttl.0,
            revision: self.revision.0,
        }
    }

    fn from_wire(message: v1::MeshConfig) -> Result<Self, WireError> {
        capped("MeshConfig.coordinators", message.coordinators.len(), MAX_COORDINATORS)?;
        Ok(Self {
            mesh: field("MeshConfig.mesh", &message.mesh)?,
            overlay: nested("MeshConfig.overlay", message.overlay)?,
            authorities: authorities(&message.authorities)?,
            coordinators: all_from_wire(message.coordinators)?,
            key_ttl: MeshDuration(message.key_ttl),
            revision: Revision(message.revision),
        })
    }
}

fn authorities(certificates: &[Bytes]) -> Result<Vec<Certificate>, WireError> {
    const AUTHORITIES: &str = "MeshConfig.authorities";
    capped(AUTHORITIES, certificates.len(), MAX_AUTHORITIES)?;
    if certificates.is_empty() {
        return Err(WireError::Missing { field: AUTHORITIES });
    }
    certificates.iter().map(|der| certificate(AUTHORITIES, der)).collect()
}

/// Parses a certificate, or certificate request, in DER: only its length is judged here.
pub fn certificate(field: &'static str, der: &[u8]) -> Result<Certificate, WireError> {
    capped(field, der.len(), MAX_CERTIFICATE)?;
    if der.is_empty() { Err(WireError::Missing { field }) } else { Ok(Certificate(der.to_vec())) }
}

impl Wire for SignedPresence {
    type Message = v1::SignedPresence;

    fn to_wire(&self) -> v1::SignedPresence {
        v1::SignedPresence { payload: bytes(&self.payload), signature: bytes(self.signature.as_bytes()) }
    }

    fn from_wire(message: v1::SignedPresence) -> Result<Self, WireError> {
        capped("SignedPresence.payload", message.payload.len(), MAX_PRESENCE_PAYLOAD)?;
        Ok(Self {
            payload: message.payload.to_vec(),
            signature: field("SignedPresence.signature", &message.signature)?,
        })
    }
}

fn bytes(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}
