//! HTTP from the clients: new connections at a constant rate whatever happens, and connections that live on.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use lab::load::{Outcome, Plan, generate};
use lab::netns::Netns;
use lab::schedule::Schedule;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::api::wait_for;
use crate::network::{SERVICE, sources};

/// New connections per second.
pub(crate) const RATE: f64 = 200.0;
/// Time between an answer and the next request on a connection that lives on.
const PAUSE: Duration = Duration::from_millis(250);
/// A request without an answer after this time has failed.
const LIMIT: Duration = Duration::from_secs(10);
const PORT: u16 = 80;

/// Connections by edge.
pub(crate) type Shares = BTreeMap<String, u64>;

/// Nanoseconds since the Unix epoch, as in the roles' answers.
pub(crate) fn unix_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_nanos()).unwrap()
}

/// One connection with one request.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// When the connection was opened, Unix time.
    pub(crate) opened_ns: u64,
    /// From when it was due to the end of the response.
    pub(crate) latency: Duration,
    pub(crate) outcome: Outcome,
    pub(crate) edge: String,
}

/// Both kinds of clients.
pub(crate) struct Clients {
    pub(crate) keepers: Keepers,
    pub(crate) load: Load,
}

impl Clients {
    /// Starts the load; no connection lives on yet.
    pub(crate) fn start(netns: &Netns) -> Self {
        Self { keepers: Keepers::start(netns.clone()), load: Load::start(netns.clone()) }
    }

    /// Stops both after their last answers.
    pub(crate) fn stop(self) -> (Vec<Answer>, Vec<Held>) {
        (self.load.stop(), self.keepers.stop())
    }
}

/// New connections at a constant rate, until it is stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<Vec<Answer>>>,
    thread: JoinHandle<()>,
}

impl Load {
    /// Starts it in the clients' namespace.
    pub(crate) fn start(clients: Netns) -> Self {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stopping, collected) = (Arc::clone(&stop), Arc::clone(&answers));
        let thread = thread::spawn(move || {
            let rounds = || {
                while !stopping.load(Ordering::Relaxed) {
                    round(&collected)?;
                }
                Ok(())
            };
            clients.run(rounds).unwrap();
        });
        Self { stop, answers, thread }
    }

    /// Waits until `count` connections that were opened after `since_ns` have ended.
    pub(crate) fn wait(&self, since_ns: u64, count: usize) {
        let ended = || self.between(since_ns, u64::MAX).len();
        wait_for("new connections", || (ended() >= count).then_some(()));
    }

    /// How the connections opened in a span of time spread over the edges.
    pub(crate) fn shares(&self, from_ns: u64, to_ns: u64) -> Shares {
        count(self.between(from_ns, to_ns).iter().map(|answer| answer.edge.as_str()))
    }

    /// Connections opened in a span of time.
    pub(crate) fn between(&self, from_ns: u64, to_ns: u64) -> Vec<Answer> {
        let answers = self.answers.lock().unwrap();
        answers.iter().filter(|answer| (from_ns..to_ns).contains(&answer.opened_ns)).cloned().collect()
    }

    /// Stops after the connections under way have ended.
    pub(crate) fn stop(self) -> Vec<Answer> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        std::mem::take(&mut self.answers.lock().unwrap())
    }
}

/// Half a second of load.
fn round(answers: &Mutex<Vec<Answer>>) -> anyhow::Result<()> {
    let plan = Plan {
        schedule: Schedule::constant(RATE, 0.5)?,
        target: format!("http://{SERVICE}/").parse()?,
        sources: sources().into_iter().map(IpAddr::V4).collect(),
        timeout: LIMIT,
        keepalive: false,
        max_in_flight: 10_000,
    };
    let started_ns = unix_ns();
    let mut sink = |record: lab::load::Record| {
        let answer = Answer {
            opened_ns: started_ns + (record.at_us + record.late_us) * 1000,
            latency: Duration::from_micros(record.latency_us),
            outcome: record.outcome,
            edge: record.edge.map(String::from).unwrap_or_default(),
        };
        answers.lock().unwrap().push(answer);
        Ok(())
    };
    generate(&plan, &mut sink, &mut |_| {})?;
    Ok(())
}

/// A connection that lives on.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// Its address and port at the client.
    pub(crate) local: Option<SocketAddr>,
    /// Edges that answered, in order, without repetitions: more than one means that the flow moved.
    pub(crate) edges: Vec<String>,
    pub(crate) requests: u64,
    pub(crate) slowest: Duration,
    pub(crate) failure: Option<String>,
}

/// Connections that ask again and again.
pub(crate) struct Keepers {
    stop: Arc<AtomicBool>,
    held: Arc<Mutex<Vec<Held>>>,
    orders: mpsc::UnboundedSender<usize>,
    thread: JoinHandle<()>,
}

