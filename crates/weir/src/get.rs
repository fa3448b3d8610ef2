//! `weir get`: a resource of a running role.

use std::time::Duration;

use anyhow::{Context as _, bail};
use node::config::Secret;
use node::http::{ErrorBody, ProblemBody};
use serde::Serialize;
use serde_json::Value;

use crate::cli::{ClientArgs, Form, GetArgs, Resource};
use crate::output::print;
use crate::table;

/// An API answers within 10 s or says that it could not.
const ANSWER_TIME: Duration = Duration::from_secs(15);

impl Resource {
    /// Path of the resource.
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Mappings => "/v1/mappings",
            Self::Flows => "/v1/flows",
            Self::Load => "/v1/load",
            Self::Applied => "/v1/applied",
            Self::Status | Self::Backends => "/v1/status",
            Self::Vips => "/v1/vips",
            Self::Registrations => "/v1/registrations",
            Self::Weights => "/v1/weights",
            Self::Subscriptions => "/v1/subscriptions",
            Self::Publications => "/v1/publications",
            Self::Services => "/v1/services",
            Self::Decisions => "/v1/decisions",
        }
    }

    /// Which role has it.
    const fn role(self) -> &'static str {
        match self {
            Self::Mappings | Self::Flows | Self::Load | Self::Applied => "gateway",
            Self::Status => "gateway or a balancer",
            Self::Registrations | Self::Weights | Self::Subscriptions | Self::Publications => "map server",
            Self::Services | Self::Decisions => "controller",
            Self::Vips | Self::Backends => "balancer",
        }
    }
}

pub(crate) fn get(args: &GetArgs) -> anyhow::Result<()> {
    let limit = args.limit.map(|limit| ("limit", limit.to_string()));
    let answer = ask(&args.client, args.resource.path(), limit.as_slice())
        .with_context(|| format!("{} is asked of a {}", args.resource.path(), args.resource.role()))?;
    print(&match args.client.output {
        Form::Json => pretty(&answer)?,
        Form::Table => table::render(args.resource, &answer),
    })?;
    Ok(())
}

/// JSON for people and pipes.
pub(crate) fn pretty(value: &Value) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// Asks a role.
pub(crate) fn ask(client: &ClientArgs, path: &str, query: &[(&str, String)]) -> anyhow::Result<Value> {
    send(client, path, |http, url| http.get(url).query(query))
}

/// Tells a role what to have.
pub(crate) fn put(
    client: &ClientArgs,
    path: &str,
    query: &[(&str, String)],
    body: &impl Serialize,
) -> anyhow::Result<Value> {
    send(client, path, |http, url| http.put(url).query(query).json(body))
}

fn send(
    client: &ClientArgs,
    path: &str,
    request: impl FnOnce(&reqwest::Client, String) -> reqwest::RequestBuilder,
) -> anyhow::Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime")?;
    runtime.block_on(async {
        let http =
            reqwest::Client::builder().timeout(ANSWER_TIME).no_proxy().build().context("HTTP client")?;
        let base = client.server.trim_end_matches('/');
        answer(client, path, request(&http, format!("{base}{path}"))).await
    })
}

async fn answer(
    client: &ClientArgs,
    path: &str,
    mut request: reqwest::RequestBuilder,
) -> anyhow::Result<Value> {
    let base = client.server.trim_end_matches('/');
    if let Some(file) = &client.token_file {
        let token = Secret::read(file, 1)?;
        let token = std::str::from_utf8(token.expose()).context("the token is no text")?;
        request = request.bearer_auth(token);
    }
    let response = request.send().await.with_context(|| format!("no answer from {base}; see --server"))?;
    let status = response.status();
    let body = response.bytes().await.with_context(|| format!("{base} broke off its answer"))?;
    if status.is_success() {
        return serde_json::from_slice(&body)
            .with_context(|| format!("{base}{path} answered something else"));
    }
    match serde_json::from_slice::<ErrorBody>(&body) {
        Ok(refusal) if refusal.error == "unauthorized" => bail!("{base} wants a token; see --token-file"),
        Ok(refusal) => bail!("{base} refused: {}", reasons(&refusal)),
        Err(_) => bail!("{base}{path} answered {status}"),
    }
}

/// Every reason, a line each if there are several.
fn reasons(refusal: &ErrorBody) -> String {
    if refusal.problems.is_empty() {
        return refusal.message.clone();
    }
    let line = |problem: &ProblemBody| match problem.field.as_str() {
        "" => problem.message.clone(),
        field => format!("{field}: {}", problem.message),
    };
    refusal.problems.iter().map(line).collect::<Vec<_>>().join("\n  ")
}
