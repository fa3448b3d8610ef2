//! Features of the port's device that keep tags, or frames, from the program: turned off while it is there.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::balancer::desired::{Segment, SegmentKind, Vip};
use crate::balancer::hook::HookError;
use crate::error::DataplaneError;
use crate::ethtool::{self, Feature};
use crate::netlink::Link;
use crate::vlans::{Tag, vlans_on};

/// Features that take tags out of received frames before the program sees them; `ethtool -k` calls the first one
/// `rx-vlan-offload` as well.
const STRIPPING: [&str; 2] = ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"];
/// The feature that puts them in behind the program's back.
const INSERTING: &str = "tx-vlan-hw-insert";

/// What drops received frames with a tag whose VIDs it was not told of, which the stack does for each VLAN device.
const fn filter(tag: Tag) -> &'static str {
    match tag {
        Tag::Dot1q => "rx-vlan-filter",
        Tag::Dot1ad => "rx-vlan-stag-filter",
    }
}

/// VLANs whose frames the port's device may drop before the program sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilteredVlans {
    /// The port.
    pub interface: String,
    /// `ethtool -k` name of the filter, which is on and stays so.
    pub feature: &'static str,
    /// VIDs, or S-VIDs, of VIPs and backends that this machine has no device for.
    pub vlans: Vec<u16>,
    /// Type of a device for them, as `ip link add` has it: `vlan`, or `vlan proto 802.1ad`.
    pub device: &'static str,
}

impl fmt::Display for FilteredVlans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { interface, feature, vlans, device } = self;
        let listed = vlans.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let first = vlans.first().copied().unwrap_or_default();
        write!(
            f,
            "{interface} has {feature} on, and it cannot be turned off: its driver may drop frames of VLANs that this \
             machine has no device for, which are {listed}; make devices for them (`ip link add link {interface} name \
             {interface}.{first} type {device} id {first}`), or use another port"
        )
    }
}

/// A device and its features, by `ethtool -k` names.
pub(crate) trait Device {
    /// How a feature stands; `None` if the kernel does not know it.
    fn feature(&self, name: &str) -> Result<Option<Feature>, DataplaneError>;
    /// Turns it on or off.
    fn turn(&self, name: &str, on: bool) -> Result<(), DataplaneError>;
    /// VLANs that have a device on it.
    fn vlans(&self) -> Result<BTreeSet<(Tag, u16)>, DataplaneError>;
}

/// A device of the calling thread's network namespace, by its index: names change, and then are another device's.
#[derive(Debug)]
pub(crate) struct Interface(u32);

impl Device for Interface {
    fn feature(&self, name: &str) -> Result<Option<Feature>, DataplaneError> {
        ethtool::feature(&ethtool::name_of(self.0)?, name)
    }

    fn turn(&self, name: &str, on: bool) -> Result<(), DataplaneError> {
        ethtool::set_feature(&ethtool::name_of(self.0)?, name, on)
    }

    fn vlans(&self) -> Result<BTreeSet<(Tag, u16)>, DataplaneError> {
        vlans_on(self.0)
    }
}

/// Features of a device that were turned off. The list is kept in a file that, like the features, does not outlive the
/// system's start, so that a later process can turn them on again.
#[derive(Debug)]
pub(crate) struct Features<D = Interface> {
    device: D,
    interface: String,
    ifindex: u32,
    file: PathBuf,
    off: Vec<String>,
    /// So many of them by earlier processes.
    inherited: usize,
    /// Features that were turned off of devices that were the port before, by index.
    others: Vec<(u32, String)>,
    vlans: BTreeSet<(Tag, u16)>,
    /// Whose filter stays on.
    stuck: BTreeSet<Tag>,
    /// What was told of as filtered.
    told: BTreeSet<(Tag, u16)>,
}

impl Features {
    /// Continues the list of `file`.
    pub(crate) fn open(link: &Link, file: &Path) -> Self {
        Self::of(Interface(link.ifindex), &link.name, link.ifindex, file)
    }

