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
use crate::error::DataplaneError;
use crate::netlink::{AttachedXdp, Link, Netlink};
use crate::object::BALANCER;

/// libxdp's program that runs those of others one after another.
const DISPATCHER: &str = "xdp_dispatcher";
/// Frames of Ethernet without extensions always lie in one page.
const PLAIN_MTU: u32 = 1500;

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
        "the driver of {interface} (MTU {mtu}) refuses XDP for frames that do not lie in one page: lower its MTU, of a \
         veth that of the other end as well, to 3498 or less; or take frames in the stack by `mode = \"generic\"`, which \
         is several times slower"
    )]
    Jumbo {
        /// The interface.
        interface: String,
        /// Its MTU; of a veth the other end's counts.
        mtu: u32,
    },
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

/// Whether our own program is on the hook, behind a link pinned in one of the directories.
///
/// # Errors
/// [`HookError::Taken`] if somebody else's is.
pub(crate) fn is_ours(link: &Link, directories: &[PathBuf]) -> Result<bool, DataplaneError> {
    let Some(there) = link.xdp else { return Ok(false) };
    let is_there = |directory: &PathBuf| {
        let pinned = PinnedLink::from_pin(pin(directory, &link.name)).ok().map(FdLink::from);
        pinned.and_then(|pinned| pinned.info().ok()).is_some_and(|info| info.program_id() == there.program)
    };
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
/// If the pin cannot be removed, or the kernel does not let go within a second.
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
    fs::remove_file(pin)
        .map_err(|source| DataplaneError::system("remove", pin.display().to_string(), source))?;
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

/// What a driver means that refuses a program. It is `ERANGE` for the length of frames with a veth, `EINVAL` with most
/// others, among other things.
fn of_driver(code: i32, link: &Link, mode: XdpHook) -> Option<HookError> {
    let interface = || link.name.clone();
    let jumbo = HookError::Jumbo { interface: interface(), mtu: link.mtu };
    match code {
        _ if mode != XdpHook::Native => None,
        libc::ERANGE => Some(jumbo),
        libc::EINVAL | libc::EOPNOTSUPP if link.mtu > PLAIN_MTU => Some(jumbo),
        libc::EOPNOTSUPP => Some(HookError::NotNative { interface: interface() }),
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
