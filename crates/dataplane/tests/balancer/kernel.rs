//! The program in the kernel, its maps filled from the model's state, one frame at a time.

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::{Ebpf, Pod};
use bpf_abi::balancer::{
    BackendValue, BalancedFlowValue, BalancedValue, BalancerNodeValue, TableChunk, TunnelValue, VipKey,
    VipValue,
};
use bpf_abi::{BalancerReason, FlowKey};
use dataplane::test_run::{Metadata, Outcome, XDP_DROP, XDP_PASS, run};

use crate::model::{Expected, State, Verdict};

/// Return value of an XDP program that sends the frame out of the port it came in on.
const XDP_TX: u32 = 3;

/// The loaded object and the model beside it.
pub(crate) struct Kernel {
    object: Ebpf,
    pub(crate) state: State,
}

impl Kernel {
    pub(crate) fn new() -> Result<Self> {
        let object = crate::load().context("the balancer (needs root and a kernel with BTF)")?;
        Ok(Self { object, state: State::default() })
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
        new: &std::collections::BTreeMap<u32, V>,
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
        let mut flows = self.hash::<FlowKey, BalancedFlowValue>("BALANCED_FLOWS")?;
        for key in flows.keys().collect::<Result<Vec<_>, _>>()? {
            flows.remove(&key)?;
        }
        for (key, value) in &state.flows {
            flows.insert(key, value, 0)?;
        }
        self.array::<BalancerNodeValue>("BALANCER_NODE")?.set(0, state.node, 0)?;
        self.state = state;
        Ok(())
    }

    pub(crate) fn reasons(&self) -> Result<Vec<u64>> {
        let map: PerCpuArray<_, u64> = self.object.map("BALANCER_REASONS").context("map")?.try_into()?;
        (0..).zip(BalancerReason::ALL).map(|(index, _)| Ok(map.get(&index, 0)?.iter().sum())).collect()
    }

    /// Packets and octets of one counter.
    fn counted(&self, map: &str, index: u32) -> Result<[u64; 2]> {
        let map: PerCpuArray<_, BalancedValue> = self.object.map(map).context("map")?.try_into()?;
        let values = map.get(&index, 0)?;
        Ok([values.iter().map(|v| v.packets).sum(), values.iter().map(|v| v.bytes).sum()])
    }

    /// Every VIP's and backend's counter.
    fn counters(&self) -> Result<Vec<(String, [u64; 2])>> {
        let mut vips: Vec<u32> = self.state.vips.values().map(|vip| vip.id).collect();
        vips.sort_unstable();
        vips.dedup();
        let vips = vips.into_iter().map(|id| ("VIP_COUNTERS", id));
        let backends = self.state.backends.keys().map(|index| ("BACKEND_COUNTERS", *index));
        vips.chain(backends)
            .map(|(map, index)| Ok((format!("{map} {index}"), self.counted(map, index)?)))
            .collect()
    }

    pub(crate) fn run(&self, frame: &[u8]) -> Result<Outcome> {
        let program = self.object.program("weir_balancer").context("program")?;
        Ok(run(program, frame, Metadata::default())?)
    }

    /// Runs the frame through kernel and model; they have to agree in everything. Returns what both said.
    pub(crate) fn check(&mut self, frame: &[u8]) -> Result<Expected> {
        let reasons = self.reasons()?;
        let counters = self.counters()?;
        let outcome = self.run(frame).with_context(|| format!("{} octets {frame:02x?}", frame.len()))?;
        let expected = self.state.run(frame);
        self.state.remember(&expected);
        self.compare(frame, &expected, &outcome, &reasons, &counters).with_context(|| {
            format!(
                "frame    {}\nexpected {}\noutcome  {}",
                hex(frame),
                show(&expected),
                show_outcome(&outcome)
            )
        })?;
        Ok(expected)
    }

    fn compare(
        &mut self,
        frame: &[u8],
        expected: &Expected,
        outcome: &Outcome,
        reasons: &[u64],
        counters: &[(String, [u64; 2])],
    ) -> Result<()> {
        let counted: Vec<(&str, u64)> = BalancerReason::ALL
            .iter()
            .zip(reasons.iter().zip(self.reasons()?))
            .map(|(reason, (before, after))| (reason.label(), after - before))
            .filter(|(_, added)| *added > 0)
            .collect();
        ensure!(counted == [(expected.reason.label(), 1)], "counted as {counted:?}");
        ensure!(verdict(outcome.action)? == expected.verdict, "verdict");
        ensure!(expected.verdict == Verdict::Drop || outcome.packet == expected.frame, "frame");
        let counted = expected.counted.map_or([String::new(), String::new()], |(vip, backend)| {
            [format!("VIP_COUNTERS {vip}"), format!("BACKEND_COUNTERS {backend}")]
        });
        for ((name, before), (_, after)) in counters.iter().zip(self.counters()?) {
            let added = u64::from(counted.contains(name));
            let sum = [before[0] + added, before[1] + added * frame.len() as u64];
            ensure!(after == sum, "{name} is {after:?}, not {sum:?}");
        }
        let flows = self.hash::<FlowKey, BalancedFlowValue>("BALANCED_FLOWS")?;
        if let Some((key, value)) = expected.remembered {
            let found = flows.get(&key, 0).with_context(|| format!("{key:?} is not remembered"))?;
            ensure!(found == value, "remembered as {found:?}, not {value:?}");
        }
        Ok(())
    }

    /// The kernel's flow table holds what the model's holds, and nothing else.
    pub(crate) fn check_flows(&mut self) -> Result<()> {
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