    /// Features of another device, which has to let in what this one had to.
    pub(crate) fn like(&self, link: &Link, file: &Path) -> Self {
        Self { vlans: self.vlans.clone(), ..Self::open(link, file) }
    }

    /// Indices of devices that features were turned off of when they were the port.
    pub(crate) fn former_ports(&self) -> BTreeSet<u32> {
        self.others.iter().map(|(ifindex, _)| *ifindex).collect()
    }

    /// Turns on everything that was turned off of a device that is not the port any more.
    pub(crate) fn leave_former(&mut self, port: &Link) {
        let of_it = self.others.extract_if(.., |(ifindex, _)| *ifindex == port.ifindex);
        let features: Vec<String> = of_it.map(|(_, feature)| feature).collect();
        turn_on(&Interface(port.ifindex), &port.name, &features);
        self.save();
    }

    /// Turns on everything that was turned off, if the device is still there, by whatever name.
    pub(crate) fn leave(&mut self) {
        if ethtool::name_of(self.ifindex).is_ok() { self.restore() } else { self.forget() }
    }
}

impl<D: Device> Features<D> {
    fn of(device: D, interface: &str, ifindex: u32, file: &Path) -> Self {
        let text = fs::read_to_string(file).unwrap_or_default();
        let parsed = |line: &str| {
            let (of, feature) = line.split_once(' ')?;
            Some((of.parse().ok()?, feature.to_owned()))
        };
        let (own, others): (Vec<(u32, String)>, Vec<_>) =
            text.lines().filter_map(parsed).partition(|(of, _)| *of == ifindex);
        let off: Vec<String> = own.into_iter().map(|(_, feature)| feature).collect();
        let (interface, file, inherited) = (interface.to_owned(), file.to_owned(), off.len());
        let (vlans, stuck, told) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        Self { device, interface, ifindex, file, off, inherited, others, vlans, stuck, told }
    }

    /// Leaves VLAN tags in the frames of the device.
    ///
    /// # Errors
    /// [`HookError::TagsStripped`] if that cannot be had.
    pub(crate) fn leave_tags_in(&mut self) -> Result<(), DataplaneError> {
        for feature in STRIPPING {
            if !self.turn_off(feature)? {
                return Err(HookError::TagsStripped { interface: self.interface.clone(), feature }.into());
            }
        }
        if !self.turn_off(INSERTING)? {
            // The stack's own frames only: what XDP sends has its tag in it.
            tracing::debug!(interface = self.interface, feature = INSERTING, "stays on");
        }
        Ok(())
    }

    /// Lets frames of the VLANs of VIPs and backends in: those of VIPs are balanced, and backends answer ARP in theirs.
    /// A filter that cannot be turned off is told of and no reason to refuse VIPs: what it says of itself and what it does
    /// are two things (virtio has it on and fixed, and behind vhost nothing is filtered). Returns what is to be told:
    /// everything that is filtered, if there is more of it than before.
    #[must_use]
    pub(crate) fn let_in(&mut self, desired: &[Vip]) -> Vec<FilteredVlans> {
        let of_vips = desired.iter().map(|vip| vip.id.segment);
        let of_backends = desired.iter().flat_map(|vip| &vip.backends).map(|backend| backend.segment);
        let vlans: BTreeSet<_> = of_vips.chain(of_backends).filter_map(filtered_vlan).collect();
        if self.vlans == vlans {
            return Vec::new();
        }
        self.vlans = vlans;
        self.turn_filters_off()
    }

    /// [`Self::let_in`] for a device that has just come.
    #[must_use]
    pub(crate) fn turn_filters_off(&mut self) -> Vec<FilteredVlans> {
        let tags: BTreeSet<Tag> = self.vlans.iter().map(|(tag, _)| *tag).collect();
        self.stuck.clear();
        for tag in tags {
            let feature = filter(tag);
            if let Err(error) = self.turn_off(feature) {
                tracing::warn!(interface = self.interface, feature, %error, "not turned off");
            }
            // What cannot be asked about is not known to be on.
            if self.device.feature(feature).ok().flatten().is_some_and(|state| state.on) {
                self.stuck.insert(tag);
            }
        }
        let filtered = self.filtered_vlans();
        let before = std::mem::replace(&mut self.told, filtered.clone());
        if filtered.is_subset(&before) { Vec::new() } else { self.by_filter(&filtered) }
    }

