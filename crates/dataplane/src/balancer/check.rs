//! Whether VIPs can be as wanted, before anything is touched.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use balance::maglev::MAX_MEMBERS;
use bpf_abi::balancer::{BACKENDS, VIPS, VipKey};

use crate::balancer::desired::{Backend, HashBy, Vip};
use crate::balancer::error::VipError;
use crate::balancer::observed::fragments_of;

/// Everything that is wrong with `desired` on a node with these tunnel endpoints, whatever is in place.
#[must_use]
pub fn check(desired: &[Vip], vteps: &[IpAddr]) -> Vec<VipError> {
    let mut errors = Vec::new();
    if desired.len() > VIPS {
        errors.push(VipError::TooManyVips { count: desired.len() });
    }
    check_clashes(desired, &mut errors);
    check_backend_count(desired, &mut errors);
    for vip in desired {
        check_vip(vip, vteps, &mut errors);
    }
    errors
}

fn check_clashes(desired: &[Vip], errors: &mut Vec<VipError>) {
    let mut keys: HashSet<VipKey> = HashSet::new();
    let mut fragments: BTreeMap<VipKey, &Vip> = BTreeMap::new();
    for vip in desired {
        let key = vip.id.key();
        if !keys.insert(key) {
            errors.push(VipError::Twice { vip: vip.id });
        } else if vip.hash == HashBy::Addresses
            && let Some(first) = fragments.insert(fragments_of(&key), vip)
        {
            errors.push(VipError::Fragments { first: first.id, second: vip.id });
        }
    }
}

fn check_backend_count(desired: &[Vip], errors: &mut Vec<VipError>) {
    let count: usize = desired.iter().map(|vip| vip.backends.len()).sum();
    let mut before = 0;
    let full = desired.iter().find(|vip| {
        before += vip.backends.len();
        before > BACKENDS
    });
    errors.extend(full.map(|vip| VipError::TooManyBackends { vip: vip.id, count, waiting: 0 }));
}

fn check_vip(vip: &Vip, vteps: &[IpAddr], errors: &mut Vec<VipError>) {
    if vip.id.port == 0 {
        errors.push(VipError::Port { vip: vip.id });
    }
    if vip.id.segment.kind().is_tunnel() && vteps.is_empty() {
        errors.push(VipError::NoVtep { vip: vip.id });
    }
    if vip.backends.len() > MAX_MEMBERS {
        errors.push(VipError::TooManyOfVip { vip: vip.id, count: vip.backends.len() });
    }
    let mut names = HashSet::with_capacity(vip.backends.len());
    for backend in &vip.backends {
        if !names.insert(backend.name.as_str()) {
            errors.push(VipError::BackendTwice { vip: vip.id, backend: backend.name.clone() });
        }
        errors.extend(check_backend(vip, backend, vteps));
    }
}

fn check_backend(vip: &Vip, backend: &Backend, vteps: &[IpAddr]) -> Option<VipError> {
    let (id, name, segment) = (vip.id, backend.name.clone(), backend.segment);
    if segment.kind() != id.segment.kind() {
        return Some(VipError::BackendSegment { vip: id, backend: name, segment });
    }
    match (segment.kind().is_tunnel(), backend.tunnel) {
        (true, None) => return Some(VipError::TunnelMissing { vip: id, backend: name, segment }),
        (false, Some(_)) => return Some(VipError::TunnelSuperfluous { vip: id, backend: name, segment }),
        (_, Some(tunnel)) if !vteps.iter().any(|own| own.is_ipv4() == tunnel.vtep.is_ipv4()) => {
            return Some(VipError::TunnelFamily { vip: id, backend: name, vtep: tunnel.vtep });
        }
        _ => {}
    }
    let macs = [Some(backend.mac), backend.tunnel.map(|tunnel| tunnel.mac)];
    let nobodys = macs.into_iter().flatten().find(|mac| !is_hosts(mac)).filter(|_| backend.usable);
    nobodys.map(|mac| VipError::Mac { vip: id, backend: name, mac })
}

