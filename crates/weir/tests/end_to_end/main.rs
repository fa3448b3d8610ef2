//! All parts together, as a user runs them: a map server, four gateways and three nginx in namespaces, HTTP through
//! weight changes, a power cut of the map server, a restart of the gateway, a cut link, and a stranger's attacks.
//! No established flow moves, no request fails, and an independent decoder accepts every frame. Needs root.
#![expect(clippy::unwrap_used, reason = "a test panics at the first surprise")]

mod api;
mod capture;
mod network;
mod overlay;
mod roles;
mod stranger;
mod traffic;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use api::{sum, wait_for};
use capture::Capture;
use lab::process::Process;
use network::{CLIENT_RLOC, EDGES, Network, edge_rloc};
use overlay::{Overlay, Weight};
use roles::{PROBE_INTERVAL_MS, Roles};
use traffic::{Answer, Clients, Held, Load, Shares, count, unix_ns};

/// New connections that a share is taken of.
const SAMPLE: usize = 200;
/// A share of n flows may differ from its weight by so many standard deviations.
const DEVIATIONS: f64 = 4.5;
/// Unanswered probes in a row that take a locator out (the default of `lisp::xtr::ProbingConfig`).
const PROBES: u64 = 3;
const SECOND_NS: u64 = 1_000_000_000;
/// Weights that use all edges, and the same the other way round; both sum to 100.
const FALLING: [Weight; 3] = [(1, 50), (1, 30), (1, 20)];
const RISING: [Weight; 3] = [(1, 20), (1, 30), (1, 50)];

#[test]
fn no_flow_moves_and_no_request_fails() {
    let network = Network::create();
    let roles = Roles::new(&network);
    let capture = Capture::start(&roles, network.directory());
    let mut overlay = Overlay::start(&roles);
    let clients = Clients::start(&network.host("clients"));

    weights_move_new_flows_only(&overlay, &clients);
    the_command_line_agrees(&overlay, &clients, &FALLING);
    overlay = a_power_cut_of_the_map_server_is_not_noticed(&roles, overlay, &clients);
    for end in [Process::stop, Process::kill] {
        overlay = a_restart_of_the_gateway_is_not_noticed(&roles, overlay, &clients, end);
    }
    a_stranger_is_counted_and_changes_nothing(&network, &overlay, &clients, &capture);

    let (answers, held) = clients.stop();
    assert_no_failure(&answers);
    counters_agree(&overlay, &answers, &held);
    let (encapsulated, quiet_ns) = (overlay.packets_encapsulated(unix_ns()), unix_ns());
    print_summary(&overlay, &answers, &held);
    a_cut_link_is_probed_away(&network, &overlay);

    overlay.stop();
    let frames = capture.stop();
    eprintln!("{} frames; control messages: {:?}", frames.len(), frames.control_types());
    eprintln!("remarks: {:#?}", frames.remarks());
    frames.assert_flawless();
    let seen = frames.data_from(&CLIENT_RLOC.to_string(), quiet_ns);
    assert_eq!(seen, encapsulated, "the wire and the counters agree");
}

/// 1/3 each as registered, 100/0, 50/50, priorities, and back.
fn weights_move_new_flows_only(overlay: &Overlay, clients: &Clients) {
    let Clients { keepers, load } = clients;
    let registered = [(1, 100), (1, 100), (1, 100)];
    overlay.wait_for_shares(&[1.0 / 3.0; 3]);
    shares_follow(load, unix_ns(), &[1.0 / 3.0; 3]);
    // No later weights leave edge 3 anything. That none of these goes there happens five times in a million runs.
    keepers.open(30);
    let steps: [(&[Weight], [f64; 3]); 5] = [
        (&[(1, 100), (1, 0)], [1.0, 0.0, 0.0]),
        (&[(1, 50), (1, 50)], [0.5, 0.5, 0.0]),
        (&[(2, 100), (1, 50), (3, 100)], [0.0, 1.0, 0.0]),
        (&[(1, 50), (1, 50)], [0.5, 0.5, 0.0]),
        (&[(1, 100), (1, 0)], [1.0, 0.0, 0.0]),
    ];
    let mut before = [1.0 / 3.0; 3];
    for (weights, shares) in steps {
        let asked_ns = unix_ns();
        let applied_ns = overlay.set_weights(weights);
        overlay.wait_for_shares(&shares);
        only_to(load, asked_ns, applied_ns, &[before, shares]);
        shares_follow(load, applied_ns, &shares);
        keepers.open(8);
        keepers.check();
        before = shares;
    }
    overlay.clear_weights();
    overlay.wait_for_shares(&[1.0 / 3.0; 3]);
    assert_eq!(overlay.weights_at_gateway(), registered);
    overlay.set_weights(&FALLING);
    overlay.wait_for_shares(&shares_of(&FALLING));
    keepers.check();
}

