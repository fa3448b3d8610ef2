//! The program is tried on a frame, with maps of its own, before it replaces the one at work.

use aya::Ebpf;
use bpf_abi::balancer::{BACKEND_USABLE, BackendValue, BalancerNodeValue, VipKey, VipValue};

use crate::balancer::maps::Maps;
use crate::balancer::observed::Write;
use crate::balancer::table::Form;
use crate::eid::mapped;
use crate::error::DataplaneError;
use crate::object::{BALANCER, BalancerMapOptions, load_balancer, load_program};
use crate::test_run::{Metadata, XDP_TX, run};

const PORT: [u8; 6] = [2, 0, 0, 0, 0, 1];
const BACKEND: [u8; 6] = [2, 0, 0, 0, 0, 2];
const INDEX: u16 = 7;

/// A TCP SYN to 192.0.2.10:80, untagged.
#[rustfmt::skip]
const FRAME: [u8; 60] = [
    2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 0x08, 0x00,
    0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0x4e, 0x91, 198, 51, 100, 1, 192, 0, 2, 10,
    0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0,
];

/// Runs the program that would be attached on a frame whose way is known.
///
/// # Errors
/// [`DataplaneError::SelfTest`] if the frame goes another way, [`DataplaneError::Load`] if the kernel refuses the
/// program.
pub(crate) fn self_test() -> Result<(), DataplaneError> {
    let options = BalancerMapOptions { flows: Some(1024), chunks: Some(64), pin_directory: None };
    let mut object = load_balancer(options).map_err(|e| DataplaneError::Load(Box::new(e)))?;
    load_program(&mut object, BALANCER).map_err(|e| DataplaneError::Load(Box::new(e)))?;
    fill(&mut object)?;
    let missing = || DataplaneError::Object { what: "program", name: BALANCER.to_owned() };
    let program = object.program(BALANCER).ok_or_else(missing)?;
    let outcome = run(program, &FRAME, Metadata::default()).map_err(|e| DataplaneError::Load(Box::new(e)))?;
    let mut expected = FRAME;
    expected[..6].copy_from_slice(&BACKEND);
    expected[6..12].copy_from_slice(&PORT);
    if outcome.action == XDP_TX && outcome.packet == expected {
        return Ok(());
    }
    let (action, packet) = (outcome.action, outcome.packet);
    Err(DataplaneError::SelfTest { program: BALANCER, outcome: format!("action {action}, {packet:02x?}") })
}

fn fill(object: &mut Ebpf) -> Result<(), DataplaneError> {
    let mut maps = Maps::take(object)?;
    maps.set_node(&BalancerNodeValue { mac: PORT, ..BalancerNodeValue::default() })?;
    let address = mapped([192, 0, 2, 10].into());
    let key = VipKey { address, segment: 0, port: 80_u16.to_be_bytes(), protocol: 6, pad: 0 };
    let form = Form::of(&[INDEX; 251]);
    let table = form.at(1);
    let vip = VipValue { table: table.named, size: table.size, ..VipValue::default() };
    let backend = BackendValue { mac: BACKEND, flags: BACKEND_USABLE, segment: 0, serial: 1 };
    let writes = [
        Write::Backend(INDEX, backend),
        Write::Table(table, form.chunks),
        Write::Vip(key, vip.stamped(&key, 1)),
    ];
    writes.iter().try_for_each(|write| maps.write(write))
}
