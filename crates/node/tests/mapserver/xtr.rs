//! An xTR machine on a real socket: everything a gateway says to a map server, without a data path.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lisp::auth::{Algorithm, Key};
use lisp::map_cache::MapCacheConfig;
use lisp::mapping::TableDelta;
use lisp::wire::{CONTROL_PORT, EidPrefix, InstanceId, SiteId, XtrId, XtrIdentity};
use lisp::xtr::{Command, LocalEid, MapServerPeer, Output, ProbingConfig, Xtr, XtrConfig};
use node::clock::Clock;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::server::LISTEN;

pub(crate) const SECRET: &str = "edge-secret-1";
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct PeerBuilder {
    config: XtrConfig,
}

/// A running xTR.
pub(crate) struct Peer {
    deltas: mpsc::UnboundedReceiver<TableDelta>,
    commands: mpsc::UnboundedSender<Command>,
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
}

fn key(id: u8) -> Key {
    Key::new(id, Algorithm::HmacSha256Hkdf, SECRET.as_bytes().to_vec().into()).unwrap()
}

fn eid(text: &str) -> EidPrefix {
    EidPrefix { instance_id: InstanceId(0), prefix: text.parse().unwrap() }
}

/// An xTR whose only locator is `rloc`, which is also where its xTR-ID comes from.
pub(crate) fn peer(rloc: &str) -> PeerBuilder {
    let rloc: IpAddr = rloc.parse().unwrap();
    let map_server: SocketAddr = LISTEN.parse().unwrap();
    let IpAddr::V4(v4) = rloc else { panic!("IPv4 in these tests") };
    let mut id = [0; 16];
    id[..4].copy_from_slice(&v4.octets());
    let config = XtrConfig {
        identity: XtrIdentity { xtr_id: XtrId(id), site_id: SiteId(1) },
        rlocs: vec![rloc],
        map_resolvers: vec![map_server.ip()],
        map_servers: vec![MapServerPeer { address: map_server.ip(), key: key(1), proxy_reply: true }],
        eid_space: vec![eid("10.100.0.0/16")],
        subscribe: Vec::new(),
        pubsub_key: Some(key(2)),
        local_eids: Vec::new(),
        probing: ProbingConfig { interval: None, ..ProbingConfig::default() },
        map_cache: MapCacheConfig::default(),
        max_pending: 16,
        unix_seconds: 1_790_000_000,
    };
    PeerBuilder { config }
}

impl PeerBuilder {
    pub(crate) fn registering(mut self, prefix: &str) -> Self {
        let local = LocalEid { eid: eid(prefix), priority: 1, weight: 100, ttl: 1, merge: true };
        self.config.local_eids.push(local);
        self
    }

    pub(crate) fn subscribing(mut self, prefix: &str) -> Self {
        self.config.subscribe.push(eid(prefix));
        self
    }

    pub(crate) async fn start(self) -> Peer {
        let clock = Clock::start();
        let address = SocketAddr::new(self.config.rlocs[0], CONTROL_PORT);
        let socket = UdpSocket::bind(address).await.unwrap();
        let xtr = Xtr::new(clock.now(), self.config, [7; 32], Vec::new());
        let (table, deltas) = mpsc::unbounded_channel();
        let (commands, receiver) = mpsc::unbounded_channel();
        let sent = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(run(xtr, socket, clock, table, receiver, Arc::clone(&sent)));
        Peer { deltas, commands, sent }
    }
}

async fn run(
    mut xtr: Xtr,
    socket: UdpSocket,
    clock: Clock,
    table: mpsc::UnboundedSender<TableDelta>,
    mut commands: mpsc::UnboundedReceiver<Command>,
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
) {
    let mut buffer = vec![0; 65_535];
    loop {
        while let Some(output) = xtr.poll_output() {
            match output {
                Output::Transmit(transmit) => {
                    sent.lock().unwrap().push(transmit.payload.clone());
                    // While the map server restarts nobody listens; the machine sends again.
                    let _ = socket.send_to(&transmit.payload, transmit.destination).await;
                }
                Output::Table(delta) => drop(table.send(delta)),
                Output::Persist(_) | Output::Event(_) | Output::Counter(_) => {}
            }
        }
        let due = xtr.poll_timeout().unwrap_or_else(|| clock.now() + PATIENCE);
        tokio::select! {
            received = socket.recv_from(&mut buffer) => {
                let (length, from) = received.unwrap();
                xtr.handle_datagram(clock.now(), from, &buffer[..length]).unwrap();
            }
            () = tokio::time::sleep_until(clock.deadline(due)) => xtr.handle_timeout(clock.now()),
            Some(command) = commands.recv() => xtr.handle_command(clock.now(), command),
        }
    }
}

impl Peer {
    /// Waits for a change of the table.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&TableDelta) -> bool) {
        let mut seen = Vec::new();
        let waiting = async {
            loop {
                let delta = self.deltas.recv().await.unwrap();
                if wanted(&delta) {
                    return;
                }
                seen.push(delta);
            }
        };
        assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "only {seen:?}");
    }

    pub(crate) async fn withdraw(&self) {
        self.commands.send(Command::Withdraw).unwrap();
    }

    /// The Map-Registers sent so far, by nonce.
    pub(crate) async fn sent_registers(&self) -> Vec<Vec<u8>> {
        let sent = self.sent.lock().unwrap();
        let registers = sent.iter().filter(|m| m[0] >> 4 == 3).map(|m| (m[4..12].to_vec(), m.clone()));
        registers.collect::<BTreeMap<_, _>>().into_values().collect()
    }
}
