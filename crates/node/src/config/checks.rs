//! Second stage: what every section checks the same way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use codec::IpPrefix;
use lisp::wire::{CONTROL_PORT, EidPrefix, InstanceId, SiteId, XtrId, XtrIdentity};

use super::{Algorithm, Problem, Secret, SharedKey};

/// Shortest bearer token.
const MIN_TOKEN: usize = 16;
/// Instance IDs are 24 bits in data packets (RFC 9300 §5.3).
const MAX_INSTANCE: u32 = 0x00ff_ffff;

/// Collects problems while values are turned into useful types.
pub(super) struct Checks {
    directory: PathBuf,
    problems: Vec<Problem>,
}

impl Checks {
    pub(super) fn new(directory: &Path, problems: Vec<Problem>) -> Self {
        Self { directory: directory.to_owned(), problems }
    }

    /// All problems with their lines; what the first stage has said is not said again.
    pub(super) fn finish(self, lines: &BTreeMap<String, usize>) -> Vec<Problem> {
        let mut seen = BTreeSet::new();
        let first = |p: &Problem| p.path.is_empty() || seen.insert((p.file.clone(), p.path.clone()));
        let mut problems: Vec<Problem> = self.problems.into_iter().filter(first).collect();
        for problem in problems.iter_mut().filter(|problem| problem.file.is_none()) {
            problem.line = problem.line.or_else(|| line_of(&problem.path, lines));
        }
        problems
    }

    /// What is wrong with another file, which is read on behalf of this one.
    pub(super) fn of_file(&mut self, file: &Path, problems: Vec<Problem>) {
        let of_file = |problem| Problem { file: Some(file.to_owned()), ..problem };
        self.problems.extend(problems.into_iter().map(of_file));
    }

    pub(super) fn problem(&mut self, path: &str, message: impl Into<String>) {
        self.problems.push(Problem {
            path: path.to_owned(),
            file: None,
            line: None,
            message: message.into(),
        });
    }

    fn required(&mut self, path: &str, text: &str, expected: &str) -> Option<()> {
        if text.is_empty() {
            self.problem(path, format!("required: {expected}"));
            return None;
        }
        Some(())
    }

    /// A text that parses.
    pub(super) fn parse<T: FromStr>(&mut self, path: &str, text: &str, expected: &str) -> Option<T> {
        self.required(path, text, expected)?;
        let value = text.parse().ok();
        if value.is_none() {
            self.problem(path, format!("`{text}` is not {expected}"));
        }
        value
    }

    /// A name that is also a metric label, a file name and a host label.
    pub(super) fn name(&mut self, path: &str, text: String) -> Option<String> {
        self.required(path, &text, "letters, digits and `-`, at most 63")?;
        let fits = text.len() <= 63 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !fits || text.starts_with('-') {
            self.problem(path, format!("`{text}` is not a name: letters, digits and `-`, at most 63"));
            return None;
        }
        Some(text)
    }

    /// Interface names as the kernel takes them (IFNAMSIZ).
    pub(super) fn interface_name(&mut self, path: &str, text: String) -> Option<String> {
        self.required(path, &text, "the name of an interface, see `ip link`")?;
        if text.len() > 15 || text.bytes().any(|b| b == b'/' || b.is_ascii_whitespace()) {
            self.problem(path, format!("`{text}` is not an interface name: at most 15, no `/`, no space"));
            return None;
        }
        Some(text)
    }

    pub(super) fn path(&mut self, path: &str, text: &str) -> Option<PathBuf> {
        self.required(path, text, "a path")?;
        Some(self.directory.join(text))
    }

    /// A bearer token; it travels in a header, so it is visible ASCII.
    pub(super) fn token(&mut self, path: &str, file: &str) -> Option<Secret> {
        let token = self.secret(path, file, MIN_TOKEN)?;
        if !token.expose().iter().all(u8::is_ascii_graphic) {
            self.problem(path, format!("{file} holds octets that no header can carry; use visible ASCII"));
            return None;
        }
        Some(token)
    }

