//! The port: who is on its XDP hook, and our program there.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{Xdp, XdpMode};
use aya::programs::{ProgramError, loaded_programs};

use crate::attach::{AttachError, attach_xdp};
use crate::balancer::desired::XdpHook;
use crate::bpffs::{self, Owner};
use crate::error::DataplaneError;
use crate::netlink::{AttachedXdp, Link, Netlink};
use crate::object::BALANCER;

/// libxdp's program that runs those of others one after another.
const DISPATCHER: &str = "xdp_dispatcher";
/// Frames of Ethernet without extensions always lie in one page.
const PLAIN_MTU: u32 = 1500;
/// Up to here frames lie in one page with every driver whose limit is the page.
const PAGE_MTU: u32 = 3498;

/// Why the hook cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HookError {
    /// Somebody else's program is there.
    #[error("{interface} has the XDP program {program} ({name}) on its {mode} hook already{}", way_out(.interface, .name))]
    Taken {
        /// The interface.
        interface: String,
        /// Id of the program.
        program: u32,
        /// Its name.
        name: String,
        /// Where it is.
        mode: XdpHook,
    },
    /// The device takes tags out of frames, and nothing can change that.
    #[error(
        "{interface} has {feature} on and fixed: VLAN tags would be taken out of frames before they are balanced; use \
         another device"
    )]
    TagsStripped {
        /// The interface.
        interface: String,
        /// `ethtool -k` name.
        feature: &'static str,
    },
    /// The driver has no such hook.
    #[error(
        "the driver of {interface} has no XDP of its own; `mode = \"generic\"` takes frames in the stack, which is \
         several times slower"
    )]
    NotNative {
        /// The interface.
        interface: String,
    },
    /// Frames may be longer than what the driver gives to a program in one piece.
    #[error(
        "the driver of {interface} (MTU {mtu}) refuses XDP for frames that do not lie in one page: lower its MTU{}; or \
         take frames in the stack by `mode = \"generic\"`, which is several times slower", how_far(*.mtu, *.veth)
    )]
    Jumbo {
        /// The interface.
        interface: String,
        /// Its MTU.
        mtu: u32,
        /// It is one end of a veth, of which the other end's MTU counts.
        veth: bool,
    },
    /// The driver has no such hook, or none for long frames: it does not say which.
    #[error(
        "the driver of {interface} (MTU {mtu}) refuses XDP: it has none of its own, or none for frames that do not lie \
         in one page; take frames in the stack by `mode = \"generic\"`, which is several times slower, or, if the driver \
         is known to have XDP, lower the MTU{}", how_far(*.mtu, false)
    )]
    NotNativeOrJumbo {
        /// The interface.
        interface: String,
        /// Its MTU.
        mtu: u32,
    },
}

/// A driver that refuses an MTU which a page has room for has a limit of its own.
fn how_far(mtu: u32, veth: bool) -> String {
    match (veth, mtu > PAGE_MTU) {
        (true, _) => format!(" and that of the other end to {PAGE_MTU} or less"),
        (false, true) => format!(" to {PAGE_MTU} or less"),
        (false, false) => String::new(),
    }
}

fn way_out(interface: &str, name: &str) -> String {
    if name == DISPATCHER {
        return format!(
            ", which is libxdp's and runs programs of others: `xdp-loader status {interface}` tells which, \
             `xdp-loader unload {interface} --all` takes them off"
        );
    }
    format!(
        "; stop what put it there, or take it off with `bpftool net detach xdp dev {interface}` (a link: `bpftool \
         link list` and `bpftool link detach id ID`)"
    )
}

/// Where the link of a port is pinned.
pub(crate) fn pin(directory: &Path, interface: &str) -> PathBuf {
    directory.join(format!("link-{BALANCER}-{interface}"))
}

/// Gives the pin of our link on the port the port's name, if it had another one when nobody was there to follow it.
///
/// # Errors
/// If the pin cannot be renamed.
pub(crate) fn follow_rename(link: &Link, directories: &[PathBuf]) -> Result<(), DataplaneError> {
    let Some(there) = link.xdp else { return Ok(()) };
    for directory in directories {
        let pins = bpffs::links(directory, Owner::Balancer)?;
        let Some(former) = pins.iter().find(|pin| program_behind(pin) == Some(there.program)) else {
            continue;
        };
        let named = pin(directory, &link.name);
        if *former != named {
            fs::rename(former, &named)
                .map_err(|source| DataplaneError::system("rename", former.display().to_string(), source))?;
            tracing::info!(interface = link.name, former = %former.display(), "the port has another name now");
        }
    }
    Ok(())
}

/// Id of the program behind a pinned link; `None` if there is no such link.
pub(crate) fn program_behind(pin: &Path) -> Option<u32> {
    let link = PinnedLink::from_pin(pin).ok().map(FdLink::from)?;
    Some(link.info().ok()?.program_id())
}

/// Whether our own program is on the hook, behind a link pinned in one of the directories.
///
/// # Errors
/// [`HookError::Taken`] if somebody else's is.
pub(crate) fn is_ours(link: &Link, directories: &[PathBuf]) -> Result<bool, DataplaneError> {
    let Some(there) = link.xdp else { return Ok(false) };
    let is_there = |directory: &PathBuf| program_behind(&pin(directory, &link.name)) == Some(there.program);
    if directories.iter().any(is_there) { Ok(true) } else { Err(taken(link, there).into()) }
}

