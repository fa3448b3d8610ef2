//! The other end of the balancer's port: frames go in, and those that it sends come back.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use aya::programs::xdp::{Xdp, XdpMode};
use dataplane::object;

use crate::frames::{Flow, PORT, frame};

/// The balancer's port.
pub(super) const INSIDE: &str = "balancer0";
/// What is connected to it.
pub(super) const OUTSIDE: &str = "switch0";
/// Frames on the way at most: few enough for every buffer, so that nothing but the balancer may lose one.
const WINDOW: usize = 64;
/// How long a frame may take on a busy machine until it counts as lost.
const LOST: Duration = Duration::from_secs(5);

/// A network namespace of this thread's and its children's own with a pair of connected ports. What it returns has to
/// live as long: a veth sends nothing from XDP unless its peer has a program.
pub(super) fn make_ports() -> Result<Ebpf> {
    // SAFETY: no memory is passed; only this thread changes its namespace.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    ensure!(done == 0, "a network namespace: {} (needs root)", io::Error::last_os_error());
    // Otherwise the ports' own neighbour discovery would be among the frames.
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")?;
    let mac = PORT.map(|octet| format!("{octet:02x}")).join(":");
    ip(&["link", "add", INSIDE, "address", &mac, "type", "veth", "peer", "name", OUTSIDE])?;
    for port in [INSIDE, OUTSIDE] {
        ip(&["link", "set", port, "up"])?;
    }
    let mut bench = object::load_bench()?;
    let program: &mut Xdp = object::load_program(&mut bench, "empty_xdp")?.try_into()?;
    program.attach(OUTSIDE, XdpMode::Driver)?;
    Ok(bench)
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("ip")?;
    ensure!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A packet socket on the port outside.
pub(super) struct Switch {
    socket: OwnedFd,
    sent: u32,
    /// Flows of the frames that have not come back.
    waiting: HashMap<u32, usize>,
}

impl Switch {
    pub(super) fn new() -> Result<Self> {
        let protocol = i32::from((libc::ETH_P_ALL as u16).to_be());
        // SAFETY: no memory is passed.
        let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, protocol) };
        ensure!(socket >= 0, "packet socket: {}", io::Error::last_os_error());
        // SAFETY: the descriptor is open and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let name = std::ffi::CString::new(OUTSIDE)?;
        // SAFETY: a NUL-terminated string.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        // SAFETY: integers only, all zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index as i32;
        let length = size_of_val(&address) as u32;
        // SAFETY: `address` is valid for its length during the call.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
        ensure!(bound == 0, "bind: {}", io::Error::last_os_error());
        let switch = Self { socket, sent: 0, waiting: HashMap::new() };
        switch.option(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
        let timeout = libc::timeval { tv_sec: LOST.as_secs() as i64, tv_usec: 0 };
        switch.option(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeout)?;
        Ok(switch)
    }

    fn option<T>(&self, level: i32, name: i32, value: &T) -> Result<()> {
        let length = size_of::<T>() as u32;
        // SAFETY: `value` is valid for its length during the call.
        let done = unsafe {
            libc::setsockopt(self.socket.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length)
        };
        ensure!(done == 0, "socket option {name}: {}", io::Error::last_os_error());
        Ok(())
    }

    /// Sends packets of the flows in turn until it is `ended` and all have come back; returns how many they were.
    ///
    /// # Errors
    /// If one does not come back, or `check` does not agree with its flow's number and what came back.
    pub(super) fn run(
        &mut self,
        flows: &[Flow],
        ended: &AtomicBool,
        check: &mut impl FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<u32> {
        for (number, flow) in flows.iter().enumerate().cycle() {
            self.send(number, flow)?;
            while self.waiting.len() >= WINDOW {
                self.take(check)?;
            }
            if ended.load(Ordering::Relaxed) {
                break;
            }
        }
        while !self.waiting.is_empty() {
            self.take(check)?;
        }
        Ok(self.sent)
    }

    fn send(&mut self, number: usize, flow: &Flow) -> Result<()> {
        let frame = frame(&[], &flow.datagram(&self.sent.to_be_bytes()));
        // SAFETY: `frame` is valid for its length during the call.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        ensure!(sent == frame.len() as isize, "send: {}", io::Error::last_os_error());
        self.waiting.insert(self.sent, number);
        self.sent += 1;
        Ok(())
    }

    fn take(&mut self, check: &mut impl FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        let mut frame = [0_u8; 2048];
        // SAFETY: `frame` is valid for its length during the call.
        let length =
            unsafe { libc::recv(self.socket.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
        ensure!(
            length > 0,
            "{} of {} frames did not come back: {}",
            self.waiting.len(),
            self.sent,
            io::Error::last_os_error()
        );
        let frame = &frame[..length.cast_unsigned()];
        let number = u32::from_be_bytes(frame[frame.len() - 4..].try_into()?);
        let flow = self.waiting.remove(&number).with_context(|| format!("{number} came back twice"))?;
        check(flow, frame)
    }
}
