//! TCP throughput through both gateways with default offloads, beside plain routing on the same path.
//!
//! Both take turns of a second: what slows the machine down for a while is then in both, and counts in neither.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::overlay::{Hook, Overlay};
use super::packet_rate::ROUTING;
use super::path::BenchPath;
use super::row::Row;
use crate::interrupt;
use crate::netns::Netns;

/// Seconds of one measurement.
const TURN: u32 = 1;

/// One row, from as many turns by each way.
pub(super) fn row(path: &BenchPath, turns: usize) -> Result<Row> {
    let _server = Server::start(&path.server)?;
    let mut routing = Vec::new();
    let mut overlay = Vec::new();
    for turn in 0..turns {
        interrupt::check()?;
        // The order changes, so that neither always comes first after a pause.
        for encapsulated in [turn % 2 == 1, turn % 2 == 0] {
            if encapsulated {
                let attached = Overlay::attach(path, Hook::Tc)?;
                let rate = throughput(&path.client);
                overlay.push(rate.with_context(|| format!("TC: {}", attached.reasons()))?);
            } else {
                routing.push(throughput(&path.client).context("plain routing")?);
            }
        }
    }
    let name = "TCP through two xTRs, one stream, TC, default offloads";
    Ok(Row::beside(name, "Gbit/s", overlay, ROUTING, routing))
}

/// iperf3's server, ended with this value.
struct Server(Child);

impl Server {
    fn start(netns: &Netns) -> Result<Self> {
        let server = netns.run(|| {
            let mut command = Command::new("iperf3");
            command
                .args(["-s", "-B", "10.100.0.1"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            Ok(Self(command.spawn().context("iperf3 cannot be started: is it installed?")?))
        })?;
        // Port 5201 shows in the namespace's table once it listens.
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            let listening = netns.run(|| {
                let table = std::fs::read_to_string("/proc/thread-self/net/tcp")?;
                Ok(table.contains(":1451 00000000:0000 0A"))
            })?;
            if listening {
                return Ok(server);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("iperf3 does not listen")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Received Gbit/s of one stream from the client to the server.
fn throughput(client: &Netns) -> Result<f64> {
    let mut iperf = client.run(|| {
        let mut command = Command::new("iperf3");
        command.args(["-c", "10.100.0.1", "-J", "--connect-timeout", "3000", "-t", &TURN.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.spawn().context("iperf3 cannot be started: is it installed?")
    })?;
    // A path that breaks under it leaves iperf3 waiting for ever. Its report fits the pipe.
    let limit = Duration::from_secs(u64::from(TURN) + 15);
    let ended = interrupt::wait(limit, || Ok(iperf.try_wait()?.is_some()));
    if !matches!(ended, Ok(true)) {
        let _ = iperf.kill();
    }
    let output = iperf.wait_with_output()?;
    ensure!(ended?, "iperf3 did not end in {} s", limit.as_secs());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).context("iperf3's report")?;
    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
    rate.map(|rate| rate / 1e9).with_context(|| format!("iperf3: {}", report["error"]))
}
