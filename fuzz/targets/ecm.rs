//! Encapsulated Control Messages, with the checksums put right so that the fuzzer gets behind them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lisp::wire::Message;

fuzz_target!(|bytes: &[u8]| {
    let mut packet = bytes.to_vec();
    fuzz::repair_ecm(&mut packet);
    for bytes in [bytes, &packet] {
        let Ok(message @ Message::Encapsulated(_)) = Message::decode(bytes) else { continue };
        let encoded = message.encode().expect("what was decoded fits a message");
        assert_eq!(Message::decode(&encoded).as_ref(), Ok(&message));
        if let Message::Encapsulated(ecm) = message {
            let _ = Message::decode(&ecm.message);
        }
    }
});
