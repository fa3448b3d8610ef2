//! Finds the share of a CPU at which the first edge saturates at the rate that was asked for.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::interrupt;
use crate::lab::Lab;
use crate::topology::ServiceKind;

/// Requests that wait at the edge while it is saturated: enough to keep it busy, few enough for its accept queue.
const WAITING: f64 = 32.0;
const WARM_UP: Duration = Duration::from_millis(600);
const MEASURE: Duration = Duration::from_millis(1600);
/// A share to begin with; the second try is already proportional to what was measured.
const FIRST_SHARE: f64 = 0.06;

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Calibrated {
    /// Share of one CPU for ratio 1; none where the service has a fixed service time.
    pub share: Option<f64>,
    /// Requests/s at saturation with that share.
    pub saturation: f64,
    /// Quota and period per edge, in microseconds.
    pub quotas_us: Vec<[u64; 2]>,
    /// Every try: share and requests/s.
    pub tries: Vec<[f64; 2]>,
}

/// Searches and limits every edge. The services run, and every client reaches the first edge.
pub fn calibrate(lab: &Lab, mut tell: impl FnMut(&str)) -> Result<Calibrated> {
    match lab.topology().service.kind {
        ServiceKind::Nginx => search(lab, &mut tell),
        ServiceKind::Model => {
            let saturation = measure(lab)?;
            Ok(Calibrated { share: None, saturation, quotas_us: Vec::new(), tries: Vec::new() })
        }
    }
}

fn search(lab: &Lab, tell: &mut impl FnMut(&str)) -> Result<Calibrated> {
    let calibration = lab.topology().calibration;
    let started = Instant::now();
    let mut search = Search::new(calibration.saturation);
    loop {
        interrupt::check()?;
        let share = search.next_share();
        lab.limit_edges(share)?;
        let rate = measure(lab)?;
        search.note(share, rate);
        tell(&format!("{:.2} % of a CPU: {rate:.0} requests/s", share * 100.0));
        let (share, rate) = search.best();
        if search.error() <= calibration.tolerance || started.elapsed() > calibration.limit {
            if search.error() > 4.0 * calibration.tolerance {
                bail!(
                    "edge 1 saturates at {rate:.0} requests/s, not {}: is the machine busy?",
                    calibration.saturation
                );
            }
            let quotas = lab.limit_edges(share)?;
            let quotas_us = quotas.iter().map(|quota| [quota.quota_us, quota.period_us]).collect();
            return Ok(Calibrated { share: Some(share), saturation: rate, quotas_us, tries: search.tries });
        }
    }
}

/// Regula falsi on the throughput, which grows with the share.
#[derive(Debug)]
struct Search {
    target: f64,
    /// Share and rate, as measured.
    tries: Vec<[f64; 2]>,
}

impl Search {
    fn new(target: f64) -> Self {
        Self { target, tries: Vec::new() }
    }

    /// Through the two tries nearest to the target on either side, else through the origin.
    fn next_share(&self) -> f64 {
        let below =
            self.tries.iter().filter(|[_, rate]| *rate < self.target).max_by(|a, b| a[1].total_cmp(&b[1]));
        let above =
            self.tries.iter().filter(|[_, rate]| *rate >= self.target).min_by(|a, b| a[1].total_cmp(&b[1]));
        let share = match (below, above) {
            (Some([low, low_rate]), Some([high, high_rate])) if high > low => {
                low + (high - low) * (self.target - low_rate) / (high_rate - low_rate)
            }
            (Some([share, rate]), _) | (None, Some([share, rate])) => share * self.target / rate.max(1.0),
            (None, None) => FIRST_SHARE,
        };
        share.clamp(0.002, 1.0)
    }

    fn note(&mut self, share: f64, rate: f64) {
        self.tries.push([share, rate]);
    }

    /// The try nearest to the target.
    fn best(&self) -> (f64, f64) {
        let distance = |rate: f64| (rate - self.target).abs();
        let best = self.tries.iter().min_by(|a, b| distance(a[1]).total_cmp(&distance(b[1])));
        best.map_or((FIRST_SHARE, 0.0), |[share, rate]| (*share, *rate))
    }

    /// Relative error of the best try.
    fn error(&self) -> f64 {
        (self.best().1 / self.target - 1.0).abs()
    }
}

/// Requests/s of the first edge with more clients than it can serve, over the path that the load will take: a request
/// costs the edge more when its packets come apart than when they wait together.
fn measure(lab: &Lab) -> Result<f64> {
    let topology = lab.topology();
    let target = SocketAddr::from((topology.service.address, topology.service.port));
    // One round trip for the connection, one for the request.
    let clients = 2.0 * topology.calibration.saturation * topology.edges[0].rtt.as_secs_f64() + WAITING;
    lab.network().client.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        tokio::task::LocalSet::new().block_on(&runtime, saturate(target, clients))
    })
}

async fn saturate(target: SocketAddr, clients: f64) -> Result<f64> {
    let from = Instant::now() + WARM_UP;
    let until = from + MEASURE;
    let mut started = Vec::new();
    while (started.len() as f64) < clients {
        started.push(tokio::task::spawn_local(client(target, from, until)));
    }
    let mut completed = 0;
    for client in started {
        completed += client.await??;
    }
    Ok(f64::from(completed) / MEASURE.as_secs_f64())
}

/// One request after another, each on a connection of its own; counts those that end in the window.
async fn client(target: SocketAddr, from: Instant, until: Instant) -> Result<u32> {
    let mut completed = 0;
    while Instant::now() < until {
        let answered = timeout(Duration::from_secs(5), request(target)).await;
        answered.context("edge 1 does not answer within 5 s")??;
        let now = Instant::now();
        completed += u32::from(now >= from && now < until);
    }
    Ok(completed)
}

async fn request(target: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(target).await?;
    let request = format!("GET / HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut response = Vec::with_capacity(8192);
    stream.read_to_end(&mut response).await?;
    if !response.starts_with(b"HTTP/1.1 200 ") {
        bail!("edge 1 answers {}", String::from_utf8_lossy(&response[..response.len().min(32)]));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tries until 3 %, on a server whose rate is `rate` of the share.
    fn tries(rate: impl Fn(f64) -> f64) -> usize {
        let mut search = Search::new(500.0);
        while search.tries.is_empty() || search.error() > 0.03 {
            let share = search.next_share();
            search.note(share, rate(share));
            assert!(search.tries.len() < 20, "does not converge: {:?}", search.tries);
        }
        search.tries.len()
    }

    #[test]
    fn a_proportional_server_takes_two_tries() {
        assert_eq!(tries(|share| share * 12_000.0), 2);
    }

    #[test]
    fn fixed_cost_and_saturation_of_something_else_converge_too() {
        assert!(tries(|share| (share - 0.02).max(0.0) * 9000.0) <= 8);
        assert!(tries(|share| 600.0 * (1.0 - (-share * 20.0).exp())) <= 8);
    }
}
