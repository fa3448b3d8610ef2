//! A server with a fixed service time per request: one queue, one server, no CPU burnt.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};

use crate::service::page;

/// Connections that are read from at once; others wait in the kernel's queue, as they do for nginx.
const MAX_CONNECTIONS: usize = 1024;
const MAX_REQUEST_BYTES: usize = 8192;
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// `weir lab model-service`: stands in for nginx where that is not installed.
#[derive(Clone, Debug, clap::Args)]
pub struct ModelServiceArgs {
    /// Address and port
    #[arg(long)]
    listen: SocketAddr,
    /// Value of X-Weir-Edge
    #[arg(long)]
    edge: String,
    /// Length of the page
    #[arg(long, default_value_t = 4096)]
    page_bytes: usize,
    /// Time that one request takes the server
    #[arg(long)]
    service_time_us: u64,
}

/// When the server is done with the request that arrives next: requests are served one after another.
#[derive(Debug)]
struct SingleServer {
    service_time: Duration,
    free_at: Instant,
}

impl SingleServer {
    fn admit(&mut self, now: Instant) -> Instant {
        self.free_at = self.free_at.max(now) + self.service_time;
        self.free_at
    }
}

/// Serves until it is killed.
pub fn run(arguments: &ModelServiceArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, serve(arguments))
}

async fn serve(arguments: &ModelServiceArgs) -> Result<()> {
    let listener = TcpListener::bind(arguments.listen).await.with_context(|| arguments.listen.to_string())?;
    let service_time = Duration::from_micros(arguments.service_time_us);
    let server = Rc::new(std::cell::RefCell::new(SingleServer { service_time, free_at: Instant::now() }));
    let slots = Rc::new(Semaphore::new(MAX_CONNECTIONS));
    let response: Rc<[u8]> = response(&arguments.edge, arguments.page_bytes).into();
    loop {
        let slot = Rc::clone(&slots);
        let (stream, _) = listener.accept().await.context("accept")?;
        let (server, response) = (Rc::clone(&server), Rc::clone(&response));
        let permit = slots.acquire().await.context("slots")?;
        permit.forget();
        tokio::task::spawn_local(async move {
            let admit = |now| server.borrow_mut().admit(now);
            // A client that goes away is its own affair.
            let _ = answer(stream, admit, &response).await;
            slot.add_permits(1);
        });
    }
}

async fn answer(
    mut stream: TcpStream,
    admit: impl Fn(Instant) -> Instant,
    response: &[u8],
) -> std::io::Result<()> {
    let mut received = Vec::with_capacity(512);
    loop {
        let end = received.windows(END_OF_HEAD.len()).position(|window| window == END_OF_HEAD);
        let Some(end) = end else {
            if received.len() > MAX_REQUEST_BYTES || stream.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let head: Vec<u8> = received.drain(..end + END_OF_HEAD.len()).collect();
        sleep_until(admit(Instant::now())).await;
        stream.write_all(response).await?;
        if wants_close(&head) {
            return stream.shutdown().await;
        }
    }
}

fn wants_close(head: &[u8]) -> bool {
    String::from_utf8_lossy(head).to_ascii_lowercase().contains("\r\nconnection: close")
}

fn response(edge: &str, page_bytes: usize) -> Vec<u8> {
    let page = page(edge, page_bytes);
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\nX-Weir-Edge: {edge}\r\n\r\n",
        page.len()
    );
    (head + &page).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_served_one_after_another() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let mut server = SingleServer { service_time: ms(2), free_at: start };
        assert_eq!(server.admit(start), start + ms(2));
        assert_eq!(server.admit(start), start + ms(4));
        assert_eq!(server.admit(start + ms(10)), start + ms(12));
    }

    #[test]
    fn close_is_read_whatever_its_case() {
        assert!(wants_close(b"GET / HTTP/1.1\r\nHost: a\r\nCONNECTION: Close\r\n\r\n"));
        assert!(!wants_close(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
    }
}
