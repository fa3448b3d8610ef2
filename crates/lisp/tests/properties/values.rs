//! Values of every type that has an encoding, in the form in which decoding gives them back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use codec::IpPrefix;
use lisp::wire::{
    Action, Address, Authentication, DATA_PORT, DataHeader, EidPrefix, EidRecord, EncapsulatedControlMessage,
    InstanceId, LocatorRecord, LowField, MapNotify, MapRegister, MapReply, MapRequest, Message,
    RequestRecord, SiteId, XtrId, XtrIdentity,
};
use proptest::collection::vec;
use proptest::prelude::*;

pub(crate) fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        map_request().prop_map(Message::MapRequest),
        map_reply().prop_map(Message::MapReply),
        authenticated_message(),
        encapsulated().prop_map(Message::Encapsulated),
    ]
}

pub(crate) fn authenticated_message() -> impl Strategy<Value = Message> {
    prop_oneof![
        map_register().prop_map(Message::MapRegister),
        map_notify().prop_map(Message::MapNotify),
        map_notify().prop_map(Message::MapNotifyAck),
    ]
}

/// The message with its locators in the order in which they are sent.
pub(crate) fn sorted(mut message: Message) -> Message {
    let records: &mut [EidRecord] = match &mut message {
        Message::MapRequest(m) => m.map_reply.as_mut_slice(),
        Message::MapReply(m) => &mut m.records,
        Message::MapRegister(m) => &mut m.records,
        Message::MapNotify(m) | Message::MapNotifyAck(m) => &mut m.records,
        _ => &mut [],
    };
    records.iter_mut().for_each(EidRecord::sort_locators);
    message
}

pub(crate) fn data_header() -> impl Strategy<Value = DataHeader> {
    let low_field = prop_oneof![
        Just(LowField::Empty),
        (0..1_u32 << 24, any::<bool>()).prop_map(|(nonce, echo)| LowField::Nonce { nonce, echo }),
        (0..4096_u16, 0..4096_u16)
            .prop_map(|(source, destination)| LowField::MapVersion { source, destination }),
    ];
    let instance_id = prop::option::of((0..1_u32 << 24).prop_map(InstanceId));
    (low_field, instance_id, prop::option::of(any::<u32>())).prop_map(
        |(low_field, instance_id, locator_status)| DataHeader {
            low_field,
            instance_id,
            locator_status: locator_status.map(|s| if instance_id.is_some() { s & 0xff } else { s }),
        },
    )
}

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::from(Ipv4Addr::from(bits))),
        any::<u128>().prop_map(|bits| IpAddr::from(Ipv6Addr::from(bits))),
    ]
}

fn address() -> impl Strategy<Value = Address> {
    let leaf = prop_oneof![
        1 => Just(Address::NoAddress),
        6 => ip().prop_map(Address::Ip),
        1 => unknown_lcaf(),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Address::AfiList),
            // Instance 0 around an address is the address.
            (1_u32.., any::<u8>(), inner).prop_map(|(id, mask_len, address)| Address::InstanceId {
                instance_id: InstanceId(id),
                mask_len,
                address: Box::new(address),
            }),
        ]
    })
}

fn unknown_lcaf() -> impl Strategy<Value = Address> {
    let lcaf_type = prop_oneof![Just(0_u8), 3_u8..];
    (lcaf_type, any::<[u8; 3]>(), vec(any::<u8>(), 0..20)).prop_map(
        |(lcaf_type, [reserved1, flags, reserved2], body)| Address::UnknownLcaf {
            lcaf_type,
            reserved1,
            flags,
            reserved2,
            body,
        },
    )
}

fn eid() -> impl Strategy<Value = EidPrefix> {
    let prefix = (ip(), any::<u8>()).prop_map(|(ip, length)| {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        IpPrefix::new(ip, length % (bits + 1)).unwrap()
    });
    let instance_id = prop_oneof![Just(0), any::<u32>()].prop_map(InstanceId);
    (instance_id, prefix).prop_map(|(instance_id, prefix)| EidPrefix { instance_id, prefix })
}

fn locator() -> impl Strategy<Value = LocatorRecord> {
    (any::<[u8; 4]>(), any::<[bool; 3]>(), address()).prop_map(
        |([priority, weight, multicast_priority, multicast_weight], [local, probed, reachable], rloc)| {
            LocatorRecord {
                priority,
                weight,
                multicast_priority,
                multicast_weight,
                local,
                probed,
                reachable,
                rloc,
            }
        },
    )
}

