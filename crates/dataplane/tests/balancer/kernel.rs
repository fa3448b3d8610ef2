//! The program in the kernel, its maps filled from the model's state, one frame at a time.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::{Ebpf, Pod};
use bpf_abi::balancer::{
    BackendValue, BalancedFlowValue, BalancedValue, BalancerNodeValue, TableChunk, TunnelValue, VipKey,
    VipValue,
};
use bpf_abi::{BalancerReason, FlowKey};
use dataplane::object::{BALANCER, BalancerMapOptions};
use dataplane::test_run::{Metadata, Outcome, XDP_DROP, XDP_PASS, XDP_TX, run};

use crate::model::{Expected, State, Verdict};

const VIPS: &str = "VIP_COUNTERS";
const BACKENDS: &str = "BACKEND_COUNTERS";

/// The loaded object and the model beside it.
pub(crate) struct Kernel {
    object: Ebpf,
    pub(crate) state: State,
    /// Of the maps' contents.
    generation: u32,
    /// What is counted by now, per reason.
    reasons: Vec<u64>,
    /// Packets and octets per map and index.
    counted: BTreeMap<(&'static str, u32), [u64; 2]>,
}

impl Kernel {
    pub(crate) fn new() -> Result<Self> {
        let object = crate::load(BalancerMapOptions::default())
            .context("the balancer (needs root and a kernel with BTF)")?;
        let reasons = vec![0; BalancerReason::ALL.len()];
        Ok(Self { object, state: State::default(), generation: 0, reasons, counted: BTreeMap::new() })
    }

    /// A map for a test's own use.
    pub(crate) fn take_map(&mut self, name: &str) -> Result<aya::maps::Map> {
        self.object.take_map(name).context("map")
    }

    fn array<V: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>> {
        Ok(self.object.map_mut(name).context("map")?.try_into()?)
    }

    fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> Result<HashMap<&mut MapData, K, V>> {
        Ok(self.object.map_mut(name).context("map")?.try_into()?)
    }

    /// Makes an array hold what `new` says, where it and `old` say something.
    fn replace<'a, V: Pod + Default>(
        &mut self,
        name: &str,
        old: impl Iterator<Item = &'a u32>,
        new: &BTreeMap<u32, V>,
    ) -> Result<()> {
        let mut array = self.array::<V>(name)?;
        for index in old.filter(|index| !new.contains_key(index)) {
            array.set(*index, V::default(), 0)?;
        }
        for (index, value) in new {
            array.set(*index, value, 0)?;
        }
        Ok(())
    }

    /// Replaces every map's contents; the flow table is the state's too.
    pub(crate) fn install(&mut self, state: State) -> Result<()> {
        let mut flows = self.hash::<FlowKey, BalancedFlowValue>("BALANCED_FLOWS")?;
        for key in flows.keys().collect::<Result<Vec<_>, _>>()? {
            flows.remove(&key)?;
        }
        for (key, value) in &state.flows {
            flows.insert(key, value, 0)?;
        }
        self.install_but_flows(state)
    }

    /// As user space does it: what the kernel remembers stays.
    pub(crate) fn install_but_flows(&mut self, state: State) -> Result<()> {
        let old = std::mem::take(&mut self.state);
        let mut vips = self.hash::<VipKey, VipValue>("BALANCER_VIPS")?;
        for key in old.vips.keys().filter(|key| !state.vips.contains_key(key)) {
            vips.remove(key)?;
        }
        for (key, value) in &state.vips {
            vips.insert(key, value, 0)?;
        }
        self.replace::<TableChunk>("TABLES", old.chunks.keys(), &state.chunks)?;
        self.replace::<BackendValue>("BACKENDS", old.backends.keys(), &state.backends)?;
        self.replace::<TunnelValue>("TUNNELS", old.tunnels.keys(), &state.tunnels)?;
        self.generation += 1;
        let node = BalancerNodeValue { generation: self.generation, ..state.node };
        self.array::<BalancerNodeValue>("BALANCER_NODE")?.set(0, node, 0)?;
        self.state = state;
        Ok(())
    }

    /// From now on every packet asks the VIP table.
    pub(crate) fn remember_nothing(&mut self) -> Result<()> {
        let node = BalancerNodeValue { generation: 0, ..self.state.node };
        Ok(self.array::<BalancerNodeValue>("BALANCER_NODE")?.set(0, node, 0)?)
    }

    fn reason(&self, reason: BalancerReason) -> Result<u64> {
        let map: PerCpuArray<_, u64> = self.object.map("BALANCER_REASONS").context("map")?.try_into()?;
        Ok(map.get(&(reason as u32), 0)?.iter().sum())
    }

    /// Packets and octets of one counter.
    fn counted(&self, map: &str, index: u32) -> Result<[u64; 2]> {
        let row = if map == VIPS { bpf_abi::balancer::VIPS } else { bpf_abi::balancer::BACKENDS };
        let map: Array<_, BalancedValue> = self.object.map(map).context("map")?.try_into()?;
        (index..map.len()).step_by(row).try_fold([0, 0], |[packets, octets], cell| {
            let value = map.get(&cell, 0)?;
            Ok([packets + value.packets, octets + value.bytes])
        })
    }

