//! Servers that say who they are, and clients that ask them.
//!
//! A request is one line: how many octets the answer's body shall have. An answer is a line with the server's name and
//! that number, and the body.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use lab::netns::Netns;
use socket2::{Domain, Socket, Type};

use crate::network::Network;
use crate::site::Site;

/// Port of the service.
pub(crate) const PORT: u16 = 80;
/// What one request may take: a retransmission or two, not a connection that is lost.
const LIMIT: Duration = Duration::from_secs(8);

/// Serves at an address in a server's namespace until the test process ends.
pub(crate) fn serve(netns: &Netns, address: IpAddr, name: &'static str) {
    let listener = netns.run(|| Ok(TcpListener::bind((address, PORT))?)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream, name));
        }
    });
}

/// Until the client closes.
fn answer(stream: TcpStream, name: &str) -> io::Result<()> {
    let mut requests = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    let mut line = String::new();
    while requests.read_line(&mut line)? != 0 {
        let octets: usize = line.trim().parse().map_err(io::Error::other)?;
        let mut answer = format!("{name} {octets}\n").into_bytes();
        answer.extend(body(octets));
        stream.write_all(&answer)?;
        line.clear();
    }
    Ok(())
}

/// What tells octets that were lost, doubled or swapped: no two windows of it are alike for a long while.
fn body(octets: usize) -> impl Iterator<Item = u8> {
    (0..octets).map(|at| (at.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0])
}

/// Where a client asks from, and whom.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    netns: Netns,
    site: Site,
}

impl Client {
    /// The client of a network.
    pub(crate) fn of(network: &Network) -> Self {
        Self { netns: network.host("client"), site: network.site }
    }
}

/// A connection of a client.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
    /// Its address and port.
    pub(crate) local: SocketAddr,
}

impl Connection {
    /// Opens one from the client's `index`-th address.
    pub(crate) fn open(client: &Client, index: usize) -> io::Result<Self> {
        let from = SocketAddr::new(client.site.client(index), 0);
        let to = SocketAddr::new(client.site.vip(), PORT);
        let opened = client.netns.run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.bind(&from.into())?;
            socket.connect_timeout(&to.into(), LIMIT)?;
            Ok(TcpStream::from(socket))
        });
        let stream = opened.map_err(io::Error::other)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        stream.set_nodelay(true)?;
        Ok(Self { local: stream.local_addr()?, stream: BufReader::new(stream) })
    }

    /// Asks for a body; who answered.
    pub(crate) fn ask(&mut self, octets: usize) -> io::Result<String> {
        self.ask_at_length(octets, 0)
    }

    /// Asks for a body with a request of that length or more; who answered.
    pub(crate) fn ask_at_length(&mut self, octets: usize, request: usize) -> io::Result<String> {
        self.stream.get_mut().write_all(format!("{octets:>request$}\n").as_bytes())?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let (name, announced) = line.trim().split_once(' ').ok_or(io::ErrorKind::UnexpectedEof)?;
        if announced != octets.to_string() {
            return Err(io::Error::other(format!("asked for {octets} octets: {line}")));
        }
        let mut got = vec![0; octets];
        self.stream.read_exact(&mut got)?;
        match got.into_iter().eq(body(octets)) {
            true => Ok(name.to_owned()),
            false => Err(io::Error::other("the body is not what was sent")),
        }
    }
}

/// Answers by server, of as many new connections.
pub(crate) fn ask_anew(client: &Client, connections: usize) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for index in 0..connections {
        let name = Connection::open(client, index).and_then(|mut connection| connection.ask(100)).unwrap();
        *answers.entry(name).or_default() += 1;
    }
    answers
}

/// New connections one after the other, until it is stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<Vec<Result<String, String>>>>,
    thread: JoinHandle<()>,
}

impl Load {
    /// Starts it.
    pub(crate) fn start(client: &Client) -> Self {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (client, stopped, noted) = (client.clone(), Arc::clone(&stop), Arc::clone(&answers));
        let thread = std::thread::spawn(move || {
            for index in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let answer = Connection::open(&client, index).and_then(|mut connection| connection.ask(1000));
                noted.lock().unwrap().push(answer.map_err(|error| error.to_string()));
            }
        });
        Self { stop, answers, thread }
    }

    /// Ends it; who answered each of its connections, or why nobody did.
    pub(crate) fn stop(self) -> Vec<Result<String, String>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        std::mem::take(&mut *self.answers.lock().unwrap())
    }
}
