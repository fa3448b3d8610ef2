//! The VIPs on the disk: one entry for each, one for the generation of all.
//!
//! Nothing is stored until the API changes something: whoever edits a file and restarts never meets an old state.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::desired::Desired;
use crate::config::services::{self, raw};
use crate::config::{ConfigError, Problem};
use crate::store::{Changes, Entry};

const META: &[u8] = b"meta";
const VIP: &[u8] = b"vip/";

/// What is stored of the whole.
#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    generation: u64,
}

/// What is stored cannot be taken up again. The data path goes on with what it has.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SavedError {
    /// It is no document of ours.
    #[error("the stored VIPs cannot be read: {0}; start once with --reset-from-file")]
    Unreadable(#[from] serde_json::Error),
    /// It is no longer right, for instance because `balancer.vteps` is another.
    #[error("the stored VIPs are no longer right; correct it, or start once with --reset-from-file:\n{0}")]
    Wrong(ConfigError),
}

/// Reads what was stored; `None` if nothing ever was.
///
/// # Errors
/// If it cannot be taken up.
pub(super) fn read(saved: &[Entry], vteps: &[std::net::IpAddr]) -> Result<Option<Desired>, SavedError> {
    let Some((_, meta)) = saved.iter().find(|(key, _)| key == META) else { return Ok(None) };
    let Meta { generation } = serde_json::from_slice(meta)?;
    let vips = saved.iter().filter(|(key, _)| key.starts_with(VIP));
    let vips: Vec<raw::Vip> =
        vips.map(|(_, value)| serde_json::from_slice(value)).collect::<Result<_, _>>()?;
    let generations: Vec<u64> = vips.iter().map(|vip| vip.generation.unwrap_or(generation)).collect();
    let wrong = |problems: Vec<Problem>| SavedError::Wrong(ConfigError { file: None, problems });
    let vips = services::check(vips, Some(vteps)).map_err(wrong)?;
    Ok(Some(Desired::restore(generation, generations.into_iter().zip(vips).collect())))
}

/// What makes `before` on the disk, if anything is there, `after`.
pub(super) fn changes(before: Option<&Desired>, after: &Desired) -> Changes {
    let mut changes = Changes::new();
    let meta = Meta { generation: after.generation() };
    changes.insert(META.to_vec(), Some(json(&meta)));
    let of_before = |name: &str| before.and_then(|before| before.vips().get(name));
    for (name, stored) in after.vips() {
        if of_before(name).map(|before| before.generation) != Some(stored.generation) {
            changes.insert(key(name), Some(json(&stored.written())));
        }
    }
    for name in before.into_iter().flat_map(|before| before.vips().keys()) {
        if !after.vips().contains_key(name) {
            changes.insert(key(name), None);
        }
    }
    changes
}

/// What forgets everything stored.
pub(super) fn forget(saved: &[Entry]) -> Changes {
    saved.iter().map(|(key, _)| (key.clone(), None)).collect()
}

fn key(name: &str) -> Vec<u8> {
    [VIP, name.as_bytes()].concat()
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("documents are plain values")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balancer::desired::Change;

    fn vip(name: &str, port: u16) -> raw::Vip {
        raw::Vip { name: name.into(), address: "192.0.2.10".into(), port, ..raw::Vip::default() }
    }

    fn after(desired: &Desired, change: Change) -> Desired {
        desired.after(change, None, &[]).unwrap().0
    }

    #[test]
    fn what_is_stored_is_read_back() {
        let start = Desired::new(services::check(vec![vip("web", 80), vip("api", 81)], None).unwrap());
        let mut disk = changes(None, &start);
        let next = after(&start, Change::PutVip("web".into(), vip("web", 82)));
        let of_next = changes(Some(&start), &next);
        assert_eq!(of_next.len(), 2, "the VIP that changed, and the generation");
        disk.extend(of_next);
        let last = after(&next, Change::DeleteVip("api".into()));
        disk.extend(changes(Some(&next), &last));
        let entries: Vec<Entry> = disk.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        assert_eq!(read(&entries, &[]).unwrap(), Some(last));
        assert_eq!(forget(&entries).len(), 2);
        assert_eq!(read(&[], &[]).unwrap(), None);
    }

    #[test]
    fn what_is_no_longer_right_says_the_way_out() {
        let tunnel = raw::Vip { segment: "vxlan:7".into(), ..vip("web", 80) };
        let desired = Desired::new(services::check(vec![tunnel], None).unwrap());
        let entries: Vec<Entry> =
            changes(None, &desired).into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        let said = read(&entries, &[]).unwrap_err().to_string();
        assert!(said.contains("--reset-from-file") && said.contains("balancer.vteps"), "{said}");
        let broken = [(META.to_vec(), b"x".to_vec())];
        assert!(read(&broken, &[]).unwrap_err().to_string().contains("--reset-from-file"));
    }
}
