//! The header of data packets.
#![no_main]

use codec::{Reader, Writer};
use libfuzzer_sys::fuzz_target;
use lisp::wire::DataHeader;

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = DataHeader::read(&mut Reader::new(bytes)) else { return };
    let mut w = Writer::new();
    header.write(&mut w).expect("what was decoded fits a header");
    let encoded = w.into_vec();
    assert_eq!(encoded.len(), DataHeader::LENGTH);
    assert_eq!(DataHeader::read(&mut Reader::new(&encoded)), Ok(header));
});
