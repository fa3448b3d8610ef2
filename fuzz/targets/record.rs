//! An EID-record with its locators.
#![no_main]

use codec::{Reader, Writer};
use libfuzzer_sys::fuzz_target;
use lisp::wire::EidRecord;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut record) = EidRecord::read(&mut Reader::new(bytes)) else { return };
    let mut w = Writer::new();
    record.write(&mut w).expect("what was decoded fits a record");
    let encoded = w.into_vec();
    record.sort_locators();
    let mut r = Reader::new(&encoded);
    assert_eq!(EidRecord::read(&mut r), Ok(record));
    assert_eq!(r.remaining(), 0);
});
