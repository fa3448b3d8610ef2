//! The same by [`Balancer`]: what an agent does to the maps and the port in months, in a few seconds.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use codec::Instant;
use dataplane::OnStop;
use dataplane::balancer::{Backend, Balancer, BalancerConfig, HashBy, Segment, Vip, XdpHook};

use super::port::{INSIDE, Switch, make_ports};
use super::{Pins, flows};
use crate::frames::Flow;
use crate::random::Random;
use crate::site::{SEED, backend_mac};

const BACKENDS: u32 = 6;
const CHANGES: u32 = 300;
/// Changes until the process starts anew.
const LIFE: u32 = 50;
const DRAIN: Duration = Duration::from_millis(500);

fn config(pins: PathBuf, on_stop: OnStop) -> BalancerConfig {
    BalancerConfig {
        node: "swaps".to_owned(),
        interface: INSIDE.to_owned(),
        mode: XdpHook::Native,
        pin_root: Some(pins),
        on_stop,
        seed: SEED,
        vteps: Vec::new(),
        flows: Some(crate::FLOWS),
        // Room for few tables, so that it is used again and again.
        table_memory: 64 << 10,
    }
}

/// One VIP that remembers flows and one that does not, with other weights at each call.
fn desired(random: &mut Random) -> Vec<Vip> {
    let backends: Vec<Backend> = (0..BACKENDS)
        .map(|at| Backend {
            name: format!("server-{at}"),
            // The last one is always there to take flows.
            weight: if at + 1 == BACKENDS { 10 } else { [0, 1, 10, 100][random.below(4)] },
            usable: true,
            mac: backend_mac(at),
            segment: Segment::NONE,
            tunnel: None,
        })
        .collect();
    [("192.0.2.10:80/udp", true), ("192.0.2.10:81/udp", false)]
        .map(|(id, flow_table)| Vip {
            id: id.parse().unwrap(),
            hash: HashBy::FiveTuple,
            flow_table,
            table_size: None,
            drain: DRAIN,
            echo: true,
            backends: backends.clone(),
        })
        .into()
}

/// Changes and restarts; ends with the data path in place.
fn agent(pins: &Pins, mut balancer: Balancer) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut random, mut now) = (Random(5), Instant::ZERO);
    for number in 1..=CHANGES {
        // Some changes come while a drain lasts, others behind it.
        now = now + Duration::from_millis([100, 300, 700][random.below(3)]);
        balancer.handle_timeout(now)?;
        balancer.apply(now, &desired(&mut random)).with_context(|| format!("change {number}"))?;
        if number % LIFE == 0 {
            drop(balancer);
            balancer = runtime.block_on(Balancer::start(&config(pins.0.clone(), OnStop::Keep)))?;
        }
    }
    Ok(())
}

/// No packet is lost, and no flow that is remembered moves: not by a change, not by a restart.
#[test]
fn changes_and_restarts_of_the_agent() -> Result<()> {
    let _program = make_ports()?;
    let pins = Pins::new("agent")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut balancer = runtime.block_on(Balancer::start(&config(pins.0.clone(), OnStop::Keep)))?;
    balancer.apply(Instant::ZERO, &desired(&mut Random(4)))?;

    let mut switch = Switch::new()?;
    let flows: Vec<Flow> = flows()
        .into_iter()
        .flat_map(|flow| [80, 81].map(|port| Flow { destination_port: port, ..flow.clone() }))
        .collect();
    let mut places: HashMap<usize, [u8; 6]> = HashMap::new();
    let mut moved = 0;
    let mut check = |number: usize, frame: &[u8]| {
        let mac: [u8; 6] = frame[..6].try_into()?;
        ensure!((0..BACKENDS).any(|at| backend_mac(at) == mac), "to {mac:02x?}, who is nobody");
        let before = places.insert(number, mac).unwrap_or(mac);
        ensure!(number % 2 == 1 || before == mac, "flow {number} moved from {before:02x?} to {mac:02x?}");
        moved += u32::from(before != mac);
        Ok(())
    };
    let ended = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        let traffic = scope.spawn(|| switch.run(&flows, &ended, &mut check));
        let changes = agent(&pins, balancer);
        ended.store(true, Ordering::Relaxed);
        let traffic = traffic.join().expect("the traffic does not panic");
        changes.and(traffic)
    })?;
    println!("{sent} frames, {moved} times a flow moved of the VIP that does not remember");
    ensure!(moved > 0 && sent > CHANGES, "nothing happened");
    let last = runtime.block_on(Balancer::start(&config(pins.0.clone(), OnStop::Detach)))?;
    Ok(runtime.block_on(last.stop())?)
}
