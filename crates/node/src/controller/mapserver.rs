//! The weights at the map server.

use std::time::Duration;

use reqwest::Method;

use super::fetch::{self, FetchError, Peer};
use super::weights::WeightSet;
use crate::config::Secret;

/// The map server's API as the controller uses it.
#[derive(Clone, Debug)]
pub(super) struct MapServerApi {
    peer: Peer,
    timeout: Duration,
}

impl MapServerApi {
    pub(super) fn new(url: &str, token: Option<Secret>, timeout: Duration) -> Result<Self, reqwest::Error> {
        Ok(Self { peer: Peer::new(url, token)?, timeout })
    }

    /// All sets in place.
    pub(super) async fn weights(&self) -> Result<Vec<WeightSet>, FetchError> {
        fetch::json(self.peer.request(Method::GET, "/v1/weights"), self.timeout).await
    }

    /// Puts one set in place of the one for the same EID-prefix and gateway.
    pub(super) async fn put(&self, weights: &WeightSet) -> Result<(), FetchError> {
        let request = self.peer.request(Method::PUT, "/v1/weights").json(weights);
        fetch::body(request, self.timeout).await.map(|_| ())
    }
}