    /// What the device may drop all the same, as things are now.
    pub(crate) fn filtered(&self) -> Vec<FilteredVlans> {
        self.by_filter(&self.filtered_vlans())
    }

    fn filtered_vlans(&self) -> BTreeSet<(Tag, u16)> {
        if self.stuck.is_empty() {
            return BTreeSet::new();
        }
        let known = self.device.vlans().unwrap_or_else(|error| {
            tracing::debug!(interface = self.interface, %error, "its VLAN devices are not known");
            BTreeSet::new()
        });
        let of_stuck = self.vlans.iter().filter(|(tag, _)| self.stuck.contains(tag));
        of_stuck.filter(|vlan| !known.contains(vlan)).copied().collect()
    }

    fn by_filter(&self, filtered: &BTreeSet<(Tag, u16)>) -> Vec<FilteredVlans> {
        let of = |(tag, device): (Tag, &'static str)| {
            let vlans: Vec<u16> = filtered.iter().filter(|(of, _)| *of == tag).map(|(_, vid)| *vid).collect();
            let (interface, feature) = (self.interface.clone(), filter(tag));
            (!vlans.is_empty()).then_some(FilteredVlans { interface, feature, vlans, device })
        };
        [(Tag::Dot1q, "vlan"), (Tag::Dot1ad, "vlan proto 802.1ad")].into_iter().filter_map(of).collect()
    }

    /// Whether it is off then.
    fn turn_off(&mut self, feature: &'static str) -> Result<bool, DataplaneError> {
        let Some(state) = self.device.feature(feature)?.filter(|state| state.on) else { return Ok(true) };
        if state.fixed {
            return Ok(false);
        }
        self.device.turn(feature, false)?;
        if self.device.feature(feature)?.is_some_and(|state| state.on) {
            return Ok(false);
        }
        tracing::info!(interface = self.interface, feature, "turned off");
        self.off.push(feature.to_owned());
        self.save();
        Ok(true)
    }

    /// Turns on what a start that fails has turned off; what is at work since before it stays so.
    pub(crate) fn give_up(&mut self) {
        let own = self.off.split_off(self.inherited.min(self.off.len()));
        turn_on(&self.device, &self.interface, &own);
        self.save();
    }

    /// Turns on everything that was turned off.
    fn restore(&mut self) {
        turn_on(&self.device, &self.interface, &self.off);
        self.forget();
    }

    /// There is nothing to be turned on again, or no device any more.
    fn forget(&mut self) {
        self.off.clear();
        self.inherited = 0;
        self.save();
    }

    fn save(&self) {
        let own = self.off.iter().map(|feature| (self.ifindex, feature));
        let others = self.others.iter().map(|(ifindex, feature)| (*ifindex, feature));
        let lines: String = own.chain(others).map(|(of, feature)| format!("{of} {feature}\n")).collect();
        if lines.is_empty() {
            // Others may have files beside it.
            let _ = fs::remove_file(&self.file);
            let _ = self.file.parent().map(fs::remove_dir);
            return;
        }
        let made = self.file.parent().map_or(Ok(()), fs::create_dir_all);
        if let Err(error) = made.and_then(|()| fs::write(&self.file, lines)) {
            let file = self.file.display();
            tracing::warn!(%file, %error, "a later process will not know what to turn on again");
        }
    }
}

fn turn_on(device: &impl Device, interface: &str, features: &[String]) {
    for feature in features {
        match device.turn(feature, true) {
            Ok(()) => tracing::info!(interface, feature, "turned on again"),
            Err(error) => tracing::warn!(interface, feature, %error, "not turned on again"),
        }
    }
}

