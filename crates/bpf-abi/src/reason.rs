//! Why a program let a packet go the way it went: one counter each.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)*) => {
        /// Index of the per-CPU reason counters; every packet a program sees counts exactly one.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)*
        }

        impl Reason {
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
                matches!(
                    self,
                    Self::PassNotLisp | Self::PassTooBig | Self::PassTtl | Self::PassNative | Self::PassNoNextHop
                )
            }
        }
    };
}

reasons! {
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
