//! An AFI-tagged address, LCAFs included.
#![no_main]

use codec::{Reader, Writer};
use libfuzzer_sys::fuzz_target;
use lisp::wire::Address;

fuzz_target!(|bytes: &[u8]| {
    let Ok(address) = Address::read(&mut Reader::new(bytes), "address") else { return };
    let mut w = Writer::new();
    address.write(&mut w).expect("what was decoded fits an address");
    let encoded = w.into_vec();
    let mut r = Reader::new(&encoded);
    assert_eq!(Address::read(&mut r, "address"), Ok(address));
    assert_eq!(r.remaining(), 0);
});
