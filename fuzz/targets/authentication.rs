//! Authentication: nothing the fuzzer makes up verifies, what is signed does, and one changed bit ends that.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lisp::auth::{Algorithm, Key, VerifiedMessage, sign, verify};
use lisp::wire::Message;
use zeroize::Zeroizing;

/// Not the secret of the seeds: none of them verifies.
const SECRET: &[u8] = b"known to nobody who made a seed";

fuzz_target!(|bytes: &[u8]| {
    for algorithm in [Algorithm::HmacSha1, Algorithm::HmacSha256, Algorithm::HmacSha256Hkdf] {
        let key = Key::new(1, algorithm, Zeroizing::new(SECRET.to_vec())).expect("a secret with octets");
        assert!(verify(bytes, [((), &key)]).is_err());
        let Ok(mut message) = Message::decode(bytes) else { continue };
        fuzz::sort_locators(&mut message);
        let Ok(mut signed) = sign(message, &key) else { continue };
        let ((), verified) = verify(&signed, [((), &key)]).expect("signed with the same key");
        let again = match verified {
            VerifiedMessage::MapRegister(m) => Message::MapRegister(m.into_inner()),
            VerifiedMessage::MapNotify(m) => Message::MapNotify(m.into_inner()),
            VerifiedMessage::MapNotifyAck(m) => Message::MapNotifyAck(m.into_inner()),
        };
        assert_eq!(again.encode().as_ref(), Ok(&signed));
        let position = usize::from(*bytes.last().expect("it decoded")) * 7 % signed.len();
        signed[position] ^= 1 << (position % 8);
        assert!(verify(&signed, [((), &key)]).is_err());
    }
});
