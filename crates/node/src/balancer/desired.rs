//! What is wanted of the balancer, and the rules by which it may be changed: whole or VIP by VIP, never over somebody
//! else's change.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use thiserror::Error;

use crate::config::Problem;
use crate::config::services::{self, Vip, raw};

/// Every VIP by its name. Copies share VIPs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Desired {
    generation: u64,
    vips: BTreeMap<String, Stored>,
}

/// A VIP and when it last changed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stored {
    /// [`Desired::generation`] after its last change.
    pub(super) generation: u64,
    /// The VIP.
    pub(super) vip: Arc<Vip>,
}

/// A change that somebody asks for; names are those of paths.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Change {
    /// These VIPs and no others.
    ReplaceAll(raw::Services),
    /// A VIP that must not be there.
    CreateVip(raw::Vip),
    /// A VIP, whether it is there or not.
    PutVip(String, raw::Vip),
    /// No such VIP any more.
    DeleteVip(String),
    /// A backend that must not be there, of a VIP that must.
    CreateBackend(String, raw::Backend),
    /// A backend, whether it is there or not, of a VIP that must.
    PutBackend(String, String, raw::Backend),
    /// No such backend any more.
    DeleteBackend(String, String),
}

/// What a change came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is there now and was not.
    Created,
    /// It is as asked.
    Replaced,
    /// It was so before; nothing was changed, the generation neither.
    Unchanged,
    /// It is gone.
    Deleted,
}

/// Why a change is refused; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum Refusal {
    /// Nothing by that name.
    #[error("there is no {what}")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// Something by that name.
    #[error("there is a {what} already; PUT replaces it")]
    Exists {
        /// What it is.
        what: String,
    },
    /// Somebody else was faster.
    #[error(
        "{what} has generation {current}, the change was made for {given}; get it, and make the change again"
    )]
    Stale {
        /// What was to be changed.
        what: String,
        /// The generation that was expected.
        given: u64,
        /// The one there is.
        current: u64,
    },
    /// What is asked for has no meaning.
    #[error("the document is wrong")]
    Invalid(Vec<Problem>),
}

impl Desired {
    /// A first state, for instance a file's.
    pub(super) fn new(vips: Vec<Vip>) -> Self {
        let stored = |vip: Vip| (vip.name.clone(), Stored { generation: 1, vip: Arc::new(vip) });
        Self { generation: 1, vips: vips.into_iter().map(stored).collect() }
    }

    /// What was stored, with the generations of then.
    pub(super) fn restore(generation: u64, vips: Vec<(u64, Vip)>) -> Self {
        let stored =
            |(generation, vip): (u64, Vip)| (vip.name.clone(), Stored { generation, vip: Arc::new(vip) });
        Self { generation, vips: vips.into_iter().map(stored).collect() }
    }

    /// Grows with every change of any VIP.
    pub(super) const fn generation(&self) -> u64 {
        self.generation
    }

    /// Every VIP, by name.
    pub(super) const fn vips(&self) -> &BTreeMap<String, Stored> {
        &self.vips
    }

    /// For the data path.
    pub(super) fn list(&self) -> Vec<Arc<Vip>> {
        self.vips.values().map(|stored| Arc::clone(&stored.vip)).collect()
    }

    /// Whether both want the same, whenever it was changed.
    pub(super) fn is_alike(&self, other: &Self) -> bool {
        let vips = |of: &Self| of.list();
        vips(self) == vips(other)
    }

    /// A VIP.
    ///
    /// # Errors
    /// If there is none by that name.
    pub(super) fn vip(&self, name: &str) -> Result<&Stored, Refusal> {
        self.vips.get(name).ok_or_else(|| not_found(name))
    }

    /// As it is written, with its generation.
    pub(super) fn written(&self) -> raw::Services {
        let vips = self.vips.values().map(Stored::written).collect();
        raw::Services { generation: Some(self.generation), vips }
    }

