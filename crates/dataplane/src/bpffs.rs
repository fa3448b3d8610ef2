//! The BPF file system, where maps and links outlive the process.

use std::borrow::Cow;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bpf_abi::ABI_VERSION;

use crate::error::DataplaneError;
use crate::object;

/// Where the BPF file system is usually mounted.
pub const MOUNT_POINT: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC` (`include/uapi/linux/magic.h`).
const MAGIC: libc::c_long = 0xcafe_4a11;

/// Mounts the BPF file system unless it is there.
///
/// # Errors
/// If it cannot be mounted.
pub fn ensure_mounted() -> Result<(), DataplaneError> {
    if is_bpffs(Path::new(MOUNT_POINT))? {
        return Ok(());
    }
    let (target, kind) = (text(MOUNT_POINT.as_bytes())?, text(b"bpf")?);
    // SAFETY: three NUL-terminated strings that outlive the call, no flags, no data.
    let result = unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    if result < 0 {
        return Err(DataplaneError::last("mount bpf on", MOUNT_POINT));
    }
    tracing::info!(path = MOUNT_POINT, "mounted the BPF file system");
    let mounts = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    if mounts("self") != mounts("1") {
        tracing::warn!("this process has mounts of its own: what it pins goes away with it");
    }
    Ok(())
}

/// The pin directory of a node for this version of the map layout.
#[must_use]
pub fn pin_path(node: &str) -> PathBuf {
    pin_path_under(&Path::new(MOUNT_POINT).join("weir"), node)
}

/// [`pin_path`] in another place than the usual one.
#[must_use]
pub fn pin_path_under(root: &Path, node: &str) -> PathBuf {
    root.join(node).join(format!("v{ABI_VERSION}"))
}

/// [`pin_path`], created.
///
/// # Errors
/// If it cannot be created.
pub fn pin_directory(node: &str) -> Result<PathBuf, DataplaneError> {
    let path = pin_path(node);
    create(&path)?;
    Ok(path)
}

/// Pin directories of a node for whatever version of the map layout.
pub(crate) fn versions(directory: &Path) -> Vec<PathBuf> {
    directory.parent().and_then(|node| children(node).ok()).unwrap_or_default()
}

/// Whether a node has pins of a role, by whatever version of the map layout.
pub(crate) fn has_pins(directory: &Path, owner: Owner) -> bool {
    let mut pins = versions(directory).into_iter().flat_map(|version| children(&version).unwrap_or_default());
    pins.any(|pin| owner.owns(&name_of(&pin)))
}

/// A role's pinned links in a directory.
///
/// # Errors
/// If the directory cannot be listed.
pub(crate) fn links(directory: &Path, owner: Owner) -> Result<Vec<PathBuf>, DataplaneError> {
    let mut pins = children(directory)?;
    pins.retain(|pin| owner.owns_link(&name_of(pin)));
    Ok(pins)
}

/// Removes one pin.
///
/// # Errors
/// If it cannot be removed, or is not there.
pub(crate) fn unpin(pin: &Path) -> Result<(), DataplaneError> {
    fs::remove_file(pin).map_err(|source| DataplaneError::system("remove", pin.display().to_string(), source))
}

/// Creates a pin directory.
///
/// # Errors
/// If it cannot be created.
pub(crate) fn create(path: &Path) -> Result<(), DataplaneError> {
    fs::create_dir_all(path)
        .map_err(|source| DataplaneError::system("create", path.display().to_string(), source))
}

/// The role that a pin is of: a node may have both, and each leaves the other's alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Whatever is not the balancer's, so also what another version pinned.
    Gateway,
    /// The site balancer.
    Balancer,
}

impl Owner {
    /// Whether a pin is of this role.
    #[must_use]
    pub fn owns(self, pin: &str) -> bool {
        let link = || pin.strip_prefix("link-").and_then(|rest| rest.strip_prefix(object::BALANCER));
        let balancers = object::BALANCER_MAPS.contains(&pin) || link().is_some_and(|of| of.starts_with('-'));
        balancers == (self == Self::Balancer)
    }

    /// Whether a pin is a link of this role.
    #[must_use]
    pub fn owns_link(self, pin: &str) -> bool {
        pin.starts_with("link-") && self.owns(pin)
    }
}

/// Removes a role's pins in `directory`, then the directories that are empty because of it.
///
/// # Errors
/// If a pin cannot be removed.
pub fn remove(directory: &Path, owner: Owner) -> Result<(), DataplaneError> {
    for path in children(directory)?.iter().filter(|path| owner.owns(&name_of(path))) {
        unpin(path)?;
    }
    let root = Path::new(MOUNT_POINT);
    for parent in directory.ancestors().take_while(|p| *p != root) {
        if fs::remove_dir(parent).is_err() {
            break;
        }
    }
    Ok(())
}

/// Takes over the links of a role that a process with another version of the map layout left pinned beside `directory`, so that
/// its programs are replaced and not joined; its maps go away with them.
///
/// # Errors
/// If a pin cannot be moved or removed.
pub fn take_over_other_versions(directory: &Path, owner: Owner) -> Result<(), DataplaneError> {
    let Some(node) = directory.parent() else { return Ok(()) };
    for version in children(node)?.into_iter().filter(|path| path != directory) {
        let pins = children(&version)?;
        if !pins.iter().any(|pin| owner.owns(&name_of(pin))) {
            continue;
        }
        for pin in pins {
            let name = name_of(&pin);
            let ours = directory.join(&*name);
            if owner.owns_link(&name) && !ours.exists() {
                fs::rename(&pin, &ours)
                    .map_err(|source| DataplaneError::system("move", pin.display().to_string(), source))?;
            }
        }
        remove(&version, owner)?;
        tracing::info!(path = %version.display(), "took over from another version");
    }
    Ok(())
}

fn name_of(pin: &Path) -> Cow<'_, str> {
    pin.file_name().unwrap_or_default().to_string_lossy()
}

fn children(directory: &Path) -> Result<Vec<PathBuf>, DataplaneError> {
    let entries = fs::read_dir(directory).and_then(|all| all.map(|entry| Ok(entry?.path())).collect());
    entries.map_err(|source| DataplaneError::system("list", directory.display().to_string(), source))
}

fn is_bpffs(path: &Path) -> Result<bool, DataplaneError> {
    let name = text(path.as_os_str().as_bytes())?;
    // SAFETY: an all-zero statfs is a valid value of that C structure.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a NUL-terminated path and a statfs that outlive the call.
    if unsafe { libc::statfs(name.as_ptr(), &raw mut stat) } < 0 {
        return Err(DataplaneError::last("statfs", path.display().to_string()));
    }
    Ok(stat.f_type as libc::c_long == MAGIC)
}

fn text(bytes: &[u8]) -> Result<CString, DataplaneError> {
    CString::new(bytes).map_err(|e| DataplaneError::system("path", "", io::Error::other(e)))
}
