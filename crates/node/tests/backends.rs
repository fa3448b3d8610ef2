//! Probes and neighbours against real sockets, each test in a network namespace of its own. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::Duration;

use codec::neighbour::{Advertisement, Arp, ArpOperation, Frame, Mac, Message, Vlan, VlanId};
use dataplane::host::Port;
use dataplane::packet::{NEIGHBOUR_FRAME_MAX, NeighbourSocket};
use node::balancer::health::{
    Changed, Check, Checks, Endpoint, Failure, News, NotSent, Pace, State, Watched, probe,
};
use node::balancer::neighbour::{Change, Neighbours, Sender, Target};
use node::clock::Clock;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const TIMEOUT: Duration = Duration::from_millis(500);

/// Runs a test where nobody else's ports and addresses are.
fn in_namespace(test: impl Future<Output = ()> + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: no pointers; a new network namespace for this thread, which only this test runs on.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(result, 0, "needs root: {}", std::io::Error::last_os_error());
        ip("link set lo up");
        // One thread: the others would be in the namespace they were born in.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Two ends of a cable; the kernel answers on neither.
fn cable() {
    ip("link add p0 type veth peer name b0");
    ip("link set p0 up");
    ip("link set b0 up");
}

async fn server(answer: &'static str) -> u16 {
    let listener = TcpListener::bind(("::", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                match answer {
                    "" => tokio::time::sleep(Duration::from_secs(60)).await,
                    answer => drop(stream.write_all(answer.as_bytes()).await),
                }
            });
        }
    });
    port
}

fn http(port: u16) -> Check {
    Check::Http { port, path: "/ready?full=1".to_owned(), host: None, status: Vec::new() }
}

fn here(v4: bool) -> Endpoint {
    Endpoint::new(if v4 { [127, 0, 0, 1].into() } else { "::1".parse::<IpAddr>().unwrap() })
}

async fn failure(check: Check, endpoint: Endpoint) -> String {
    let started = tokio::time::Instant::now();
    let failure = probe(&check, &endpoint, TIMEOUT).await.unwrap_err();
    assert!(started.elapsed() < TIMEOUT * 2, "bounded by its timeout");
    failure.to_string()
}

#[test]
fn tcp_and_http_servers_that_answer_are_healthy() {
    in_namespace(async {
        let ok = server("HTTP/1.1 204 No Content\r\n\r\n").await;
        let moved = server("HTTP/1.0 302 Found\r\nLocation: /\r\n\r\n").await;
        for v4 in [true, false] {
            for check in [Check::Tcp { port: ok }, http(ok), http(moved)] {
                assert_eq!(probe(&check, &here(v4), TIMEOUT).await, Ok(()), "{check:?}");
            }
        }
    });
}