/// Neither unknown nor a group's, which a switch would flood.
fn is_hosts(mac: &[u8; 6]) -> bool {
    *mac != [0; 6] && mac[0] & 1 == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balancer::desired::Tunnel;
    use crate::balancer::samples::{backend, vip};

    fn errors(desired: &[Vip]) -> Vec<VipError> {
        check(desired, &["192.0.2.1".parse().unwrap()])
    }

    #[test]
    fn vips_that_clash_are_both_named() {
        let a = vip("192.0.2.10:80/tcp", &[("a", 1)]);
        let mapped = vip("[::ffff:192.0.2.10]:80/tcp", &[("a", 1)]);
        assert_eq!(errors(&[a.clone(), mapped.clone()]), [VipError::Twice { vip: mapped.id }]);
        let by = |text: &str| Vip { hash: HashBy::Addresses, ..vip(text, &[("a", 1)]) };
        let (first, second) = (by("192.0.2.10:80/tcp"), by("192.0.2.10:81/tcp"));
        let text = errors(&[first.clone(), second])[0].to_string();
        assert!(text.contains("192.0.2.10:80/tcp") && text.contains("192.0.2.10:81/tcp"), "{text}");
        assert_eq!(errors(&[first.clone(), by("192.0.2.10:81/udp"), by("192.0.2.10:80/tcp@802.1q:7")]), []);
        assert_eq!(errors(&[first, vip("192.0.2.10:81/tcp", &[("a", 1)]), by("192.0.2.10:81/udp")]), []);
    }

    #[test]
    fn backends_are_where_a_rewritten_frame_can_be() {
        let on = |vip_text: &str, segment: &str, tunnel: Option<Tunnel>| {
            let mut vip = vip(vip_text, &[("a", 1)]);
            vip.backends[0].segment = segment.parse().unwrap();
            vip.backends[0].tunnel = tunnel;
            errors(&[vip])
        };
        let to = |vtep: &str| Some(Tunnel { vtep: vtep.parse().unwrap(), mac: [2; 6] });
        assert_eq!(on("192.0.2.10:80/tcp@802.1q:5", "802.1q:6", None), []);
        assert_eq!(on("192.0.2.10:80/tcp@vxlan:5", "vxlan:6", to("192.0.2.9")), []);
        let wrong = |errors: Vec<VipError>| errors.into_iter().next().unwrap();
        for (vip, segment) in [("802.1q:5", "none"), ("802.1ad:5", "802.1ad:5.6"), ("802.1q:5", "vxlan:5")] {
            let error = wrong(on(&format!("192.0.2.10:80/tcp@{vip}"), segment, None));
            assert!(matches!(error, VipError::BackendSegment { .. }), "{error}");
        }
        let error = wrong(on("192.0.2.10:80/tcp@vxlan:5", "vxlan:6", None));
        assert!(matches!(error, VipError::TunnelMissing { .. }), "{error}");
        let error = wrong(on("192.0.2.10:80/tcp", "none", to("192.0.2.9")));
        assert!(matches!(error, VipError::TunnelSuperfluous { .. }), "{error}");
        let error = wrong(on("192.0.2.10:80/tcp@geneve:5", "geneve:6", to("2001:db8::9")));
        assert!(matches!(error, VipError::TunnelFamily { .. }), "{error}");
        let tunnelled = vip("192.0.2.10:80/tcp@vxlan:5", &[]);
        assert_eq!(check(std::slice::from_ref(&tunnelled), &[]), [VipError::NoVtep { vip: tunnelled.id }]);
    }

    #[test]
    fn names_are_unique_and_addresses_are_of_hosts() {
        let mut twice = vip("192.0.2.10:80/tcp", &[("a", 1), ("a", 2)]);
        assert!(matches!(errors(&[twice.clone()])[..], [VipError::BackendTwice { .. }]));
        twice.backends.truncate(1);
        twice.backends[0].mac = [1, 0, 0x5e, 0, 0, 1];
        assert!(errors(&[twice.clone()])[0].to_string().contains("01:00:5e:00:00:01"));
        twice.backends[0].usable = false;
        assert_eq!(errors(&[twice]), []);
    }

    #[test]
    fn limits_name_the_numbers() {
        let many: Vec<Vip> = (1..=4097).map(|n| vip(&format!("192.0.2.10:{n}/tcp"), &[])).collect();
        assert_eq!(errors(&many), [VipError::TooManyVips { count: 4097 }]);
        let backends = |count: u32| (0..count).map(|n| backend(&n.to_string(), 1)).collect();
        let of = |port: u32, count| Vip {
            backends: backends(count),
            ..vip(&format!("192.0.2.10:{port}/tcp"), &[])
        };
        assert_eq!(errors(&[of(80, 65_535), of(81, 1)]), []);
        let crowded = errors(&[of(80, 65_535), of(81, 2)]);
        assert!(matches!(crowded[..], [VipError::TooManyBackends { count: 65_537, .. }]), "{crowded:?}");
        let crowded = errors(&[of(80, 65_536)]);
        assert!(matches!(crowded[..], [VipError::TooManyOfVip { count: 65_536, .. }]), "{crowded:?}");
    }
}
