//! The programs in the kernel, their maps filled from the model's tables, one packet at a time.

use anyhow::{Context, Result, bail, ensure};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::{Ebpf, Pod};
use bpf_abi::{
    FlowKey, FlowValue, InterfaceValue, LocalEidValue, LocatorValue, MappingValue, NodeValue, Reason,
    SlotValue, TrafficKey,
};
use dataplane::counters::Counters;
use dataplane::object::{ETR, ETR_XDP, ITR, ITR_XDP, MapOptions, load, load_program};
use dataplane::test_run::{
    Metadata, Outcome, TC_OK, TC_REDIRECT, TC_SHOT, XDP_DROP, XDP_PASS, XDP_REDIRECT, run,
};

use crate::model::{Expected, Hook, Prefix, Tables, Verdict};

/// Interface the test runs come in on.
pub(crate) const LOOPBACK: u32 = 1;

/// Which of the two programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Itr,
    Etr,
}

/// A frame and what the kernel would know about it.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) hook: Hook,
    pub(crate) direction: Direction,
    pub(crate) frame: Vec<u8>,
    pub(crate) gso_size: u32,
}

/// The loaded object and the model beside it.
pub(crate) struct Kernel {
    pub(crate) object: Ebpf,
    pub(crate) tables: Tables,
    traffic: Vec<TrafficKey>,
    /// After every change of the tables another one, as user space does it.
    generation: u32,
    counters: Counters,
}

impl Kernel {
    /// In a network namespace of its own, so that neither routes nor forwarding of the machine matter.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: no memory is passed; only this thread changes its namespace.
        let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        ensure!(done == 0, "a network namespace: {} (needs root)", std::io::Error::last_os_error());
        let mut object = load(MapOptions { flows: Some(65536), ..MapOptions::default() })
            .context("eBPF maps (needs root and a kernel with BTF)")?;
        for name in [ITR, ETR, ITR_XDP, ETR_XDP] {
            load_program(&mut object, name)?;
        }
        let counters = Counters::new(object.take_map("TRAFFIC").context("map")?.try_into()?)?;
        Ok(Self { object, tables: Tables::default(), traffic: Vec::new(), generation: 0, counters })
    }

    fn array<V: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>> {
        Ok(self.object.map_mut(name).context("map")?.try_into()?)
    }

    fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> Result<HashMap<&mut MapData, K, V>> {
        Ok(self.object.map_mut(name).context("map")?.try_into()?)
    }

    fn trie<V: Pod>(&mut self, name: &str) -> Result<LpmTrie<&mut MapData, [u8; 20], V>> {
        Ok(self.object.map_mut(name).context("map")?.try_into()?)
    }

    /// Replaces every map's contents and counts traffic under `traffic`.
    pub(crate) fn install(&mut self, tables: Tables, traffic: &[TrafficKey]) -> Result<()> {
        let old = std::mem::take(&mut self.tables);
        let mut interfaces = self.hash::<u32, InterfaceValue>("INTERFACES")?;
        match tables.interface {
            Some(value) => interfaces.insert(LOOPBACK, value, 0)?,
            None if old.interface.is_some() => interfaces.remove(&LOOPBACK)?,
            None => {}
        }
        replace(&mut self.trie::<MappingValue>("MAP_CACHE")?, old.map_cache.keys(), &tables.map_cache)?;
        replace(&mut self.trie::<LocalEidValue>("LOCAL_EIDS")?, old.local_eids.keys(), &tables.local_eids)?;
        let mut slots = self.array::<SlotValue>("SLOTS")?;
        let no_slot = SlotValue { member_count: 0, pad: 0, members: Default::default(), buckets: [0; 1024] };
        for index in old.slots.keys().chain(tables.slots.keys()) {
            slots.set(*index, tables.slots.get(index).unwrap_or(&no_slot), 0)?;
        }
        let mut locators = self.array::<LocatorValue>("LOCATORS")?;
        for index in old.locators.keys().chain(tables.locators.keys()) {
            locators.set(*index, tables.locators.get(index).copied().unwrap_or_default(), 0)?;
        }
        let mut flows = self.hash::<FlowKey, FlowValue>("FLOWS")?;
        for key in old.flows.keys() {
            flows.remove(key)?;
        }
        for (key, value) in &tables.flows {
            flows.insert(key, value, 0)?;
        }
        self.generation += 1;
        let node = NodeValue { generation: self.generation, ..tables.node };
        self.array::<NodeValue>("NODE")?.set(0, node, 0)?;
        self.tables = tables;
        self.count_under(traffic)
    }

    fn count_under(&mut self, traffic: &[TrafficKey]) -> Result<()> {
        let old = std::mem::replace(&mut self.traffic, traffic.to_vec());
        for key in old {
            self.counters.remove(&key)?;
        }
        for key in traffic {
            self.counters.create(*key)?;
        }
        Ok(())
    }

    /// Lets the flows grow older, in the kernel and in the model.
    pub(crate) fn age_flows(&mut self, nanoseconds: u64) -> Result<()> {
        let mut aged = self.tables.clone();
        for (key, flow) in &mut aged.flows {
            flow.last_seen = self
                .hash::<FlowKey, FlowValue>("FLOWS")?
                .get(key, 0)?
                .last_seen
                .checked_sub(nanoseconds)
                .context("the machine has not been up for as long as a flow would be idle")?;
        }
        let traffic = self.traffic.clone();
        self.install(aged, &traffic)
    }

    pub(crate) fn reasons(&self) -> Result<Vec<u64>> {
        let map: PerCpuArray<_, u64> = self.object.map("REASONS").context("map")?.try_into()?;
        (0..).zip(Reason::ALL).map(|(index, _)| Ok(map.get(&index, 0)?.iter().sum())).collect()
    }

    pub(crate) fn traffic(&self, key: TrafficKey) -> Result<[u64; 3]> {
        let value = self.counters.get(&key)?.context("counters")?;
        Ok([value.flows, value.packets, value.bytes])
    }

    pub(crate) fn run(&self, input: &Input) -> Result<Outcome> {
        let name = match (input.hook, input.direction) {
            (Hook::Tc, Direction::Itr) => ITR,
            (Hook::Tc, Direction::Etr) => ETR,
            (Hook::Xdp, Direction::Itr) => ITR_XDP,
            (Hook::Xdp, Direction::Etr) => ETR_XDP,
        };
        let program = self.object.program(name).context("program")?;
        Ok(run(program, &input.frame, Metadata { gso_size: input.gso_size, gso_segs: 0 })?)
    }

    /// Runs the packet through kernel and model; they have to agree in everything. Returns what both said.
    pub(crate) fn check(&mut self, input: &Input) -> Result<Expected> {
        let before = self.reasons()?;
        let counted: Vec<_> = self.traffic.iter().map(|key| self.traffic(*key)).collect::<Result<_>>()?;
        let outcome =
            self.run(input).with_context(|| format!("{} octets {input:02x?}", input.frame.len()))?;
        let gso_size = input.gso_size as usize;
        let expected = match input.direction {
            Direction::Itr => self.tables.itr(input.hook, &input.frame, gso_size, monotonic_coarse()),
            Direction::Etr => self.tables.etr(input.hook, &input.frame, gso_size),
        };
        let expected = if gso_size == 0 { expected } else { without_gso_type(&input.frame, expected) };
        let what = || format!("{input:02x?}\nexpected {expected:02x?}\noutcome  {outcome:02x?}");
        let after = self.reasons()?;
        for ((reason, before), after) in Reason::ALL.iter().zip(&before).zip(&after) {
            let added = u64::from(*reason == expected.reason);
            ensure!(
                after - before == added,
                "{} counted {} times\n{}",
                reason.label(),
                after - before,
                what()
            );
        }
        ensure!(verdict(input.hook, outcome.action)? == expected.verdict, "verdict\n{}", what());
        ensure!(expected.verdict == Verdict::Drop || outcome.packet == expected.packet, "packet\n{}", what());
        for (key, before) in self.traffic.iter().zip(counted) {
            let carried = expected.traffic.filter(|(counted, _)| counted == key);
            let flows = expected.flows.iter().filter(|counted| *counted == key).count() as u64;
            let added = carried.map_or([flows, 0, 0], |(_, [_, packets, bytes])| [flows, packets, bytes]);
            let sum = std::array::from_fn(|at| before[at] + added[at]);
            ensure!(
                self.traffic(*key)? == sum,
                "{key:?} is {:?}, not {sum:?}\n{}",
                self.traffic(*key)?,
                what()
            );
        }
        Ok(expected)
    }

    /// The kernel's flow table holds what the model's holds.
    pub(crate) fn check_flows(&mut self) -> Result<()> {
        let expected = self.tables.flows.clone();
        let flows = self.hash::<FlowKey, FlowValue>("FLOWS")?;
        ensure!(
            flows.keys().count() == expected.len(),
            "{} flows, not {}",
            flows.keys().count(),
            expected.len()
        );
        for (key, value) in expected {
            let found = flows.get(&key, 0).with_context(|| format!("{key:?}"))?;
            // The model reads the clock a moment later than the program.
            let same = FlowValue { last_seen: value.last_seen, ..found } == value
                && value.last_seen.abs_diff(found.last_seen) < 2_000_000_000;
            ensure!(same, "{key:?}: {found:?}, not {value:?}");
        }
        Ok(())
    }
}

