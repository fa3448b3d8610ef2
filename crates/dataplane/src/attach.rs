//! Programs on interfaces. Links are pinned, so that packets keep flowing when the process ends, and a restarted
//! process replaces the program behind the link without a packet in between seeing none.

use std::fs;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{self, SchedClassifierLink, TcAttachOptions, TcAttachType};
use aya::programs::xdp::{Xdp, XdpLink, XdpMode};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier};
use aya::util::KernelVersion;
use serde::{Deserialize, Serialize};

use crate::bpffs::Owner;
use crate::error::DataplaneError;
use crate::netlink::Link;
use crate::object;

/// Where in the kernel packets are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    /// Decided by the kind of interface.
    #[default]
    Auto,
    /// TC ingress.
    Tc,
    /// XDP in the driver.
    Xdp,
}

/// The hook in use, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// [`Hook::Tc`] or [`Hook::Xdp`].
    pub hook: Hook,
    /// For logs and status.
    pub reason: &'static str,
}

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Packets of hosts.
    Itr,
    /// Packets of the overlay.
    Etr,
}

impl Role {
    const fn program(self, hook: Hook) -> &'static str {
        match (self, hook) {
            (Self::Itr, Hook::Xdp) => object::ITR_XDP,
            (Self::Etr, Hook::Xdp) => object::ETR_XDP,
            (Self::Itr, _) => object::ITR,
            (Self::Etr, _) => object::ETR,
        }
    }
}

/// Decides the hook for an interface.
///
/// # Errors
/// [`DataplaneError::Hook`] if XDP was asked for where it cannot work.
pub fn choose(wanted: Hook, link: &Link) -> Result<Chosen, DataplaneError> {
    let virtual_device = link.kind.as_deref();
    match wanted {
        Hook::Tc => Ok(Chosen { hook: Hook::Tc, reason: "configured" }),
        Hook::Xdp if virtual_device == Some("tun") => Err(DataplaneError::Hook {
            hook: "xdp",
            interface: link.name.clone(),
            reason: "a TUN device has no driver support; use tc".to_owned(),
        }),
        Hook::Xdp => Ok(Chosen { hook: Hook::Xdp, reason: "configured" }),
        Hook::Auto if virtual_device == Some("veth") => {
            Ok(Chosen { hook: Hook::Tc, reason: "XDP on a veth takes segmentation offload from its peer" })
        }
        Hook::Auto if virtual_device.is_some() => {
            Ok(Chosen { hook: Hook::Tc, reason: "a virtual device without driver support for XDP" })
        }
        Hook::Auto => {
            Ok(Chosen { hook: Hook::Tc, reason: "keeps GSO packets whole; XDP only when configured" })
        }
    }
}

/// The attached programs.
#[derive(Debug)]
pub struct Attachments {
    directory: PathBuf,
    /// Filters on kernels without links: removed by hand.
    filters: Vec<(String, &'static str)>,
}

impl Attachments {
    /// Nothing attached; links are pinned in `directory`.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), filters: Vec::new() }
    }