#[test]
fn failures_say_who_was_asked_for_what_and_what_came() {
    in_namespace(async {
        let broken = server("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
        let silent = server("").await;
        let ssh = server("SSH-2.0-OpenSSH_9.2\r\n").await;
        assert_eq!(
            failure(http(broken), here(true)).await,
            format!("127.0.0.1:{broken}: GET /ready?full=1 answered 503, expected 200-399")
        );
        assert_eq!(
            failure(http(silent), here(false)).await,
            format!("[::1]:{silent}: no HTTP answer within 500 ms")
        );
        let words = failure(http(ssh), here(true)).await;
        assert!(
            words.starts_with(&format!("127.0.0.1:{ssh}: GET /ready?full=1 answered no HTTP: ")),
            "{words}"
        );
        assert_eq!(
            failure(Check::Tcp { port: 9 }, here(true)).await,
            "127.0.0.1:9: expected a TCP connection, got: Connection refused (os error 111)"
        );
    });
}

#[test]
fn what_cannot_be_asked_is_told_apart_from_what_does_not_answer() {
    in_namespace(async {
        let away = Endpoint::new([198, 51, 100, 1].into());
        let device = Endpoint { device: Some("nowhere0".to_owned()), ..here(true) };
        let source = Endpoint { source: Some([192, 0, 2, 77].into()), ..here(true) };
        for endpoint in [away, device, source] {
            for check in [Check::Tcp { port: 9 }, http(9), Check::Icmp] {
                let failure = probe(&check, &endpoint, TIMEOUT).await.unwrap_err();
                assert!(failure.is_local(), "{endpoint:?} {failure}");
            }
        }
        assert!(probe(&Check::Arp, &here(true), TIMEOUT).await.unwrap_err().is_local());
    });
}

#[test]
fn routes_that_lead_nowhere_are_no_failure_of_a_backend() {
    in_namespace(async {
        let away = || Endpoint::new([198, 51, 100, 1].into());
        for kind in ["unreachable", "blackhole", "prohibit"] {
            ip(&format!("route add {kind} 198.51.100.0/24"));
            for check in [Check::Tcp { port: 9 }, http(9), Check::Icmp] {
                let failure = probe(&check, &away(), TIMEOUT).await.unwrap_err();
                assert!(failure.is_local(), "{kind} {failure}");
            }
            ip("route del 198.51.100.0/24");
        }
        // A host that does not answer ARP is there or not, but it was asked.
        cable();
        ip("address add 198.51.100.2/24 dev p0");
        let longer = Duration::from_secs(10);
        let failure = probe(&Check::Tcp { port: 9 }, &away(), longer).await.unwrap_err();
        assert!(!failure.is_local(), "{failure}");
    });
}

/// The kernel gives the errors of our own routes for what a router or a firewall of the backend says as well.
#[test]
fn what_the_far_side_rejects_is_a_failure_of_a_backend() {
    in_namespace(async {
        let backend = Backend::new("rejects");
        backend.sh("echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding");
        ip("address add 10.0.0.9/24 dev p0");
        ip("address add fd00::9/64 dev p0 nodad");
        ip("route add 198.51.100.0/24 via 10.0.0.2");
        ip("route add 2001:db8::/32 via fd00::2");
        rejected("without a route", &["198.51.100.1", "2001:db8::1"]).await;
        for kind in ["prohibit", "unreachable"] {
            backend.ip(&format!("route add {kind} 2001:db8::/32"));
            rejected(kind, &["2001:db8::1"]).await;
            backend.ip("route del 2001:db8::/32");
        }
    });
}

async fn rejected(how: &str, addresses: &[&str]) {
    // The first SYN's error comes while the socket is being connected, and is not told; the next one's is.
    const SECOND_SYN: Duration = Duration::from_secs(3);
    let probes = addresses.iter().map(|address| async move {
        let endpoint = Endpoint::new(address.parse().unwrap());
        let failure = probe(&Check::Tcp { port: 9 }, &endpoint, SECOND_SYN).await.unwrap_err();
        assert!(matches!(failure, Failure::Refused { .. }), "{how}: {failure}");
        // Not every ICMP error is told to a socket that sent an echo request.
        let failure = probe(&Check::Icmp, &endpoint, TIMEOUT).await.unwrap_err();
        assert!(!failure.is_local(), "{how}: {failure}");
    });
    futures_util::future::join_all(probes).await;
}

#[test]
fn questions_that_the_port_does_not_take_are_no_silence_of_a_neighbour() {
    in_namespace(async {
        cable();
        let at = target(Vlan::Dot1q(vid(100)), "10.0.1.2");
        let mut neighbours = Neighbours::open("p0", Vec::new(), Clock::start(), 7).await.unwrap();
        neighbours.set_targets([at]);
        ip("link set p0 down");
        let neighbour = Some((neighbours.asker(), at.vlan));
        let endpoint = Endpoint { neighbour, ..Endpoint::new(at.address) };
        let failure = tokio::select! {
            result = probe(&Check::Arp, &endpoint, TIMEOUT) => result.unwrap_err(),
            change = neighbours.changed() => panic!("{change:?}"),
        };
        assert!(failure.is_local(), "{failure}");
        assert!(failure.to_string().contains("10.0.1.2@802.1q:100: could not be asked"), "{failure}");
    });
}

#[test]
fn echo_is_answered_by_the_kernel_and_by_nobody_else() {
    in_namespace(async {
        ip("address add 192.0.2.1/24 dev lo");
        for v4 in [true, false] {
            assert_eq!(probe(&Check::Icmp, &here(v4), TIMEOUT).await, Ok(()));
        }
        let bound =
            Endpoint { device: Some("lo".to_owned()), source: Some([192, 0, 2, 1].into()), ..here(true) };
        assert_eq!(probe(&Check::Icmp, &bound, TIMEOUT).await, Ok(()));
        std::fs::write("/proc/sys/net/ipv4/icmp_echo_ignore_all", "1").unwrap();
        let words = failure(Check::Icmp, here(true)).await;
        assert_eq!(words, "127.0.0.1: no echo reply within 500 ms");
        let asked = (0..20).map(|_| {
            probe(&Check::Icmp, const { &Endpoint::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2))) }, TIMEOUT)
        });
        std::fs::write("/proc/sys/net/ipv4/icmp_echo_ignore_all", "0").unwrap();
        for result in futures_util::future::join_all(asked).await {
            assert_eq!(result, Ok(()), "probes do not take each other's replies");
        }
    });
}

