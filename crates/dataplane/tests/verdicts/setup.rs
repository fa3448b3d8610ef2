//! A kernel with tables, and what goes into it.

use anyhow::Result;
use bpf_abi::{DECAPSULATED, OFFERED, TrafficKey};

use crate::kernel::{Direction, Input, Kernel};
use crate::model::{Hook, Tables};

pub(crate) const SYN: u8 = 2;
pub(crate) const ACK: u8 = 16;
pub(crate) const FIN: u8 = 1;
pub(crate) const RST: u8 = 4;
pub(crate) const HOOKS: [Hook; 2] = [Hook::Tc, Hook::Xdp];

pub(crate) fn traffic() -> Vec<TrafficKey> {
    let mut keys: Vec<_> = [1, 2, 3, OFFERED].map(|locator| TrafficKey { id: 7, locator }).into();
    keys.push(TrafficKey { id: 9, locator: DECAPSULATED });
    keys
}

pub(crate) fn kernel(tables: Tables) -> Result<Kernel> {
    let mut kernel = Kernel::new()?;
    kernel.install(tables, &traffic())?;
    Ok(kernel)
}

pub(crate) fn itr(hook: Hook, frame: Vec<u8>) -> Input {
    Input { hook, direction: Direction::Itr, frame, gso_size: 0 }
}

pub(crate) fn etr(hook: Hook, frame: Vec<u8>) -> Input {
    Input { hook, direction: Direction::Etr, frame, gso_size: 0 }
}

/// Sends a frame through the ITR; the locator it went to, and whether it began a flow.
pub(crate) fn place(kernel: &mut Kernel, frame: Vec<u8>) -> Result<(u32, bool)> {
    let expected = kernel.check(&itr(Hook::Tc, frame))?;
    let (key, [flows, ..]) = expected.traffic.unwrap_or_else(|| panic!("{expected:?}"));
    Ok((key.locator, flows == 1))
}
