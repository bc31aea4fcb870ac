//! How messages that hold secrets are printed: by name and by what may be read by everyone.

use crate::v1;
use std::fmt;

macro_rules! redacted {
    ($($message:ident { $($shown:ident),* }),+ $(,)?) => {
        $(impl fmt::Debug for v1::$message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($message))$(.field(stringify!($shown), &self.$shown))*.finish_non_exhaustive()
            }
        })+
    };
}

redacted! {
    JoinRequest { mesh, token_id, name },
    JoinClusterRequest { mesh, token_id, name, addresses, level },
    JoinClusterReply { coordinator_id, name, time },
    CreateTokenReply { id, expires_at },
    BackupRequest {},
    LocalJoinRequest { name },
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn secrets_are_not_printed() {
        let (secret, text) = (Bytes::from_static(b"hush"), "hush".to_owned());
        for printed in [
            format!("{:?}", v1::JoinRequest { token_secret: secret.clone(), ..Default::default() }),
            format!("{:?}", v1::JoinClusterRequest { token_secret: secret.clone(), ..Default::default() }),
            format!("{:?}", v1::JoinClusterReply { authority_key: secret, ..Default::default() }),
            format!("{:?}", v1::CreateTokenReply { token: text.clone(), ..Default::default() }),
            format!("{:?}", v1::BackupRequest { passphrase: text.clone() }),
            format!("{:?}", v1::LocalJoinRequest { token: text, ..Default::default() }),
        ] {
            assert!(!printed.contains("hush"), "{printed}");
        }
    }
}
