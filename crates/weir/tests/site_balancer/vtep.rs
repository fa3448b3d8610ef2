//! Tunnel endpoints: the kernel's where it has them, otherwise in user space.
//!
//! Outer headers come from an ordinary UDP socket in user space as well, so it is the kernel that makes and checks them.
//! Both kinds learn which endpoint a link-layer address is behind from every frame that arrives.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use dataplane::balancer::SegmentKind;
use lab::link::{End, offloads_off, veth};
use lab::netns::Netns;

use crate::site::segment;
use crate::switch::{FRAME_MAX, Frames};

/// Octets of the header of VXLAN, and of Geneve without options.
const HEADER: usize = 8;
/// In front of a VNI: version 0, no options, Ethernet inside (RFC 8926 §3.4).
const GENEVE: [u8; 4] = [0, 0, 0x65, 0x58];
/// In front of a VNI: it is there (RFC 7348 §5).
const VXLAN: [u8; 4] = [8, 0, 0, 0];

/// A device whose frames go through tunnels.
pub(crate) struct Device {
    /// Its name.
    pub(crate) name: String,
    /// Its link-layer address.
    pub(crate) mac: String,
    /// Where it is.
    pub(crate) segment: &'static str,
    /// Endpoints that get what is for everybody.
    pub(crate) flood: Vec<IpAddr>,
    /// A link-layer address whose endpoint is known.
    pub(crate) fixed: Option<(String, IpAddr)>,
}