#[test]
fn checks_follow_a_server_that_comes_and_goes() {
    in_namespace(async {
        let mut checks = Checks::new(Clock::start(), 7);
        let pace = Pace { interval: Duration::from_millis(50), rise: 2, fall: 2 };
        let watched = |port| Watched {
            check: Check::Tcp { port },
            endpoint: here(true),
            timeout: Duration::from_millis(40),
            pace,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        checks.watch(BTreeMap::from([("web", watched(port))]));
        assert_eq!(checks.state(&"web"), Some(State::Unknown));
        let healthy = News::Changed(Changed { id: "web", state: State::Healthy, reason: None });
        assert_eq!(checks.changed().await, healthy);
        drop(listener);
        let News::Changed(changed) = checks.changed().await else { panic!("refused") };
        assert!(matches!(changed.reason, Some(Failure::Refused { .. })), "{changed:?}");
        let _listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        assert_eq!(checks.changed().await, healthy);
        ip("address del 127.0.0.1/8 dev lo");
        let News::NotSent(NotSent { reason, .. }) = checks.changed().await else { panic!("not sent") };
        assert!(reason.as_ref().is_some_and(Failure::is_local), "{reason:?}");
        assert_eq!(checks.not_sent(&"web"), reason.as_ref());
        ip("address add 127.0.0.1/8 dev lo");
        assert_eq!(checks.changed().await, News::NotSent(NotSent { id: "web", reason: None }));
        assert_eq!(checks.state(&"web"), Some(State::Healthy), "it stood");
        checks.watch(BTreeMap::new());
        assert_eq!(checks.state(&"web"), None);
        let nothing = tokio::time::timeout(Duration::from_millis(200), checks.changed()).await;
        assert!(nothing.is_err());
    });
}

/// Answers for addresses in VLANs that this machine has no devices for.
async fn answer(socket: NeighbourSocket, mac: Mac, have: Vec<Target>) {
    let mut bytes = vec![0; NEIGHBOUR_FRAME_MAX];
    loop {
        let length = socket.receive(&mut bytes).await.unwrap();
        let Ok(question) = Frame::decode(&bytes[..length]) else { continue };
        let (asked, message) = match question.message {
            Message::Arp(Arp { operation: ArpOperation::Request, sender, sender_mac, target, .. }) => {
                let operation = ArpOperation::Reply;
                let reply = Arp {
                    operation,
                    sender_mac: mac,
                    sender: target,
                    target_mac: sender_mac,
                    target: sender,
                };
                (IpAddr::V4(target), Message::Arp(reply))
            }
            _ => continue,
        };
        if have.contains(&Target { vlan: question.vlan, address: asked }) {
            let frame = Frame { destination: question.source, source: mac, vlan: question.vlan, message };
            socket.send(&frame.encode()).unwrap();
        }
    }
}

fn vid(id: u16) -> VlanId {
    VlanId::new(id).unwrap()
}

fn target(vlan: Vlan, address: &str) -> Target {
    Target { vlan, address: address.parse().unwrap() }
}

#[test]
fn backends_are_found_in_vlans_without_devices() {
    in_namespace(async {
        cable();
        let tagged = [
            target(Vlan::Dot1q(vid(100)), "10.0.1.2"),
            target(Vlan::Dot1ad(vid(200), None), "10.0.2.2"),
            target(Vlan::Dot1ad(vid(200), Some(vid(7))), "10.0.3.2"),
            target(Vlan::None, "10.0.4.2"),
        ];
        let mac = [2, 0, 0, 0, 0, 0xbb];
        let far = Port::observe("b0").await.unwrap();
        tokio::spawn(answer(NeighbourSocket::open("b0", far.ifindex).unwrap(), mac, tagged.to_vec()));
        let mut neighbours = Neighbours::open("p0", Vec::new(), Clock::start(), 7).await.unwrap();
        // The same address elsewhere is another backend.
        let absent = target(Vlan::Dot1q(vid(101)), "10.0.1.2");
        neighbours.set_targets(tagged.into_iter().chain([absent]));
        let mut found = BTreeMap::new();
        while found.len() < 5 {
            let (target, change) = neighbours.changed().await.unwrap();
            found.insert(target, change);
        }
        for target in tagged {
            assert_eq!(found[&target], Change::Resolved { mac }, "{target}");
        }
        assert_eq!(found[&absent], Change::Failed);
        assert_eq!((neighbours.counters().moved, neighbours.send_errors()), (0, 0));
    });
}

/// The backend in a namespace of its own, with the kernel's answers.
struct Backend(String);

impl Backend {
    fn new(test: &str) -> Self {
        let name = format!("bk-{}-{test}", std::process::id());
        ip(&format!("netns add {name}"));
        let backend = Self(name);
        ip(&format!("link add p0 type veth peer name b0 netns {}", backend.0));
        for interface in ["lo", "b0"] {
            backend.ip(&format!("link set {interface} up"));
        }
        ip("link set p0 up");
        backend.ip("address add 10.0.0.2/24 dev b0");
        backend.ip("address add fd00::2/64 dev b0 nodad");
        backend
    }

    fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.0));
    }

    fn sh(&self, script: &str) {
        let status =
            Command::new("ip").args(["netns", "exec", &self.0, "sh", "-c", script]).status().unwrap();
        assert!(status.success(), "{script}");
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

#[test]
fn kernels_answer_probes_without_an_address_and_questions_with_one() {
    in_namespace(async {
        let backend = Backend::new("kernel");
        let targets = [target(Vlan::None, "10.0.0.2"), target(Vlan::None, "fd00::2")];
        let sender = |address: &str| Sender { vlan: Vlan::None, address: address.parse().unwrap() };
        for senders in [vec![], vec![sender("10.0.0.9"), sender("fd00::9")]] {
            let clock = Clock::start();
            let mut neighbours = Neighbours::open("p0", senders, clock, 7).await.unwrap();
            neighbours.set_targets(targets);
            for _ in targets {
                let (target, change) = neighbours.changed().await.unwrap();
                assert!(matches!(change, Change::Resolved { .. }), "{target} {change:?}");
            }
            check_by_arp(&mut neighbours, &targets).await;
        }
        drop(backend);
    });
}

async fn check_by_arp(neighbours: &mut Neighbours, targets: &[Target]) {
    for target in targets {
        let neighbour = Some((neighbours.asker(), target.vlan));
        let endpoint = Endpoint { neighbour, ..Endpoint::new(target.address) };
        let result = tokio::select! {
            result = probe(&Check::Arp, &endpoint, TIMEOUT) => result,
            change = neighbours.changed() => panic!("{change:?}"),
        };
        assert_eq!(result, Ok(()), "{target}");
    }
    let asker = neighbours.asker();
    let endpoint =
        Endpoint { neighbour: Some((asker, Vlan::Dot1q(vid(9)))), ..Endpoint::new([10, 0, 0, 2].into()) };
    let result = tokio::select! {
        result = probe(&Check::Arp, &endpoint, TIMEOUT) => result,
        change = neighbours.changed() => panic!("{change:?}"),
    };
    assert!(result.unwrap_err().is_local(), "nobody resolves that one");
}

#[test]
fn a_backend_with_another_link_layer_address_is_noticed() {
    in_namespace(async {
        let backend = Backend::new("moves");
        let at = target(Vlan::None, "10.0.0.2");
        let mut neighbours = Neighbours::open("p0", Vec::new(), Clock::start(), 7).await.unwrap();
        neighbours.set_targets([at]);
        let (_, Change::Resolved { mac }) = neighbours.changed().await.unwrap() else { panic!("resolved") };
        // A second host within a second would be taken for a duplicate.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let to = [2, 0, 0, 0, 0, 0x77];
        backend.sh("echo 1 >/proc/sys/net/ipv4/conf/b0/arp_notify; ip link set b0 down; \
             ip link set b0 address 02:00:00:00:00:77; ip link set b0 up");
        let changed = tokio::time::timeout(Duration::from_secs(5), neighbours.changed()).await;
        assert_eq!(changed.unwrap().unwrap(), (at, Change::Moved { from: mac, to }));
    });
}

#[test]
fn unsolicited_advertisements_are_heard() {
    in_namespace(async {
        cable();
        let far = Port::observe("b0").await.unwrap();
        let socket = NeighbourSocket::open("b0", far.ifindex).unwrap();
        let at = target(Vlan::Dot1q(vid(42)), "fd00::42");
        let mut neighbours = Neighbours::open("p0", Vec::new(), Clock::start(), 7).await.unwrap();
        neighbours.set_targets([at]);
        let mac = [2, 0, 0, 0, 0, 0x42];
        let IpAddr::V6(address) = at.address else { unreachable!() };
        let advertisement = Advertisement {
            source: address,
            destination: "ff02::1".parse().unwrap(),
            target: address,
            router: false,
            solicited: false,
            overrides: true,
            target_mac: Some(mac),
        };
        let message = Message::Advertisement(advertisement);
        let destination = codec::neighbour::ALL_NODES;
        socket.send(&Frame { destination, source: mac, vlan: at.vlan, message }.encode()).unwrap();
        assert_eq!(neighbours.changed().await.unwrap(), (at, Change::Resolved { mac }));

        // A port that goes down for a while is the same port.
        ip("link set p0 down");
        let nothing = tokio::time::timeout(Duration::from_millis(1200), neighbours.changed()).await;
        assert!(nothing.is_err(), "{nothing:?}");
        ip("link set p0 up");
        let mac = [2, 0, 0, 0, 0, 0x43];
        let message = Message::Advertisement(Advertisement { target_mac: Some(mac), ..advertisement });
        let frame = Frame { destination, source: mac, vlan: at.vlan, message }.encode();
        let moved = Change::Moved { from: [2, 0, 0, 0, 0, 0x42], to: mac };
        // The kernel drops what is sent until it has noticed the carrier, which may take it a second.
        for _ in 0..50 {
            socket.send(&frame).unwrap();
            let heard = tokio::time::timeout(Duration::from_millis(100), neighbours.changed()).await;
            if let Ok(change) = heard {
                assert_eq!(change.unwrap(), (at, moved));
                return;
            }
        }
        panic!("not heard in five seconds");
    });
}

#[test]
fn a_port_that_is_made_again_asks_from_what_it_is_now() {
    in_namespace(async {
        cable();
        let at = target(Vlan::Dot1q(vid(100)), "10.0.1.2");
        let mut neighbours = Neighbours::open("p0", Vec::new(), Clock::start(), 7).await.unwrap();
        neighbours.set_targets([at]);
        ip("link del p0");
        assert!(neighbours.refresh().await.is_err(), "there is none");
        cable();
        ip("link set p0 address 02:00:00:00:00:77");
        neighbours.refresh().await.unwrap();
        let far = Port::observe("b0").await.unwrap();
        let socket = NeighbourSocket::open("b0", far.ifindex).unwrap();
        let mut bytes = vec![0; NEIGHBOUR_FRAME_MAX];
        let length = tokio::select! {
            length = socket.receive(&mut bytes) => length.unwrap(),
            change = neighbours.changed() => panic!("{change:?}"),
        };
        let question = Frame::decode(&bytes[..length]).unwrap();
        assert_eq!((question.source, question.vlan), ([2, 0, 0, 0, 0, 0x77], at.vlan));
        let mac = [2, 0, 0, 0, 0, 0xbb];
        tokio::spawn(answer(socket, mac, vec![at]));
        assert_eq!(neighbours.changed().await.unwrap(), (at, Change::Resolved { mac }));
    });
}
