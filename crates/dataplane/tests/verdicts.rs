//! The verifier takes every program.

use dataplane::object::{ETR, ETR_XDP, ITR, ITR_XDP, MapOptions, load, load_program};

#[test]
fn verifier_takes_every_program() {
    let mut object = load(MapOptions::default()).expect("maps (needs root and kernel BTF)");
    for name in [ITR, ETR, ITR_XDP, ETR_XDP] {
        load_program(&mut object, name).unwrap_or_else(|error| panic!("{error}"));
    }
}
