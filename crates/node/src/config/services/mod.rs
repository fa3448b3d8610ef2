//! What a balancer is to do: the document with its VIPs, from a file or from the API.
//!
//! Like the configuration it is read in two stages, [`raw`] as written and [`Vip`] as the role works with it, and refused
//! with everything that is wrong in it at once.

pub mod raw;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use balance::maglev::TableSize;
use bpf_abi::balancer::{BACKENDS, VIPS};
use dataplane::balancer::{HashBy, Protocol, Segment, SegmentError, VipId};

pub use self::raw::WhenAllFail;
use super::checks::Checks;
use super::{ConfigError, Problem, read, transpose};
pub use crate::balancer::health::StatusRange;

/// An address and port that clients send to.
#[derive(Clone, Debug, PartialEq)]
pub struct Vip {
    /// Name in the API, in metrics and logs.
    pub name: String,
    /// What clients send to.
    pub id: VipId,
    /// What makes two packets one flow.
    pub hash: HashBy,
    /// Every flow is remembered.
    pub flow_table: bool,
    /// Slots of its table, by the number of backends without.
    pub table_size: Option<TableSize>,
    /// Flows from before a change keep their backend for so long.
    pub drain: Duration,
    /// Echo requests to the address are answered.
    pub echo: bool,
    /// What becomes of it when every backend fails.
    pub when_all_fail: WhenAllFail,
    /// How backends are checked; they are not without.
    pub health: Option<HealthCheck>,
    /// In the order of the document, of distinct names.
    pub backends: Vec<Backend>,
    /// The document it was read from, without a generation: for who asks, and for the disk.
    pub written: raw::Vip,
}

/// A server of a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Name, unique in its VIP.
    pub name: String,
    /// Its own address.
    pub address: IpAddr,
    /// Link-layer address, to be resolved without.
    pub mac: Option<[u8; 6]>,
    /// Share of new flows; 0 drains it.
    pub weight: u32,
    /// Where it is.
    pub segment: Segment,
    /// Where its tunnel ends; present exactly if its segment is a tunnel's.
    pub vtep: Option<IpAddr>,
}

/// How backends are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked.
    pub check: Check,
    /// Time between two checks.
    pub interval: Duration,
    /// An answer must come within; not longer than `interval`.
    pub timeout: Duration,
    /// Successes in a row for a failed backend to come back, at least 1.
    pub rise: u8,
    /// Failures in a row for a backend to fail, at least 1.
    pub fall: u8,
}

/// What a backend is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// To accept a connection.
    Tcp {
        /// On this port.
        port: u16,
    },
    /// To answer `GET` over HTTP/1.1. Redirects are not followed, bodies not read.
    Http {
        /// On this port.
        port: u16,
        /// For this path.
        path: String,
        /// In the name of this host, of its own address without.
        host: Option<String>,
        /// With one of these statuses; 200 to 399 if empty.
        status: Vec<StatusRange>,
    },
    /// To answer an ICMP or ICMPv6 echo request.
    Icmp,
    /// For its link-layer address, by ARP or Neighbour Discovery.
    Arp,
}

/// Reads a file of VIPs. `vteps` are the node's own tunnel endpoints, if it is known which node it is for.
///
/// # Errors
/// Everything that is wrong at once.
pub fn load(file: &Path, vteps: Option<&[IpAddr]>) -> Result<Vec<Vip>, ConfigError> {
    let wrong = |problems| ConfigError { file: Some(file.to_owned()), problems };
    let text = std::fs::read_to_string(file).map_err(|error| {
        let message = format!("cannot read the file: {error}");
        wrong(vec![Problem { path: String::new(), file: None, line: None, message }])
    })?;
    parse(&text, vteps).map_err(wrong)
}

/// Reads a text of TOML, likewise.
///
/// # Errors
/// Everything that is wrong at once, with lines.
pub fn parse(text: &str, vteps: Option<&[IpAddr]>) -> Result<Vec<Vip>, Vec<Problem>> {
    let read::Read { file, problems, lines } = read::read::<raw::Services>(text);
    let mut checks = Checks::new(Path::new(""), problems);
    let vips = file.and_then(|file| checks.services(file.vips, vteps));
    right(vips, checks.finish(&lines))
}