    pub(super) fn secret(&mut self, path: &str, file: &str, min: usize) -> Option<Secret> {
        self.required(path, file, "a file with the key, mode 0600")?;
        match Secret::read(&self.directory.join(file), min) {
            Ok(secret) => Some(secret),
            Err(error) => {
                self.problem(path, error.to_string());
                None
            }
        }
    }

    pub(super) fn shared_key(
        &mut self,
        path: &str,
        key_id: u8,
        algorithm: Algorithm,
        file: &str,
    ) -> Option<SharedKey> {
        let secret = self.secret(&format!("{path}.key_file"), file, 1)?;
        Some(SharedKey { key_id, algorithm, secret })
    }

    /// An address that one node can have.
    pub(super) fn unicast(&mut self, path: &str, text: &str) -> Option<IpAddr> {
        let address: IpAddr = self.parse(path, text, "an IP address")?;
        if address.is_multicast() || address.is_unspecified() {
            self.problem(path, format!("{address} is not the address of one node"));
            return None;
        }
        Some(address)
    }

    /// `ADDRESS` or `ADDRESS:PORT`; IPv6 with a port in brackets.
    pub(super) fn endpoint(&mut self, path: &str, text: &str, port: u16) -> Option<SocketAddr> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(SocketAddr::new(address, port));
        }
        self.parse(path, text, "ADDRESS or ADDRESS:PORT, e.g. 10.0.0.10 or [2001:db8::1]:4342")
    }

    /// A LISP node that messages are sent to; RFC 9301 §4.2 leaves no choice of the port.
    pub(super) fn control_port(&mut self, path: &str, text: &str) -> Option<SocketAddr> {
        let address = self.unicast(path, text)?;
        Some(SocketAddr::new(address, CONTROL_PORT))
    }

    pub(super) fn duration(
        &mut self,
        path: &str,
        text: &str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        self.required(path, text, "a duration, e.g. 500ms")?;
        let Ok(duration) = humantime::parse_duration(text) else {
            self.problem(path, format!("`{text}` is not a duration, e.g. 500ms, 10s, 5m"));
            return None;
        };
        if !range.contains(&duration) {
            let (low, high) =
                (humantime::format_duration(*range.start()), humantime::format_duration(*range.end()));
            self.problem(path, format!("{text} is out of range: {low} to {high}"));
            return None;
        }
        Some(duration)
    }

    pub(super) fn instance(&mut self, path: &str, instance_id: u32) -> Option<InstanceId> {
        if instance_id > MAX_INSTANCE {
            self.problem(
                path,
                format!("{instance_id} is larger than 24 bits, the largest is {MAX_INSTANCE}"),
            );
            return None;
        }
        Some(InstanceId(instance_id))
    }

    /// The prefix at `path.key` in the instance at `path.instance_id`.
    pub(super) fn eid(&mut self, path: &str, key: &str, text: &str, instance_id: u32) -> Option<EidPrefix> {
        let prefix = self.ip_prefix(&format!("{path}.{key}"), text);
        let instance_id = self.instance(&format!("{path}.instance_id"), instance_id);
        Some(EidPrefix { instance_id: instance_id?, prefix: prefix? })
    }

    /// `PREFIX` or `[INSTANCE]PREFIX`.
    pub(super) fn eid_text(&mut self, path: &str, text: &str) -> Option<EidPrefix> {
        let Some((instance, prefix)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) else {
            let prefix = self.ip_prefix(path, text)?;
            return Some(EidPrefix { instance_id: InstanceId(0), prefix });
        };
        let instance: u32 = self.parse(path, instance, "an instance ID in [INSTANCE]PREFIX")?;
        let instance_id = self.instance(path, instance)?;
        let prefix = self.ip_prefix(path, prefix)?;
        Some(EidPrefix { instance_id, prefix })
    }

    fn ip_prefix(&mut self, path: &str, text: &str) -> Option<IpPrefix> {
        self.required(path, text, "an IP prefix, e.g. 10.100.0.0/16")?;
        let prefix = match text.parse::<IpPrefix>() {
            Ok(prefix) => prefix,
            Err(error) => {
                self.problem(path, format!("`{text}`: {error}"));
                return None;
            }
        };
        // A prefix with host bits is a typing error more often than it is meant.
        let written = text.split('/').next().and_then(|address| address.parse::<IpAddr>().ok());
        if written.is_some_and(|written| written != prefix.address()) {
            self.problem(path, format!("`{text}` has host bits set; write {prefix}"));
            return None;
        }
        Some(prefix)
    }

    /// 32 hexadecimal digits at `path.xtr_id`.
    pub(super) fn identity(&mut self, path: &str, xtr_id: &str, site_id: u64) -> Option<XtrIdentity> {
        let path = format!("{path}.xtr_id");
        self.required(&path, xtr_id, "32 hexadecimal digits")?;
        let digits = xtr_id.len() == 32 && xtr_id.bytes().all(|b| b.is_ascii_hexdigit());
        let Some(number) = u128::from_str_radix(xtr_id, 16).ok().filter(|_| digits) else {
            self.problem(&path, format!("`{xtr_id}` is not 32 hexadecimal digits"));
            return None;
        };
        Some(XtrIdentity { xtr_id: XtrId(number.to_be_bytes()), site_id: SiteId(site_id) })
    }

    /// A base URL; the API speaks plain HTTP, TLS is a proxy's business.
    pub(super) fn url(&mut self, path: &str, text: &str) -> Option<String> {
        self.required(path, text, "a base URL, e.g. http://127.0.0.1:9090")?;
        let uri: Option<axum::http::Uri> = text.parse().ok();
        let plain = uri.filter(|uri| uri.scheme_str() == Some("http") && uri.query().is_none());
        if plain.and_then(|uri| uri.host().map(str::to_owned)).is_none_or(|host| host.is_empty()) {
            self.problem(path, format!("`{text}` is not a base URL like http://127.0.0.1:9090"));
            return None;
        }
        Some(text.trim_end_matches('/').to_owned())
    }

    /// Each element through `check`, with its path.
    pub(super) fn each<T, U>(
        &mut self,
        path: &str,
        items: Vec<T>,
        mut check: impl FnMut(&mut Self, &str, T) -> Option<U>,
    ) -> Option<Vec<U>> {
        let checked: Vec<Option<U>> = items
            .into_iter()
            .enumerate()
            .map(|(index, item)| check(self, &format!("{path}[{index}]"), item))
            .collect();
        checked.into_iter().collect()
    }

    /// No two elements may have the same key; `what` names the key.
    pub(super) fn distinct<T, K: Ord>(
        &mut self,
        path: &str,
        what: &str,
        items: &Option<Vec<T>>,
        key: impl Fn(&T) -> K,
    ) {
        let mut seen = BTreeMap::new();
        for (index, item) in items.iter().flatten().enumerate() {
            if let Some(first) = seen.insert(key(item), index) {
                let message = format!("same {what} as {path}[{first}]; remove one of them");
                self.problem(&format!("{path}[{index}]"), message);
            }
        }
    }

    /// At least one element.
    pub(super) fn some<T>(&mut self, path: &str, items: &[T], expected: &str) {
        if items.is_empty() {
            self.problem(path, format!("required: {expected}"));
        }
    }
}

/// The line of the key, or of the nearest section around it.
fn line_of(path: &str, lines: &BTreeMap<String, usize>) -> Option<usize> {
    let mut at = path;
    loop {
        if let Some(line) = lines.get(at) {
            return Some(*line);
        }
        at = &at[..at.rfind(['.', '['])?];
    }
}
