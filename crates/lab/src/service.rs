//! What an edge runs, and Prometheus: their configuration files and their start.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::network::{CONTROL, Network};
use crate::topology::{Service, ServiceKind, Topology};

/// Port of Prometheus on the control host.
pub const PROMETHEUS_PORT: u16 = 9090;

/// The command that serves at one edge. `service_time` is the model's; nginx is slowed down by its cgroup.
pub fn edge_command(
    service: &Service,
    edge: &str,
    directory: &Path,
    service_time: Duration,
) -> Result<Command> {
    match service.kind {
        ServiceKind::Nginx => nginx(service, edge, directory),
        ServiceKind::Model => {
            let mut command = own_program()?;
            command.args(["lab", "model-service", "--edge", edge]);
            command.arg(format!("--listen={}:{}", service.address, service.port));
            command.arg(format!("--page-bytes={}", service.page_bytes));
            command.arg(format!("--service-time-us={}", service_time.as_micros()));
            Ok(command)
        }
    }
}

/// This program, also after its file was replaced.
pub fn own_program() -> Result<Command> {
    let path = std::env::current_exe().context("the path of this program")?;
    Ok(Command::new(if path.exists() { path } else { PathBuf::from("/proc/self/exe") }))
}

fn nginx(service: &Service, edge: &str, directory: &Path) -> Result<Command> {
    let directory = directory.join(format!("nginx-{edge}"));
    fs::create_dir_all(directory.join("html"))?;
    fs::write(directory.join("html/index.html"), page(edge, service.page_bytes))?;
    let file = directory.join("nginx.conf");
    fs::write(&file, nginx_config(service, edge, &directory))?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(file).arg("-e").arg("stderr");
    Ok(command)
}

/// A page of exactly `bytes` octets.
pub(crate) fn page(edge: &str, bytes: usize) -> String {
    let (head, tail) = (format!("<!doctype html><title>{edge}</title><p>"), "</p>\n");
    let filling = "weir ".chars().cycle();
    let body: String =
        head.chars().chain(filling.take(bytes.saturating_sub(head.len() + tail.len()))).collect();
    (body + tail).chars().take(bytes).collect()
}

fn nginx_config(service: &Service, edge: &str, directory: &Path) -> String {
    let directory = directory.display();
    let Service { address, port, .. } = service;
    let work = nginx_work(service.digest_kib);
    // Root, because the lab's files are for root only; it serves one page inside a namespace.
    format!(
        "user root;
worker_processes 1;
daemon off;
pid {directory}/nginx.pid;
error_log stderr error;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    default_type text/html;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    open_file_cache max=16;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen {address}:{port} backlog=511;
        root {directory}/html;
{work}
        add_header X-Weir-Edge {edge} always;
    }}
}}
"
    )
}

/// A digest over so many KiB per request, compared with a value that it never has: a request costs CPU of its own,
/// as an offloaded job does, and the page stays a file of known length.
fn nginx_work(kib: usize) -> String {
    if kib == 0 {
        return String::new();
    }
    // nginx takes tokens of up to 4 KiB, so the input is built from variables.
    let block = "0123456789abcdef".repeat(64);
    let input = "$kib".repeat(kib);
    format!(
        "        set $kib \"{block}\";
        secure_link AAAAAAAAAAAAAAAAAAAAAA;
        secure_link_md5 \"{input}\";
        if ($secure_link) {{ return 500; }}"
    )
}

/// The command that starts Prometheus, its data in `directory`. `gateways` are names and `host:port`.
pub fn prometheus_command(
    topology: &Topology,
    gateways: &[(String, String)],
    directory: &Path,
) -> Result<Command> {
    let directory = directory.join("prometheus");
    fs::create_dir_all(&directory)?;
    let file = directory.join("prometheus.yml");
    fs::write(&file, prometheus_config(topology.control.scrape_interval, gateways))?;
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", file.display()));
    command.arg(format!("--storage.tsdb.path={}", directory.join("data").display()));
    command.arg(format!("--web.listen-address={CONTROL}:{PROMETHEUS_PORT}"));
    command.args(["--storage.tsdb.retention.time=1d", "--log.level=warn"]);
    Ok(command)
}

fn prometheus_config(scrape_interval: Duration, gateways: &[(String, String)]) -> String {
    let interval = scrape_interval.as_millis();
    let mut text = format!(
        "global:
  scrape_interval: {interval}ms
  scrape_timeout: {interval}ms
scrape_configs:
- job_name: gateway
  static_configs:
"
    );
    for (name, address) in gateways {
        text += &format!("  - targets: ['{address}']\n    labels: {{instance: '{name}'}}\n");
    }
    text
}

/// Names and API addresses of the gateways, the client gateway first.
pub fn gateways(network: &Network, topology: &Topology) -> Vec<(String, String)> {
    let port = crate::roles::GATEWAY_PORT;
    let client = ("client-gateway".to_owned(), format!("{}:{port}", crate::network::CLIENT_RLOC));
    let edges = network.edges.iter().zip(&topology.edges);
    let edges =
        edges.map(|(edge, settings)| (format!("{}-gateway", settings.name), format!("{}:{port}", edge.rloc)));
    std::iter::once(client).chain(edges).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_the_length_asked_for() {
        for bytes in [1, 30, 4096, 65_536] {
            assert_eq!(page("edge1", bytes).len(), bytes);
        }
    }

    #[test]
    fn every_gateway_is_scraped_under_its_name() {
        let gateways = [("client-gateway".to_owned(), "10.0.1.1:9341".to_owned())];
        let text = prometheus_config(Duration::from_millis(200), &gateways);
        assert!(text.contains("scrape_interval: 200ms"), "{text}");
        assert!(
            text.contains("- targets: ['10.0.1.1:9341']\n    labels: {instance: 'client-gateway'}"),
            "{text}"
        );
    }
}
