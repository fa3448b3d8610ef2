//! A network namespace that lives as long as a test's thread, with the addresses of a small network on its loopback.

use std::future::Future;
use std::process::Command;

/// Map server, client gateway, two edge gateways.
const ADDRESSES: [&str; 4] = ["10.0.0.10/32", "10.0.1.1/32", "10.0.2.1/32", "10.0.3.1/32"];

/// Runs a test where nobody else's ports and addresses are.
pub(crate) fn in_namespace(test: impl Future<Output = ()> + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: no pointers; a new network namespace for this thread, which only this test runs on.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(result, 0, "needs root: {}", std::io::Error::last_os_error());
        ip(&["link", "set", "lo", "up"]);
        for address in ADDRESSES {
            ip(&["address", "add", address, "dev", "lo"]);
        }
        // One thread: the others would be in the namespace they were born in.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &[&str]) {
    assert!(Command::new("ip").args(arguments).status().unwrap().success(), "ip {arguments:?}");
}