/// Shares of weights that sum to 100.
fn shares_of(weights: &[Weight; 3]) -> [f64; 3] {
    weights.map(|(_, weight)| f64::from(weight) / 100.0)
}

/// The share of new connections since a moment is that of the weights.
fn shares_follow(load: &Load, since_ns: u64, expected: &[f64; 3]) {
    load.wait(since_ns, SAMPLE);
    let shares = load.shares(since_ns, u64::MAX);
    let all = shares.values().sum::<u64>() as f64;
    for (edge, share) in EDGES.iter().zip(expected) {
        let got = shares.get(&format!("edge{edge}")).copied().unwrap_or(0) as f64;
        let tolerance = DEVIATIONS * (all * share * (1.0 - share)).sqrt();
        assert!(
            (got - all * share).abs() <= tolerance,
            "edge{edge}: {got} of {all}, not {share}: {shares:?}"
        );
    }
}

/// While weights change, connections go where the old or the new weights send them.
fn only_to(load: &Load, from_ns: u64, to_ns: u64, weights: &[[f64; 3]]) {
    let allowed = |edge: u8| weights.iter().any(|shares| shares[usize::from(edge) - 1] > 0.0);
    let shares = load.shares(from_ns, to_ns);
    let allowed: BTreeSet<String> =
        EDGES.iter().filter(|edge| allowed(**edge)).map(|edge| format!("edge{edge}")).collect();
    assert!(shares.keys().all(|edge| allowed.contains(edge)), "{shares:?}, not in {allowed:?}");
}

/// `weir get` tells of every flow where it goes, of the mapping, the registrations and the weights.
fn the_command_line_agrees(overlay: &Overlay, clients: &Clients, weights: &[Weight; 3]) {
    let flows = overlay.client.weir_get(&["flows", "--limit", "10000"]);
    let held = clients.keepers.held();
    for connection in &held {
        let source = connection.local.unwrap().to_string();
        let flow = flows.as_array().unwrap().iter().find(|flow| flow["source"] == source.as_str());
        let rloc = flow.unwrap_or_else(|| panic!("{source} is not in {flows}"))["rloc"].as_str().unwrap();
        assert_eq!(overlay::edge_of(rloc), connection.edges[0], "{source}");
    }
    let edges: BTreeSet<&str> = held.iter().map(|connection| connection.edges[0].as_str()).collect();
    assert_eq!(edges.len(), 3, "connections live at all edges");
    overlay.assert_views_agree(weights);
}

fn a_power_cut_of_the_map_server_is_not_noticed(
    roles: &Roles<'_>,
    overlay: Overlay,
    clients: &Clients,
) -> Overlay {
    let Clients { keepers, load } = clients;
    let watch = overlay.watch_weights();
    let overlay = overlay.kill_mapserver();
    shares_follow(load, unix_ns(), &shares_of(&FALLING));
    keepers.check();
    let overlay = overlay.restart_mapserver(roles);
    overlay.wait_registered();
    the_command_line_agrees(&overlay, clients, &FALLING);
    shares_follow(load, unix_ns(), &shares_of(&FALLING));
    // Its memory of subscribers survived too: a change arrives at once.
    overlay.set_weights(&RISING);
    overlay.wait_for_shares(&shares_of(&RISING));
    let seen = watch.stop();
    assert!(seen.iter().all(|weights| *weights == FALLING || *weights == RISING), "{seen:?}");
    overlay.set_weights(&FALLING);
    keepers.check();
    overlay
}

fn a_restart_of_the_gateway_is_not_noticed(
    roles: &Roles<'_>,
    overlay: Overlay,
    clients: &Clients,
    end: fn(Process),
) -> Overlay {
    let Clients { keepers, load } = clients;
    let overlay = overlay.end_client_gateway(end);
    shares_follow(load, unix_ns(), &shares_of(&FALLING));
    keepers.check();
    let overlay = overlay.restart_client_gateway(roles);
    overlay.wait_subscribed();
    the_command_line_agrees(&overlay, clients, &FALLING);
    overlay.set_weights(&RISING);
    let applied_ns = overlay.set_weights(&FALLING);
    shares_follow(load, applied_ns, &shares_of(&FALLING));
    keepers.check();
    overlay
}

fn a_stranger_is_counted_and_changes_nothing(
    network: &Network,
    overlay: &Overlay,
    clients: &Clients,
    capture: &Capture,
) {
    let (since_ns, before) = (unix_ns(), overlay.state());
    stranger::attack(network, overlay, capture);
    let after = overlay.state();
    assert_eq!(before, after);
    shares_follow(&clients.load, since_ns, &shares_of(&FALLING));
    clients.keepers.check();
}

