//! The control port on each of our RLOCs (RFC 9301 §5).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use lisp::machine::Transmit;
use lisp::wire::CONTROL_PORT;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Datagrams that wait for the machine; more are dropped, and their senders send them again.
const WAITING_MAX: usize = 1024;
/// Longest UDP payload.
const DATAGRAM_MAX: usize = 65_535;

/// A datagram and its sender.
pub(super) type Datagram = (SocketAddr, Vec<u8>);

/// The sockets and the tasks that read them.
#[derive(Debug)]
pub(super) struct ControlPort {
    sockets: Vec<(IpAddr, Arc<UdpSocket>)>,
    datagrams: mpsc::Receiver<Datagram>,
    readers: Vec<JoinHandle<()>>,
}

impl Drop for ControlPort {
    fn drop(&mut self) {
        self.readers.iter().for_each(JoinHandle::abort);
    }
}

impl ControlPort {
    /// Binds the control port on every RLOC, in the calling thread's network namespace. The kernel computes the UDP
    /// checksum, which control messages need.
    ///
    /// # Errors
    /// If an RLOC is not an address of this node, or the port is taken.
    pub(super) async fn bind(rlocs: &[IpAddr]) -> io::Result<Self> {
        let (sender, datagrams) = mpsc::channel(WAITING_MAX);
        let (mut sockets, mut readers) = (Vec::new(), Vec::new());
        for rloc in rlocs {
            let address = SocketAddr::new(*rloc, CONTROL_PORT);
            let socket = UdpSocket::bind(address)
                .await
                .map_err(|e| io::Error::new(e.kind(), format!("cannot bind {address}: {e}")))?;
            let socket = Arc::new(socket);
            readers.push(tokio::spawn(read(Arc::clone(&socket), sender.clone())));
            sockets.push((*rloc, socket));
        }
        Ok(Self { sockets, datagrams, readers })
    }

    /// The next datagram. Cancel-safe.
    pub(super) async fn receive(&mut self) -> Option<Datagram> {
        self.datagrams.recv().await
    }

    /// Sends from an RLOC of the destination's family. What cannot be sent counts as lost on the way.
    pub(super) fn send(&self, transmit: &Transmit) {
        let same_family = |rloc: &IpAddr| rloc.is_ipv4() == transmit.destination.is_ipv4();
        let socket = self.sockets.iter().find(|(rloc, _)| same_family(rloc)).map(|(_, socket)| socket);
        let Some(socket) = socket else {
            tracing::debug!(destination = %transmit.destination, "no RLOC of that family");
            return;
        };
        if let Err(error) = socket.try_send_to(&transmit.payload, transmit.destination) {
            tracing::debug!(destination = %transmit.destination, %error, "not sent");
        }
    }
}

async fn read(socket: Arc<UdpSocket>, sender: mpsc::Sender<Datagram>) {
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        // An error is the ICMP answer to something we sent; the machine notices by itself that nobody replied.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        if let Err(mpsc::error::TrySendError::Closed(_)) = sender.try_send((from, buffer[..length].to_vec()))
        {
            return;
        }
    }
}