impl Keepers {
    /// No connection yet.
    pub(crate) fn start(clients: Netns) -> Self {
        let (stop, held) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (orders, received) = mpsc::unbounded_channel();
        let (stopping, connections) = (Arc::clone(&stop), Arc::clone(&held));
        let thread = thread::spawn(move || {
            let serve = || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(keepers(received, &connections, &stopping));
                Ok(())
            };
            clients.run(serve).unwrap();
        });
        Self { stop, held, orders, thread }
    }

    /// Opens connections and waits for their first answers.
    pub(crate) fn open(&self, count: usize) {
        let wanted = self.held().len() + count;
        self.orders.send(count).unwrap();
        let answered =
            || self.held().iter().filter(|held| held.requests > 0 || held.failure.is_some()).count();
        wait_for("first answers on connections", || (answered() >= wanted).then_some(()));
    }

    /// Waits until every connection was answered once more, and checks that none moved or failed.
    pub(crate) fn check(&self) {
        let before: Vec<u64> = self.held().iter().map(|held| held.requests).collect();
        wait_for("another answer on every connection", || {
            let held = self.held();
            let more = |(held, before): (&Held, &u64)| held.requests > *before || held.failure.is_some();
            held.iter().zip(&before).all(more).then_some(())
        });
        assert_unmoved(&self.held());
    }

    /// As they stand.
    pub(crate) fn held(&self) -> Vec<Held> {
        self.held.lock().unwrap().clone()
    }

    /// Closes all of them after their last answers.
    pub(crate) fn stop(self) -> Vec<Held> {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.orders);
        self.thread.join().unwrap();
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        assert_unmoved(&held);
        held
    }
}

/// No request failed and every connection knows one edge only.
pub(crate) fn assert_unmoved(held: &[Held]) {
    let wrong: Vec<&Held> =
        held.iter().filter(|held| held.failure.is_some() || held.edges.len() != 1).collect();
    assert!(wrong.is_empty(), "{} of {} connections moved or failed: {wrong:#?}", wrong.len(), held.len());
}

/// Occurrences by name.
pub(crate) fn count<'a>(names: impl Iterator<Item = &'a str>) -> Shares {
    let mut shares = Shares::new();
    names.for_each(|name| *shares.entry(name.to_owned()).or_default() += 1);
    shares
}

async fn keepers(
    mut orders: mpsc::UnboundedReceiver<usize>,
    all: &Arc<Mutex<Vec<Held>>>,
    stop: &Arc<AtomicBool>,
) {
    let mut tasks = tokio::task::JoinSet::new();
    let sources = sources();
    while let Some(count) = orders.recv().await {
        for _ in 0..count {
            let index = {
                let mut all = all.lock().unwrap();
                let fresh = Held {
                    local: None,
                    edges: Vec::new(),
                    requests: 0,
                    slowest: Duration::ZERO,
                    failure: None,
                };
                all.push(fresh);
                all.len() - 1
            };
            let source = sources[index % sources.len()];
            let (all, stop) = (Arc::clone(all), Arc::clone(stop));
            tasks.spawn(async move {
                if let Err(error) = keep_asking(source, index, &all, &stop).await {
                    all.lock().unwrap()[index].failure = Some(format!("{error:#}"));
                }
            });
        }
    }
    tasks.join_all().await;
}

async fn keep_asking(
    source: Ipv4Addr,
    index: usize,
    all: &Mutex<Vec<Held>>,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((source, 0)))?;
    let connect = socket.connect(SocketAddr::from((SERVICE, PORT)));
    let mut stream = timeout(LIMIT, connect).await.context("no connection in time")??;
    all.lock().unwrap()[index].local = Some(stream.local_addr()?);
    loop {
        let asked = std::time::Instant::now();
        let edge = timeout(LIMIT, ask(&mut stream)).await.context("no answer in time")??;
        {
            let held = &mut all.lock().unwrap()[index];
            held.requests += 1;
            held.slowest = held.slowest.max(asked.elapsed());
            if held.edges.last() != Some(&edge) {
                held.edges.push(edge);
            }
        }
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        sleep(PAUSE).await;
    }
}

/// One request and its whole answer; the edge that gave it.
async fn ask(stream: &mut TcpStream) -> anyhow::Result<String> {
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {SERVICE}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    loop {
        if stream.read_buf(&mut answer).await? == 0 {
            bail!("closed after {} octets", answer.len());
        }
        let Some(end) = answer.windows(4).position(|octets| octets == b"\r\n\r\n") else { continue };
        let head = std::str::from_utf8(&answer[..end])?;
        if !head.starts_with("HTTP/1.1 200 ") {
            bail!("answered {head}");
        }
        let length: usize = header(head, "Content-Length").context("no Content-Length")?.parse()?;
        if answer.len() == end + 4 + length {
            return Ok(header(head, "X-Weir-Edge").context("no X-Weir-Edge")?.to_owned());
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}
