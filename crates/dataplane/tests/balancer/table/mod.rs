//! Every case of `docs/balancer.md` as a row: what it is, the site, the frame, and what has to come of it.
//!
//! A row says by itself which octets are written; the model and the kernel both have to agree with it.

mod choice;
mod echo;
mod errors;
mod fragments;
mod malformed;
mod segments;
mod tenants;
mod tunnels;

use std::net::Ipv6Addr;

use anyhow::{Context, Result, ensure};
use bpf_abi::balancer::segment::{DOT1Q, KIND, NONE};
use bpf_abi::balancer::{BalancedFlowValue, VipKey};
use bpf_abi::{BalancerReason, FlowKey};

use crate::frames::{ACK, Flow, Ip, PORT, frame, tag};
use crate::kernel::{Kernel, hex};
use crate::model::{Expected, State, TCP, UDP, Verdict};
use crate::site::{VIP, backend_mac, serial};

/// A row of the table.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) site: State,
    pub(crate) frame: Vec<u8>,
    reason: BalancerReason,
    vip: u32,
    backend: Option<u32>,
    /// Offset and octets; everything else stays.
    written: Vec<(usize, Vec<u8>)>,
    remembered: Option<(FlowKey, u32)>,
}

/// A frame that is left alone, or dropped.
pub(crate) fn refused(name: impl Into<String>, site: &State, frame: Vec<u8>, reason: BalancerReason) -> Case {
    Case {
        name: name.into(),
        site: site.clone(),
        frame,
        reason,
        vip: VIP,
        backend: None,
        written: Vec::new(),
        remembered: None,
    }
}

/// A frame whose MAC addresses become the backend's and the port's.
pub(crate) fn sent(
    name: impl Into<String>,
    site: &State,
    frame: Vec<u8>,
    reason: BalancerReason,
    backend: u32,
) -> Case {
    let written = vec![(0, backend_mac(backend).to_vec()), (6, PORT.to_vec())];
    Case { backend: Some(backend), written, ..refused(name, site, frame, reason) }
}

impl Case {
    /// Besides, these octets are written.
    pub(crate) fn and(mut self, at: usize, octets: &[u8]) -> Self {
        self.written.push((at, octets.to_vec()));
        self
    }

    /// Only these octets are written.
    pub(crate) fn only(self, written: &[(usize, &[u8])]) -> Self {
        let written = written.iter().map(|(at, octets)| (*at, octets.to_vec())).collect();
        Self { written, ..self }
    }

    pub(crate) fn of_vip(self, vip: u32) -> Self {
        Self { vip, ..self }
    }

    /// The flow is written into the flow table, with this backend.
    pub(crate) fn remembers(self, flow: FlowKey, backend: u32) -> Self {
        Self { remembered: Some((flow, backend)), ..self }
    }

    fn expected(&self) -> Expected {
        let mut frame = self.frame.clone();
        for (at, octets) in &self.written {
            frame[*at..at + octets.len()].copy_from_slice(octets);
        }
        let name = self.reason.label();
        let verdict = match name {
            _ if name.starts_with("pass_") => Verdict::Pass,
            _ if name.starts_with("drop_") => Verdict::Drop,
            _ => Verdict::Tx,
        };
        let value = |backend: u32| {
            let known = self.site.backends.get(&backend);
            let serial = known.map_or_else(|| serial(backend), |known| known.serial);
            let drain = self.site.vips.values().find(|vip| vip.id == self.vip).map_or(0, |vip| vip.drain);
            BalancedFlowValue { backend, serial, drain, pad: 0 }
        };
        Expected {
            reason: self.reason,
            verdict,
            frame,
            counted: self.backend.map(|backend| (self.vip, backend)),
            remembered: self.remembered.map(|(flow, backend)| (flow, value(backend))),
        }
    }

    /// The model agrees with the row.
    fn check_model(&self) -> Result<()> {
        let (expected, modelled) = (self.expected(), self.site.run(&self.frame));
        ensure!(
            expected == modelled,
            "{}: frame {}\nrow   {} {expected:02x?}\nmodel {} {modelled:02x?}",
            self.name,
            hex(&self.frame),
            expected.reason.label(),
            modelled.reason.label(),
        );
        Ok(())
    }

    /// The kernel agrees with the model, which agrees with the row.
    fn check_kernel(&self, kernel: &mut Kernel) -> Result<()> {
        kernel.install(self.site.clone())?;
        ensure!(kernel.check(&self.frame)? == self.expected(), "the row does not");
        kernel.check_all()?;
        self.check_remembered(kernel).context("the VIPs are remembered")
    }

    /// Likewise while the CPU remembers every VIP that the fast path may take.
    fn check_remembered(&self, kernel: &mut Kernel) -> Result<()> {
        kernel.install(self.site.clone())?;
        let of_fast_path = |key: &&VipKey| key.port != [0; 2] && matches!(key.segment & KIND, NONE | DOT1Q);
        for key in self.site.vips.keys().filter(of_fast_path) {
            kernel.check(&ordinary(key)).context("an ordinary frame")?;
        }
        ensure!(kernel.check(&self.frame)? == self.expected(), "the row does not");
        kernel.check_all()
    }
}

/// A frame to a VIP, of a client that no row has.
fn ordinary(key: &VipKey) -> Vec<u8> {
    let destination = Ipv6Addr::from(key.address).to_canonical();
    let source = if destination.is_ipv6() { "2001:db8:c::99" } else { "198.51.100.99" };
    let ip = Ip::new(source.parse().unwrap(), destination);
    let destination_port = u16::from_be_bytes(key.port);
    let flow = Flow { ip, source_port: 50_000, destination_port, payload: 30 };
    let packet = match key.protocol {
        TCP => flow.tcp(ACK),
        UDP => flow.udp(),
        _ => flow.sctp(7),
    };
    match key.segment {
        NONE => frame(&[], &packet),
        vlan => frame(&[tag((vlan & 0xfff) as u16)], &packet),
    }
}

/// All rows.
pub(crate) fn cases() -> Vec<Case> {
    [
        segments::cases(),
        malformed::cases(),
        fragments::cases(),
        echo::cases(),
        errors::cases(),
        choice::cases(),
        tunnels::cases(),
        tenants::cases(),
    ]
    .concat()
}

fn all(check: impl FnMut(&Case) -> Result<()>) -> Result<()> {
    let cases = cases();
    let errors: Vec<String> =
        cases.iter().map(check).filter_map(Result::err).map(|e| format!("{e:#}")).collect();
    ensure!(errors.is_empty(), "{} of {} rows:\n{}", errors.len(), cases.len(), errors.join("\n\n"));
    println!("{} rows", cases.len());
    Ok(())
}

#[test]
fn model_agrees_with_the_table() -> Result<()> {
    all(Case::check_model)
}

#[test]
fn kernel_agrees_with_the_table() -> Result<()> {
    let mut kernel = Kernel::new()?;
    all(|case| {
        let checked = case.check_kernel(&mut kernel).with_context(|| case.name.clone());
        if checked.is_err() {
            kernel.recount()?;
        }
        checked
    })
}

/// Every reason has a row, and every row another name.
#[test]
fn every_reason_has_a_row() {
    let cases = cases();
    for reason in BalancerReason::ALL {
        let there = cases.iter().any(|case| case.reason == *reason);
        assert!(there, "{}", reason.label());
    }
    let mut names: Vec<&String> = cases.iter().map(|case| &case.name).collect();
    names.sort_unstable();
    names.windows(2).for_each(|pair| assert_ne!(pair[0], pair[1]));
}
