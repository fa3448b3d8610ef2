//! A port in a namespace of its own.

use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use aya::maps::MapData;
use aya::programs::xdp::{Xdp, XdpMode};
use aya::programs::{ProgramInfo, loaded_programs};
use dataplane::balancer::{Balancer, BalancerConfig, Followed, XdpHook};
use dataplane::netlink::{Link, Netlink};
use dataplane::netns::NetnsGuard;
use dataplane::object::load_bench;
use dataplane::test_run::XDP_TX;
use dataplane::{DataplaneError, OnStop, bpffs};
use tokio::runtime::{Builder, Runtime};

/// Removes its namespace and pins when dropped, also after a failed test.
pub(crate) struct Port {
    name: String,
    root: PathBuf,
    runtime: Runtime,
}

impl Port {
    pub(crate) fn new(test: &str) -> Self {
        bpffs::ensure_mounted().unwrap();
        let name = format!("db-{}-{test}", std::process::id());
        let root = Path::new(bpffs::MOUNT_POINT).join(&name);
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let port = Self { name, root, runtime };
        run(&["netns", "add", &port.name]);
        port.make_again();
        port
    }

    pub(crate) fn config(&self) -> BalancerConfig {
        BalancerConfig {
            node: "node".to_owned(),
            interface: "p0".to_owned(),
            mode: XdpHook::Native,
            pin_root: Some(self.root.clone()),
            on_stop: OnStop::Detach,
            seed: 7,
            vteps: Vec::new(),
            flows: Some(4096),
            table_memory: 4 << 20,
        }
    }

    pub(crate) fn pins(&self) -> PathBuf {
        bpffs::pin_path_under(&self.root, "node")
    }

    pub(crate) fn within<T>(&self, run: impl FnOnce() -> T) -> T {
        let _there = NetnsGuard::enter(&self.name).unwrap();
        run()
    }

    pub(crate) fn try_start(&self, config: BalancerConfig) -> Result<Balancer, DataplaneError> {
        self.within(|| self.runtime.block_on(Balancer::start(&config)))
    }

    pub(crate) fn start(&self, config: BalancerConfig) -> Balancer {
        self.try_start(config).unwrap()
    }

    pub(crate) fn stop(&self, balancer: Balancer) {
        self.within(|| self.runtime.block_on(balancer.stop())).unwrap();
    }

    pub(crate) fn ip(&self, arguments: &[&str]) {
        run(&[&["-n", &self.name], arguments].concat());
    }

    fn link(&self) -> Link {
        self.find_link("p0").unwrap()
    }

    pub(crate) fn find_link(&self, name: &str) -> Option<Link> {
        let ask = async { Netlink::connect(false)?.link(name).await };
        self.within(|| self.runtime.block_on(ask)).unwrap()
    }

    pub(crate) fn follow(&self, balancer: &mut Balancer) -> Result<Followed, DataplaneError> {
        let link = self.find_link("p0");
        self.within(|| balancer.follow(link.as_ref()))
    }

    /// A port of the same name, as a driver that is loaded again makes it.
    pub(crate) fn make_again(&self) {
        self.ip(&["link", "add", "p0", "type", "veth", "peer", "name", "p1"]);
        self.ip(&["link", "set", "p0", "up"]);
        self.ip(&["link", "set", "p1", "up"]);
    }

    pub(crate) fn xdp_program(&self) -> Option<u32> {
        self.xdp_program_of("p0")
    }

    pub(crate) fn xdp_program_of(&self, interface: &str) -> Option<u32> {
        self.find_link(interface).unwrap().xdp.map(|xdp| xdp.program)
    }

    pub(crate) fn wait_until_free(&self) {
        self.wait_until_free_of("p0");
    }

