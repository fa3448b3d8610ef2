//! Octets written in hexadecimal, for tests.

use alloc::vec::Vec;

/// The octets of `hex`; anything that is not a hexadecimal digit separates.
pub(crate) fn octets(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| u8::try_from(pair[0] << 4 | pair[1]).unwrap()).collect()
}
