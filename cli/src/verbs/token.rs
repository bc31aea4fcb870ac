//! `meshctl token create|list|revoke`.

use super::Context;
use crate::args::Token;
use crate::exit::{Exit, Failure};
use crate::files::write_private;
use crate::output;
use crate::reach::{self, ask, request_id};
use mesh_proto::v1::{CreateTokenReply, CreateTokenRequest, ListTokensRequest, RevokeTokenRequest};
use mesh_types::{MeshDuration, MeshTime, Role, TokenId};
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, Instant};
use tonic::codegen::Bytes;

/// How long a coordinator that has just started may be without a leader: several elections.
const SETTLE: Duration = Duration::from_secs(20);
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// What `meshctl token create --json` prints.
#[derive(Serialize)]
struct Created {
    /// Absent if it was written to a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    id: String,
    role: Role,
    uses: u32,
    expires_at: String,
}

/// One of what `meshctl token list --json` prints.
#[derive(Serialize)]
struct Listed {
    id: String,
    role: String,
    uses_left: u32,
    created_at: String,
    expires_at: String,
}

pub(super) async fn run(context: &Context, token: Token) -> Result<Exit, Failure> {
    match token {
        Token::Create { role, ttl, uses, output } => {
            let reply = create(context, role, ttl, uses).await?;
            show(context, reply, role, uses, output.as_deref())
        }
        Token::List => list(context).await,
        Token::Revoke { id } => revoke(context, id).await,
    }
}

/// Makes a join token.
pub(super) async fn create(
    context: &Context,
    role: Role,
    ttl: MeshDuration,
    uses: u32,
) -> Result<CreateTokenReply, Failure> {
    create_as(context, &request(role, ttl, uses)?).await
}

async fn create_as(context: &Context, request: &CreateTokenRequest) -> Result<CreateTokenReply, Failure> {
    ask(reach::ANSWER, reach::coordinator(&context.paths).await?.create_token(request.clone())).await
}

fn request(role: Role, ttl: MeshDuration, uses: u32) -> Result<CreateTokenRequest, Failure> {
    Ok(CreateTokenRequest { request_id: request_id()?, role: role.to_string(), ttl: ttl.0, uses })
}

/// Makes a join token at a coordinator that has just started, as soon as it has found its leader.
pub(super) async fn create_when_ready(
    context: &Context,
    role: Role,
    ttl: MeshDuration,
    uses: u32,
) -> Result<CreateTokenReply, Failure> {
    let deadline = Instant::now() + SETTLE;
    // The same each time: an attempt that failed may have made the token nevertheless.
    let request = request(role, ttl, uses)?;
    loop {
        match create_as(context, &request).await {
            Err(failure) if failure.exit == Exit::Unreachable && Instant::now() < deadline => {
                tokio::time::sleep(ASK_AGAIN).await;
            }
            other => return other,
        }
    }
}

fn show(
    context: &Context,
    reply: CreateTokenReply,
    role: Role,
    uses: u32,
    file: Option<&Path>,
) -> Result<Exit, Failure> {
    let expires_at = MeshTime(reply.expires_at).to_string();
    if let Some(file) = file {
        write_private(file, &reply.token)?;
        context.note(format_args!("The token is in {}, good until {expires_at}.", file.display()));
    }
    if context.json() {
        let token = file.is_none().then_some(reply.token);
        output::json(&Created { token, id: hex_id(&reply.id), role, uses, expires_at });
    } else if file.is_none() {
        output::line(&reply.token);
        let verb = if role == Role::Coordinator { "join --coordinator" } else { "join" };
        context.note(format_args!("Use it with `meshctl {verb} TOKEN`, {uses} times at most, until {expires_at}."));
    }
    Ok(Exit::Done)
}

async fn list(context: &Context) -> Result<Exit, Failure> {
    let reply = ask(reach::ANSWER, reach::coordinator(&context.paths).await?.list_tokens(ListTokensRequest {})).await?;
    if !reply.fresh {
        output::note("meshctl: the coordinators have no quorum; this may be out of date");
    }
    let tokens = reply.tokens.into_iter().map(|token| Listed {
        id: hex_id(&token.id),
        role: token.role,
        uses_left: token.uses_left,
        created_at: MeshTime(token.created_at).to_string(),
        expires_at: MeshTime(token.expires_at).to_string(),
    });
    let tokens: Vec<Listed> = tokens.collect();
    if context.json() {
        output::json(&tokens);
    } else {
        let mut table = output::table(["ID", "ROLE", "USES LEFT", "EXPIRES"]);
        for token in &tokens {
            table.add_row([&token.id, &token.role, &token.uses_left.to_string(), &token.expires_at]);
        }
        output::print(&table);
    }
    Ok(Exit::Done)
}

async fn revoke(context: &Context, id: TokenId) -> Result<Exit, Failure> {
    let request = RevokeTokenRequest { request_id: request_id()?, id: Bytes::copy_from_slice(id.as_bytes()) };
    ask(reach::ANSWER, reach::coordinator(&context.paths).await?.revoke_token(request)).await?;
    context.note(format_args!("Token {id} is worthless now."));
    Ok(Exit::Done)
}

/// An id as text; a daemon's answer of another length is shown as it is.
fn hex_id(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
