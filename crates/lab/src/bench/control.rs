//! What one core of a map server answers: the pure machine alone, and behind a UDP socket on loopback.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant as Clock};

use anyhow::{Context, Result, anyhow, bail, ensure};
use codec::{Instant, IpPrefix};
use lisp::auth::{Algorithm, Key, sign};
use lisp::map_server::{AllowedPrefix, Limits, MapServer, MapServerConfig, NonceCheck, Output, Site};
use lisp::rate::RateLimit;
use lisp::wire::{
    Action, Address, Authentication, CONTROL_PORT, EidPrefix, EidRecord, EncapsulatedControlMessage,
    InstanceId, LocatorRecord, MapRegister, MapRequest, Message, MessageType, RequestRecord,
};
use zeroize::Zeroizing;

use super::path::{name, remove_leftovers};
use super::row::Row;
use crate::interrupt;
use crate::netns::Netns;
use crate::stats::median;

/// EID-prefixes in the server's database.
const EIDS: u32 = 1000;
/// Messages of one round.
const MESSAGES: u32 = 10_000;
/// Messages under way at once on the socket.
const WINDOW: usize = 64;
/// Addresses of the loopback device of a namespace: 127/8 is no locator.
const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), CONTROL_PORT);
const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)), CONTROL_PORT);

/// Map-Replies per second at 100 000 requests per second offered, with authentication Map-Registers per second:
/// OpenDaylight lispflowmapping, commit message of 3e2be2ab2, on its authors' machine.
const ODL: (&str, f64, f64) = ("OpenDaylight, published (3e2be2ab2)", 88_000.0, 38_000.0);

/// Four rows: two messages, each through the machine and through the socket.
pub(super) fn rows(rounds: usize) -> Result<Vec<Row>> {
    let loopback = Loopback::create()?;
    let mut bench = ControlBench::new()?;
    let mut figures: [Vec<f64>; 4] = Default::default();
    for _ in 0..rounds {
        interrupt::check()?;
        let registers = bench.registers(0..MESSAGES)?;
        figures[0].push(bench.machine_rate(&registers, MessageType::MapNotify)?);
        let requests = requests()?;
        figures[1].push(bench.machine_rate(&requests, MessageType::MapReply)?);
        let registers = bench.registers(0..MESSAGES)?;
        figures[2].push(loopback.0.run(|| bench.socket_rate(&registers, MessageType::MapNotify))?);
        figures[3].push(loopback.0.run(|| bench.socket_rate(&requests, MessageType::MapReply))?);
    }
    let (name, replies, registers) = ODL;
    let rows = figures.into_iter().zip([
        ("authenticated Map-Registers with Map-Notify, machine alone", registers),
        ("Map-Requests answered, machine alone", replies),
        ("authenticated Map-Registers with Map-Notify, over UDP on loopback", registers),
        ("Map-Requests answered, over UDP on loopback", replies),
    ]);
    let row = |(runs, (what, reference)): (Vec<f64>, (&str, f64))| {
        let value = median(&runs).unwrap_or_default();
        Row::published(what, "messages/s", (value, runs), name, reference)
    };
    Ok(rows.map(row).collect())
}

/// A namespace whose loopback device has both addresses; removed with this value.
struct Loopback(Netns);

impl Loopback {
    fn create() -> Result<Self> {
        remove_leftovers()?;
        let loopback = Self(Netns::create(&name("control"))?);
        for address in [SERVER, CLIENT] {
            loopback.0.ip(&["address", "add", &format!("{}/32", address.ip()), "dev", "lo"])?;
        }
        Ok(loopback)
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        if let Err(error) = self.0.delete() {
            tracing::warn!(netns = self.0.name(), %error, "left behind");
        }
    }
}

struct ControlBench {
    server: MapServer,
    key: Key,
    origin: Clock,
    nonce: u64,
}

impl ControlBench {
    fn new() -> Result<Self> {
        let key = Key::new(1, Algorithm::HmacSha256, Zeroizing::new(b"benchmark".to_vec()))?;
        let server = MapServer::new(Instant::ZERO, config(&key)?, [7; 32], Vec::new());
        let mut bench = Self { server, key, origin: Clock::now(), nonce: 0 };
        let first = bench.registers(0..EIDS)?;
        bench.machine_rate(&first, MessageType::MapNotify).context("first registrations")?;
        Ok(bench)
    }

    /// Signed Map-Registers, one per EID-prefix in turn.
    fn registers(&mut self, numbers: Range<u32>) -> Result<Vec<Vec<u8>>> {
        let messages = numbers.map(|number| {
            self.nonce += 1;
            let message = Message::MapRegister(MapRegister {
                proxy_reply: true,
                security_capable: false,
                eid_notify: false,
                use_ttl_for_timeout: false,
                merge: false,
                want_map_notify: true,
                nonce: self.nonce,
                authentication: Authentication::default(),
                records: vec![record(eid(number)?)],
                xtr: None,
            });
            Ok(sign(message, &self.key)?)
        });
        messages.collect()
    }

    /// Messages per second that are answered when nothing else is done.
    fn machine_rate(&mut self, messages: &[Vec<u8>], answer: MessageType) -> Result<f64> {
        let start = Clock::now();
        let mut answers = 0;
        for message in messages {
            answers += self.handle(CLIENT, message, answer, &mut |_, _| Ok(()))?;
        }
        let elapsed = start.elapsed().as_secs_f64();
        ensure!(answers == messages.len(), "{answers} answers to {} messages", messages.len());
        Ok(answers as f64 / elapsed)
    }

