//! client — gateway — gateway — server, in four namespaces.

use std::process::Command;
use std::time::Duration;

use aya::programs::{SchedClassifier, tc::TcAttachType};
use dataplane::netns::NetnsGuard;
use dataplane::table::Mapping;
use dataplane::tap::FRAME_MAX;
use dataplane::{
    Dataplane, DataplaneConfig, Eid, Hook, Interface, LocalPrefix, OnStop, Role, Surveyed, bpffs,
};
use tokio::runtime::Runtime;

pub(crate) const CLIENT: &str = "10.200.0.2";
pub(crate) const SERVER: &str = "10.100.0.1";

/// Removes its namespaces and pins when dropped, also after a failed test.
pub(crate) struct Topology {
    prefix: String,
}

impl Topology {
    pub(crate) fn new(test: &str) -> Self {
        let topology = Self { prefix: format!("dp-{}-{test}", std::process::id()) };
        for namespace in ["c", "i", "e", "s"] {
            run("ip", &["netns", "add", &topology.name(namespace)]);
            topology.ip(namespace, &["link", "set", "lo", "up"]);
        }
        topology.client_link();
        topology.underlay();
        topology.link(("e", "e0", "10.100.0.254/24"), ("s", "s0", "10.100.0.1/24"));
        topology.ip("s", &["route", "add", "default", "via", "10.100.0.254"]);
        topology
    }

    fn client_link(&self) {
        self.link(("c", "c0", "10.200.0.2/24"), ("i", "i0", "10.200.0.1/24"));
        self.ip("c", &["route", "add", "default", "via", "10.200.0.1"]);
    }

    fn underlay(&self) {
        self.link(("i", "u0", "10.0.1.1/24"), ("e", "u0", "10.0.1.2/24"));
    }

    pub(crate) fn remake_client_link(&self) {
        self.ip("i", &["link", "del", "i0"]);
        self.client_link();
    }

    pub(crate) fn remake_underlay(&self) {
        self.ip("i", &["link", "del", "u0"]);
        self.underlay();
    }

    fn link(&self, a: (&str, &str, &str), b: (&str, &str, &str)) {
        let (a_ns, b_ns) = (self.name(a.0), self.name(b.0));
        run("ip", &["link", "add", a.1, "netns", &a_ns, "type", "veth", "peer", "name", b.1, "netns", &b_ns]);
        for (namespace, name, address) in [a, b] {
            self.ip(namespace, &["addr", "add", address, "dev", name]);
            self.ip(namespace, &["link", "set", name, "up"]);
        }
    }

    fn name(&self, namespace: &str) -> String {
        format!("{}-{namespace}", self.prefix)
    }

    pub(crate) fn ip(&self, namespace: &str, arguments: &[&str]) -> String {
        run("ip", &[&["-n", &self.name(namespace)], arguments].concat())
    }

    pub(crate) fn ping(&self, options: &[&str]) -> String {
        let name = self.name("c");
        let arguments = [&["netns", "exec", &name, "ping", "-i", "0.2"], options, &[SERVER]].concat();
        let output = Command::new("ip").args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    }

    pub(crate) fn within<T>(&self, namespace: &str, run: impl FnOnce() -> T) -> T {
        let _there = NetnsGuard::enter(&self.name(namespace)).unwrap();
        run()
    }

    /// Programs on TC ingress of an interface.
    pub(crate) fn attached(&self, namespace: &str, interface: &str) -> usize {
        let query = || SchedClassifier::query_tcx(interface, TcAttachType::Ingress).unwrap().1.len();
        self.within(namespace, query)
    }

    pub(crate) fn client_gateway(&self) -> Gateway {
        self.client_gateway_with(Hook::Auto)
    }

    pub(crate) fn edge_gateway(&self) -> Gateway {
        self.edge_gateway_with(Hook::Auto)
    }

    pub(crate) fn client_gateway_with(&self, hook: Hook) -> Gateway {
        self.gateway("i", "i0", "10.0.1.1", "10.200.0.0/24", hook)
    }

    pub(crate) fn edge_gateway_with(&self, hook: Hook) -> Gateway {
        self.gateway("e", "e0", "10.0.1.2", "10.100.0.0/24", hook)
    }

