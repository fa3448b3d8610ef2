//! What is connected to the balancer's port.

use std::time::Duration;

use dataplane::host::Port;
use dataplane::netns::NetnsGuard;
use dataplane::packet::NeighbourSocket;
use tokio::runtime::{Builder, Runtime};

use crate::process::Namespace;

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(50);

/// Waits until something is so.
#[track_caller]
pub(crate) fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let until = std::time::Instant::now() + PATIENCE;
    while !is_so() {
        assert!(std::time::Instant::now() < until, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(PAUSE);
    }
}

/// The far end of the port's cable.
pub(crate) struct Outside {
    socket: NeighbourSocket,
    runtime: Runtime,
}

impl Outside {
    pub(crate) fn open(namespace: &Namespace) -> Self {
        let _there = NetnsGuard::enter(&namespace.0).unwrap();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let socket = runtime.block_on(async {
            let far = Port::observe("eth1").await.unwrap();
            NeighbourSocket::open("eth1", far.ifindex).unwrap()
        });
        Self { socket, runtime }
    }

    /// The first of something that comes out of the port.
    pub(crate) fn frames<T>(&self, find: impl Fn(&[u8]) -> Option<T>) -> T {
        let found = async {
            let mut frame = [0; 1518];
            loop {
                let length = self.socket.receive(&mut frame).await.unwrap();
                if let Some(found) = find(&frame[..length]) {
                    return found;
                }
            }
        };
        let found = async { tokio::time::timeout(PATIENCE, found).await };
        self.runtime.block_on(found).expect("it never came")
    }

    /// A TCP SYN to 192.0.2.10:80, to the port's link-layer address of now.
    pub(crate) fn send_syn(&self, namespace: &Namespace) {
        let _there = NetnsGuard::enter(&namespace.0).unwrap();
        let port = self.runtime.block_on(Port::observe("eth0")).unwrap();
        let mut frame = [0; 60];
        frame[..6].copy_from_slice(&port.mac);
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
        frame[17] = 40;
        frame[22..24].copy_from_slice(&[64, 6]);
        frame[26..34].copy_from_slice(&[198, 51, 100, 7, 192, 0, 2, 10]);
        frame[34..38].copy_from_slice(&[0x9c, 0x40, 0, 80]);
        frame[46..48].copy_from_slice(&[0x50, 2]);
        self.socket.send(&frame).unwrap();
    }
}

/// Who asks by ARP in a VLAN.
pub(crate) fn tagged_arp_sender(frame: &[u8], vid: u16) -> Option<[u8; 4]> {
    let is_arp = frame.get(12..18)? == [&[0x81, 0][..], &vid.to_be_bytes(), &[8, 6]].concat();
    is_arp.then(|| frame.get(32..36)?.try_into().ok()).flatten()
}
