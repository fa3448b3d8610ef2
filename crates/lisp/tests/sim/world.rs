//! A virtual network: machines, one virtual clock, and a link that loses, duplicates and reorders.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use codec::Instant;
use lisp::machine::{Counter, Persist, Transmit};
use lisp::map_server::{self, MapServer, MapServerConfig};
use lisp::mapping::{Locator, TableDelta};
use lisp::wire::{Action, CONTROL_PORT, EidPrefix};
use lisp::xtr::{self, Xtr, XtrConfig};

pub(crate) struct Link {
    /// Shares in per mille.
    pub(crate) loss: u64,
    pub(crate) duplication: u64,
    /// Every datagram takes `delay` and up to `jitter` more: with jitter, datagrams overtake each other.
    pub(crate) delay: Duration,
    pub(crate) jitter: Duration,
}

pub(crate) const CLEAN: Link =
    Link { loss: 0, duplication: 0, delay: Duration::from_millis(10), jitter: Duration::ZERO };
pub(crate) const BAD: Link =
    Link { loss: 300, duplication: 200, delay: Duration::from_millis(10), jitter: Duration::from_millis(80) };

#[derive(Clone, Debug)]
pub(crate) struct Datagram {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) type Table = BTreeMap<EidPrefix, (Vec<Locator>, Action)>;

