//! The queue of what the shell has to do.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::SocketAddr;

use codec::Writer;

use super::output::{Event, Output};
use crate::auth::{Key, sign};
use crate::machine::{Counter, Persist, Transmit};
use crate::mapping::TableDelta;
use crate::wire::Message;

#[derive(Debug, Default)]
pub(super) struct Outputs(VecDeque<Output>);

impl Outputs {
    pub(super) fn pop(&mut self) -> Option<Output> {
        self.0.pop_front()
    }

    pub(super) fn send_bytes(&mut self, destination: SocketAddr, payload: Vec<u8>) {
        self.0.push_back(Output::Transmit(Transmit { destination, payload }));
    }

    pub(super) fn send(&mut self, destination: SocketAddr, message: &Message) {
        match message.encode() {
            Ok(payload) => self.send_bytes(destination, payload),
            Err(_) => self.count(Counter::NotEncodable),
        }
    }

    pub(super) fn send_signed(&mut self, destination: SocketAddr, message: Message, key: &Key) {
        match sign(message, key) {
            Ok(payload) => self.send_bytes(destination, payload),
            Err(_) => self.count(Counter::NotEncodable),
        }
    }

    pub(super) fn event(&mut self, event: Event) {
        self.0.push_back(Output::Event(event));
    }

    pub(super) fn table(&mut self, delta: TableDelta) {
        self.0.push_back(Output::Table(delta));
    }

    pub(super) fn count(&mut self, counter: Counter) {
        self.0.push_back(Output::Counter(counter));
    }

    pub(super) fn persist(&mut self, key: Writer, value: Option<Vec<u8>>) {
        self.0.push_back(Output::Persist(Persist { key: key.into_vec(), value }));
    }
}