    /// The state after a change. `expected` is the generation that it was made for, as the request's header says; one
    /// in the document counts too.
    ///
    /// # Errors
    /// Why it may not be.
    pub(super) fn after(
        &self,
        change: Change,
        expected: Option<u64>,
        vteps: &[IpAddr],
    ) -> Result<(Self, Outcome), Refusal> {
        match change {
            Change::ReplaceAll(services) => self.replace_all(services, expected, vteps),
            Change::CreateVip(vip) if self.vips.contains_key(&vip.name) => {
                Err(Refusal::Exists { what: format!("VIP `{}`", vip.name) })
            }
            Change::CreateVip(vip) => self.put(vip.name.clone(), vip, expected, vteps),
            Change::PutVip(name, vip) => self.put(name, vip, expected, vteps),
            Change::DeleteVip(name) => {
                let stored = self.vip(&name)?;
                fresh(&format!("VIP `{name}`"), expected, stored.generation)?;
                let mut after = self.next();
                after.vips.remove(&name);
                Ok((after, Outcome::Deleted))
            }
            Change::CreateBackend(vip, backend) => {
                let what = format!("backend `{}` of VIP `{vip}`", backend.name);
                if self.vip(&vip)?.position(&backend.name).is_some() {
                    return Err(Refusal::Exists { what });
                }
                self.put_backend(&vip, backend.name.clone(), backend, expected, vteps)
            }
            Change::PutBackend(vip, name, backend) => self.put_backend(&vip, name, backend, expected, vteps),
            Change::DeleteBackend(vip, name) => self.delete_backend(&vip, &name, expected, vteps),
        }
    }

    fn next(&self) -> Self {
        Self { generation: self.generation + 1, vips: self.vips.clone() }
    }

    /// VIPs that stay as they are keep their generation.
    fn replace_all(
        &self,
        services: raw::Services,
        expected: Option<u64>,
        vteps: &[IpAddr],
    ) -> Result<(Self, Outcome), Refusal> {
        for given in [expected, services.generation] {
            fresh("the list of VIPs", given, self.generation)?;
        }
        let vips = services.vips;
        for vip in &vips {
            let current = self.vips.get(&vip.name).map_or(0, |stored| stored.generation);
            fresh(&format!("VIP `{}`", vip.name), vip.generation, current)?;
        }
        let checked = services::check(vips, Some(vteps)).map_err(Refusal::Invalid)?;
        let mut after = Self { generation: self.generation + 1, vips: BTreeMap::new() };
        for vip in checked {
            let same = self.vips.get(&vip.name).filter(|stored| *stored.vip == vip).cloned();
            let stored = same.unwrap_or_else(|| Stored { generation: after.generation, vip: Arc::new(vip) });
            after.vips.insert(stored.vip.name.clone(), stored);
        }
        if after.vips == self.vips {
            return Ok((self.clone(), Outcome::Unchanged));
        }
        Ok((after, Outcome::Replaced))
    }

    fn put(
        &self,
        name: String,
        mut vip: raw::Vip,
        expected: Option<u64>,
        vteps: &[IpAddr],
    ) -> Result<(Self, Outcome), Refusal> {
        same_name(&name, &mut vip.name)?;
        let before = self.vips.get(&name);
        let current = before.map_or(0, |stored| stored.generation);
        for given in [expected, vip.generation] {
            fresh(&format!("VIP `{name}`"), given, current)?;
        }
        let others = self.vips.iter().filter(|(other, _)| **other != name).map(|(_, stored)| &*stored.vip);
        let vip = services::check_one(vip, others, Some(vteps)).map_err(Refusal::Invalid)?;
        if before.is_some_and(|stored| *stored.vip == vip) {
            return Ok((self.clone(), Outcome::Unchanged));
        }
        let outcome = if before.is_some() { Outcome::Replaced } else { Outcome::Created };
        let mut after = self.next();
        after.vips.insert(name, Stored { generation: after.generation, vip: Arc::new(vip) });
        Ok((after, outcome))
    }

    fn put_backend(
        &self,
        vip: &str,
        name: String,
        mut backend: raw::Backend,
        expected: Option<u64>,
        vteps: &[IpAddr],
    ) -> Result<(Self, Outcome), Refusal> {
        same_name(&name, &mut backend.name)?;
        let stored = self.vip(vip)?;
        let mut written = stored.vip.written.clone();
        let at = stored.position(&name);
        match at.and_then(|at| written.backends.get_mut(at)) {
            Some(there) => *there = backend,
            None => written.backends.push(backend),
        }
        let at = at.unwrap_or(written.backends.len() - 1);
        let (after, outcome) = self.put(vip.to_owned(), written, expected, vteps).map_err(|refusal| {
            let prefix = format!("backends[{at}]");
            of_part(refusal, &prefix)
        })?;
        let created = outcome == Outcome::Replaced && stored.position(&name).is_none();
        Ok((after, if created { Outcome::Created } else { outcome }))
    }

