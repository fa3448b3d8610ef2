//! Any control message: what decodes has an encoding that means the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lisp::wire::Message;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut message) = Message::decode(bytes) else { return };
    if let Message::Unknown(_) = message {
        return;
    }
    fuzz::sort_locators(&mut message);
    let encoded = message.encode().expect("what was decoded fits a message");
    assert_eq!(Message::decode(&encoded).as_ref(), Ok(&message));
});
