//! What can go wrong between us and the kernel.

use std::io;

use aya::maps::MapError;

use crate::balancer::{HookError, VipError};

/// Why the data path could not be brought into the wanted state.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataplaneError {
    /// Operator: a configured interface does not exist here.
    #[error("interface {name} does not exist in this network namespace")]
    NoInterface {
        /// Its name.
        name: String,
    },
    /// Operator: the chosen hook cannot be had.
    #[error("hook {hook} on {interface}: {reason}")]
    Hook {
        /// The hook.
        hook: &'static str,
        /// The interface.
        interface: String,
        /// Why not.
        reason: String,
    },
    /// Operator: more RLOCs than the programs can compare with.
    #[error("{count} own RLOCs, at most {most} are supported")]
    TooManyRlocs {
        /// RLOCs configured.
        count: usize,
        /// What fits.
        most: usize,
    },
    /// Operator: more tunnel endpoints than the program can compare with.
    #[error("{count} own tunnel endpoints, at most {most} are supported")]
    TooManyVteps {
        /// Tunnel endpoints configured.
        count: usize,
        /// What fits.
        most: usize,
    },
    /// Kernel: a system call failed.
    #[error("{operation} {subject}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// On what.
        subject: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Kernel: a netlink request failed.
    #[error("netlink: {operation} {subject}")]
    Netlink {
        /// What was tried.
        operation: &'static str,
        /// On what.
        subject: String,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// Kernel: a map operation failed.
    #[error("map {map}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What the kernel said.
        source: MapError,
    },
    /// Kernel: a program was refused.
    #[error("program {program} on {interface}")]
    Program {
        /// Name of the program.
        program: String,
        /// Where it was to be attached.
        interface: String,
        /// What the kernel said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Operator: the port's XDP hook cannot be had.
    #[error(transparent)]
    XdpHook(#[from] HookError),
    /// Us, or the kernel: the program does something else than it should; the one at work stays.
    #[error("self-test of {program}: {outcome}")]
    SelfTest {
        /// Name of the program.
        program: &'static str,
        /// What it did.
        outcome: String,
    },
    /// Operator: VIPs that cannot be as wanted; everything stays as it was.
    #[error("{}", lines(.0))]
    Vips(Vec<VipError>),
    /// Us: the object lacks a map or program that this version needs.
    #[error("the eBPF object has no {what} named {name}")]
    Object {
        /// Map or program.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// Kernel: the object could not be loaded.
    #[error("loading the eBPF object")]
    Load(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// One after another, for a log line.
fn lines(errors: &[VipError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl DataplaneError {
    pub(crate) fn system(operation: &'static str, subject: impl Into<String>, source: io::Error) -> Self {
        Self::System { operation, subject: subject.into(), source }
    }

    /// The error of the system call that just failed on this thread.
    pub(crate) fn last(operation: &'static str, subject: impl Into<String>) -> Self {
        Self::system(operation, subject, io::Error::last_os_error())
    }
}