/// An endpoint with its devices; in user space it stops when it is dropped, the kernel's goes with its namespace.
pub(crate) struct Vtep {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Vtep {
    /// Makes the devices, all of one kind, and brings them up.
    pub(crate) fn start(netns: &Netns, local: IpAddr, devices: &[Device], mtu: u32) -> Self {
        let kind = segment(devices[0].segment).kind();
        let stop = Arc::new(AtomicBool::new(false));
        if kind == SegmentKind::Vxlan && kernel_has_vxlan(netns) {
            devices.iter().for_each(|device| make_vxlan(netns, local, device, mtu));
            return Self { stop, thread: None };
        }
        eprintln!("{}: {kind:?} in user space", netns.name());
        let mut endpoint = Endpoint::open(netns, kind, local, devices, mtu);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                endpoint.turn();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Vtep {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread shows as frames that do not arrive.
            let _ = thread.join();
        }
    }
}

fn kernel_has_vxlan(netns: &Netns) -> bool {
    let made = netns.ip(&["link", "add", "probe", "type", "vxlan", "id", "1", "dstport", "4789"]).is_ok();
    made && netns.ip(&["link", "del", "probe"]).is_ok()
}

fn make_vxlan(netns: &Netns, local: IpAddr, device: &Device, mtu: u32) {
    let (vni, mtu) = (segment(device.segment).id().to_string(), mtu.to_string());
    let (name, local) = (device.name.as_str(), local.to_string());
    let link = ["link", "add", name, "address", &device.mac, "mtu", &mtu, "type", "vxlan", "id", &vni];
    netns.ip(&[&link[..], &["local", &local, "dstport", "4789", "udpcsum"]].concat()).unwrap();
    offloads_off(netns, name).unwrap();
    netns.ip(&["link", "set", name, "up"]).unwrap();
    let fdb = |mac: &str, to: &IpAddr| {
        let mut command = std::process::Command::new("bridge");
        command.args(["fdb", "append", mac, "dev", name, "dst", &to.to_string(), "self", "permanent"]);
        let output = netns.run(|| Ok(command.output()?)).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    device.flood.iter().for_each(|to| fdb("00:00:00:00:00:00", to));
    device.fixed.iter().for_each(|(mac, to)| fdb(mac, to));
}

/// An endpoint in user space.
struct Endpoint {
    header: [u8; 4],
    socket: UdpSocket,
    ports: Vec<Port>,
    datagram: Vec<u8>,
}

/// What a device sends and gets.
struct Port {
    vni: u32,
    frames: Frames,
    flood: Vec<IpAddr>,
    /// Where a link-layer address was seen last.
    learned: HashMap<[u8; 6], IpAddr>,
}

impl Endpoint {
    fn open(netns: &Netns, kind: SegmentKind, local: IpAddr, devices: &[Device], mtu: u32) -> Self {
        let (header, port) = if kind == SegmentKind::Vxlan { (VXLAN, 4789) } else { (GENEVE, 6081) };
        let socket = netns.run(|| Ok(UdpSocket::bind((local, port))?)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let ports = devices.iter().map(|device| Port::open(netns, device, mtu)).collect();
        Self { header, socket, ports, datagram: vec![0; FRAME_MAX] }
    }

    /// Waits a moment for frames and datagrams, and forwards what there is.
    fn turn(&mut self) {
        let descriptors =
            self.ports.iter().map(|port| port.frames.as_raw_fd()).chain([self.socket.as_raw_fd()]);
        let mut waiting: Vec<libc::pollfd> =
            descriptors.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
        let count = libc::nfds_t::try_from(waiting.len()).unwrap();
        // SAFETY: as many entries as are told, which outlive the call.
        if unsafe { libc::poll(waiting.as_mut_ptr(), count, 100) } <= 0 {
            return;
        }
        for index in 0..self.ports.len() {
            while self.encapsulate(index) {}
        }
        while self.decapsulate().is_ok() {}
    }

    /// Whether there was a frame.
    fn encapsulate(&mut self, index: usize) -> bool {
        let port = &self.ports[index];
        let Some(length) = port.frames.receive(&mut self.datagram[HEADER..]) else { return false };
        self.datagram[..4].copy_from_slice(&self.header);
        self.datagram[4..HEADER].copy_from_slice(&(port.vni << 8).to_be_bytes());
        let datagram = &self.datagram[..HEADER + length];
        let destination = mac(datagram, HEADER);
        let known = port.learned.get(&destination).map(std::slice::from_ref);
        let to_port = self.socket.local_addr().map_or(0, |local| local.port());
        for endpoint in known.unwrap_or(&port.flood) {
            // What cannot be sent is lost, as on any way.
            let _ = self.socket.send_to(datagram, SocketAddr::new(*endpoint, to_port));
        }
        true
    }

    fn decapsulate(&mut self) -> io::Result<()> {
        let (length, from) = self.socket.recv_from(&mut self.datagram)?;
        let datagram = &self.datagram[..length];
        if length < HEADER + 14 || datagram[..4] != self.header {
            return Ok(());
        }
        let vni = u32::from_be_bytes([0, datagram[4], datagram[5], datagram[6]]);
        if let Some(port) = self.ports.iter_mut().find(|port| port.vni == vni) {
            port.learned.insert(mac(datagram, HEADER + 6), from.ip());
            port.frames.send(&datagram[HEADER..]);
        }
        Ok(())
    }
}

impl Port {
    /// The device is one end of a pair; what goes through the tunnel is seen at the other.
    fn open(netns: &Netns, device: &Device, mtu: u32) -> Self {
        let inside = format!("{}-in", device.name);
        let end = |name| End { netns, name, address: None };
        veth(end(&device.name), end(&inside), mtu).unwrap();
        for name in [&device.name, &inside] {
            offloads_off(netns, name).unwrap();
        }
        netns.ip(&["link", "set", &device.name, "address", &device.mac]).unwrap();
        let fixed = device.fixed.iter().map(|(mac, to)| (parse_mac(mac), *to));
        Self {
            vni: segment(device.segment).id(),
            frames: netns.run(|| Ok(Frames::open(&inside)?)).unwrap(),
            flood: device.flood.clone(),
            learned: fixed.collect(),
        }
    }
}

fn mac(octets: &[u8], at: usize) -> [u8; 6] {
    std::array::from_fn(|index| octets[at + index])
}

fn parse_mac(text: &str) -> [u8; 6] {
    let octets: Vec<u8> = text.split(':').map(|part| u8::from_str_radix(part, 16).unwrap()).collect();
    octets.try_into().unwrap()
}
