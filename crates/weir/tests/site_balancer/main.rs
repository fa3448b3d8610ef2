//! The site balancer as a user runs it: a client, a router, a switch with VLANs and three servers that have the VIP on
//! loopback, with real TCP. Servers answer past the balancer; flows stay through a drain, restarts of the agent and a
//! server's failure; Packet Too Big reaches the server that has to know. Needs root.
#![expect(clippy::unwrap_used, reason = "a test panics at the first surprise")]

mod agent;
#[expect(dead_code, reason = "shared with the test of the gateways")]
#[path = "../end_to_end/api.rs"]
mod api;
mod network;
mod switch;
mod traffic;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use agent::Agent;
use lab::process::Process;
use network::{Network, SERVERS, VIP};
use traffic::{Connection, Load, ask_anew};

/// New connections that a share is taken of.
const SAMPLE: usize = 240;
/// A share of n flows may differ from its weight by so many standard deviations.
const DEVIATIONS: f64 = 4.5;
/// More than the router's narrow link carries in a packet.
const LARGE: usize = 200_000;

#[test]
fn servers_answer_directly_and_flows_stay() {
    let network = Network::create();
    for (name, ..) in SERVERS {
        traffic::serve(&network.host(name), name);
    }
    let mut agent = Agent::start(&network, &[("s1", 100), ("s2", 50), ("s3", 50)]);
    agent.wait_usable();
    vips_answer_echo_requests(&network);
    shares_follow(&network, &[("s1", 0.5), ("s2", 0.25), ("s3", 0.25)]);
    the_explanation_agrees(&network, &agent);
    packet_too_big_reaches_the_server(&network, &agent);

    let load = Load::start(&network.host("client"));
    let mut held = Held::open(&network, 24);
    a_drained_server_keeps_its_flows(&network, &agent, &mut held);
    for end in [Process::stop, Process::kill] {
        a_restart_is_not_noticed(&network, &mut agent, &mut held, end);
    }
    let answers = load.stop();
    let failed: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!(failed.is_empty(), "{} of {} connections failed: {failed:?}", failed.len(), answers.len());
    drop(held);

    a_failed_server_is_taken_out_and_comes_back(&network, &agent);
    let reasons = agent.reasons();
    eprintln!("{} connections under change, none failed; frames by reason: {reasons:?}", answers.len());
    assert!(
        reasons.iter().all(|(reason, count)| !reason.starts_with("drop") || *count == 0.0),
        "{reasons:?}"
    );
}

/// Connections that live through changes, and who answers them.
struct Held(Vec<(String, Connection)>);

impl Held {
    fn open(network: &Network, count: usize) -> Self {
        let client = network.host("client");
        let open = |index| {
            let mut connection = Connection::open(&client, index).unwrap();
            (connection.ask(10).unwrap(), connection)
        };
        Self((0..count).map(open).collect())
    }

    /// Every connection still has the server that it began with.
    fn check(&mut self) {
        for (server, connection) in &mut self.0 {
            let answered = connection.ask(2000).unwrap_or_else(|error| error.to_string());
            assert_eq!(answered, *server, "{}", connection.local);
        }
    }
}

fn vips_answer_echo_requests(network: &Network) {
    let mut command = Command::new("ping");
    command.args(["-c", "3", "-i", "0.2", "-W", "2", &VIP.to_string()]);
    let output = network.host("client").run(|| Ok(command.output()?)).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn shares_follow(network: &Network, expected: &[(&str, f64)]) {
    let answers = ask_anew(&network.host("client"), SAMPLE);
    let all = SAMPLE as f64;
    for (server, share) in expected {
        let got = answers.get(*server).copied().unwrap_or(0) as f64;
        let tolerance = DEVIATIONS * (all * share * (1.0 - share)).sqrt();
        assert!((got - all * share).abs() <= tolerance, "{server}: {got} of {all}: {answers:?}");
    }
    assert_eq!(answers.values().sum::<usize>(), SAMPLE);
}

/// `weir explain flow` names the server that answers.
fn the_explanation_agrees(network: &Network, agent: &Agent<'_>) {
    for index in 0..8 {
        let mut connection = Connection::open(&network.host("client"), index).unwrap();
        let server = connection.ask(10).unwrap();
        let explanation = agent.explain(&connection.local.to_string());
        assert_eq!(explanation["backend"], server.as_str(), "{explanation:#}");
    }
}

/// Answers larger than the narrow link's packets arrive, from every server: the router's errors go to the VIP, and from
/// there to the server whose packet was too large.
fn packet_too_big_reaches_the_server(network: &Network, agent: &Agent<'_>) {
    let mut served = BTreeMap::new();
    for index in 0..200 {
        let mut connection = Connection::open(&network.host("client"), index).unwrap();
        *served.entry(connection.ask(LARGE).unwrap()).or_insert(0) += 1;
        if served.len() == SERVERS.len() {
            break;
        }
    }
    assert_eq!(served.len(), SERVERS.len(), "{served:?}");
    agent.wait_counted("icmp_relayed", SERVERS.len());
}

fn a_drained_server_keeps_its_flows(network: &Network, agent: &Agent<'_>, held: &mut Held) {
    let of_s1 = held.0.iter().filter(|(server, _)| server == "s1").count();
    assert!(of_s1 > 0, "some connections are s1's");
    agent.set_weight("s1", 0);
    agent.wait_for("s1", "drained", |status| status["slots"] == 0);
    shares_follow(network, &[("s1", 0.0), ("s2", 0.5), ("s3", 0.5)]);
    held.check();
    agent.wait_counted("forwarded_previous", of_s1);
    agent.set_weight("s1", 100);
    agent.wait_usable();
    held.check();
}

fn a_restart_is_not_noticed(network: &Network, agent: &mut Agent<'_>, held: &mut Held, end: fn(Process)) {
    let before = slots(agent);
    agent.end(end);
    shares_follow(network, &[("s1", 0.5), ("s2", 0.25), ("s3", 0.25)]);
    held.check();
    agent.run();
    held.check();
    agent.wait_usable();
    assert_eq!(slots(agent), before, "a restart moves no slot");
    held.check();
}

fn slots(agent: &Agent<'_>) -> Vec<serde_json::Value> {
    let status = agent.api.get("/v1/status").unwrap();
    let backends = status["vips"][0]["backends"].as_array().unwrap().clone();
    backends.iter().map(|backend| backend["slots"].clone()).collect()
}

/// The connections of the others do not move, and new ones are answered once it is noticed.
fn a_failed_server_is_taken_out_and_comes_back(network: &Network, agent: &Agent<'_>) {
    let mut held = Held::open(network, 24);
    held.0.retain(|(server, _)| server != "s3");
    let cut = Instant::now();
    network.set_server_link("s3", "down");
    agent.wait_for("s3", "taken out", |status| status["slots"] == 0 && status["usable"] == false);
    let took = cut.elapsed();
    // Three checks of 500 ms, the last one's time-out, and the time a busy machine needs.
    assert!(took < Duration::from_secs(6), "{took:?}");
    eprintln!("s3 was taken out {took:?} after its link was cut");
    held.check();
    shares_follow(network, &[("s1", 2.0 / 3.0), ("s2", 1.0 / 3.0), ("s3", 0.0)]);
    network.set_server_link("s3", "up");
    agent.wait_usable();
    held.check();
    shares_follow(network, &[("s1", 0.5), ("s2", 0.25), ("s3", 0.25)]);
}