    pub(crate) fn run(&self, frame: &[u8]) -> Result<Outcome> {
        let program = self.object.program(BALANCER).context("program")?;
        Ok(run(program, frame, Metadata::default())?)
    }

    /// Runs the frame through kernel and model; they have to agree in everything. Returns what both said.
    pub(crate) fn check(&mut self, frame: &[u8]) -> Result<Expected> {
        let outcome = self.run(frame).with_context(|| format!("{} octets {frame:02x?}", frame.len()))?;
        let expected = self.state.run(frame);
        self.state.remember(&expected);
        self.reasons[expected.reason as usize] += 1;
        if let Some((vip, backend)) = expected.counted {
            for key in [(VIPS, vip), (BACKENDS, backend)] {
                let [packets, octets] = self.counted.entry(key).or_default();
                *packets += 1;
                *octets += frame.len() as u64;
            }
        }
        self.compare(&expected, &outcome).with_context(|| {
            let (expected, outcome) = (show(&expected), show_outcome(&outcome));
            format!("frame    {}\nexpected {expected}\noutcome  {outcome}", hex(frame))
        })?;
        Ok(expected)
    }

    /// What this frame should have changed. That it changed nothing else, [`Self::check_all`] says.
    fn compare(&mut self, expected: &Expected, outcome: &Outcome) -> Result<()> {
        let reason = expected.reason;
        if self.reason(reason)? != self.reasons[reason as usize] {
            self.check_reasons()?;
        }
        ensure!(verdict(outcome.action)? == expected.verdict, "verdict");
        ensure!(expected.verdict == Verdict::Drop || outcome.packet == expected.frame, "frame");
        if let Some((vip, backend)) = expected.counted {
            self.check_counter(VIPS, vip)?;
            self.check_counter(BACKENDS, backend)?;
        }
        if let Some((key, value)) = expected.remembered {
            let flows = self.hash::<FlowKey, BalancedFlowValue>("BALANCED_FLOWS")?;
            let found = flows.get(&key, 0).with_context(|| format!("{key:?} is not remembered"))?;
            ensure!(found == value, "remembered as {found:?}, not {value:?}");
        }
        Ok(())
    }

    /// After a disagreement: what is counted from here on is compared again.
    pub(crate) fn recount(&mut self) -> Result<()> {
        for (at, reason) in BalancerReason::ALL.iter().enumerate() {
            self.reasons[at] = self.reason(*reason)?;
        }
        let vips = self.state.vips.values().map(|vip| (VIPS, vip.id));
        let backends = self.state.backends.keys().map(|index| (BACKENDS, *index));
        let keys: Vec<_> = vips.chain(backends).collect();
        for (map, index) in keys {
            let found = self.counted(map, index)?;
            self.counted.insert((map, index), found);
        }
        Ok(())
    }

    fn check_reasons(&self) -> Result<()> {
        let mut wrong = Vec::new();
        for (reason, expected) in BalancerReason::ALL.iter().zip(&self.reasons) {
            let found = self.reason(*reason)?;
            if found != *expected {
                wrong.push(format!("{} {found} times, not {expected}", reason.label()));
            }
        }
        ensure!(wrong.is_empty(), "counted {}", wrong.join(", "));
        Ok(())
    }

    fn check_counter(&self, map: &'static str, index: u32) -> Result<()> {
        let (found, expected) = (self.counted(map, index)?, self.counted.get(&(map, index)).copied());
        ensure!(found == expected.unwrap_or_default(), "{map} {index} is {found:?}, not {expected:?}");
        Ok(())
    }

    /// Reasons, counters and flow table hold what the model's hold, and nothing else.
    pub(crate) fn check_all(&mut self) -> Result<()> {
        self.check_reasons()?;
        for vip in self.state.vips.values() {
            self.check_counter(VIPS, vip.id)?;
        }
        for index in self.state.backends.keys() {
            self.check_counter(BACKENDS, *index)?;
        }
        let expected = self.state.flows.clone();
        let flows = self.hash::<FlowKey, BalancedFlowValue>("BALANCED_FLOWS")?;
        let found = flows.iter().collect::<Result<std::collections::HashMap<_, _>, _>>()?;
        ensure!(found == expected, "remembered {found:02x?}\nexpected {expected:02x?}");
        Ok(())
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|octet| format!("{octet:02x}")).collect()
}

fn show(expected: &Expected) -> String {
    let Expected { reason, counted, remembered, frame, .. } = expected;
    format!("{} VIP and backend {counted:?}, remembered {remembered:?}\n  {}", reason.label(), hex(frame))
}

fn show_outcome(outcome: &Outcome) -> String {
    format!("action {}\n  {}", outcome.action, hex(&outcome.packet))
}

fn verdict(action: u32) -> Result<Verdict> {
    Ok(match action {
        XDP_PASS => Verdict::Pass,
        XDP_DROP => Verdict::Drop,
        XDP_TX => Verdict::Tx,
        other => bail!("return value {other}"),
    })
}
