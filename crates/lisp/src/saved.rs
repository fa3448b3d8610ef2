//! The form of values in storage: the first octet of a key names the kind, the rest is what the kind's owner reads.

use alloc::vec::Vec;
use core::net::IpAddr;

use codec::{DecodeError, IpPrefix, Reader, Writer};

use crate::wire::{EidPrefix, InstanceId, SiteId, XtrId, XtrIdentity};

/// First octet of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Map-Server: last nonce of a registering xTR.
    RegisterNonce = b'n',
    /// Map-Server: a registration.
    Registration = b'r',
    /// Map-Server: weights.
    Weights = b'w',
    /// Map-Server: a subscription and its nonce.
    Subscription = b's',
    /// xTR: nonce series of its registrations.
    OwnRegisterNonce = b'R',
    /// xTR: nonce series of a subscription.
    OwnSubscriptionNonce = b'S',
}

pub(crate) fn key(kind: Kind) -> Writer {
    let mut w = Writer::new();
    w.u8(kind as u8);
    w
}

pub(crate) fn write_ip(w: &mut Writer, ip: IpAddr) {
    w.u8(if ip.is_ipv4() { 4 } else { 6 });
    w.ip(ip);
}

pub(crate) fn read_ip(r: &mut Reader<'_>) -> Result<IpAddr, DecodeError> {
    match r.u8("saved family")? {
        4 => r.ipv4("saved address").map(IpAddr::V4),
        6 => r.ipv6("saved address").map(IpAddr::V6),
        other => Err(DecodeError::Invalid { field: "saved family", value: u64::from(other) }),
    }
}

pub(crate) fn write_eid(w: &mut Writer, eid: &EidPrefix) {
    w.u32(eid.instance_id.0);
    w.u8(eid.prefix.length());
    write_ip(w, eid.prefix.address());
}

pub(crate) fn read_eid(r: &mut Reader<'_>) -> Result<EidPrefix, DecodeError> {
    let instance_id = InstanceId(r.u32("saved instance")?);
    let length = r.u8("saved length")?;
    let invalid = DecodeError::Invalid { field: "saved length", value: u64::from(length) };
    let prefix = IpPrefix::new(read_ip(r)?, length).map_err(|_| invalid)?;
    Ok(EidPrefix { instance_id, prefix })
}

pub(crate) fn write_identity(w: &mut Writer, identity: &XtrIdentity) {
    w.bytes(&identity.xtr_id.0);
    w.u64(identity.site_id.0);
}

pub(crate) fn read_identity(r: &mut Reader<'_>) -> Result<XtrIdentity, DecodeError> {
    let xtr_id = XtrId(r.array("saved xTR-ID")?);
    Ok(XtrIdentity { xtr_id, site_id: SiteId(r.u64("saved site-ID")?) })
}

pub(crate) fn write_ips(w: &mut Writer, ips: &[IpAddr]) {
    // At most 32 ITR-RLOCs fit a Map-Request, so the count always fits.
    w.u8(u8::try_from(ips.len()).unwrap_or(u8::MAX));
    ips.iter().take(usize::from(u8::MAX)).for_each(|ip| write_ip(w, *ip));
}

pub(crate) fn read_ips(r: &mut Reader<'_>) -> Result<Vec<IpAddr>, DecodeError> {
    let count = r.u8("saved count")?;
    (0..count).map(|_| read_ip(r)).collect()
}

pub(crate) fn nonce_value(nonce: u64) -> Vec<u8> {
    nonce.to_be_bytes().to_vec()
}