/// Whether a text is a document of VIPs rather than a configuration: it may be wrong all the same.
#[must_use]
pub fn is_services(text: &str) -> bool {
    text.parse::<toml::Table>().is_ok_and(|table| table.contains_key("vips") && !table.contains_key("node"))
}

/// Reads what a request carries as JSON.
///
/// # Errors
/// Every misspelt key and every wrong type at once; what values mean is for [`check`].
pub fn from_json<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> Result<T, Vec<Problem>> {
    let whole = |message: String| vec![Problem { path: String::new(), file: None, line: None, message }];
    let Some(toml::Value::Table(table)) = toml_value(value) else {
        return Err(whole("expected an object".to_owned()));
    };
    let mut problems = Vec::new();
    let value = read::deserialize(table, &mut problems);
    right(value, Checks::new(Path::new(""), problems).finish(&BTreeMap::new()))
}

/// Checks a whole set of VIPs.
///
/// # Errors
/// Everything that is wrong at once, with paths from `vips[0]` on.
pub fn check(vips: Vec<raw::Vip>, vteps: Option<&[IpAddr]>) -> Result<Vec<Vip>, Vec<Problem>> {
    let mut checks = Checks::new(Path::new(""), Vec::new());
    let vips = checks.services(vips, vteps);
    right(vips, checks.finish(&BTreeMap::new()))
}

/// Checks one VIP beside `others`, which are right.
///
/// # Errors
/// Everything that is wrong at once, with paths from the VIP on.
pub fn check_one<'a>(
    vip: raw::Vip,
    others: impl Iterator<Item = &'a Vip>,
    vteps: Option<&[IpAddr]>,
) -> Result<Vip, Vec<Problem>> {
    let mut checks = Checks::new(Path::new(""), Vec::new());
    let vip = checks.vip("", vip, vteps);
    if let Some(vip) = &vip {
        let mut all: Vec<(String, &Vip)> = others.map(|vip| (String::new(), vip)).collect();
        all.push((String::new(), vip));
        checks.vips_together("", &all);
    }
    right(vip, checks.finish(&BTreeMap::new()))
}

fn right<T>(value: Option<T>, problems: Vec<Problem>) -> Result<T, Vec<Problem>> {
    match value {
        Some(value) if problems.is_empty() => Ok(value),
        _ => Err(problems),
    }
}

/// TOML has no null: a key that is null is one that is left out.
fn toml_value(value: serde_json::Value) -> Option<toml::Value> {
    use serde_json::Value;
    Some(match value {
        Value::Null => return None,
        Value::Bool(flag) => toml::Value::Boolean(flag),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => toml::Value::Integer(integer),
            None => toml::Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => toml::Value::String(text),
        // A null keeps its place, so that the elements behind it keep their index.
        Value::Array(items) => toml::Value::Array(
            items.into_iter().map(|item| toml_value(item).unwrap_or(toml::Value::Boolean(false))).collect(),
        ),
        Value::Object(object) => toml::Value::Table(
            object.into_iter().filter_map(|(key, value)| Some((key, toml_value(value)?))).collect(),
        ),
    })
}

const HOUR: Duration = Duration::from_secs(3600);
const MIN_INTERVAL: Duration = Duration::from_millis(100);
const MIN_TIMEOUT: Duration = Duration::from_millis(10);
/// Weights are relative; more would not make shares finer than a table has slots.
const MAX_WEIGHT: u32 = 65_535;
/// Checks in a row.
const MAX_ROW: u8 = 100;