    fn delete_backend(
        &self,
        vip: &str,
        name: &str,
        expected: Option<u64>,
        vteps: &[IpAddr],
    ) -> Result<(Self, Outcome), Refusal> {
        let stored = self.vip(vip)?;
        let what = || Refusal::NotFound { what: format!("backend `{name}` of VIP `{vip}`") };
        let at = stored.position(name).ok_or_else(what)?;
        let mut written = stored.vip.written.clone();
        written.backends.remove(at);
        let (after, _) = self.put(vip.to_owned(), written, expected, vteps)?;
        Ok((after, Outcome::Deleted))
    }
}

impl Stored {
    /// As it is written, with its generation.
    pub(super) fn written(&self) -> raw::Vip {
        raw::Vip { generation: Some(self.generation), ..self.vip.written.clone() }
    }

    /// A backend as it is written.
    ///
    /// # Errors
    /// If there is none by that name.
    pub(super) fn backend(&self, name: &str) -> Result<&raw::Backend, Refusal> {
        let at = self.position(name).and_then(|at| self.vip.written.backends.get(at));
        at.ok_or_else(|| Refusal::NotFound { what: format!("backend `{name}` of VIP `{}`", self.vip.name) })
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.vip.written.backends.iter().position(|backend| backend.name == name)
    }
}

fn not_found(vip: &str) -> Refusal {
    Refusal::NotFound { what: format!("VIP `{vip}`") }
}

/// Whether a change was made for what is there; `current` is 0 for what is not.
fn fresh(what: &str, given: Option<u64>, current: u64) -> Result<(), Refusal> {
    match given {
        Some(given) if given != current => Err(Refusal::Stale { what: what.to_owned(), given, current }),
        _ => Ok(()),
    }
}

/// The path names it; the body may leave the name out and may not say another.
fn same_name(of_path: &str, of_body: &mut String) -> Result<(), Refusal> {
    if of_body.is_empty() {
        of_path.clone_into(of_body);
    }
    if of_body == of_path {
        return Ok(());
    }
    let message = format!("`{of_body}` is not the name in the path, `{of_path}`; a name cannot be changed");
    Err(Refusal::Invalid(vec![Problem { path: "name".to_owned(), file: None, line: None, message }]))
}

