//! Map-Registers (RFC 9301 §5.6, §8.2): authentic, fresh and allowed, in this order, before anything changes.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use codec::{DecodeError, Instant, Reader, Writer};
use sha2::{Digest, Sha256};

use super::MapServer;
use super::config::NonceCheck;
use super::output::{Event, Registrant};
use super::registration::{self, Registration};
use crate::auth::{AuthError, VerifiedMessage, verify};
use crate::machine::Counter;
use crate::map_cache::is_unicast;
use crate::saved::{self, Kind};
use crate::wire::{EidPrefix, EidRecord, MapNotify, MapRegister, Message, XtrIdentity};

/// Nonces that [`NonceCheck::Compat`] remembers.
const WINDOW: usize = 64;

/// Nonces seen from one xTR under one key.
#[derive(Debug, Default)]
pub(super) struct SeenNonces {
    greatest: u64,
    /// The last accepted message: nonce and hash.
    last: Option<(u64, [u8; 32])>,
    recent: VecDeque<u64>,
}

/// What the nonce says about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Freshness {
    New,
    /// The very message that was accepted last, sent again (RFC 9301 §5.7).
    Same,
    Replayed,
}

impl SeenNonces {
    fn judge(&self, check: NonceCheck, nonce: u64, hash: &[u8; 32]) -> Freshness {
        if self.last == Some((nonce, *hash)) {
            return Freshness::Same;
        }
        let fresh = match check {
            NonceCheck::Strict => nonce > self.greatest,
            NonceCheck::Compat => !self.recent.contains(&nonce) && self.last.is_none_or(|(n, _)| n != nonce),
        };
        if fresh { Freshness::New } else { Freshness::Replayed }
    }

    fn accept(&mut self, nonce: u64, hash: [u8; 32]) {
        self.greatest = self.greatest.max(nonce);
        self.last = Some((nonce, hash));
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(nonce);
    }
}

/// Nonces by site, xTR and key (RFC 9301 §5.6).
pub(super) type NonceTable = BTreeMap<(usize, XtrIdentity, u8), SeenNonces>;

impl MapServer {
    pub(super) fn handle_register(
        &mut self,
        now: Instant,
        from: SocketAddr,
        bytes: &[u8],
        claimed: &MapRegister,
    ) {
        match self.admit(bytes, claimed) {
            Ok((site, register, Freshness::New)) => self.register(now, from, site, register),
            Ok((site, register, _)) => {
                self.out.count(Counter::Retransmission);
                self.acknowledge_register(from, site, register);
            }
            Err(reason) => {
                self.out.count(reason);
                self.out.event(Event::RegisterRefused { from, reason });
            }
        }
    }

    /// Nothing is changed unless the whole message is authentic, fresh and allowed; then only its nonce is noted.
    fn admit(
        &mut self,
        bytes: &[u8],
        claimed: &MapRegister,
    ) -> Result<(usize, MapRegister, Freshness), Counter> {
        let first = claimed.records.first().ok_or(Counter::Incomplete)?.eid;
        let claimed_site = claimed.xtr.map(|x| x.site_id);
        let sites = &self.config.sites;
        let matches = |index: &usize| {
            let expected = sites.get(*index).and_then(|s| s.site_id);
            expected.is_none() || claimed_site.is_none() || expected == claimed_site
        };
        let candidates: Vec<usize> = self.database.sites_of(&first).filter(matches).collect();
        if candidates.is_empty() {
            return Err(Counter::EidNotAllowed);
        }
        let keys = candidates.iter().filter_map(|i| Some((*i, sites.get(*i)?)));
        let keys = keys.flat_map(|(i, site)| site.keys.iter().map(move |key| (i, key)));
        let (index, register) = match verify(bytes, keys) {
            Ok((index, VerifiedMessage::MapRegister(register))) => (index, register.into_inner()),
            Err(AuthError::UnknownKey { .. } | AuthError::Algorithm { .. }) => return Err(Counter::NoKey),
            Ok(_) | Err(_) => return Err(Counter::BadAuthentication),
        };
        let allowed = |r: &EidRecord| self.database.sites_of(&r.eid).any(|s| s == index);
        if !register.records.iter().all(allowed) {
            return Err(Counter::EidNotAllowed);
        }
        if register.records.iter().any(|r| r.ttl != 0 && !r.locators.iter().any(is_locator)) {
            return Err(Counter::Incomplete);
        }
        self.check_nonce(index, bytes, &register).map(|freshness| (index, register, freshness))
    }

    /// xTRs of a site that do not tell their identity share one series.
    fn check_nonce(
        &mut self,
        index: usize,
        bytes: &[u8],
        register: &MapRegister,
    ) -> Result<Freshness, Counter> {
        let site = self.config.sites.get(index).ok_or(Counter::NoKey)?;
        let identity = register.xtr.unwrap_or_default();
        let key_id = register.authentication.key_id;
        let seen = self.nonces.entry((index, identity, key_id)).or_default();
        let hash: [u8; 32] = Sha256::digest(bytes).into();
        let freshness = seen.judge(site.nonce_check, register.nonce, &hash);
        match freshness {
            Freshness::Replayed => return Err(Counter::Replayed),
            Freshness::Same => return Ok(freshness),
            Freshness::New => seen.accept(register.nonce, hash),
        }
        let mut key = saved::key(Kind::RegisterNonce);
        key.u8(key_id);
        saved::write_identity(&mut key, &identity);
        key.bytes(site.name.as_bytes());
        self.out.persist(key, Some(saved::nonce_value(seen.greatest)));
        Ok(freshness)
    }