fn record() -> impl Strategy<Value = EidRecord> {
    (any::<u32>(), 0_u8..8, any::<bool>(), 0_u16..4096, eid(), vec(locator(), 0..6)).prop_map(
        |(ttl, action, authoritative, map_version, eid, locators)| {
            let action = Action::from_bits(action);
            let mut record = EidRecord { ttl, action, authoritative, map_version, eid, locators };
            record.sort_locators();
            record
        },
    )
}

fn identity() -> impl Strategy<Value = XtrIdentity> {
    (any::<[u8; 16]>(), any::<u64>())
        .prop_map(|(xtr_id, site_id)| XtrIdentity { xtr_id: XtrId(xtr_id), site_id: SiteId(site_id) })
}

fn authentication() -> impl Strategy<Value = Authentication> {
    (any::<u8>(), any::<u8>(), vec(any::<u8>(), 0..40))
        .prop_map(|(key_id, algorithm_id, data)| Authentication { key_id, algorithm_id, data })
}

fn map_request() -> impl Strategy<Value = MapRequest> {
    let asked = (any::<bool>(), eid()).prop_map(|(subscribe, eid)| RequestRecord { subscribe, eid });
    let addresses = (address(), vec(address(), 1..5));
    let tail = (vec(asked, 0..4), prop::option::of(record()), prop::option::of(identity()));
    (any::<[bool; 7]>(), any::<u64>(), addresses, tail).prop_map(
        |(flags, nonce, (source_eid, itr_rlocs), (records, map_reply, xtr))| {
            let [authoritative, probe, smr, proxy_itr, smr_invoked, local_xtr, no_map_reply] = flags;
            MapRequest {
                authoritative,
                probe,
                smr,
                proxy_itr,
                smr_invoked,
                local_xtr,
                no_map_reply,
                nonce,
                source_eid,
                itr_rlocs,
                records,
                map_reply,
                xtr,
            }
        },
    )
}

fn map_reply() -> impl Strategy<Value = MapReply> {
    let security = prop::option::of(vec(any::<u8>(), 0..40));
    (any::<bool>(), any::<bool>(), security, any::<u64>(), vec(record(), 0..4)).prop_map(
        |(probe, echo_nonce, security, nonce, records)| MapReply {
            probe,
            echo_nonce,
            security,
            nonce,
            records,
        },
    )
}

fn map_register() -> impl Strategy<Value = MapRegister> {
    let tail = (vec(record(), 0..4), prop::option::of(identity()));
    (any::<[bool; 6]>(), any::<u64>(), authentication(), tail).prop_map(
        |(flags, nonce, authentication, (records, xtr))| {
            let [proxy_reply, security_capable, eid_notify, use_ttl_for_timeout, merge, want_map_notify] =
                flags;
            MapRegister {
                proxy_reply,
                security_capable,
                eid_notify,
                use_ttl_for_timeout,
                merge,
                want_map_notify,
                nonce,
                authentication,
                records,
                xtr,
            }
        },
    )
}

fn map_notify() -> impl Strategy<Value = MapNotify> {
    (any::<u64>(), authentication(), vec(record(), 0..4), vec(any::<u8>(), 0..30)).prop_map(
        |(nonce, authentication, records, trailer)| MapNotify { nonce, authentication, records, trailer },
    )
}

fn encapsulated() -> impl Strategy<Value = EncapsulatedControlMessage> {
    let addresses = prop_oneof![
        any::<[[u8; 4]; 2]>().prop_map(|pair| pair.map(IpAddr::from)),
        any::<[[u8; 16]; 2]>().prop_map(|pair| pair.map(IpAddr::from)),
    ];
    let port = any::<u16>().prop_filter("not the data port", |port| *port != DATA_PORT);
    (any::<bool>(), addresses, port.clone(), port, vec(any::<u8>(), 0..80)).prop_map(
        |(ddt, [source, destination], source_port, destination_port, message)| EncapsulatedControlMessage {
            security: false,
            ddt,
            inner_source: SocketAddr::new(source, source_port),
            inner_destination: SocketAddr::new(destination, destination_port),
            message,
        },
    )
}
