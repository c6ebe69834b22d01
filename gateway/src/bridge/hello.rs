//! The start of a link: both sides say who they are and prove that they know the secret.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::dial::{Reader, Writer};
use super::link::LinkError;
use super::pool::Bridge;
use super::proof::{NONCE, Nonce, Role, holds, prove};
use super::wire::{self, MAX_HELLO, Welcome, kind};

/// How long each step may take.
pub(super) const STEP: Duration = Duration::from_secs(5);

/// Says hello; the rest of what was read with the answer follows it.
pub(super) async fn greet(
    bridge: &Bridge,
    reader: &mut Reader,
    writer: &mut Writer,
) -> Result<(Welcome, Vec<u8>), LinkError> {
    let own: Nonce = rand::random();
    let identity = &bridge.identity;
    say(writer, kind::HELLO, &wire::hello(&identity.node, &identity.deployment, &own)).await?;
    let (welcome, rest) = timeout(STEP, welcome(reader)).await.map_err(|_| LinkError::Late)??;
    let theirs: Nonce = welcome.nonce[..].try_into().map_err(|_| LinkError::Malformed(kind::WELCOME))?;
    let secret = &bridge.secret();
    // The nonces differ, or somebody gives back what we say.
    if theirs == own || !holds(secret, Role::Worker, &own, &theirs, &welcome.mac) {
        return Err(LinkError::Secret);
    }
    let proof = prove(secret, Role::Node, &own, &theirs).ok_or(LinkError::Secret)?;
    say(writer, kind::PROOF, &wire::proof(&proof)).await?;
    Ok((welcome, rest))
}

async fn say(writer: &mut Writer, kind: u8, body: &[u8]) -> Result<(), LinkError> {
    let mut out = Vec::with_capacity(NONCE + 256);
    wire::put(&mut out, kind, 0, &[body]);
    let said = async {
        writer.write_all(&out).await?;
        writer.flush().await
    };
    timeout(STEP, said).await.map_err(|_| LinkError::Late)?.map_err(LinkError::Closed)
}

async fn welcome(reader: &mut Reader) -> Result<(Welcome, Vec<u8>), LinkError> {
    let mut buffer = Vec::with_capacity(512);
    loop {
        if let Ok((frame, length)) = wire::split(&buffer, MAX_HELLO).map_err(|_| LinkError::TooLarge)? {
            if frame.kind != kind::WELCOME || frame.sid != 0 {
                return Err(LinkError::UnknownKind(frame.kind));
            }
            let welcome = Welcome::read(frame.body).map_err(|_| LinkError::Malformed(frame.kind))?;
            return Ok((welcome, buffer.split_off(length)));
        }
        if reader.read_buf(&mut buffer).await.map_err(LinkError::Closed)? == 0 {
            return Err(LinkError::Closed(std::io::ErrorKind::UnexpectedEof.into()));
        }
    }
}
