//! The messages of the LISP control plane as values.
//!
//! `decode` keeps what it does not know (code points, LCAF types), refuses what the RFC says to refuse, and never
//! allocates more than the message is long. Octets after the end of a message are an error, except where an RFC says
//! that they are to be ignored (Map-Request, RFC 9437 §4) or does not say that they end (Map-Notify).

mod address;
mod data;
mod ecm;
mod map_notify;
mod map_register;
mod map_reply;
mod map_request;
mod message;
#[cfg(test)]
mod octets;
mod record;
mod trailer;
mod types;

pub use data::{DataHeader, LowField};
pub use message::MessageType;
#[cfg(test)]
pub(crate) use octets::octets;
pub use types::*;