    /// The same with the messages coming in and the answers going out on a socket.
    fn socket_rate(&mut self, messages: &[Vec<u8>], answer: MessageType) -> Result<f64> {
        let server = UdpSocket::bind(SERVER).with_context(|| format!("bind {SERVER}"))?;
        let client = UdpSocket::bind(CLIENT).with_context(|| format!("bind {CLIENT}"))?;
        client.connect(SERVER)?;
        client.set_read_timeout(Some(Duration::from_secs(2)))?;
        thread::scope(|scope| {
            let client = scope.spawn(move || ask(&client, messages));
            let served = self.serve(&server, answer);
            let rate = client.join().map_err(|_| anyhow!("the client panicked"))?;
            served?;
            rate
        })
    }

    /// Answers until an empty datagram comes.
    fn serve(&mut self, socket: &UdpSocket, answer: MessageType) -> Result<()> {
        let mut datagram = [0; 2048];
        loop {
            let (length, from) = socket.recv_from(&mut datagram)?;
            if length == 0 {
                return Ok(());
            }
            self.handle(from, &datagram[..length], answer, &mut |destination, payload| {
                socket.send_to(payload, destination)?;
                Ok(())
            })?;
        }
    }

    /// One message through the machine; how many answers of the expected type came out.
    fn handle(
        &mut self,
        from: SocketAddr,
        message: &[u8],
        answer: MessageType,
        send: &mut dyn FnMut(SocketAddr, &[u8]) -> Result<()>,
    ) -> Result<usize> {
        let now = Instant::from_nanos(u64::try_from(self.origin.elapsed().as_nanos())?);
        self.server.handle_datagram(now, from, message)?;
        let mut answers = 0;
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::Transmit(transmit) => {
                    let first = transmit.payload.first().copied().unwrap_or_default();
                    answers += usize::from(MessageType::of(first) == answer);
                    send(transmit.destination, &transmit.payload)?;
                }
                Output::Counter(counter) => bail!("refused: {}", counter.as_str()),
                Output::Persist(_) | Output::Event(_) => {}
            }
        }
        Ok(answers)
    }
}

/// Keeps [`WINDOW`] messages under way; messages per second that were answered.
fn ask(socket: &UdpSocket, messages: &[Vec<u8>]) -> Result<f64> {
    let start = Clock::now();
    let answered = exchange(socket, messages);
    let elapsed = start.elapsed().as_secs_f64();
    // Ends the server, whatever happened.
    socket.send(&[])?;
    answered?;
    Ok(messages.len() as f64 / elapsed)
}

fn exchange(socket: &UdpSocket, messages: &[Vec<u8>]) -> Result<()> {
    let mut answer = [0; 2048];
    let (first, rest) = messages.split_at(WINDOW.min(messages.len()));
    for message in first {
        socket.send(message)?;
    }
    for message in rest {
        socket.recv(&mut answer).context("no answer")?;
        socket.send(message)?;
    }
    for _ in first {
        socket.recv(&mut answer).context("no answer")?;
    }
    Ok(())
}

fn config(key: &Key) -> Result<MapServerConfig> {
    let everything = EidPrefix { instance_id: InstanceId(0), prefix: "10.0.0.0/8".parse::<IpPrefix>()? };
    // One peer asks as fast as it can: what is measured is the work, not the policy.
    let unlimited = RateLimit { burst: u32::MAX, interval: Duration::from_nanos(1) };
    Ok(MapServerConfig {
        listen: vec![SERVER.ip()],
        sites: vec![Site {
            name: "bench".to_owned(),
            site_id: None,
            keys: vec![key.clone()],
            nonce_check: NonceCheck::Strict,
            eid_prefixes: vec![AllowedPrefix { eid: everything, more_specifics: true }],
        }],
        subscribers: Vec::new(),
        limits: Limits {
            map_request: unlimited,
            map_reply: unlimited,
            map_notify: unlimited,
            ..Limits::default()
        },
    })
}

/// Map-Requests as an ITR sends them to its resolver: encapsulated.
fn requests() -> Result<Vec<Vec<u8>>> {
    let messages = (0..MESSAGES).map(|number| {
        let eid = eid(number)?;
        let request = Message::MapRequest(MapRequest {
            authoritative: false,
            probe: false,
            smr: false,
            proxy_itr: false,
            smr_invoked: false,
            local_xtr: false,
            no_map_reply: false,
            nonce: u64::from(number) + 1,
            source_eid: Address::NoAddress,
            itr_rlocs: vec![Address::Ip(CLIENT.ip())],
            records: vec![RequestRecord { subscribe: false, eid }],
            map_reply: None,
            xtr: None,
        });
        let encapsulated = Message::Encapsulated(EncapsulatedControlMessage {
            security: false,
            ddt: false,
            inner_source: CLIENT,
            inner_destination: SocketAddr::new(eid.prefix.address(), CONTROL_PORT),
            message: request.encode()?,
        });
        Ok(encapsulated.encode()?)
    });
    messages.collect()
}

fn eid(number: u32) -> Result<EidPrefix> {
    let address = Ipv4Addr::from(0x0a00_0000 | (number % EIDS));
    Ok(EidPrefix { instance_id: InstanceId(0), prefix: IpPrefix::new(address.into(), 32)? })
}

fn record(eid: EidPrefix) -> EidRecord {
    EidRecord {
        ttl: 60,
        action: Action::NoAction,
        authoritative: true,
        map_version: 0,
        eid,
        locators: vec![LocatorRecord {
            priority: 1,
            weight: 100,
            multicast_priority: 255,
            multicast_weight: 0,
            local: true,
            probed: false,
            reachable: true,
            rloc: Address::Ip(CLIENT.ip()),
        }],
    }
}
