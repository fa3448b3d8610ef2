//! Why a program let a packet go the way it went: one counter each.

macro_rules! reasons {
    ($(#[doc = $about:literal])+ $enum:ident passes [$($passes:ident),* $(,)?];
     $($(#[doc = $doc:literal])+ $name:ident = $text:literal,)*) => {
        $(#[doc = $about])+
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $enum {
            $($(#[doc = $doc])+ $name,)*
        }

        impl $enum {
            /// Every reason, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Value of the `reason` label.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// Whether a packet refused for this reason is left to the stack; all others are dropped.
            #[must_use]
            #[inline(always)]
            pub const fn passes(self) -> bool {
                matches!(self, $(Self::$passes)|*)
            }
        }
    };
}

reasons! {
    /// Index of a gateway's per-CPU reason counters; every packet a program sees counts exactly one.
    Reason passes [PassNotLisp, PassTooBig, PassTtl, PassNative, PassNoNextHop];
    /// Encapsulated and sent towards a locator.
    Encapsulated = "encapsulated",
    /// Likewise, but without segmentation offload: the packet was in a tunnel of this host before.
    EncapsulatedPlain = "encapsulated_plain",
    /// Decapsulated and sent towards the host, or to the stack.
    Decapsulated = "decapsulated",
    /// Not IP, not addressed to an EID, or not LISP data: left to the stack.
    PassNotLisp = "pass_not_lisp",
    /// Too large for the way to the locator: left to the stack, which fragments or answers Packet Too Big.
    PassTooBig = "pass_too_big",
    /// TTL or hop limit used up: left to the stack, which answers Time Exceeded.
    PassTtl = "pass_ttl",
    /// The mapping says Natively-Forward.
    PassNative = "pass_native",
    /// The link-layer address of the next hop is not known (XDP): left to the stack, which asks for it.
    PassNoNextHop = "pass_no_next_hop",
    /// Handed to user space to be resolved.
    Resolve = "resolve",
    /// UDP GSO packet sent through the segmenting veth before decapsulation.
    Segment = "segment",
    /// The mapping says Drop.
    DropPolicy = "drop_policy",
    /// No locator of the mapping is usable.
    DropNoLocator = "drop_no_locator",
    /// Too large, and already back from the stack.
    DropTooBig = "drop_too_big",
    /// Truncated or malformed headers.
    DropMalformed = "drop_malformed",
    /// The LISP header asks for something this node does not do (KK set, unknown next protocol).
    DropHeader = "drop_header",
    /// The inner destination is no EID of ours.
    DropNotLocal = "drop_not_local",
    /// Inner Not-ECT under an outer CE mark (RFC 6040 §4.2).
    DropEcn = "drop_ecn",
    /// The kernel refused to make or take away room for the headers.
    DropAdjustRoom = "drop_adjust_room",
    /// User space gave no device for unresolved EIDs.
    DropUnresolved = "drop_unresolved",
    /// A map the program needs has no entry: user space is not ready.
    DropNotReady = "drop_not_ready",
}

reasons! {
    /// Index of a site balancer's per-CPU reason counters; every frame the program sees counts exactly one.
    BalancerReason passes [PassNotIp, PassNotForUs, PassSegment, PassMalformed, PassNoVip, PassIcmp];
    /// Sent to the backend that the VIP's table names.
    Forwarded = "forwarded",
    /// Sent to the backend that the flow was remembered on.
    ForwardedFlow = "forwarded_flow",
    /// Sent to the backend that the table before the last change names: the flow may be older than the change.
    ForwardedPrevious = "forwarded_previous",
    /// An ICMP error about a flow, sent to the flow's backend.
    IcmpRelayed = "icmp_relayed",
    /// An ICMP echo request to a VIP's address, answered.
    EchoAnswered = "echo_answered",
    /// Neither IPv4 nor IPv6: left to the stack.
    PassNotIp = "pass_not_ip",
    /// Not addressed to the port's link-layer address.
    PassNotForUs = "pass_not_for_us",
    /// Tags or tunnel headers that no segment is made of (three tags, Geneve options, a tagged inner frame).
    PassSegment = "pass_segment",
    /// Truncated, or lengths that contradict each other.
    PassMalformed = "pass_malformed",
    /// Addressed to no VIP.
    PassNoVip = "pass_no_vip",
    /// ICMP to a VIP's address that is neither an echo request nor an error about a flow of a VIP there.
    PassIcmp = "pass_icmp",
    /// A fragment to a VIP's address where no VIP takes fragments of that protocol.
    DropFragment = "drop_fragment",
    /// An IPv6 extension header other than Fragment in a packet to a VIP's address.
    DropExtensionHeader = "drop_extension_header",
    /// The VIP has no backend that packets may be sent to.
    DropNoBackend = "drop_no_backend",
    /// The outer TTL or hop limit of a tunnel is used up: balancers that send to each other.
    DropTtl = "drop_ttl",
    /// A map the program needs has no entry: user space is not ready.
    DropNotReady = "drop_not_ready",
}