/// A test run can say the size of segments but not of which protocol they are, and such a packet gets no room.
fn without_gso_type(frame: &[u8], expected: Expected) -> Expected {
    if expected.packet.len() == frame.len() {
        return expected;
    }
    Expected {
        reason: Reason::DropAdjustRoom,
        verdict: Verdict::Drop,
        packet: Vec::new(),
        traffic: None,
        ..expected
    }
}

fn replace<'a, V: Pod>(
    trie: &mut LpmTrie<&mut MapData, [u8; 20], V>,
    old: impl Iterator<Item = &'a Prefix>,
    new: &std::collections::HashMap<Prefix, V>,
) -> Result<()> {
    for prefix in old {
        trie.remove(&key(prefix))?;
    }
    for (prefix, value) in new {
        trie.insert(&key(prefix), value, 0)?;
    }
    Ok(())
}

fn key(prefix: &Prefix) -> Key<[u8; 20]> {
    let mut bits = [0; 20];
    bits[..4].copy_from_slice(&prefix.instance_id.to_be_bytes());
    bits[4..].copy_from_slice(&prefix.address);
    Key::new(32 + prefix.bits, bits)
}

fn verdict(hook: Hook, action: u32) -> Result<Verdict> {
    Ok(match (hook, action) {
        (Hook::Tc, TC_OK) | (Hook::Xdp, XDP_PASS) => Verdict::Pass,
        (Hook::Tc, TC_SHOT) | (Hook::Xdp, XDP_DROP) => Verdict::Drop,
        (Hook::Tc, TC_REDIRECT) | (Hook::Xdp, XDP_REDIRECT) => Verdict::Redirect,
        other => bail!("return value {other:?}"),
    })
}

/// The clock of `bpf_ktime_get_coarse_ns`.
pub(crate) fn monotonic_coarse() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is valid for the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) };
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}