/// Path of a key below another path, which may be that of the whole document.
fn below(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

impl Checks {
    /// The whole document.
    pub(super) fn services(&mut self, vips: Vec<raw::Vip>, vteps: Option<&[IpAddr]>) -> Option<Vec<Vip>> {
        let checked: Vec<Option<Vip>> = vips
            .into_iter()
            .enumerate()
            .map(|(index, vip)| self.vip(&format!("vips[{index}]"), vip, vteps))
            .collect();
        let all = checked.iter().enumerate();
        let all: Vec<(String, &Vip)> =
            all.filter_map(|(index, vip)| Some((format!("vips[{index}]"), vip.as_ref()?))).collect();
        self.vips_together("vips", &all);
        checked.into_iter().collect()
    }

    fn vip(&mut self, path: &str, vip: raw::Vip, vteps: Option<&[IpAddr]>) -> Option<Vip> {
        let written = raw::Vip { generation: None, ..vip.clone() };
        let name = self.name(&below(path, "name"), vip.name);
        let address = self.unicast(&below(path, "address"), &vip.address);
        let port = self.port(&below(path, "port"), vip.port, "the port that clients send to");
        let segment = self.vip_segment(&below(path, "segment"), &vip.segment, vteps);
        let table_size = vip.table_size.map(|slots| self.table_size(&below(path, "table_size"), slots));
        let drain = self.duration(&below(path, "drain"), &vip.drain, Duration::ZERO..=HOUR);
        let health = vip.health.map(|health| self.health(&below(path, "health"), health, vip.port));
        if let (Some(Some(Some(HealthCheck { check: Check::Arp, .. }))), Some(segment)) = (&health, segment)
            && segment.kind().is_tunnel()
        {
            let message = format!("arp does not reach into {segment}; write tcp, http, icmp or none");
            self.problem(&below(path, "health.kind"), message);
        }
        let backends_path = below(path, "backends");
        let backends =
            self.each(&backends_path, vip.backends, |c, path, b| c.backend(path, b, segment, vteps));
        self.distinct(&backends_path, "name", &backends, |backend| backend.name.clone());
        self.distinct(&backends_path, "address and segment", &backends, |b| (b.address, b.segment));
        let protocol = match vip.protocol {
            raw::Protocol::Tcp => Protocol::Tcp,
            raw::Protocol::Udp => Protocol::Udp,
            raw::Protocol::Sctp => Protocol::Sctp,
        };
        let hash = match vip.hash {
            raw::Hash::FiveTuple => HashBy::FiveTuple,
            raw::Hash::Addresses => HashBy::Addresses,
        };
        Some(Vip {
            name: name?,
            id: VipId { address: address?, port: port?, protocol, segment: segment? },
            hash,
            flow_table: vip.flow_table,
            table_size: transpose(table_size)?,
            drain: drain?,
            echo: vip.echo,
            when_all_fail: vip.when_all_fail,
            health: transpose(health)?.flatten(),
            backends: backends?,
            written,
        })
    }

    fn port(&mut self, path: &str, port: u16, what: &str) -> Option<u16> {
        if port == 0 {
            self.problem(path, format!("required: {what}, 1 to 65535"));
            return None;
        }
        Some(port)
    }

    fn segment(&mut self, path: &str, text: &str) -> Option<Segment> {
        match text.parse() {
            Ok(segment) => Some(segment),
            Err(error) => {
                self.problem(path, SegmentError::to_string(&error));
                None
            }
        }
    }

    fn vip_segment(&mut self, path: &str, text: &str, vteps: Option<&[IpAddr]>) -> Option<Segment> {
        let segment = self.segment(path, text)?;
        if segment.kind().is_tunnel() && vteps.is_some_and(<[IpAddr]>::is_empty) {
            let message =
                format!("{segment} needs a tunnel endpoint of this node; name it in balancer.vteps");
            self.problem(path, message);
        }
        Some(segment)
    }

    fn table_size(&mut self, path: &str, slots: u32) -> Option<TableSize> {
        match TableSize::new(slots) {
            Ok(size) => Some(size),
            Err(error) => {
                self.problem(path, error.to_string());
                None
            }
        }
    }

    /// `Some(None)`: backends are not checked.
    fn health(&mut self, path: &str, health: raw::Health, vip_port: u16) -> Option<Option<HealthCheck>> {
        let interval = self.duration(&below(path, "interval"), &health.interval, MIN_INTERVAL..=HOUR);
        let timeout = self.duration(&below(path, "timeout"), &health.timeout, MIN_TIMEOUT..=HOUR);
        if let (Some(interval), Some(timeout)) = (interval, timeout)
            && timeout > interval
        {
            let message = format!("{} is longer than interval, {}", health.timeout, health.interval);
            self.problem(&below(path, "timeout"), message + "; checks would pile up");
        }
        for (key, row) in [("rise", health.rise), ("fall", health.fall)] {
            if !(1..=MAX_ROW).contains(&row) {
                self.problem(&below(path, key), format!("{row} is out of range: 1 to {MAX_ROW}"));
            }
        }
        let (rise, fall) = (health.rise, health.fall);
        let check = self.health_kind(path, health, vip_port)?;
        let Some(check) = check else { return Some(None) };
        Some(Some(HealthCheck { check, interval: interval?, timeout: timeout?, rise, fall }))
    }

    /// `Some(None)`: backends are not checked.
    fn health_kind(&mut self, path: &str, health: raw::Health, vip_port: u16) -> Option<Option<Check>> {
        let kind = health.kind;
        let by_port = matches!(kind, raw::CheckKind::Tcp | raw::CheckKind::Http);
        if health.port.is_some() && !by_port {
            self.problem(&below(path, "port"), format!("has no meaning with kind = \"{kind}\"; remove it"));
        }
        let of_http = [
            ("path", health.path.is_some()),
            ("host", health.host.is_some()),
            ("status", !health.status.is_empty()),
        ];
        for (key, _) in of_http.iter().filter(|(_, given)| *given && kind != raw::CheckKind::Http) {
            self.problem(&below(path, key), format!("has no meaning with kind = \"{kind}\"; remove it"));
        }
        let port = match health.port {
            Some(port) if by_port => self.port(&below(path, "port"), port, "the port that is asked")?,
            _ => vip_port,
        };
        Some(match kind {
            raw::CheckKind::None => None,
            raw::CheckKind::Tcp => Some(Check::Tcp { port }),
            raw::CheckKind::Http => Some(self.http_check(path, health, port)?),
            raw::CheckKind::Icmp => Some(Check::Icmp),
            raw::CheckKind::Arp => Some(Check::Arp),
        })
    }

    fn http_check(&mut self, at: &str, health: raw::Health, port: u16) -> Option<Check> {
        let path = health.path.unwrap_or_else(|| "/".to_owned());
        let visible = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        let mut right = true;
        if !path.starts_with('/') || !visible(&path) {
            let message = format!("`{path}` is not a path: visible ASCII that begins with /");
            self.problem(&below(at, "path"), message);
            right = false;
        }
        if let Some(host) = health.host.as_deref().filter(|host| !visible(host)) {
            self.problem(&below(at, "host"), format!("`{host}` is not a host, e.g. www.example.net"));
            right = false;
        }
        let status = self.each(&below(at, "status"), health.status, |c, path, text| {
            c.parse(path, &text, "a status or a range of them, e.g. 200 or 200-399")
        });
        right.then_some(Check::Http { port, path, host: health.host, status: status? })
    }

    fn backend(
        &mut self,
        path: &str,
        backend: raw::Backend,
        of_vip: Option<Segment>,
        vteps: Option<&[IpAddr]>,
    ) -> Option<Backend> {
        let name = self.name(&below(path, "name"), backend.name);
        let address = self.unicast(&below(path, "address"), &backend.address);
        let mac = backend.mac.as_ref().map(|text| self.mac(&below(path, "mac"), text));
        let weight = self.weight(&below(path, "weight"), backend.weight);
        let segment = match &backend.segment {
            Some(text) => self.backend_segment(&below(path, "segment"), text, of_vip),
            None => of_vip,
        };
        let vtep = backend.vtep.as_ref().map(|text| self.unicast(&below(path, "vtep"), text));
        let vtep = transpose(vtep);
        if let (Some(vtep), Some(segment)) = (vtep, of_vip) {
            self.tunnel(path, segment, vtep, backend.mac.is_some(), vteps);
        }
        Some(Backend {
            name: name?,
            address: address?,
            mac: transpose(mac)?,
            weight: weight?,
            segment: segment?,
            vtep: vtep?,
        })
    }

    fn weight(&mut self, path: &str, weight: u32) -> Option<u32> {
        if weight > MAX_WEIGHT {
            self.problem(path, format!("{weight} is out of range: 0 to {MAX_WEIGHT}"));
            return None;
        }
        Some(weight)
    }

    fn mac(&mut self, path: &str, text: &str) -> Option<[u8; 6]> {
        let octets: Option<Vec<u8>> = text
            .split(':')
            .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2))
            .collect();
        let Some(mac) = octets.and_then(|octets| <[u8; 6]>::try_from(octets).ok()) else {
            self.problem(path, format!("`{text}` is not a MAC address, e.g. 02:00:5e:10:00:01"));
            return None;
        };
        if mac[0] & 1 == 1 || mac == [0; 6] {
            self.problem(path, format!("`{text}` is not the MAC address of one node"));
            return None;
        }
        Some(mac)
    }

    /// The program writes another identifier into the tag that is there; it makes no tags and takes none away.
    fn backend_segment(&mut self, path: &str, text: &str, of_vip: Option<Segment>) -> Option<Segment> {
        let segment = self.segment(path, text)?;
        let of_vip = of_vip?;
        if segment.kind() != of_vip.kind() {
            self.problem(path, format!("{segment} is not of the same kind as the VIP's, {of_vip}"));
            return None;
        }
        Some(segment)
    }

    /// What a tunnel needs, and what has no meaning without one.
    fn tunnel(
        &mut self,
        path: &str,
        segment: Segment,
        vtep: Option<IpAddr>,
        has_mac: bool,
        vteps: Option<&[IpAddr]>,
    ) {
        let at = below(path, "vtep");
        match (segment.kind().is_tunnel(), vtep) {
            (false, None) => {}
            (false, Some(_)) => {
                self.problem(&at, format!("has no meaning with segment = \"{segment}\"; remove it"));
            }
            (true, None) => {
                self.problem(&at, format!("required with segment = \"{segment}\": its tunnel endpoint"))
            }
            (true, Some(vtep)) => {
                if !has_mac {
                    let message = "required behind a tunnel, where it cannot be resolved";
                    self.problem(&below(path, "mac"), message);
                }
                if vteps.is_some_and(|own| !own.iter().any(|own| own.is_ipv4() == vtep.is_ipv4())) {
                    let message =
                        format!("balancer.vteps has no address of {vtep}'s family; add this node's");
                    self.problem(&at, message);
                }
            }
        }
    }

    /// What VIPs ask of each other. `whole` is the path of the list.
    fn vips_together(&mut self, whole: &str, vips: &[(String, &Vip)]) {
        let mut names = BTreeMap::new();
        let mut ids = BTreeMap::new();
        let mut fragments = BTreeMap::new();
        for (path, vip) in vips {
            if names.insert(&vip.name, ()).is_some() {
                self.problem(&below(path, "name"), format!("there is another VIP `{}`", vip.name));
            }
            let VipId { address, protocol, segment, .. } = vip.id;
            if let Some(first) = ids.insert(vip.id, &vip.name) {
                let message = format!("same address, port, protocol and segment as VIP `{first}`");
                self.problem(&below(path, "address"), message);
            } else if vip.hash == HashBy::Addresses
                && let Some(first) = fragments.insert((address, protocol, segment), &vip.name)
            {
                let message =
                    format!("fragments for {address} go to VIP `{first}`, which hashes addresses too");
                self.problem(&below(path, "hash"), message + "; write \"5-tuple\"");
            }
        }
        self.limits(whole, vips);
    }

    fn limits(&mut self, whole: &str, vips: &[(String, &Vip)]) {
        if vips.len() > VIPS {
            self.problem(whole, format!("{} VIPs; at most {VIPS} are supported", vips.len()));
        }
        let backends: usize = vips.iter().map(|(_, vip)| vip.backends.len()).sum();
        if backends > BACKENDS {
            self.problem(whole, format!("{backends} backends; at most {BACKENDS} are supported"));
        }
    }
}

#[cfg(test)]
mod tests;
