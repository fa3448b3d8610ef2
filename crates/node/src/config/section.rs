//! Sections that know their own documentation.

use super::{raw, services};

/// One key of a section, for the reference.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Key in the file.
    pub name: &'static str,
    /// What the key means.
    pub doc: &'static str,
}

/// One table of the file, for the reference.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// Header in the file, `[[…]]` for one of many.
    pub header: &'static str,
    /// What the table is for.
    pub doc: &'static str,
    /// Its keys.
    pub fields: &'static [Field],
    /// The table with every default.
    pub defaults: fn() -> toml::Table,
}

/// A value that need not be written because leaving it out means the same.
pub(super) trait Unset {
    /// Whether it may be left out.
    fn is_unset(&self) -> bool {
        false
    }
}

impl Unset for String {
    fn is_unset(&self) -> bool {
        self.is_empty()
    }
}

impl<T> Unset for Vec<T> {
    fn is_unset(&self) -> bool {
        self.is_empty()
    }
}

impl<T> Unset for Option<T> {
    fn is_unset(&self) -> bool {
        self.is_none()
    }
}

macro_rules! always_written {
    ($($ty:ty),* $(,)?) => { $(impl Unset for $ty {})* };
}

always_written!(bool, u8, u16, u32, u64, usize, f64);
always_written!(raw::LogFormat, raw::Hook, raw::OnStop, raw::Algorithm, raw::NonceCheck);
always_written!(raw::InterfaceRole, raw::SourceKind, raw::XdpMode);
always_written!(services::raw::Protocol, services::raw::Hash, services::raw::WhenAllFail);
always_written!(services::raw::CheckKind);
always_written!(raw::Node, raw::Log, raw::Http, raw::ControllerMapServer, raw::Source);

/// A table of the file: the struct, its defaults and its documentation from one list.
macro_rules! section {
    (
        $header:literal
        $(#[doc = $section_doc:literal])+
        $name:ident { $( $(#[doc = $doc:literal])+ $field:ident : $ty:ty = $default:expr ),* $(,)? }
    ) => {
        $(#[doc = $section_doc])+
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $( $(#[doc = $doc])+ #[serde(skip_serializing_if = "Unset::is_unset")] pub $field: $ty, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        impl $name {
            /// The section as the reference shows it.
            pub const SECTION: Section = Section {
                header: $header,
                doc: concat!($($section_doc),+),
                fields: &[ $( Field { name: stringify!($field), doc: concat!($($doc),+) }, )* ],
                defaults: || toml::Table::try_from(Self::default()).expect("defaults are plain values"),
            };
        }
    };
}

/// A key with a fixed set of words; the first is the default.
macro_rules! choice {
    (
        $(#[doc = $doc:literal])+
        $name:ident {
            $(#[doc = $first_doc:literal])+ $first:ident = $first_text:literal,
            $( $(#[doc = $variant_doc:literal])+ $variant:ident = $text:literal, )*
        }
    ) => {
        $(#[doc = $doc])+
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        pub enum $name {
            $(#[doc = $first_doc])+ #[default] #[serde(rename = $first_text)] $first,
            $( $(#[doc = $variant_doc])+ #[serde(rename = $text)] $variant, )*
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { Self::$first => $first_text, $( Self::$variant => $text, )* })
            }
        }
    };
}

pub(super) use {choice, section};
