//! What every wire format of weir needs: a bounded [`Reader`] whose errors name the field, a [`Writer`],
//! [`IpPrefix`]es, and [`Instant`], the time that protocol machines take as an argument. And one format that is not
//! LISP's: the frames in which neighbours tell their link-layer addresses.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod instant;
pub mod neighbour;
mod prefix;
mod reader;
mod writer;

pub use instant::Instant;
pub use prefix::{IpPrefix, PrefixError};
pub use reader::{DecodeError, Reader};
pub use writer::{EncodeError, Writer};