/// The VLAN of a segment that filters look at: the outer one.
fn filtered_vlan(segment: Segment) -> Option<(Tag, u16)> {
    let (tag, vid) = match segment.kind() {
        SegmentKind::Dot1q => (Tag::Dot1q, segment.id()),
        SegmentKind::Dot1ad => (Tag::Dot1ad, segment.id()),
        SegmentKind::DoubleTagged => (Tag::Dot1ad, segment.id() >> 12),
        SegmentKind::None | SegmentKind::Vxlan | SegmentKind::Geneve => return None,
    };
    Some((tag, u16::try_from(vid).ok()?))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use super::*;
    use crate::balancer::samples::vip;

    #[derive(Default)]
    struct Nic {
        /// By name: on, and fixed.
        features: RefCell<BTreeMap<String, (bool, bool)>>,
        vlans: BTreeSet<(Tag, u16)>,
    }

    impl Nic {
        fn new(features: &[(&str, bool, bool)]) -> Self {
            let of = |(name, on, fixed): &(&str, bool, bool)| ((*name).to_owned(), (*on, *fixed));
            Self { features: RefCell::new(features.iter().map(of).collect()), vlans: BTreeSet::new() }
        }

        fn is_on(&self, name: &str) -> bool {
            self.features.borrow()[name].0
        }
    }

    impl Device for Nic {
        fn feature(&self, name: &str) -> Result<Option<Feature>, DataplaneError> {
            let features = self.features.borrow();
            Ok(features.get(name).map(|(on, fixed)| Feature { on: *on, fixed: *fixed }))
        }

        fn turn(&self, name: &str, on: bool) -> Result<(), DataplaneError> {
            self.features.borrow_mut().get_mut(name).unwrap().0 = on;
            Ok(())
        }

        fn vlans(&self) -> Result<BTreeSet<(Tag, u16)>, DataplaneError> {
            Ok(self.vlans.clone())
        }
    }

    fn features(device: Nic, file: &Path) -> Features<Nic> {
        Features::of(device, "eth0", 7, file)
    }

    #[test]
    fn tags_are_left_in_or_the_port_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("features");
        let mut usual = features(Nic::new(&[(STRIPPING[0], true, false), (INSERTING, true, true)]), &file);
        usual.leave_tags_in().unwrap();
        assert!(!usual.device.is_on(STRIPPING[0]) && usual.device.is_on(INSERTING));
        usual.restore();
        assert!(usual.device.is_on(STRIPPING[0]) && !file.exists());
        let mut fixed = features(Nic::new(&[(STRIPPING[1], true, true)]), &file);
        let error = fixed.leave_tags_in().unwrap_err().to_string();
        assert!(error.contains("eth0 has rx-vlan-stag-hw-parse on"), "{error}");
    }

    #[test]
    fn filters_are_turned_off_for_vlans_that_are_wanted() {
        let directory = tempfile::tempdir().unwrap();
        let all = [("rx-vlan-filter", true, false), ("rx-vlan-stag-filter", true, false)];
        let mut of = features(Nic::new(&all), &directory.path().join("features"));
        assert_eq!(of.let_in(&[vip("192.0.2.10:80/tcp", &[("a", 1)])]), []);
        assert!(of.device.is_on("rx-vlan-filter"), "nobody needs it off");
        assert_eq!(of.let_in(&[vip("192.0.2.10:80/tcp@802.1q:100", &[("a", 1)])]), []);
        assert!(!of.device.is_on("rx-vlan-filter") && of.device.is_on("rx-vlan-stag-filter"));
        assert_eq!(of.let_in(&[vip("192.0.2.10:80/tcp@802.1ad:100.7", &[("a", 1)])]), []);
        assert!(!of.device.is_on("rx-vlan-stag-filter"));
        assert_eq!(of.filtered(), []);
        of.restore();
        assert!(of.device.is_on("rx-vlan-filter") && of.device.is_on("rx-vlan-stag-filter"));
    }

    #[test]
    fn vlans_that_a_fixed_filter_may_drop_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let nic = Nic::new(&[("rx-vlan-filter", true, true)]);
        let mut of = features(nic, &directory.path().join("features"));
        let mut web = vip("192.0.2.10:80/tcp@802.1q:100", &[("a", 1), ("b", 1)]);
        web.backends[0].segment = "802.1q:200".parse().unwrap();
        let told = of.let_in(&[web, vip("192.0.2.10:80/tcp@802.1ad:300", &[])]);
        assert_eq!(told, of.filtered());
        let said = told[0].to_string();
        assert!(said.contains("eth0 has rx-vlan-filter on") && said.contains("are 100, 200;"), "{said}");
        assert!(said.contains("type vlan id 100`"), "{said}");
        of.device.vlans.extend([(Tag::Dot1q, 100), (Tag::Dot1q, 300)]);
        assert_eq!(of.filtered()[0].vlans, [200]);
        of.device.vlans.insert((Tag::Dot1q, 200));
        assert_eq!(of.filtered(), []);
    }

    #[test]
    fn only_a_device_with_service_tags_lets_them_in() {
        let directory = tempfile::tempdir().unwrap();
        let nic = Nic::new(&[("rx-vlan-filter", true, true), ("rx-vlan-stag-filter", true, true)]);
        let mut of = features(nic, &directory.path().join("features"));
        of.device.vlans.insert((Tag::Dot1q, 300));
        let said = of.let_in(&[vip("192.0.2.10:80/tcp@802.1ad:300", &[])])[0].to_string();
        assert!(said.contains("eth0 has rx-vlan-stag-filter on"), "{said}");
        assert!(said.contains("type vlan proto 802.1ad id 300`"), "{said}");
        of.device.vlans.insert((Tag::Dot1ad, 300));
        assert_eq!(of.filtered(), []);
    }

    #[test]
    fn further_vlans_behind_a_fixed_filter_are_told_of() {
        let directory = tempfile::tempdir().unwrap();
        let nic = Nic::new(&[("rx-vlan-filter", true, true)]);
        let mut of = features(nic, &directory.path().join("features"));
        let told = |of: &mut Features<Nic>, vids: &[u16]| {
            let vip = |vid| vip(&format!("192.0.2.10:80/tcp@802.1q:{vid}"), &[]);
            let told = of.let_in(&vids.iter().map(vip).collect::<Vec<_>>());
            told.into_iter().flat_map(|filtered| filtered.vlans).collect::<Vec<_>>()
        };
        assert_eq!(told(&mut of, &[100]), [100]);
        assert_eq!(told(&mut of, &[100]), [0; 0]);
        assert_eq!(told(&mut of, &[100, 200]), [100, 200]);
        assert_eq!(told(&mut of, &[200]), [0; 0]);
        of.device.vlans.insert((Tag::Dot1q, 300));
        assert_eq!(told(&mut of, &[200, 300]), [0; 0], "there is a device for it");
        assert_eq!(told(&mut of, &[100, 200]), [100, 200], "it was away in between");
    }

    #[test]
    fn a_later_process_turns_on_what_an_earlier_one_turned_off() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("run/features");
        let mut first = features(Nic::new(&[(STRIPPING[0], true, false)]), &file);
        first.leave_tags_in().unwrap();
        let found = [(STRIPPING[0], false, false), (INSERTING, true, false)];
        let mut second = features(Nic::new(&found), &file);
        second.leave_tags_in().unwrap();
        second.give_up();
        assert!(!second.device.is_on(STRIPPING[0]), "the program at work needs it");
        assert!(second.device.is_on(INSERTING));
        let mut other = Features::of(Nic::new(&[(STRIPPING[0], true, false)]), "eth1", 8, &file);
        assert!(other.off.is_empty());
        other.leave_tags_in().unwrap();
        other.restore();
        let mut third = features(Nic::new(&found), &file);
        third.restore();
        assert!(third.device.is_on(STRIPPING[0]), "the other device's user kept it in mind");
        assert!(!file.exists());
    }
}