#[derive(Default)]
pub(crate) struct Gateway {
    pub(crate) table: Table,
    pub(crate) deltas: Vec<(Instant, TableDelta)>,
    pub(crate) events: Vec<(Instant, xtr::Event)>,
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) link: Link,
    pub(crate) servers: BTreeMap<IpAddr, MapServer>,
    pub(crate) server_events: Vec<(Instant, map_server::Event)>,
    pub(crate) xtrs: BTreeMap<IpAddr, Xtr>,
    pub(crate) gateways: BTreeMap<IpAddr, Gateway>,
    pub(crate) counters: BTreeMap<(IpAddr, Counter), u64>,
    pub(crate) disks: BTreeMap<IpAddr, BTreeMap<Vec<u8>, Vec<u8>>>,
    pub(crate) unreachable: Vec<IpAddr>,
    /// Everything that was ever sent.
    pub(crate) tap: Vec<(Instant, Datagram)>,
    /// Datagrams that match are lost.
    pub(crate) filter: fn(&Datagram) -> bool,
    queue: BTreeMap<(Instant, u64), Datagram>,
    sequence: u64,
    random: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: Instant::from_secs(1000),
            link: CLEAN,
            servers: BTreeMap::new(),
            server_events: Vec::new(),
            xtrs: BTreeMap::new(),
            gateways: BTreeMap::new(),
            counters: BTreeMap::new(),
            disks: BTreeMap::new(),
            unreachable: Vec::new(),
            tap: Vec::new(),
            filter: |_| false,
            queue: BTreeMap::new(),
            sequence: 0,
            random: seed,
        }
    }

    /// splitmix64.
    pub(crate) fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ self.random >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn seed(&mut self) -> [u8; 32] {
        std::array::from_fn(|_| self.random().to_be_bytes()[0])
    }

    fn disk(&self, ip: IpAddr) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.disks.get(&ip).into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    /// Starts a Map-Server, or restarts it from its disk.
    pub(crate) fn start_server(&mut self, ip: IpAddr, config: MapServerConfig) {
        let server = MapServer::new(self.now, config, self.seed(), self.disk(ip));
        self.servers.insert(ip, server);
        self.flush();
    }

    /// Starts an xTR, or restarts it from its disk; its data path starts empty.
    pub(crate) fn start_xtr(&mut self, ip: IpAddr, config: XtrConfig) {
        let xtr = Xtr::new(self.now, config, self.seed(), self.disk(ip));
        self.xtrs.insert(ip, xtr);
        self.gateways.insert(ip, Gateway::default());
        self.flush();
    }

    pub(crate) fn command(&mut self, ip: IpAddr, command: xtr::Command) {
        let now = self.now;
        self.xtrs.get_mut(&ip).unwrap().handle_command(now, command);
        self.flush();
    }

    pub(crate) fn control(&mut self, ip: IpAddr, command: map_server::Command) {
        let now = self.now;
        self.servers.get_mut(&ip).unwrap().handle_command(now, command);
        self.flush();
    }

    pub(crate) fn inject(&mut self, datagram: Datagram) {
        self.deliver(&datagram);
        self.flush();
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.next().filter(|at| *at <= end) {
            assert!(at >= self.now, "time runs backwards");
            self.now = at;
            self.step();
        }
        self.now = end;
    }

    fn next(&self) -> Option<Instant> {
        let servers = self.servers.values().filter_map(MapServer::poll_timeout);
        let xtrs = self.xtrs.values().filter_map(Xtr::poll_timeout);
        let queue = self.queue.keys().next().map(|(at, _)| *at);
        // A timer of the past is due now.
        servers.chain(xtrs).map(|at| at.max(self.now)).chain(queue).min()
    }

    /// Everything that is due now.
    pub(crate) fn step(&mut self) {
        let now = self.now;
        while let Some(entry) = self.queue.first_entry().filter(|e| e.key().0 <= now) {
            let datagram = entry.remove();
            self.deliver(&datagram);
        }
        self.servers.values_mut().for_each(|s| s.handle_timeout(now));
        self.xtrs.values_mut().for_each(|x| x.handle_timeout(now));
        for at in self
            .servers
            .values()
            .map(MapServer::poll_timeout)
            .chain(self.xtrs.values().map(Xtr::poll_timeout))
        {
            assert!(at.is_none_or(|at| at > now), "a timer that is due stays due: the shell would spin");
        }
        self.flush();
    }

    fn deliver(&mut self, datagram: &Datagram) {
        let now = self.now;
        let to = datagram.to.ip();
        let server =
            self.servers.get_mut(&to).map(|s| s.handle_datagram(now, datagram.from, &datagram.bytes));
        let xtr = self.xtrs.get_mut(&to).map(|x| x.handle_datagram(now, datagram.from, &datagram.bytes));
        if server.or(xtr).is_some_and(|result| result.is_err()) {
            *self.counters.entry((to, Counter::Malformed)).or_default() += 1;
        }
    }

    fn flush(&mut self) {
        let ips: Vec<IpAddr> = self.servers.keys().chain(self.xtrs.keys()).copied().collect();
        for ip in ips {
            while let Some(output) = self.servers.get_mut(&ip).and_then(MapServer::poll_output) {
                match output {
                    map_server::Output::Transmit(t) => self.send(ip, t),
                    map_server::Output::Persist(p) => self.persist(ip, p),
                    map_server::Output::Event(e) => self.server_events.push((self.now, e)),
                    map_server::Output::Counter(c) => *self.counters.entry((ip, c)).or_default() += 1,
                }
            }
            while let Some(output) = self.xtrs.get_mut(&ip).and_then(Xtr::poll_output) {
                match output {
                    xtr::Output::Transmit(t) => self.send(ip, t),
                    xtr::Output::Persist(p) => self.persist(ip, p),
                    xtr::Output::Event(e) => self.gateways.get_mut(&ip).unwrap().events.push((self.now, e)),
                    xtr::Output::Counter(c) => *self.counters.entry((ip, c)).or_default() += 1,
                    xtr::Output::Table(delta) => self.change_table(ip, delta),
                }
            }
        }
    }

    fn change_table(&mut self, ip: IpAddr, delta: TableDelta) {
        let now = self.now;
        let gateway = self.gateways.get_mut(&ip).unwrap();
        gateway.deltas.push((now, delta.clone()));
        match delta {
            TableDelta::Set { eid, locators, action, .. } => {
                drop(gateway.table.insert(eid, (locators, action)))
            }
            TableDelta::Remove { eid, .. } => drop(gateway.table.remove(&eid)),
        }
    }

    fn persist(&mut self, ip: IpAddr, persist: Persist) {
        let disk = self.disks.entry(ip).or_default();
        match persist.value {
            Some(value) => disk.insert(persist.key, value),
            None => disk.remove(&persist.key),
        };
    }

    fn send(&mut self, from: IpAddr, transmit: Transmit) {
        let from = SocketAddr::new(from, CONTROL_PORT);
        let datagram = Datagram { from, to: transmit.destination, bytes: transmit.payload };
        assert!(datagram.bytes.len() <= 548, "{} octets need path MTU discovery", datagram.bytes.len());
        self.tap.push((self.now, datagram.clone()));
        let cut = |ip| self.unreachable.contains(&ip);
        if cut(datagram.from.ip()) || cut(datagram.to.ip()) || (self.filter)(&datagram) {
            return;
        }
        let copies = 1 + u64::from(self.random() % 1000 < self.link.duplication);
        for _ in 0..copies {
            if self.random() % 1000 < self.link.loss {
                continue;
            }
            let jitter = u64::try_from(self.link.jitter.as_nanos()).unwrap();
            let extra = self.random().checked_rem(jitter).unwrap_or(0);
            let at = self.now + self.link.delay + Duration::from_nanos(extra);
            self.sequence += 1;
            self.queue.insert((at, self.sequence), datagram.clone());
        }
    }

    pub(crate) fn count(&self, ip: IpAddr, counter: Counter) -> u64 {
        self.counters.get(&(ip, counter)).copied().unwrap_or(0)
    }
}