    pub(super) fn restore_nonce(&mut self, key: &mut Reader<'_>, value: &[u8]) -> Result<(), DecodeError> {
        let key_id = key.u8("saved key ID")?;
        let identity = saved::read_identity(key)?;
        let greatest = Reader::new(value).u64("saved nonce")?;
        let name = key.rest();
        if let Some(index) = self.config.sites.iter().position(|s| s.name.as_bytes() == name) {
            let recent = VecDeque::from([greatest]);
            self.nonces.insert((index, identity, key_id), SeenNonces { greatest, last: None, recent });
        }
        Ok(())
    }

    fn register(&mut self, now: Instant, from: SocketAddr, site: usize, register: MapRegister) {
        let registrant = register.xtr.map_or_else(|| Registrant::Address(from.ip()), Registrant::Xtr);
        let mut changed = Vec::new();
        for record in &register.records {
            let differs = if record.ttl == 0 {
                self.withdraw(record.eid, registrant)
            } else {
                self.register_record(now, site, registrant, &register, record)
            };
            if differs {
                changed.push(record.eid);
            }
        }
        if register.want_map_notify {
            self.acknowledge_register(from, site, register);
        }
        changed.into_iter().for_each(|eid| self.touch(now, eid));
    }

    fn register_record(
        &mut self,
        now: Instant,
        site: usize,
        registrant: Registrant,
        register: &MapRegister,
        record: &EidRecord,
    ) -> bool {
        let eid = record.eid;
        let known = self.database.registrations.contains(&eid, &registrant);
        if !known && self.database.registrations.len() >= self.config.limits.max_registrations {
            self.out.count(Counter::TableFull);
            return false;
        }
        let mut record = record.clone();
        record.locators.retain(is_locator);
        let lifetime = if register.use_ttl_for_timeout && record.ttl != u32::MAX {
            Duration::from_secs(u64::from(record.ttl) * 60)
        } else {
            self.config.limits.registration_timeout
        };
        let registration = Registration {
            site: self.config.sites.get(site).map_or_else(Default::default, |s| s.name.clone()),
            record,
            proxy_reply: register.proxy_reply,
            merge: register.merge,
            lifetime,
            refreshed_at: Some(now),
            expires_at: now + lifetime,
        };
        let locators = registration.record.locators.len();
        let value = registration::saved_value(&registration);
        let (changed, replaced) = self.database.registrations.apply(eid, registrant, registration);
        for other in replaced {
            self.out.persist(registration::saved_key(&eid, &other), None);
            self.out.event(Event::Unregistered { eid, registrant: other, expired: false });
        }
        if changed {
            if let Ok(value) = value {
                self.out.persist(registration::saved_key(&eid, &registrant), Some(value));
            }
            self.out.event(Event::Registered { eid, registrant, locators });
        }
        changed
    }

    fn withdraw(&mut self, eid: EidPrefix, registrant: Registrant) -> bool {
        let removed = self.database.registrations.remove(&eid, &registrant);
        if removed {
            self.out.persist(registration::saved_key(&eid, &registrant), None);
            self.out.event(Event::Unregistered { eid, registrant, expired: false });
        }
        removed
    }

    /// All that is over goes before any of it is published, so that no publication names what ends at the same time.
    pub(super) fn expire_registrations(&mut self, now: Instant) {
        let mut changed = BTreeSet::new();
        for (eid, registrant) in self.database.registrations.expire(now) {
            self.out.persist(registration::saved_key(&eid, &registrant), None);
            self.out.event(Event::Unregistered { eid, registrant, expired: true });
            changed.insert(eid);
        }
        changed.into_iter().for_each(|eid| self.touch(now, eid));
    }

    /// RFC 9301 §5.7: the register's fields, with a MAC of its own; sent once per register.
    fn acknowledge_register(&mut self, from: SocketAddr, site: usize, register: MapRegister) {
        let MapRegister { nonce, authentication, records, xtr, want_map_notify, .. } = register;
        let keys = self.config.sites.get(site).map_or(&[][..], |s| &s.keys[..]);
        let Some(key) = keys.iter().find(|k| k.id() == authentication.key_id) else { return };
        if want_map_notify {
            let trailer = xtr.map_or_else(Vec::new, |identity| {
                let mut w = Writer::new();
                saved::write_identity(&mut w, &identity);
                w.into_vec()
            });
            let notify = Message::MapNotify(MapNotify { nonce, authentication, records, trailer });
            self.out.send_signed(from, notify, key);
        }
    }
}

fn is_locator(locator: &crate::wire::LocatorRecord) -> bool {
    locator.rloc.ip().as_ref().is_some_and(is_unicast)
}
