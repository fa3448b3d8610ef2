//! Changes under traffic: tables and programs are replaced a thousand times, and no packet notices.

mod agent;
mod port;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap};
use aya::programs::Xdp;
use aya::programs::xdp::XdpMode;
use aya::{Ebpf, Pod};
use bpf_abi::balancer::segment::NONE;
use bpf_abi::balancer::{BackendValue, BalancerNodeValue, FlowHash, TableChunk, VipKey, VipValue, slot};
use dataplane::bpffs;
use dataplane::object::{BALANCER, BalancerMapOptions};
use dataplane::test_run::XDP_TX;

use self::port::{INSIDE, Switch, make_ports};
use crate::frames::{Flow, flow};
use crate::kernel::Kernel;
use crate::model::{State, UDP};
use crate::random::Random;
use crate::site::{SEED, Vip, backend_mac, flow_key};

const SWAPS: u32 = 1000;

/// A directory for pins, gone with its end.
struct Pins(PathBuf);

impl Pins {
    fn new(test: &str) -> Result<Self> {
        bpffs::ensure_mounted()?;
        let path = PathBuf::from(bpffs::MOUNT_POINT).join(format!("weir-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// The program over maps that it shares with all that are loaded from here.
    fn load(&self) -> Result<Ebpf> {
        crate::load(BalancerMapOptions { pin_directory: Some(&self.0), ..Default::default() })
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn xdp<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(object.program_mut(name).context("no program")?.try_into()?)
}

fn fill<V: Pod>(object: &mut Ebpf, name: &str, values: &std::collections::BTreeMap<u32, V>) -> Result<()> {
    let mut array: Array<_, V> = object.map_mut(name).context("map")?.try_into()?;
    values.iter().try_for_each(|(index, value)| Ok(array.set(*index, value, 0)?))
}

/// Two tables of one VIP, of different sizes, and memory around them that names another VIP's backend.
struct Swap {
    state: State,
    tables: [Vec<u16>; 2],
    values: [VipValue; 2],
    key: VipKey,
    /// The other VIP, which changes as often.
    other: (VipKey, VipValue),
}

impl Swap {
    /// Backends from 10 and from 20 on; a packet that reads half of each, or the other VIP's value, finds number 9.
    fn new() -> Self {
        let mut random = Random(77);
        let mut state = State::node();
        for index in (9..15).chain(20..25) {
            state.add_backend(index, NONE, false);
        }
        let mut table = |first: u16, size: usize| -> Vec<u16> {
            (0..size).map(|_| first + random.below(5) as u16).collect()
        };
        let tables = [table(10, 251), table(20, 4093)];
        state.add_vip(Vip { protocol: UDP, slots: &tables[0], ..Vip::default() });
        let key = *state.vips.keys().find(|key| key.protocol == UDP).unwrap();
        let first = state.vips[&key];
        state.add_table(&[9; 8192]);
        let (table, size) = state.add_table(&tables[1]);
        state.add_table(&[9; 8192]);
        let second = VipValue { table, size, ..first };
        state.add_vip(Vip { id: 8, port: 81, protocol: UDP, slots: &[9; 251], ..Vip::default() });
        let other = state.vips.iter().find(|(key, _)| key.port == [0, 81]).unwrap();
        let other = (*other.0, *other.1);
        Self { state, tables, values: [first, second], key, other }
    }

    /// The value for the `number`th change.
    fn value(&self, number: u32) -> VipValue {
        self.values[number as usize % 2].stamped(&self.key, 100 + number)
    }

    /// The backends that a flow has in the two tables.
    fn backends(&self, flow: &Flow) -> [u16; 2] {
        let hash = FlowHash::of_seed(SEED).of(&flow_key(flow, UDP, NONE));
        [0, 1].map(|at| self.tables[at][slot(hash, self.values[at].size) as usize])
    }
}

fn flows() -> Vec<Flow> {
    (0..256).map(|port| flow(false).with_source_port(20_000 + 7 * port)).collect()
}

/// Through BPF_PROG_TEST_RUN, while another processor replaces two VIPs as fast as it can: the kernel uses the memory
/// of the one's old value for the other's new one while a packet still reads it.
#[test]
fn no_packet_sees_half_a_change_or_anothers() -> Result<()> {
    let swap = Swap::new();
    let mut kernel = Kernel::new()?;
    kernel.install(swap.state.clone())?;
    kernel.remember_nothing()?;
    let mut vips: HashMap<_, VipKey, VipValue> = kernel.take_map("BALANCER_VIPS")?.try_into()?;
    let (ended, swaps) = (AtomicBool::new(false), AtomicU32::new(0));
    let deadline = Instant::now() + Duration::from_secs(2);
    thread::scope(|scope| {
        let writer = scope.spawn(|| -> Result<()> {
            while !ended.load(Ordering::Relaxed) {
                let number = swaps.fetch_add(1, Ordering::Relaxed);
                vips.insert(swap.key, swap.value(number), 0)?;
                vips.insert(swap.other.0, swap.other.1.stamped(&swap.other.0, number), 0)?;
            }
            Ok(())
        });
        let read = (|| {
            let flows: Vec<_> = flows()
                .iter()
                .map(|flow| (crate::frames::frame(&[], &flow.udp()), swap.backends(flow)))
                .collect();
            for (frame, backends) in flows.iter().cycle() {
                let sent = kernel.run(frame)?;
                let right = backends.iter().any(|at| sent.packet[..6] == backend_mac((*at).into()));
                ensure!(
                    sent.action == XDP_TX && right,
                    "action {} {:02x?} instead of {backends:?}",
                    sent.action,
                    &sent.packet[..6]
                );
                if Instant::now() > deadline {
                    break;
                }
            }
            Ok(())
        })();
        ended.store(true, Ordering::Relaxed);
        writer.join().expect("the writer does not panic").and(read)
    })?;
    println!("{} swaps", swaps.load(Ordering::Relaxed));
    assert!(swaps.load(Ordering::Relaxed) > SWAPS);
    Ok(())
}

/// On a port with traffic, each round with another table and another program.
#[test]
fn thousand_swaps() -> Result<()> {
    let _program = make_ports()?;
    let swap = Swap::new();
    let pins = Pins::new("swaps")?;
    let mut programs = [pins.load()?, pins.load()?];
    let [first, _] = &mut programs;
    fill::<TableChunk>(first, "TABLES", &swap.state.chunks)?;
    fill::<BackendValue>(first, "BACKENDS", &swap.state.backends)?;
    let mut node: Array<_, BalancerNodeValue> = first.take_map("BALANCER_NODE").context("map")?.try_into()?;
    node.set(0, swap.state.node, 0)?;
    let mut vips: HashMap<_, VipKey, VipValue> =
        first.take_map("BALANCER_VIPS").context("map")?.try_into()?;
    vips.insert(swap.key, swap.value(0), 0)?;
    let program = xdp(first, BALANCER)?;
    let link = program.attach(INSIDE, XdpMode::Driver)?;
    let mut link = Some(program.take_link(link)?);

    let mut switch = Switch::new()?;
    let flows = flows();
    let backends: Vec<[u16; 2]> = flows.iter().map(|flow| swap.backends(flow)).collect();
    let seen = [const { AtomicU32::new(0) }; 2];
    let mut check = |number: usize, frame: &[u8]| {
        let backends = backends[number];
        let at = backends.iter().position(|at| frame[..6] == backend_mac((*at).into()));
        let at = at.with_context(|| format!("{:02x?} instead of {backends:?}", &frame[..14]))?;
        seen[at].fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    let ended = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        let traffic = scope.spawn(|| switch.run(&flows, &ended, &mut check));
        let changes = (1..=SWAPS).try_for_each(|number| -> Result<()> {
            vips.insert(swap.key, swap.value(number), 0)?;
            // As user space does after every change, or the old value is remembered.
            node.set(0, BalancerNodeValue { generation: number, ..swap.state.node }, 0)?;
            let program = xdp(&mut programs[number as usize % 2], BALANCER)?;
            let id = program.attach_to_link(link.take().context("link")?)?;
            link = Some(program.take_link(id)?);
            Ok(())
        });
        ended.store(true, Ordering::Relaxed);
        let traffic = traffic.join().expect("the traffic does not panic");
        changes.and(traffic)
    })?;
    let seen = seen.map(AtomicU32::into_inner);
    println!("{sent} frames, {seen:?} by the two tables");
    ensure!(seen[0] + seen[1] == sent && seen.iter().all(|seen| *seen > SWAPS), "{seen:?} of {sent}");
    Ok(())
}
