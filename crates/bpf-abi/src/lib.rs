//! Map keys and values, verdict reasons and the flow hash that weir's eBPF programs and user space share.
//!
//! Everything is `repr(C)`, made of integers, with explicit padding and a size assertion: no bit pattern is
//! invalid, and both sides agree on every offset. Addresses are 16 octets in network order; IPv4 is written
//! IPv4-mapped (`::ffff:a.b.c.d`), so that one trie and one flow table serve both families.
#![no_std]

mod gateway;
mod hash;
mod reason;

pub use gateway::*;
pub use hash::{bucket, flow_hash, fold_address, hash_words, source_port};
pub use reason::Reason;

/// Version of the layout; part of the pin directory's name, so that no program reads another version's maps.
pub const ABI_VERSION: u32 = 4;
