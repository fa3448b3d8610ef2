//! HTTP calls to programs of a lab. Use it on a thread inside a namespace that reaches them.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;

/// A client with the lab's token.
#[derive(Debug)]
pub(crate) struct Api {
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
    token: String,
}

impl Api {
    /// A client whose sockets are made on the calling thread.
    pub(crate) fn new(token: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = reqwest::Client::builder().timeout(Duration::from_secs(2)).no_proxy().build()?;
        Ok(Self { runtime, client, token: token.to_owned() })
    }

    /// Whether the URL answers 200.
    pub(crate) fn is_ok(&self, url: &str) -> bool {
        let answer = self.runtime.block_on(async { self.client.get(url).send().await });
        answer.is_ok_and(|response| response.status().is_success())
    }

    /// The body at a URL.
    pub(crate) fn text(&self, url: &str) -> Result<String> {
        let request = self.client.get(url).bearer_auth(&self.token);
        self.runtime
            .block_on(async { request.send().await?.error_for_status()?.text().await })
            .with_context(|| url.to_owned())
    }

    /// The JSON at a URL.
    pub(crate) fn json<T: DeserializeOwned>(&self, url: &str) -> Result<T> {
        serde_json::from_str(&self.text(url)?).with_context(|| url.to_owned())
    }

    /// Puts JSON to a URL.
    pub(crate) fn put(&self, url: &str, body: &serde_json::Value) -> Result<()> {
        let request = self.client.put(url).bearer_auth(&self.token).json(body);
        let put = async {
            let response = request.send().await?;
            let status = response.status();
            let said = response.text().await?;
            anyhow::ensure!(status.is_success(), "{status}: {said}");
            Ok(())
        };
        self.runtime.block_on(put).with_context(|| url.to_owned())
    }
}
