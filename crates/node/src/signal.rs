//! The beginning and the end of a process: signals, and what a service manager wants to hear.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Tells every task that the node stops. Copies see the same request.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// The other end of [`Shutdown`]; dropping it is a request too.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

/// A trigger and what it triggers.
#[must_use]
pub fn shutdown() -> (Trigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Shutdown(receiver))
}

impl Trigger {
    /// Asks everybody to stop.
    pub fn request(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Returns when the node is to stop. Cancel-safe.
    pub async fn requested(&mut self) {
        // An error means that the trigger is gone, and with it whoever could want us to go on.
        let _ = self.0.wait_for(|requested| *requested).await;
    }

    /// Whether the node is to stop.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }
}

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub struct Termination {
    terminate: Signal,
    interrupt: Signal,
}

impl Termination {
    /// From now on these signals end nothing by themselves; one that comes waits for [`Self::requested`].
    ///
    /// # Errors
    /// If the handlers cannot be installed.
    pub fn catch() -> io::Result<Self> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt })
    }

    /// Returns the name of the first one.
    pub async fn requested(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// The service manager's socket (`sd_notify(3)`), if there is one.
#[derive(Debug)]
pub struct ServiceManager {
    socket: Option<(UnixDatagram, SocketAddr)>,
}

impl ServiceManager {
    /// From `NOTIFY_SOCKET`; without it nothing is sent.
    #[must_use]
    pub fn from_environment() -> Self {
        let socket = std::env::var_os("NOTIFY_SOCKET").and_then(|path| Self::open(path.as_bytes()).ok());
        Self { socket }
    }

    fn open(path: &[u8]) -> io::Result<(UnixDatagram, SocketAddr)> {
        let address = match path.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(std::path::Path::new(std::ffi::OsStr::from_bytes(path)))?,
        };
        Ok((UnixDatagram::unbound()?, address))
    }

    /// Sends a state, e.g. `READY=1`. A manager that does not listen is none of our troubles.
    pub fn notify(&self, state: &str) {
        if let Some((socket, address)) = &self.socket {
            let _ = socket.send_to_addr(state.as_bytes(), address);
        }
    }

    /// How often the manager wants `WATCHDOG=1`: half of what it allows.
    #[must_use]
    pub fn watchdog(&self) -> Option<Duration> {
        self.socket.as_ref()?;
        let micros: u64 = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
        let meant_for_us =
            std::env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        (meant_for_us && micros > 0).then(|| Duration::from_micros(micros) / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_copy_hears_the_request() {
        let (trigger, shutdown) = shutdown();
        let mut copy = shutdown.clone();
        assert!(!shutdown.is_requested());
        trigger.request();
        copy.requested().await;
        assert!(shutdown.is_requested());
    }

    #[tokio::test]
    async fn a_dropped_trigger_stops_too() {
        let (trigger, mut shutdown) = shutdown();
        drop(trigger);
        shutdown.requested().await;
    }

    #[test]
    fn the_manager_hears_us_by_path_and_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("weir-test-{}", std::process::id());
        let by_path = UnixDatagram::bind(&path).unwrap();
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (text, socket) in [(path.display().to_string(), by_path), (format!("@{name}"), by_name)] {
            let manager = ServiceManager { socket: ServiceManager::open(text.as_bytes()).ok() };
            manager.notify("READY=1");
            let mut buffer = [0; 16];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1");
        }
    }
}
