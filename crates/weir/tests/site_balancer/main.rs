//! The site balancer as a user runs it: a client, a router, a switch and three servers that have the VIP on loopback,
//! with real TCP. Servers answer past the balancer; flows stay through a drain, restarts of the agent and a server's
//! failure; Packet Too Big reaches the server that has to know. All of it behind one tag, the other kind of tag, two
//! tags, and in tunnels; for IPv4 and IPv6. Needs root.
#![expect(clippy::unwrap_used, reason = "a test panics at the first surprise")]

mod agent;
#[expect(dead_code, reason = "shared with the test of the gateways")]
#[path = "../end_to_end/api.rs"]
mod api;
mod network;
mod site;
mod switch;
mod traffic;
mod vtep;
mod wire;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use agent::Agent;
use lab::process::Process;
use network::Network;
use site::{Family, Server, Site};
use traffic::{Client, Connection, Load, ask_anew};
use wire::Capture;

/// New connections that a share is taken of.
const SAMPLE: usize = 240;
/// A share of n flows may differ from its weight by so many standard deviations.
const DEVIATIONS: f64 = 4.5;
/// More than the router's narrow link carries in a packet.
const LARGE: usize = 200_000;
/// Several jumbo frames.
const LONG: usize = 60_000;

const DOT1Q: Site = Site {
    name: "dot1q",
    family: Family::V4,
    underlay: Family::V4,
    front: "802.1q:100",
    servers: &servers("802.1q:200", "802.1q:300"),
    mtu: 1500,
};

/// Two servers in one segment, one of them behind the router of the underlay if there is one, and a third in another.
const fn servers(first: &'static str, second: &'static str) -> [Server; 3] {
    [
        Server { name: "s1", segment: first, host: 11, is_far: false },
        Server { name: "s2", segment: first, host: 12, is_far: true },
        Server { name: "s3", segment: second, host: 13, is_far: false },
    ]
}

#[test]
fn servers_answer_directly_and_flows_stay() {
    let network = Network::create(DOT1Q);
    serve(&network);
    let mut agent = Agent::start(&network, &[("s1", 100), ("s2", 50), ("s3", 50)]);
    agent.wait_usable();
    vips_answer_echo_requests(&network);
    shares_follow(&network, &[("s1", 0.5), ("s2", 0.25), ("s3", 0.25)]);
    the_explanation_agrees(&network, &agent);
    packet_too_big_reaches_the_server(&network, &agent);

    let load = Load::start(&Client::of(&network));
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
    nothing_was_dropped(&agent);
    eprintln!("{} connections under change, none failed", answers.len());
}

#[test]
fn ipv6_in_vlans() {
    balances(Site { name: "dot1q6", family: Family::V6, ..DOT1Q });
}

#[test]
fn service_vlans() {
    let servers = &const { servers("802.1ad:200", "802.1ad:300") };
    balances(Site { name: "dot1ad", front: "802.1ad:100", servers, ..DOT1Q });
}

#[test]
fn ipv6_behind_two_tags() {
    let servers = &const { servers("802.1ad:100.20", "802.1ad:200.10") };
    balances(Site { name: "two-tags", family: Family::V6, front: "802.1ad:100.10", servers, ..DOT1Q });
}

#[test]
fn vxlan() {
    let servers = &const { servers("vxlan:200", "vxlan:300") };
    balances(Site { name: "vxlan", front: "vxlan:100", servers, ..DOT1Q });
}

#[test]
fn ipv6_in_vxlan_over_ipv6() {
    let servers = &const { servers("vxlan:200", "vxlan:300") };
    let (family, underlay) = (Family::V6, Family::V6);
    balances(Site { name: "vxlan6", family, underlay, front: "vxlan:100", servers, ..DOT1Q });
}

#[test]
fn geneve_over_ipv6() {
    let servers = &const { servers("geneve:200", "geneve:300") };
    balances(Site { name: "geneve6", underlay: Family::V6, front: "geneve:100", servers, ..DOT1Q });
}

#[test]
fn one_vni_for_all() {
    let servers = &const { servers("vxlan:100", "vxlan:100") };
    balances(Site { name: "one-vni", front: "vxlan:100", servers, ..DOT1Q });
}

#[test]
fn ipv6_in_geneve() {
    let servers = &const { servers("geneve:200", "geneve:300") };
    balances(Site { name: "geneve", family: Family::V6, front: "geneve:100", servers, ..DOT1Q });
}

/// Drivers do not give frames longer than a page to a program that takes them in one piece; the stack does.
#[test]
fn jumbo_frames_in_the_stack() {
    let network = Network::create(Site { name: "jumbo", mtu: 9000, ..DOT1Q });
    serve(&network);
    let capture = Capture::start(&network);
    let agent = Agent::start(&network, &[]);
    agent.wait_usable();
    for index in 0..16 {
        let mut connection = Connection::open(&Client::of(&network), index).unwrap();
        connection.ask_at_length(LARGE, LONG).unwrap();
    }
    nothing_was_dropped(&agent);
    let seen = capture.stop();
    seen.assert_right();
    assert!(seen.longest() > 8000, "{}", seen.longest());
}

/// Everything that a kind of segment has a part in.
fn balances(site: Site) {
    let network = Network::create(site);
    serve(&network);
    let capture = Capture::start(&network);
    let mut agent = Agent::start(&network, &[("s1", 100), ("s2", 50), ("s3", 50)]);
    agent.wait_usable();
    if !site.has_tunnels() {
        vips_answer_echo_requests(&network);
    }
    shares_follow(&network, &[("s1", 0.5), ("s2", 0.25), ("s3", 0.25)]);
    the_explanation_agrees(&network, &agent);
    packet_too_big_reaches_the_server(&network, &agent);
    let mut held = Held::open(&network, 8);
    a_restart_is_not_noticed(&network, &mut agent, &mut held, Process::kill);
    drop(held);
    a_failed_server_is_taken_out_and_comes_back(&network, &agent);
    nothing_was_dropped(&agent);
    capture.stop().assert_right();
}

fn serve(network: &Network) {
    let site = network.site;
    for server in site.servers {
        let netns = network.host(server.name);
        traffic::serve(&netns, site.vip(), server.name);
        if site.has_tunnels() {
            traffic::serve(&netns, site.server_vtep(server), server.name);
        }
    }
}

fn nothing_was_dropped(agent: &Agent<'_>) {
    let reasons = agent.reasons();
    eprintln!("frames by reason: {reasons:?}");
    let dropped = |(reason, count): (&String, &f64)| reason.starts_with("drop") && *count != 0.0;
    assert!(!reasons.iter().any(dropped), "{reasons:?}");
}

/// Connections that live through changes, and who answers them.
struct Held(Vec<(String, Connection)>);

impl Held {
    fn open(network: &Network, count: usize) -> Self {
        let client = Client::of(network);
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
    command.args(["-c", "3", "-i", "0.2", "-W", "2", &network.site.vip().to_string()]);
    let output = network.host("client").run(|| Ok(command.output()?)).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn shares_follow(network: &Network, expected: &[(&str, f64)]) {
    let answers = ask_anew(&Client::of(network), SAMPLE);
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
        let mut connection = Connection::open(&Client::of(network), index).unwrap();
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
        let mut connection = Connection::open(&Client::of(network), index).unwrap();
        *served.entry(connection.ask(LARGE).unwrap()).or_insert(0) += 1;
        if served.len() == network.site.servers.len() {
            break;
        }
    }
    assert_eq!(served.len(), network.site.servers.len(), "{served:?}");
    agent.wait_counted("icmp_relayed", network.site.servers.len());
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