fn taken(link: &Link, there: AttachedXdp) -> HookError {
    let programs = loaded_programs().filter_map(Result::ok);
    let name = programs
        .filter(|program| program.id() == there.program)
        .find_map(|program| program.name_as_str().map(str::to_owned));
    HookError::Taken {
        interface: link.name.clone(),
        program: there.program,
        name: name.unwrap_or_else(|| "name unknown".to_owned()),
        mode: if there.native { XdpHook::Native } else { XdpHook::Generic },
    }
}

/// Takes our program off the port if it is on the other kind of hook: a port has only one. Returns whether it was.
///
/// # Errors
/// If the pin cannot be removed, or the kernel does not let go in time.
pub(crate) async fn leave_other_hook(
    netlink: &Netlink,
    link: &Link,
    mode: XdpHook,
    pin: &Path,
) -> Result<bool, DataplaneError> {
    if link.xdp.is_none_or(|there| there.native == (mode == XdpHook::Native)) {
        return Ok(false);
    }
    tracing::warn!(interface = link.name, %mode, "changing hooks: frames pass the port for a moment");
    bpffs::unpin(pin)?;
    wait_until_free(netlink, &link.name).await?;
    Ok(true)
}

/// Waits for a link whose pin was removed: the kernel takes it off a little later.
///
/// # Errors
/// If it is still there after ten seconds.
pub(crate) async fn wait_until_free(netlink: &Netlink, interface: &str) -> Result<(), DataplaneError> {
    for _ in 0..1000 {
        if netlink.link(interface).await?.is_none_or(|link| link.xdp.is_none()) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let busy = std::io::Error::from_raw_os_error(libc::EBUSY);
    Err(DataplaneError::system("take the program off", interface, busy))
}

/// Puts the loaded program on the port, in place of the one behind the pinned link.
///
/// # Errors
/// If the kernel refuses it.
pub(crate) fn attach(
    object: &mut Ebpf,
    link: &Link,
    mode: XdpHook,
    pin: &Path,
) -> Result<(), DataplaneError> {
    let refused = |source: AttachError| match link_error(&source).and_then(|code| of_driver(code, link, mode))
    {
        Some(error) => error.into(),
        None => {
            DataplaneError::Program { program: BALANCER.to_owned(), interface: link.name.clone(), source }
        }
    };
    let missing = || DataplaneError::Object { what: "program", name: BALANCER.to_owned() };
    let program: &mut Xdp = object
        .program_mut(BALANCER)
        .ok_or_else(missing)?
        .try_into()
        .map_err(|e: ProgramError| refused(e.into()))?;
    let flag = match mode {
        XdpHook::Native => XdpMode::Driver,
        XdpHook::Generic => XdpMode::Skb,
    };
    attach_xdp(program, link, flag, pin).map_err(refused)
}

/// What a driver means that refuses a program. For the length of frames it is `ERANGE` with a veth, `EINVAL` with most
/// others, among other things, and with some `EOPNOTSUPP`, which is also what the kernel says for a driver without XDP.
fn of_driver(code: i32, link: &Link, mode: XdpHook) -> Option<HookError> {
    if mode != XdpHook::Native {
        return None;
    }
    let (interface, mtu) = (link.name.clone(), link.mtu);
    let veth = link.kind.as_deref() == Some("veth");
    match code {
        libc::ERANGE => Some(HookError::Jumbo { interface, mtu, veth }),
        libc::EINVAL if mtu > PLAIN_MTU => Some(HookError::Jumbo { interface, mtu, veth }),
        libc::EOPNOTSUPP if mtu > PLAIN_MTU => Some(HookError::NotNativeOrJumbo { interface, mtu }),
        libc::EOPNOTSUPP => Some(HookError::NotNative { interface }),
        _ => None,
    }
}

/// What the kernel said of a link that it refused.
fn link_error(error: &AttachError) -> Option<i32> {
    match error.downcast_ref::<ProgramError>() {
        Some(ProgramError::SyscallError(error)) => error.io_error.raw_os_error(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(code: i32, mtu: u32, kind: Option<&str>) -> Option<String> {
        let (name, kind) = ("eth0".to_owned(), kind.map(str::to_owned));
        let link = Link { name, ifindex: 2, mtu, mac: [2; 6], kind, xdp: None };
        of_driver(code, &link, XdpHook::Native).map(|error| error.to_string())
    }

    #[test]
    fn a_refusal_says_no_more_than_the_driver_did() {
        let has = |code, mtu, kind, parts: &[&str], not: &[&str]| {
            let said = said(code, mtu, kind).unwrap();
            assert!(parts.iter().all(|part| said.contains(part)), "{said}");
            assert!(!not.iter().any(|part| said.contains(part)), "{said}");
        };
        let (none, long) = ("none of its own", "do not lie in one page");
        has(libc::EOPNOTSUPP, 9000, None, &["refuses XDP", none, long, "generic", "to 3498 or less"], &[]);
        has(libc::EOPNOTSUPP, 2000, None, &[none, long, "lower the MTU"], &["3498"]);
        has(libc::EOPNOTSUPP, 1500, None, &["no XDP of its own"], &["MTU"]);
        has(libc::EINVAL, 9000, None, &[long, "lower its MTU to 3498 or less;"], &[none]);
        has(libc::EINVAL, 3498, None, &[long, "lower its MTU;"], &["or less"]);
        // The other end has the long frames.
        has(libc::ERANGE, 1500, Some("veth"), &["(MTU 1500)", "of the other end to 3498 or less;"], &[]);
        assert_eq!(said(libc::EINVAL, 1500, None), None);
        assert_eq!(said(libc::ENOMEM, 9000, None), None);
    }
}
