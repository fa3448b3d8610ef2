//! The port changes while the balancer runs: another link-layer address, away, renamed, made again.

use std::io;

use bpf_abi::balancer::BalancerNodeValue;

use super::{Balancer, features_file};
use crate::balancer::hook;
use crate::bpffs;
use crate::error::DataplaneError;
use crate::netlink::Link;

/// What became of the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    /// Nothing.
    Same,
    /// It has another link-layer address, whose frames are taken now.
    Readdressed,
    /// There is no interface of its name any more, and our program is on none; the maps stay.
    Away,
    /// The program is on the interface that has the port's name now.
    Attached,
}

impl Balancer {
    /// Follows the port to what `link` says of it now; `None` if there is no interface of its name.
    ///
    /// # Errors
    /// If the hook of a new interface is taken, tags cannot be had in its frames, or the kernel refuses something; no
    /// frame is balanced on it then, and the next call tries again.
    pub fn follow(&mut self, link: Option<&Link>) -> Result<Followed, DataplaneError> {
        let Some(link) = link else {
            self.leave_port()?;
            let was_away = std::mem::replace(&mut self.away, true);
            return Ok(if was_away { Followed::Same } else { Followed::Away });
        };
        if self.away || link.ifindex != self.link.ifindex || self.was_taken_off(link) {
            self.away = true;
            self.take_new_port(link)?;
            (self.away, self.missed) = (false, false);
            return Ok(Followed::Attached);
        }
        if link.mac == self.link.mac {
            return Ok(Followed::Same);
        }
        self.readdress(link)?;
        self.link = link.clone();
        Ok(Followed::Readdressed)
    }

    /// Whether our program is not on the port any more: somebody took it off. What `link` says may be from before it was
    /// put there, so it is believed the second time.
    fn was_taken_off(&mut self, link: &Link) -> bool {
        let is_there =
            !self.attached || matches!(hook::is_ours(link, &bpffs::versions(&self.pins)), Ok(true));
        let was_taken_off = std::mem::replace(&mut self.missed, !is_there) && !is_there;
        if was_taken_off {
            tracing::warn!(interface = link.name, "the program was taken off the port; it is put back");
        }
        was_taken_off
    }

    /// The maps are as they were; only the program has to go where the name is now.
    fn take_new_port(&mut self, link: &Link) -> Result<(), DataplaneError> {
        if link.ifindex != self.link.ifindex {
            self.leave_port()?;
            self.features = self.features.like(link, &features_file(&self.config));
            self.link = link.clone();
        } else if link.xdp.is_none() {
            // The link behind it is on no port, and takes no program.
            self.remove_pin()?;
        }
        hook::is_ours(link, &bpffs::versions(&self.pins))?;
        self.features.leave_tags_in()?;
        self.features.turn_filters_off().iter().for_each(|filtered| tracing::warn!("{filtered}"));
        self.readdress(link)?;
        self.link = link.clone();
        self.attach()
    }

    fn readdress(&mut self, link: &Link) -> Result<(), DataplaneError> {
        let node = self.state.maps.node()?;
        self.state.maps.set_node(&BalancerNodeValue { mac: link.mac, ..node })
    }

    /// Takes everything of ours off the interface that had the port's name. It may still be there, by another name or
    /// in another namespace: whoever renamed it did not ask for its frames to be balanced on.
    fn leave_port(&mut self) -> Result<(), DataplaneError> {
        self.remove_pin()?;
        self.features.leave();
        Ok(())
    }

    fn remove_pin(&self) -> Result<(), DataplaneError> {
        let pin = hook::pin(&self.pins, &self.link.name);
        match std::fs::remove_file(&pin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(DataplaneError::system("remove", pin.display().to_string(), error))
            }
            _ => Ok(()),
        }
    }
}
