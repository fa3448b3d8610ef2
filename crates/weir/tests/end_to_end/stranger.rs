//! What somebody on the underlay without a key can send: garbage, forgeries, and what was sent before.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use crate::api::{Api, sum, wait_for};
use crate::capture::Capture;
use crate::network::{CLIENT_RLOC, CONTROL, Network};
use crate::overlay::Overlay;

const CONTROL_PORT: u16 = 4342;
const DATA_PORT: u16 = 4341;
/// Datagrams between two looks at the counters, so that a socket's buffer holds them all.
const BATCH: usize = 50;
/// Datagrams without any meaning, to every port.
pub(crate) const GARBAGE: usize = 500;
/// Counters of what was refused, or answered without effect.
const MAPSERVER_COUNTER: &str = "weir_mapserver_reasons_total";
const GATEWAY_COUNTER: &str = "weir_gateway_control_events_total";

/// Sends all of it and checks that every datagram was counted.
pub(crate) fn attack(network: &Network, overlay: &Overlay, capture: &Capture) {
    let socket = network.host("stranger").run(|| Ok(UdpSocket::bind("0.0.0.0:0")?)).unwrap();
    let mapserver = Victim { api: &overlay.control, address: CONTROL.into(), counter: MAPSERVER_COUNTER };
    let gateway = Victim { api: &overlay.client, address: CLIENT_RLOC.into(), counter: GATEWAY_COUNTER };
    let registers = capture.payloads("edge1", "lisp.type == 3 && udp.dstport == 4342");
    let notifies = capture.payloads("control", "lisp.type == 4 && ip.dst == 10.0.1.1");
    assert!(!registers.is_empty() && !notifies.is_empty());
    for (victim, messages) in [(&mapserver, &registers), (&gateway, &notifies)] {
        victim.take(&socket, &garbage(), "");
        victim.take(&socket, messages, "");
        let forged: Vec<Vec<u8>> = messages.iter().flat_map(|message| forgeries(message)).collect();
        victim.take(&socket, &forged, "reason=\"bad_authentication\"");
    }
    strange_data(&socket, overlay);
}

struct Victim<'a> {
    api: &'a Api,
    address: IpAddr,
    counter: &'a str,
}

impl Victim<'_> {
    /// Sends datagrams and waits until all of them are counted.
    fn take(&self, socket: &UdpSocket, datagrams: &[Vec<u8>], labels: &str) {
        for batch in datagrams.chunks(BATCH) {
            let before = sum(&self.api.metrics(), self.counter, labels);
            let address = SocketAddr::new(self.address, CONTROL_PORT);
            for datagram in batch {
                socket.send_to(datagram, address).unwrap();
            }
            let all = before + batch.len() as f64;
            let what = format!("{} counts {} datagrams {labels}", self.counter, batch.len());
            wait_for(&what, || (sum(&self.api.metrics(), self.counter, labels) >= all).then_some(()));
        }
    }
}

/// LISP data to an EID that is not there, and no LISP data at all.
fn strange_data(socket: &UdpSocket, overlay: &Overlay) {
    let counted = || sum(&overlay.client.metrics(), "weir_gateway_datapath_packets_total", "reason=\"drop");
    let before = counted();
    let garbage = garbage();
    for datagram in &garbage {
        socket.send_to(datagram, (CLIENT_RLOC, DATA_PORT)).unwrap();
    }
    let all = before + garbage.len() as f64;
    wait_for("strange data is dropped and counted", || (counted() >= all).then_some(()));
}

/// Pseudo-random octets of many lengths, the same in every run.
fn garbage() -> Vec<Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..GARBAGE).map(|_| (0..8 + usize::from(next()) % 120).map(|_| next()).collect()).collect()
}

/// One octet changed: in the nonce, in the MAC, or in the address of a locator.
fn forgeries(message: &[u8]) -> Vec<Vec<u8>> {
    const NONCE: usize = 11;
    const MAC: usize = 20;
    /// Behind the locator are an xTR-ID and a Site-ID, or two more locators.
    const BEHIND: usize = 24;
    let locator = message.len() - BEHIND - 1;
    let forge = |position: usize| {
        let mut forged = message.to_vec();
        forged[position] ^= 1;
        forged
    };
    [NONCE, MAC, locator].map(forge).to_vec()
}
