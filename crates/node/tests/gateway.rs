//! A map server and three gateways, each in its own network namespace, with real packets: resolution, publication,
//! weights, a dead map server, a restart, and what is left at the end. Needs root.
#![expect(clippy::unwrap_used, reason = "a test panics when its set-up fails")]

mod overlay;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use node::gateway::body::{AppliedBody, FlowBody, LoadBody, MappingBody, StatusBody};
use node::mapserver::api::{Publication, Registration};
use overlay::{Ending, Node, Overlay, until};
use serde_json::json;

const SERVICE: &str = "10.100.0.1/32";
const CLIENTS: &str = "10.200.0.0/24";
const EDGES: [&str; 2] = ["10.0.0.2", "10.0.0.3"];

struct System {
    overlay: Overlay,
    mapserver: Node,
    client: Node,
    edges: [Node; 2],
}

impl System {
    /// Everything runs, and the client gateway knows both edges, which subscribe to what they are told.
    fn start(test: &str, edges_subscribe: &[&str]) -> Self {
        let overlay = Overlay::new(test);
        let mapserver = overlay.mapserver();
        let edge = |namespace, rloc| overlay.edge_gateway(namespace, rloc, edges_subscribe);
        let edges = [edge("e", EDGES[0]), edge("f", EDGES[1])];
        until("both edges are registered", || {
            let registrations: Vec<Registration> = mapserver.get("/v1/registrations");
            registrations.iter().filter(|r| r.eid.0.to_string() == SERVICE).count() == 2
        });
        let client = overlay.client_gateway("keep");
        let system = Self { overlay, mapserver, client, edges };
        system.weights([50, 50]);
        system
    }

    /// Sets weights and waits until the client gateway has them; the time from publication to application.
    fn weights(&self, weights: [u8; 2]) -> Duration {
        let locators: Vec<_> = EDGES
            .iter()
            .zip(weights)
            .map(|(rloc, weight)| json!({"rloc": rloc, "priority": 1, "weight": weight}))
            .collect();
        self.mapserver.put("/v1/weights", &json!({"eid": SERVICE, "gateway": null, "locators": locators}));
        until("the weights are in the data path", || self.shares() == weights.map(|w| f64::from(w) / 100.0));
        let applied: Vec<AppliedBody> = self.client.get("/v1/applied");
        let applied = applied.iter().rfind(|a| a.eid == SERVICE).unwrap();
        let publications: Vec<Publication> = self.mapserver.get("/v1/publications");
        let published = publications.iter().find(|p| p.nonce == applied.nonce).unwrap();
        Duration::from_nanos(applied.applied_at_unix_ns.saturating_sub(published.published_at_unix_ns))
    }

    /// Shares of the edges in the client gateway's kernel maps.
    fn shares(&self) -> [f64; 2] {
        let mappings: Vec<MappingBody> = self.client.get("/v1/mappings");
        let Some(mapping) = mappings.iter().find(|m| m.eid == SERVICE) else { return [0.0; 2] };
        let share = |rloc: &str| {
            let locator = mapping.locators.iter().find(|l| l.rloc.to_string() == rloc);
            locator.map_or(0.0, |l| (l.share * 100.0).round() / 100.0)
        };
        EDGES.map(share)
    }

    /// A new connection, and the edge that took it.
    fn connect(&self) -> (TcpStream, u8) {
        let mut stream = self.overlay.connect();
        let mut name = [0];
        stream.read_exact(&mut name).unwrap();
        (stream, name[0])
    }

    /// Of a hundred new connections each edge takes some.
    fn connect_to_both(&self) {
        let mut edges: Vec<u8> = (0..100).map(|_| self.connect().1).collect();
        edges.sort_unstable();
        edges.dedup();
        assert_eq!(edges, *b"ef");
    }

    fn stop(self) {
        let Self { overlay, mapserver, client, edges } = self;
        client.end(Ending::Graceful);
        // The configuration said keep; the same gateway with "detach" takes everything down.
        overlay.client_gateway("detach").end(Ending::Graceful);
        edges.into_iter().for_each(|edge| edge.end(Ending::Graceful));
        let registrations: Vec<Registration> = mapserver.get("/v1/registrations");
        assert!(registrations.iter().all(|r| r.locators.is_empty()), "withdrawn: {registrations:?}");
        mapserver.end(Ending::Graceful);
        for namespace in ["i", "e", "f"] {
            overlay.assert_clean(namespace);
        }
    }
}

fn knows_the_clients(edge: &Node) -> bool {
    let mappings: Vec<MappingBody> = edge.get("/v1/mappings");
    mappings.iter().any(|m| m.eid == CLIENTS && !m.locators.is_empty())
}

fn still_works((stream, _): &mut (TcpStream, u8)) {
    stream.write_all(b"still there?").unwrap();
    let mut back = [0; 12];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"still there?");
}

#[test]
fn weights_move_new_connections_and_no_others() {
    let system = System::start("w", &[]);
    let mut before: Vec<_> = (0..40).map(|_| system.connect()).collect();
    let at = |name: u8, connections: &[(TcpStream, u8)]| connections.iter().filter(|c| c.1 == name).count();
    assert!((8..=32).contains(&at(b'e', &before)), "{} of 40 at the first edge", at(b'e', &before));

    let took = system.weights([0, 100]);
    let after: Vec<_> = (0..20).map(|_| system.connect()).collect();
    assert_eq!(at(b'f', &after), 20, "new connections follow the weights");
    before.iter_mut().for_each(still_works);
    assert!(took < Duration::from_secs(1), "publish to applied took {took:?}");
    println!("publish to applied: {took:?}");

    let flows: Vec<FlowBody> = system.client.get("/v1/flows?limit=1000");
    assert_eq!(flows.iter().filter(|f| f.destination.port() == overlay::PORT).count(), 60);
    until("all connections are counted in front of the split", || {
        let load: Vec<LoadBody> = system.client.get("/v1/load");
        load.iter().any(|l| l.eid == SERVICE && l.flows_total == 60)
    });
    drop((before, after));
    system.stop();
}

#[test]
fn a_dead_map_server_and_a_restart_change_nothing() {
    // Or an edge that no flow has reached yet could not ask anybody for the way back to the clients.
    let mut system = System::start("d", &[CLIENTS]);
    system.weights([75, 25]);
    until("the edges know the clients", || system.edges.iter().all(knows_the_clients));
    let mut connections: Vec<_> = (0..8).map(|_| system.connect()).collect();
    let mapserver = std::mem::replace(&mut system.mapserver, Node::gone());
    mapserver.end(Ending::Crash);
    connections.iter_mut().for_each(still_works);

    let client = std::mem::replace(&mut system.client, Node::gone());
    client.end(Ending::Crash);
    connections.iter_mut().for_each(still_works);
    system.client = system.overlay.client_gateway("keep");
    assert_eq!(system.shares(), [0.75, 0.25], "taken over from the kernel");
    let status: StatusBody = system.client.get("/v1/status");
    assert_eq!(status.unconfirmed, [format!("[0]{SERVICE}")]);
    connections.iter_mut().for_each(still_works);
    system.connect_to_both();

    system.mapserver = system.overlay.mapserver();
    until("the mapping is confirmed", || {
        system.client.get::<StatusBody>("/v1/status").unconfirmed.is_empty()
    });
    assert_eq!(system.shares(), [0.75, 0.25]);
    connections.iter_mut().for_each(still_works);
    drop(connections);
    system.stop();
}