/// Under load: what was under way to the edge is lost with it, and nothing else.
fn a_cut_link_is_probed_away(network: &Network, overlay: &Overlay) {
    let clients = Clients::start(&network.host("clients"));
    overlay.set_weights(&[(1, 0), (1, 100), (255, 100)]);
    overlay.wait_for_shares(&[0.0, 1.0, 0.0]);
    clients.keepers.open(8);
    let applied_ns = overlay.set_weights(&[(1, 50), (1, 50), (255, 100)]);
    overlay.wait_for_shares(&[0.5, 0.5, 0.0]);
    shares_follow(&clients.load, applied_ns, &[0.5, 0.5, 0.0]);

    let (cut_ns, cut) = (unix_ns(), Instant::now());
    network.set_edge_link(1, "down");
    let down_ns = unix_ns();
    overlay.wait_for_shares(&[0.0, 1.0, 0.0]);
    let took = cut.elapsed();
    // One interval until the next probe, then as many as it takes, and the time a busy machine needs.
    let limit = Duration::from_millis(PROBE_INTERVAL_MS * (PROBES + 2)) + Duration::from_secs(2);
    assert!(took < limit, "{took:?}");
    shares_follow(&clients.load, unix_ns(), &[0.0, 1.0, 0.0]);
    clients.keepers.check();

    network.set_edge_link(1, "up");
    overlay.wait_for_shares(&[0.5, 0.5, 0.0]);
    shares_follow(&clients.load, unix_ns(), &[0.5, 0.5, 0.0]);
    let (answers, _) = clients.stop();
    let (failed, good): (Vec<Answer>, Vec<Answer>) = answers.into_iter().partition(|a| a.outcome.is_error());
    eprintln!(
        "edge1 was taken out {took:?} after its link was cut; {} requests were lost with it",
        failed.len()
    );
    let slowest = good.iter().map(|answer| answer.latency).max().unwrap_or_default();
    eprintln!(
        "{} others, slowest {slowest:?}: a connection that had no answer yet moves with its next SYN",
        good.len()
    );
    let under_way = |answer: &&Answer| (cut_ns - SECOND_NS..down_ns).contains(&answer.opened_ns);
    assert_eq!(failed.iter().filter(under_way).count(), failed.len(), "{failed:#?}");
}

fn assert_no_failure(answers: &[Answer]) {
    let failed: Vec<&Answer> = answers.iter().filter(|answer| answer.outcome.is_error()).collect();
    assert!(
        failed.is_empty(),
        "{} of {} failed: {:#?}",
        failed.len(),
        answers.len(),
        &failed[..failed.len().min(10)]
    );
}

/// Every connection was counted once, at the edge that answered it, and every packet that went in came out.
fn counters_agree(overlay: &Overlay, answers: &[Answer], held: &[Held]) {
    let edges = answers.iter().map(|answer| answer.edge.as_str());
    let connections: Shares = count(edges.chain(held.iter().map(|held| held.edges[0].as_str())));
    wait_for("the counters of the gateways agree with the clients and with each other", || {
        let client = overlay.client.metrics();
        let agrees = |edge: &u8| {
            let locator = format!("locator=\"{}\"", edge_rloc(*edge));
            let flows = sum(&client, "weir_gateway_flows_total", &locator);
            let sent = sum(&client, "weir_gateway_packets_total", &locator);
            let received = sum(
                &overlay.edges[usize::from(*edge) - 1].metrics(),
                "weir_gateway_decapsulated_packets_total",
                "",
            );
            let expected = connections.get(&format!("edge{edge}")).copied().unwrap_or(0) as f64;
            let agrees = flows == expected && sent == received;
            agrees.then(|| eprintln!("edge{edge}: {flows} flows, {sent} packets")).is_some()
        };
        EDGES.iter().all(agrees).then_some(())
    });
    let dropped = |gateway: &api::Api| {
        let metrics = gateway.metrics();
        let held = sum(&metrics, "weir_gateway_held_dropped_total", "");
        held + sum(&metrics, "weir_gateway_datapath_packets_total", "reason=\"drop")
    };
    assert_eq!(overlay.edges.iter().map(dropped).sum::<f64>(), 0.0);
    assert_eq!(dropped(&overlay.client), stranger::GARBAGE as f64, "the stranger's and no other");
}

fn print_summary(overlay: &Overlay, answers: &[Answer], held: &[Held]) {
    let slowest = answers.iter().map(|answer| answer.latency).max().unwrap_or_default();
    let requests: u64 = held.iter().map(|held| held.requests).sum();
    let slowest_held = held.iter().map(|held| held.slowest).max().unwrap_or_default();
    eprintln!("{} new connections, slowest {slowest:?}", answers.len());
    eprintln!("{} connections that lived on, {requests} requests, slowest {slowest_held:?}", held.len());
    eprintln!("publish to applied, ms: {:?}", overlay.publish_to_applied_ms());
}
