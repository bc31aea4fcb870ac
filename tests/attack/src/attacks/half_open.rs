//! Handshakes that are not gone on with: nothing, a ClientHello and then nothing, or one byte after the other.

use super::{Attack, ends, source};
use crate::scene::{Seen, Stage};
use crate::stranger::{tcp, tls_config};
use anyhow::Result;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

pub(super) const ATTACK: Attack = Attack {
    name: "half-open",
    about: "TCP and then nothing, a ClientHello and then nothing, a ClientHello byte by byte, 60 connections each",
    waits: true,
    run: |stage| Box::pin(run(stage)),
};

const OF_EACH: usize = 60;
/// Handshakes end within this.
const HANDSHAKE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(500);

/// How much of the ClientHello is sent at once, and how much then twice a second.
const WAYS: [(usize, usize); 3] = [(0, 0), (usize::MAX, 0), (1, 1)];

async fn run(stage: Stage) -> Result<Seen> {
    let scene = stage.coordinator().await?;
    let address = scene.target.address();
    scene
        .judge(async move {
            let hello = client_hello()?;
            let (mut connections, begun) = (JoinSet::new(), Instant::now());
            for (number, (at_once, step)) in (0..).zip(WAYS) {
                for _ in 0..OF_EACH {
                    let mut stream = tcp(address, source(1 + number)).await?;
                    let mut rest = hello.clone();
                    let first: Vec<u8> = rest.drain(..at_once.min(hello.len())).collect();
                    connections.spawn(async move {
                        let (mut reads, mut writes) = stream.split();
                        let dribble = async {
                            let mut sent = writes.write_all(&first).await;
                            while step > 0 && !rest.is_empty() && sent.is_ok() {
                                sleep(PAUSE).await;
                                sent = writes.write_all(&rest.drain(..step).collect::<Vec<_>>()).await;
                            }
                            if sent.is_ok() {
                                std::future::pending().await
                            }
                        };
                        let mut bytes = [0; 4_096];
                        tokio::select! {
                            () = async { while reads.read(&mut bytes).await.is_ok_and(|length| length > 0) {} } => {}
                            () = dribble => {}
                        }
                    });
                }
            }
            Ok(ends(connections, begun, HANDSHAKE).await)
        })
        .await
}

fn client_hello() -> Result<Vec<u8>> {
    let mut client = ClientConnection::new(tls_config(), ServerName::try_from("mesh.invalid")?)?;
    let mut hello = Vec::new();
    client.write_tls(&mut hello)?;
    Ok(hello)
}