    /// Loads the program if need be and puts it on the interface, in place of the one an earlier process left there.
    ///
    /// # Errors
    /// If the kernel refuses the program or the hook.
    pub fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        role: Role,
        hook: Hook,
        link: &Link,
    ) -> Result<(), DataplaneError> {
        let name = role.program(hook);
        let refused = |source: AttachError| DataplaneError::Program {
            program: name.to_owned(),
            interface: link.name.clone(),
            source,
        };
        let mistyped = |source: ProgramError| refused(source.into());
        let missing = || DataplaneError::Object { what: "program", name: name.to_owned() };
        let pin = self.directory.join(format!("link-{name}-{}", link.name));
        let program = ebpf.program_mut(name).ok_or_else(missing)?;
        if hook == Hook::Xdp {
            let program: &mut Xdp = program.try_into().map_err(mistyped)?;
            load_once(program.fd().is_err(), || program.load()).map_err(refused)?;
            return attach_xdp(program, link, XdpMode::Driver, &pin).map_err(refused);
        }
        let program: &mut SchedClassifier = program.try_into().map_err(mistyped)?;
        load_once(program.fd().is_err(), || program.load()).map_err(refused)?;
        if !has_tcx() {
            self.filters.push((link.name.clone(), name));
            return attach_filter(program, name, link).map_err(refused);
        }
        attach_tcx(program, link, &pin).map_err(refused)
    }

    /// Removes the links of interfaces that are not `wanted` any more (by pin name), left by an earlier process.
    ///
    /// # Errors
    /// If a pin cannot be removed.
    pub fn forget_others(&self, wanted: &[(Role, Hook, &str)]) -> Result<(), DataplaneError> {
        let failed =
            |source| DataplaneError::system("clean up", self.directory.display().to_string(), source);
        let keep: Vec<String> =
            wanted.iter().map(|(role, hook, name)| format!("link-{}-{name}", role.program(*hook))).collect();
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if Owner::Gateway.owns_link(&name) && !keep.contains(&name) {
                fs::remove_file(entry.path()).map_err(failed)?;
                tracing::info!(link = name, "detached");
            }
        }
        Ok(())
    }

    /// Takes every program off its interface.
    ///
    /// # Errors
    /// If a pin cannot be removed.
    pub fn detach(self) -> Result<(), DataplaneError> {
        self.forget_others(&[])?;
        for (interface, program) in &self.filters {
            if let Err(error) = tc::qdisc_detach_program(interface, TcAttachType::Ingress, program) {
                tracing::warn!(interface, program, %error, "filter not removed");
            }
        }
        Ok(())
    }
}

pub(crate) type AttachError = Box<dyn std::error::Error + Send + Sync>;

fn load_once(needed: bool, load: impl FnOnce() -> Result<(), ProgramError>) -> Result<(), AttachError> {
    if needed {
        load()?;
    }
    Ok(())
}

fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

/// The link of an earlier process, if it still holds the interface of this namespace: an interface that was deleted
/// leaves a dead link behind, which the kernel refuses to update.
fn attach_tcx(program: &mut SchedClassifier, link: &Link, pin: &Path) -> Result<(), AttachError> {
    if let Ok(old) = PinnedLink::from_pin(pin) {
        let replaced = SchedClassifierLink::try_from(FdLink::from(old))
            .map_err(AttachError::from)
            .and_then(|old| Ok(program.attach_to_link(old)?))
            .and_then(|id| Ok(program.take_link(id)?));
        if replaced.is_ok() && is_on(program, link) {
            return Ok(());
        }
        tracing::info!(interface = link.name, "the pinned link is of another interface; attaching anew");
        fs::remove_file(pin)?;
    }
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(&link.name, TcAttachType::Ingress, order)?;
    let attached: FdLink = program.take_link(id)?.try_into()?;
    attached.pin(pin)?;
    Ok(())
}

fn is_on(program: &SchedClassifier, link: &Link) -> bool {
    let (Ok(ours), Ok((_, there))) =
        (program.info(), SchedClassifier::query_tcx(&link.name, TcAttachType::Ingress))
    else {
        return false;
    };
    there.iter().any(|info| info.id() == ours.id())
}

fn attach_filter(program: &mut SchedClassifier, name: &str, link: &Link) -> Result<(), AttachError> {
    // Already there is no error; anything else shows when the filter is added.
    let _ = tc::qdisc_add_clsact(&link.name);
    let _ = tc::qdisc_detach_program(&link.name, TcAttachType::Ingress, name);
    let options = TcAttachOptions::Netlink(tc::NlOptions::default());
    let id = program.attach_with_options(&link.name, TcAttachType::Ingress, options)?;
    // Dropping the link would remove the filter; it is removed by name.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Puts a loaded program on the interface, in place of the one behind the pinned link if that is of this interface.
pub(crate) fn attach_xdp(
    program: &mut Xdp,
    link: &Link,
    mode: XdpMode,
    pin: &Path,
) -> Result<(), AttachError> {
    if let Ok(old) = PinnedLink::from_pin(pin) {
        let replaced = XdpLink::try_from(FdLink::from(old))
            .map_err(AttachError::from)
            .and_then(|old| Ok(program.attach_to_link(old)?))
            .and_then(|id| Ok(program.take_link(id)?));
        if replaced.is_ok() {
            return Ok(());
        }
        fs::remove_file(pin)?;
    }
    let id = program.attach_to_if_index(link.ifindex, mode)?;
    let attached: FdLink = program.take_link(id)?.try_into()?;
    attached.pin(pin)?;
    Ok(())
}