/// Paths from the part on that the request was about.
fn of_part(refusal: Refusal, prefix: &str) -> Refusal {
    let Refusal::Invalid(mut problems) = refusal else { return refusal };
    for problem in &mut problems {
        if let Some(rest) = problem.path.strip_prefix(prefix) {
            problem.path = rest.trim_start_matches('.').to_owned();
        }
    }
    Refusal::Invalid(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vip(name: &str, port: u16) -> raw::Vip {
        let address = "192.0.2.10".into();
        let backends = vec![backend("a", "10.0.0.1")];
        raw::Vip { name: name.into(), address, port, backends, ..raw::Vip::default() }
    }

    fn backend(name: &str, address: &str) -> raw::Backend {
        raw::Backend { name: name.into(), address: address.into(), ..raw::Backend::default() }
    }

    fn all(vips: Vec<raw::Vip>) -> Change {
        Change::ReplaceAll(raw::Services { generation: None, vips })
    }

    fn start() -> Desired {
        Desired::new(services::check(vec![vip("web", 80), vip("api", 81)], None).unwrap())
    }

    fn after(desired: &Desired, change: Change) -> (Desired, Outcome) {
        desired.after(change, None, &[]).unwrap()
    }

    fn paths(refusal: Refusal) -> Vec<String> {
        let Refusal::Invalid(problems) = refusal else { panic!("{refusal:?}") };
        problems.into_iter().map(|problem| problem.path).collect()
    }

    #[test]
    fn generations_grow_with_changes_only() {
        let (same, outcome) = after(&start(), Change::PutVip("web".into(), vip("", 80)));
        assert_eq!((same, outcome), (start(), Outcome::Unchanged));
        let (next, outcome) = after(&start(), Change::PutVip("web".into(), vip("web", 82)));
        assert_eq!((next.generation(), outcome), (2, Outcome::Replaced));
        assert_eq!((next.vip("web").unwrap().generation, next.vip("api").unwrap().generation), (2, 1));
        let (next, outcome) = after(&next, Change::CreateVip(vip("dns", 53)));
        assert_eq!((next.vip("dns").unwrap().generation, outcome), (3, Outcome::Created));
        let (next, outcome) = after(&next, Change::DeleteVip("dns".into()));
        assert_eq!((next.generation(), outcome), (4, Outcome::Deleted));
        // One that is made again is not the one that was deleted.
        assert_eq!(after(&next, Change::CreateVip(vip("dns", 53))).0.vip("dns").unwrap().generation, 5);
    }

    #[test]
    fn a_stale_change_is_refused() {
        let (next, _) = after(&start(), Change::PutVip("web".into(), vip("web", 82)));
        let stale = raw::Vip { generation: Some(1), ..vip("web", 83) };
        let Err(refusal) = next.after(Change::PutVip("web".into(), stale), None, &[]) else {
            panic!("taken")
        };
        assert!(refusal.to_string().starts_with("VIP `web` has generation 2, the change was made for 1"));
        for change in [
            Change::DeleteVip("web".into()),
            Change::PutBackend("web".into(), "a".into(), backend("a", "10.0.0.9")),
            Change::DeleteBackend("web".into(), "a".into()),
            Change::ReplaceAll(raw::Services::default()),
        ] {
            let refusal = next.after(change.clone(), Some(1), &[]).unwrap_err();
            assert!(
                matches!(refusal, Refusal::Stale { given: 1, current: 2, .. }),
                "{change:?}: {refusal:?}"
            );
            next.after(change, Some(2), &[]).unwrap();
        }
        let new = Change::PutVip("new".into(), vip("new", 90));
        assert!(matches!(next.after(new.clone(), Some(1), &[]), Err(Refusal::Stale { current: 0, .. })));
        next.after(new, Some(0), &[]).unwrap();
    }

    #[test]
    fn what_is_not_there_is_not_found_and_what_is_there_is_not_made() {
        let refused = |change| start().after(change, None, &[]).unwrap_err().to_string();
        assert_eq!(refused(Change::DeleteVip("x".into())), "there is no VIP `x`");
        assert_eq!(
            refused(Change::DeleteBackend("web".into(), "x".into())),
            "there is no backend `x` of VIP `web`"
        );
        assert_eq!(
            refused(Change::PutBackend("x".into(), "a".into(), backend("a", "10.0.0.1"))),
            "there is no VIP `x`"
        );
        assert_eq!(
            refused(Change::CreateVip(vip("web", 99))),
            "there is a VIP `web` already; PUT replaces it"
        );
        let again = Change::CreateBackend("web".into(), backend("a", "10.0.0.2"));
        assert_eq!(refused(again), "there is a backend `a` of VIP `web` already; PUT replaces it");
    }

    #[test]
    fn backends_are_put_one_by_one() {
        let add = Change::CreateBackend("web".into(), backend("b", "10.0.0.2"));
        let (next, outcome) = after(&start(), add);
        assert_eq!(outcome, Outcome::Created);
        let drain = raw::Backend { weight: 0, ..backend("", "10.0.0.2") };
        let (next, outcome) = after(&next, Change::PutBackend("web".into(), "b".into(), drain));
        assert_eq!(outcome, Outcome::Replaced);
        assert_eq!(next.vip("web").unwrap().backend("b").unwrap().weight, 0);
        let (next, outcome) = after(&next, Change::DeleteBackend("web".into(), "a".into()));
        assert_eq!((outcome, next.vip("web").unwrap().vip.backends.len()), (Outcome::Deleted, 1));
    }

    #[test]
    fn paths_are_those_of_what_was_sent() {
        let refused = |change| paths(start().after(change, None, &[]).unwrap_err());
        assert_eq!(refused(Change::PutVip("web".into(), vip("other", 80))), ["name"]);
        let wrong = raw::Backend { mac: Some("x".into()), ..backend("b", "y") };
        assert_eq!(refused(Change::PutBackend("web".into(), "b".into(), wrong)), ["address", "mac"]);
        let double = Change::CreateBackend("web".into(), backend("b", "10.0.0.1"));
        assert_eq!(refused(double), [""]);
        assert_eq!(refused(Change::CreateVip(vip("new", 80))), ["address"]);
        assert_eq!(refused(all(vec![vip("a", 1), vip("a", 0)])), ["vips[1].port"]);
    }

    #[test]
    fn replacing_all_keeps_what_stays() {
        let (next, outcome) = after(&start(), all(vec![vip("web", 80), vip("api", 82)]));
        assert_eq!(outcome, Outcome::Replaced);
        assert_eq!((next.vip("web").unwrap().generation, next.vip("api").unwrap().generation), (1, 2));
        let (same, outcome) = after(&next, Change::ReplaceAll(next.written()));
        assert_eq!((same, outcome), (next, Outcome::Unchanged));
    }
}
