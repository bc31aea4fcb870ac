//! Callers at the level of HTTP/2, who need not do as our clients do.

use super::{Node, PATIENCE};
use bytes::{BufMut as _, Bytes, BytesMut};
use mesh_types::CoordinatorAddress;
use mesh_types::coordinator::Host;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Takes whoever answers for the coordinator: what is tried here does not depend on it.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// A connection of `node`, or of nobody.
pub async fn line(address: &CoordinatorAddress, node: Option<&Node>) -> TlsStream<TcpStream> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone));
    let mut config = match node {
        Some(node) => config.with_client_cert_resolver(Arc::new(node.credentials.clone())),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let Host::Ip(ip) = address.host else { panic!("tests advertise addresses") };
    let tcp = TcpStream::connect((ip, address.port)).await.unwrap();
    let name = ServerName::try_from("mesh.invalid").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
}

/// The head of a call.
pub fn head(path: &str) -> http::Request<()> {
    http::Request::post(format!("https://mesh.invalid{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

/// A message as gRPC frames it.
pub fn framed(message: &impl prost::Message) -> Bytes {
    let body = message.encode_to_vec();
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(body.len().try_into().unwrap());
    frame.extend_from_slice(&body);
    frame.freeze()
}

/// The status with which a call is refused of which only the head is sent.
pub async fn status_of_head(address: &CoordinatorAddress, node: Option<&Node>, path: &str) -> tonic::Status {
    let (requests, connection) = h2::client::handshake(line(address, node).await).await.unwrap();
    let connection = tokio::spawn(connection);
    let (response, body) = requests.ready().await.unwrap().send_request(head(path), false).unwrap();
    let response = tokio::time::timeout(PATIENCE, response).await.expect("it waits for the body").unwrap();
    drop(body);
    connection.abort();
    tonic::Status::from_header_map(response.headers()).expect("it is refused")
}