    /// Why a client gateway does not start whose hosts are behind an interface that is not there.
    pub(crate) fn failing_client_gateway(&self) -> String {
        let config = self.config("i", "i0", "10.0.1.1", "10.200.0.0/24", Hook::Auto);
        let local = LocalPrefix { interface: "nowhere".to_owned(), ..config.local_eids[0].clone() };
        let config = DataplaneConfig { local_eids: vec![local], ..config };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let start = || runtime.block_on(Dataplane::start(config)).err().unwrap().to_string();
        self.within("i", start)
    }

    pub(crate) fn pins(&self, namespace: &str) -> String {
        format!("{}/weir/{}", bpffs::MOUNT_POINT, self.name(namespace))
    }

    fn config(&self, namespace: &str, inside: &str, rloc: &str, local: &str, hook: Hook) -> DataplaneConfig {
        let eid = |prefix: &str| Eid { instance_id: 0, prefix: prefix.parse().unwrap() };
        let interface = |name: &str, role| Interface { name: name.to_owned(), role, instance_id: 0 };
        DataplaneConfig {
            node: self.name(namespace),
            rlocs: vec![rloc.parse().unwrap()],
            interfaces: vec![interface(inside, Role::Itr), interface("u0", Role::Etr)],
            eid_space: vec![eid("10.100.0.0/16"), eid("10.200.0.0/16")],
            local_eids: vec![LocalPrefix { eid: eid(local), interface: inside.to_owned(), next_hop: None }],
            hook,
            flow_idle: Duration::from_secs(300),
            flow_entries: Some(4096),
        }
    }

    fn gateway(&self, namespace: &str, inside: &str, rloc: &str, local: &str, hook: Hook) -> Gateway {
        let config = self.config(namespace, inside, rloc, local, hook);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let namespace = self.name(namespace);
        let dataplane = {
            let _there = NetnsGuard::enter(&namespace).unwrap();
            runtime.block_on(Dataplane::start(config)).unwrap()
        };
        Gateway { dataplane, runtime, namespace }
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        for namespace in ["c", "i", "e", "s"] {
            let _ = Command::new("ip").args(["netns", "del", &self.name(namespace)]).status();
            let pins = format!("{}/weir/{}", bpffs::MOUNT_POINT, self.name(namespace));
            let _ = std::fs::remove_dir_all(pins);
            let _ = std::fs::remove_dir_all(format!("/run/weir/{}", self.name(namespace)));
        }
    }
}

pub(crate) struct Gateway {
    dataplane: Dataplane,
    runtime: Runtime,
    namespace: String,
}

impl Gateway {
    pub(crate) fn dataplane(&self) -> &Dataplane {
        &self.dataplane
    }

    pub(crate) fn pins(&self) -> String {
        format!("{}/weir/{}", bpffs::MOUNT_POINT, self.namespace)
    }

    pub(crate) fn set(&mut self, eid: Eid, mapping: Mapping) {
        self.dataplane.set_mapping(eid, mapping);
        let refused = self.runtime.block_on(self.dataplane.commit()).unwrap();
        assert_eq!(refused, []);
    }

    pub(crate) fn survey(&self) -> Surveyed {
        let _there = NetnsGuard::enter(&self.namespace).unwrap();
        self.dataplane.survey().run().unwrap()
    }

    pub(crate) fn apply(&mut self, surveyed: Surveyed) {
        let _there = NetnsGuard::enter(&self.namespace).unwrap();
        assert_eq!(self.runtime.block_on(self.dataplane.apply(surveyed)).unwrap(), []);
    }

    pub(crate) fn follow(&mut self) {
        let surveyed = self.survey();
        self.apply(surveyed);
    }

    pub(crate) fn idle(&self, time: Duration) {
        self.runtime.block_on(tokio::time::sleep(time));
    }

    pub(crate) fn receive(&self, patience: Duration) -> Vec<u8> {
        let mut frame = vec![0; FRAME_MAX];
        let receive =
            async { tokio::time::timeout(patience, self.dataplane.tap().receive(&mut frame)).await };
        let length = self.runtime.block_on(receive).unwrap().unwrap();
        frame.truncate(length);
        frame
    }

    /// The process is gone, without a word.
    pub(crate) fn crash(self) {
        drop(self);
    }

    pub(crate) fn stop(self, on_stop: OnStop) {
        let _there = NetnsGuard::enter(&self.namespace).unwrap();
        self.runtime.block_on(self.dataplane.stop(on_stop)).unwrap();
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}
