//! Map keys and values, verdict reasons and the flow hash that weir's eBPF programs and user space share.
//!
//! Everything is `repr(C)`, made of integers, with explicit padding and a size assertion: no bit pattern is
//! invalid, and both sides agree on every offset. Addresses are 16 octets in network order; IPv4 is written
//! IPv4-mapped (`::ffff:a.b.c.d`), so that one trie and one flow table serve both families.
#![no_std]

/// Asserts the sizes of structs, and that user space may copy them from and to maps.
macro_rules! sizes {
    ($($name:ident = $size:expr),* $(,)?) => {
        $(
            const _: () = assert!(core::mem::size_of::<$name>() == $size);
            // SAFETY: repr(C), integers only, and the padding is explicit: every bit pattern is a value and no
            // octet is left uninitialised.
            #[cfg(feature = "user")]
            unsafe impl aya::Pod for $name {}
        )*
    };
}
pub(crate) use sizes;

pub mod balancer;
mod balancer_hash;
mod gateway;
mod hash;
mod reason;
pub mod tester;

pub use gateway::*;
pub use hash::{bucket, flow_hash, fold_address, hash_words, source_port};
pub use reason::{BalancerReason, Reason};

/// Version of the layout; part of the pin directory's name, so that no program reads another version's maps.
pub const ABI_VERSION: u32 = 6;