    /// The kernel takes a program off a little after its last user is gone.
    pub(crate) fn wait_until_free_of(&self, interface: &str) {
        let free = (0..1000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            self.xdp_program_of(interface).is_none()
        });
        assert!(free, "a program is still there after ten seconds");
    }

    pub(crate) fn xdp_mode(&self) -> Option<XdpHook> {
        let native = self.link().xdp?.native;
        Some(if native { XdpHook::Native } else { XdpHook::Generic })
    }

    /// Memory of all tables.
    pub(crate) fn tables(&self) -> Vec<[u16; 32]> {
        let map = aya::maps::Map::Array(MapData::from_pin(self.pins().join("TABLES")).unwrap());
        let tables = aya::maps::Array::<_, [u16; 32]>::try_from(map).unwrap();
        tables.iter().take(1024).map(Result::unwrap).collect()
    }

    pub(crate) fn pin_a_map(&self, pin: &Path) {
        let object = load_bench().unwrap();
        object.map("SINK").unwrap().pin(pin).unwrap();
    }

    /// Somebody else's program, until it is dropped.
    pub(crate) fn attach_other(&self) -> aya::Ebpf {
        let mut object = load_bench().unwrap();
        let program: &mut Xdp = object.program_mut("empty_xdp").unwrap().try_into().unwrap();
        program.load().unwrap();
        self.within(|| program.attach("p0", XdpMode::Driver)).unwrap();
        object
    }

    /// What the program on the port makes of a TCP SYN to 192.0.2.10:80.
    pub(crate) fn run(&self, source_port: u16) -> Vec<u8> {
        let mut frame = [0; 60];
        frame[..6].copy_from_slice(&self.link().mac);
        frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
        frame[17] = 40;
        frame[22..24].copy_from_slice(&[64, 6]);
        frame[26..34].copy_from_slice(&[198, 51, 100, 1, 192, 0, 2, 10]);
        frame[34..36].copy_from_slice(&source_port.to_be_bytes());
        frame[37] = 80;
        frame[46..48].copy_from_slice(&[0x50, 2]);
        let (action, packet) = self.run_frame(&frame);
        assert_eq!(action, XDP_TX);
        packet
    }

    /// What the program on the port makes of an IPv4 packet to it: what it decides, and the frame then.
    pub(crate) fn run_packet(&self, packet: &[u8]) -> (u32, Vec<u8>) {
        let header = [&self.link().mac[..], &[2, 0, 0, 0, 0, 9, 8, 0]].concat();
        self.run_frame(&[&header[..], packet].concat())
    }

    fn run_frame(&self, frame: &[u8]) -> (u32, Vec<u8>) {
        let id = self.xdp_program().unwrap();
        let info = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id).unwrap();
        run_program(&info, frame)
    }
}

/// A loaded program on a frame. aya runs only programs that it has loaded itself.
fn run_program(info: &ProgramInfo, frame: &[u8]) -> (u32, Vec<u8>) {
    /// `BPF_PROG_TEST_RUN` and the front of its `union bpf_attr`.
    const TEST_RUN: libc::c_long = 10;
    #[repr(C)]
    struct Attributes {
        program: u32,
        action: u32,
        octets_in: u32,
        octets_out: u32,
        data_in: u64,
        data_out: u64,
        rest: [u64; 6],
    }
    let fd = info.fd().unwrap();
    let mut packet = vec![0; 256];
    let mut attributes = Attributes {
        program: u32::try_from(fd.as_fd().as_raw_fd()).unwrap(),
        action: 0,
        octets_in: u32::try_from(frame.len()).unwrap(),
        octets_out: 256,
        data_in: frame.as_ptr() as u64,
        data_out: packet.as_mut_ptr() as u64,
        rest: [0; 6],
    };
    // SAFETY: the attributes, the frame and the packet, of the sizes told, outlive the call.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, TEST_RUN, &raw mut attributes, size_of::<Attributes>()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    packet.truncate(attributes.octets_out as usize);
    (attributes.action, packet)
}

impl Drop for Port {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
        let _ = std::fs::remove_dir_all(&self.root);
        // Of a balancer that was dropped.
        let _ = std::fs::remove_dir_all(Path::new("/run/weir").join(format!("{}-node", self.name)));
    }
}

fn run(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments:?}: {error}");
}
