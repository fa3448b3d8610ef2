//! Device features by the ETHTOOL ioctl (`include/uapi/linux/ethtool.h`).

use std::ffi::c_void;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::error::DataplaneError;

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_LEN: usize = 32;
/// More feature names than any kernel has.
const FEATURES_MAX: usize = 256;

/// Turns a feature of a device (`ethtool -k` names) on or off. A kernel that does not know the feature is left alone.
///
/// # Errors
/// If the kernel refuses an ioctl.
pub fn set_feature(interface: &str, feature: &str, on: bool) -> Result<(), DataplaneError> {
    let device = Device::open(interface)?;
    let Some(index) = device.feature_index(feature)? else { return Ok(()) };
    // struct ethtool_sfeatures { cmd, size } followed by `size` blocks { valid, requested } of 32 features each.
    let mut request = [0_u32; 2 + 2 * (FEATURES_MAX / 32)];
    let (block, bit) = (index / 32, 1_u32 << (index % 32));
    request[0] = ETHTOOL_SFEATURES;
    request[1] = u32::try_from(device.count()?.div_ceil(32)).unwrap_or(0);
    request[2 + 2 * block] = bit;
    request[3 + 2 * block] = if on { bit } else { 0 };
    device.call(request.as_mut_ptr().cast())
}

/// How a feature of a device stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// It is at work.
    pub on: bool,
    /// Nobody can change that.
    pub fixed: bool,
}

/// A feature of a device (`ethtool -k` names); `None` if the kernel does not know it.
///
/// # Errors
/// If the kernel refuses an ioctl.
pub fn feature(interface: &str, feature: &str) -> Result<Option<Feature>, DataplaneError> {
    let device = Device::open(interface)?;
    let Some(index) = device.feature_index(feature)? else { return Ok(None) };
    // struct ethtool_gfeatures { cmd, size } followed by blocks { available, requested, active, never_changed }.
    let mut request = [0_u32; 2 + 4 * (FEATURES_MAX / 32)];
    let (block, bit) = (index / 32, 1_u32 << (index % 32));
    request[0] = ETHTOOL_GFEATURES;
    request[1] = u32::try_from(device.count()?.div_ceil(32)).unwrap_or(0);
    device.call(request.as_mut_ptr().cast())?;
    let is = |word: usize| request[2 + 4 * block + word] & bit != 0;
    Ok(Some(Feature { on: is(2), fixed: !is(0) || is(3) }))
}

struct Device {
    socket: OwnedFd,
    interface: String,
    name: [libc::c_char; libc::IFNAMSIZ],
}

#[repr(C)]
struct Strings {
    cmd: u32,
    set: u32,
    count: u32,
    names: [[u8; ETH_GSTRING_LEN]; FEATURES_MAX],
}

#[repr(C)]
struct SetInfo {
    cmd: u32,
    reserved: u32,
    mask: u64,
    count: u32,
    pad: u32,
}

impl Device {
    fn open(interface: &str) -> Result<Self, DataplaneError> {
        // SAFETY: no pointer is passed; the result is checked before it becomes an owned descriptor.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(DataplaneError::last("open", "ethtool socket"));
        }
        // SAFETY: `fd` was just opened and nobody else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { socket, interface: interface.to_owned(), name: interface_name(interface)? })
    }

    fn count(&self) -> Result<usize, DataplaneError> {
        let mut info =
            SetInfo { cmd: ETHTOOL_GSSET_INFO, reserved: 0, mask: 1 << ETH_SS_FEATURES, count: 0, pad: 0 };
        self.call((&raw mut info).cast())?;
        Ok(usize::try_from(info.count).unwrap_or(0).min(FEATURES_MAX))
    }

    fn feature_index(&self, feature: &str) -> Result<Option<usize>, DataplaneError> {
        let count = self.count()?;
        let mut strings = Box::new(Strings {
            cmd: ETHTOOL_GSTRINGS,
            set: ETH_SS_FEATURES,
            count: u32::try_from(count).unwrap_or(0),
            names: [[0; ETH_GSTRING_LEN]; FEATURES_MAX],
        });
        self.call((&raw mut *strings).cast())?;
        let is = |name: &[u8; ETH_GSTRING_LEN]| {
            name.split(|b| *b == 0).next().is_some_and(|name| name == feature.as_bytes())
        };
        Ok(strings.names[..count].iter().position(is))
    }

    /// `data` is one of the kernel's ethtool structures, large enough for its `cmd`.
    fn call(&self, data: *mut c_void) -> Result<(), DataplaneError> {
        // SAFETY: an all-zero ifreq is a valid value of that C structure.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name = self.name;
        request.ifr_ifru.ifru_data = data.cast();
        // SAFETY: the ioctl reads and writes `request` and the structure behind `data`, which outlives the call and
        // has room for FEATURES_MAX names or blocks, while the kernel writes at most the count it was given.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
        // Positive results of ETHTOOL_SFEATURES are notes ("wish granted later"), not errors.
        if result < 0 { Err(DataplaneError::last("ethtool", &self.interface)) } else { Ok(()) }
    }
}

/// The name that an interface of the calling thread's network namespace has now.
///
/// # Errors
/// If there is none of that index.
pub(crate) fn name_of(ifindex: u32) -> Result<String, DataplaneError> {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the size that the call wants and outlives it.
    if unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr()) }.is_null() {
        return Err(DataplaneError::last("find", format!("interface {ifindex}")));
    }
    let octets = name.map(libc::c_char::to_ne_bytes).concat();
    let name = octets.split(|octet| *octet == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// An interface name as C structures hold it.
pub(crate) fn interface_name(name: &str) -> Result<[libc::c_char; libc::IFNAMSIZ], DataplaneError> {
    let mut field = [0; libc::IFNAMSIZ];
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
        let source = io::Error::from_raw_os_error(libc::EINVAL);
        return Err(DataplaneError::system("interface name", name, source));
    }
    for (to, from) in field.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(field)
}

const _: () =
    assert!(size_of::<SetInfo>() == 24 && size_of::<Strings>() == 12 + FEATURES_MAX * ETH_GSTRING_LEN);
