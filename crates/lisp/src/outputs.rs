//! The queue of what the shell has to do.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::SocketAddr;

use codec::Writer;

use crate::auth::{Key, sign};
use crate::machine::{Counter, Output, Persist, Transmit};
use crate::wire::Message;

/// What a machine has put out and the shell has not taken yet, in order.
#[derive(Debug)]
pub(crate) struct Outputs<Event, Table>(VecDeque<Output<Event, Table>>);

impl<Event, Table> Default for Outputs<Event, Table> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<Event, Table> Outputs<Event, Table> {
    pub(crate) fn pop(&mut self) -> Option<Output<Event, Table>> {
        self.0.pop_front()
    }

    pub(crate) fn send_bytes(&mut self, destination: SocketAddr, payload: Vec<u8>) {
        self.0.push_back(Output::Transmit(Transmit { destination, payload }));
    }

    pub(crate) fn send(&mut self, destination: SocketAddr, message: &Message) {
        match message.encode() {
            Ok(payload) => self.send_bytes(destination, payload),
            Err(_) => self.count(Counter::NotEncodable),
        }
    }

    pub(crate) fn send_signed(&mut self, destination: SocketAddr, message: Message, key: &Key) {
        match sign(message, key) {
            Ok(payload) => self.send_bytes(destination, payload),
            Err(_) => self.count(Counter::NotEncodable),
        }
    }

    pub(crate) fn persist(&mut self, key: Writer, value: Option<Vec<u8>>) {
        self.0.push_back(Output::Persist(Persist { key: key.into_vec(), value }));
    }

    pub(crate) fn table(&mut self, delta: Table) {
        self.0.push_back(Output::Table(delta));
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.0.push_back(Output::Event(event));
    }

    pub(crate) fn count(&mut self, counter: Counter) {
        self.0.push_back(Output::Counter(counter));
    }
}
