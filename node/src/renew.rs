//! What a member asks of any coordinator beside its session: a longer lease, a new certificate, an end.

use crate::ask::{AskError, ask};
use crate::join::check_certificate;
use crate::session::Places;
use crate::state::Keys;
use bytes::Bytes;
use mesh_proto::certificate::certificate_request;
use mesh_proto::convert;
use mesh_proto::dial::Dialer;
use mesh_proto::tls::Expect;
use mesh_proto::v1::membership_client::MembershipClient;
use mesh_proto::v1::{LeaveRequest, RenewCertificateRequest, RenewKeyRequest};
use mesh_types::netmap::Certificate;
use mesh_types::{CoordinatorId, MeshId, MeshTime, NodeRecord};
use std::sync::Arc;
use tonic::Status;
use tonic::transport::Channel;

type Client = MembershipClient<Channel>;

/// A member's way to the coordinators.
#[derive(Clone)]
pub(crate) struct Asker {
    pub(crate) dialer: Dialer,
    pub(crate) places: Places,
    /// Whom the session is with: known to answer, so asked first.
    pub(crate) session: Option<CoordinatorId>,
}

impl Asker {
    /// Renews the lease of the node's key; when it ends then.
    pub(crate) async fn renew_key(self) -> Result<MeshTime, AskError> {
        let request_id = request_id();
        let call = |mut client: Client| {
            let request = RenewKeyRequest { request_id: request_id.clone() };
            async move { Ok(MeshTime(client.renew_key(request).await?.into_inner().expires_at)) }
        };
        self.ask(call).await.map(|(expires_at, _)| expires_at)
    }

    /// Gets a new certificate for the identity key, and the CA that issued it.
    pub(crate) async fn renew_certificate(
        self,
        keys: Arc<Keys>,
        mesh: MeshId,
        record: NodeRecord,
    ) -> Result<(Certificate, Certificate), AskError> {
        let record = Arc::new(record);
        let call = |mut client: Client| {
            let (keys, record) = (keys.clone(), record.clone());
            async move {
                let unusable = Status::failed_precondition;
                let request = certificate_request(&keys.identity).map_err(|error| unusable(error.to_string()))?;
                let request = RenewCertificateRequest { certificate_request: request.into() };
                let reply = client.renew_certificate(request).await?.into_inner();
                let certificate = convert::certificate("RenewCertificateReply.certificate", &reply.certificate)
                    .map_err(|error| unusable(error.to_string()))?;
                check_certificate(&certificate, mesh, &record).map_err(unusable)?;
                Ok(certificate)
            }
        };
        self.ask(call).await
    }

    /// Gives up the membership.
    pub(crate) async fn leave(self) -> Result<(), AskError> {
        let request_id = request_id();
        let call = |mut client: Client| {
            let request = LeaveRequest { request_id: request_id.clone() };
            async move { client.leave(request).await.map(|_| ()) }
        };
        self.ask(call).await.map(|_| ())
    }

    async fn ask<T, F>(self, call: impl Fn(Client) -> F) -> Result<(T, Certificate), AskError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let addresses = self.places.shuffled_first(self.session);
        ask(&self.dialer, &addresses, Expect::AnyCoordinator, |connection| {
            let answer = call(MembershipClient::new(connection.channel));
            async move { answer.await.map(|answer| (answer, connection.authority)) }
        })
        .await
    }
}

fn request_id() -> Bytes {
    let mut id = [0; 16];
    getrandom::fill(&mut id).expect("the kernel gives randomness once it has booted");
    Bytes::copy_from_slice(&id)
}
