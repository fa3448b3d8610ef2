//! The load generator against real servers on loopback: what it records, and that its figures are those of an
//! independent generator.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use lab::load::{Outcome, Plan, Progress, Record, generate};
use lab::schedule::Schedule;
use lab::stats::Summary;

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Weir-Edge: edge2\r\n\r\nbody";

fn plan(address: SocketAddr, rps: f64, duration_s: f64) -> Plan {
    Plan {
        schedule: Schedule::constant(rps, duration_s).unwrap(),
        target: format!("http://{address}/").parse().unwrap(),
        sources: vec!["127.0.0.2".parse().unwrap(), "127.0.0.3".parse().unwrap()],
        timeout: Duration::from_secs(5),
        keepalive: false,
        max_in_flight: 1000,
    }
}

fn run(plan: &Plan) -> (Vec<Record>, Progress) {
    let mut records = Vec::new();
    let mut sink = |record| {
        records.push(record);
        Ok(())
    };
    let totals = generate(plan, &mut sink, &mut |_| {}).unwrap();
    (records, totals)
}

/// Accepts connections for as long as the test runs and gives each to `serve`.
fn server(serve: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream.unwrap()));
        }
    });
    address
}

fn read_request(stream: &mut TcpStream) -> bool {
    let mut request = Vec::new();
    let mut octet = [0];
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut octet) {
            Ok(1) => request.push(octet[0]),
            _ => return false,
        }
    }
    true
}

#[test]
fn every_request_is_recorded_with_its_edge_and_source() {
    let address = server(|mut stream| {
        read_request(&mut stream);
        stream.write_all(RESPONSE).unwrap();
    });
    let (records, totals) = run(&plan(address, 100.0, 0.5));
    assert_eq!((records.len(), totals.due, totals.ok, totals.errors), (50, 50, 50, 0));
    assert!(
        records.iter().all(|record| record.edge.as_deref() == Some("edge2") && record.connect_us.is_some())
    );
    assert_eq!(records.iter().filter(|record| record.source == 1).count(), 25);
    let mut due: Vec<u64> = records.iter().map(|record| record.at_us).collect();
    due.sort_unstable();
    assert_eq!(
        due.iter().step_by(10).copied().collect::<Vec<_>>(),
        [5_000, 105_000, 205_000, 305_000, 405_000]
    );
}

#[test]
fn failures_are_told_apart() {
    let refused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let truncated = server(|mut stream| {
        read_request(&mut stream);
        stream.write_all(&RESPONSE[..RESPONSE.len() - 1]).unwrap();
    });
    let malformed = server(|mut stream| {
        read_request(&mut stream);
        stream.write_all(b"no HTTP at all\r\n\r\n").unwrap();
    });
    let busy = server(|mut stream| {
        read_request(&mut stream);
        stream.write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").unwrap();
    });
    let silent = server(|mut stream| {
        read_request(&mut stream);
        // Until the client gives up.
        let _ = stream.read(&mut [0]);
    });
    for (address, outcome) in [
        (refused, Outcome::ConnectRefused),
        (truncated, Outcome::Truncated),
        (malformed, Outcome::Malformed),
        (busy, Outcome::HttpError),
        (silent, Outcome::ReadTimeout),
    ] {
        let plan = Plan { timeout: Duration::from_millis(200), ..plan(address, 100.0, 0.1) };
        let (records, totals) = run(&plan);
        assert_eq!(totals.errors, 10);
        assert!(records.iter().all(|record| record.outcome == outcome), "{outcome:?}: {:?}", records[0]);
    }
}

#[test]
fn beyond_the_limit_requests_are_refused_and_not_delayed() {
    let silent = server(|mut stream| {
        read_request(&mut stream);
        let _ = stream.read(&mut [0]);
    });
    let plan = Plan { max_in_flight: 3, timeout: Duration::from_secs(1), ..plan(silent, 100.0, 0.1) };
    let (records, _) = run(&plan);
    let refused: Vec<_> = records.iter().filter(|record| record.outcome == Outcome::InFlightLimit).collect();
    assert_eq!((records.len(), refused.len()), (10, 7));
    assert!(refused.iter().all(|record| record.latency_us < 100_000), "{refused:?}");
}

#[test]
fn connections_are_reused_and_a_stale_one_costs_no_request() {
    // Closes without a word after every third response, as a server with a request limit per connection does.
    let address = server(|mut stream| {
        for _ in 0..3 {
            if !read_request(&mut stream) {
                return;
            }
            stream.write_all(RESPONSE).unwrap();
        }
    });
    let plan = Plan { keepalive: true, ..plan(address, 200.0, 0.5) };
    let (records, totals) = run(&plan);
    assert_eq!((totals.ok, totals.errors), (100, 0), "{records:?}");
    let fresh = records.iter().filter(|record| record.connect_us.is_some()).count();
    assert!((34..60).contains(&fresh), "{fresh} connections for 100 requests of at most 3 each");
}

/// nginx on a free port in front of an application that takes 20 ms per page of 4 KB; ended with the test.
struct Nginx {
    child: Child,
    address: SocketAddr,
}

impl Nginx {
    fn start(directory: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let application = server(|mut stream| {
            read_request(&mut stream);
            thread::sleep(Duration::from_millis(20));
            stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 4096\r\n\r\n").unwrap();
            stream.write_all(&[b'x'; 4096]).unwrap();
        });
        let root = directory.display();
        let configuration = format!(
            "daemon off; master_process off; pid {root}/pid; error_log stderr crit;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; client_body_temp_path {root}/t; proxy_temp_path {root}/t; fastcgi_temp_path {root}/t;\n\
             uwsgi_temp_path {root}/t; scgi_temp_path {root}/t;\n\
             server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://{application}; }} }} }}\n"
        );
        std::fs::write(directory.join("nginx.conf"), configuration).unwrap();
        let child = Command::new("nginx")
            .args(["-p".as_ref(), directory, "-c".as_ref(), &directory.join("nginx.conf")])
            .spawn()
            .expect("nginx is installed (package nginx-light)");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        while TcpStream::connect(address).is_err() {
            thread::yield_now();
        }
        Self { child, address }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Figures of httperf: an open-loop generator too, one connection per request.
struct Independent {
    replies: f64,
    errors: f64,
    rate: f64,
    mean_ms: f64,
    median_ms: f64,
}

fn httperf(address: SocketAddr, rps: u32, requests: u32) -> Independent {
    let output = Command::new("httperf")
        .args(["--hog", "--server", &address.ip().to_string(), "--port", &address.port().to_string()])
        .args([
            "--uri",
            "/",
            "--rate",
            &rps.to_string(),
            "--num-conns",
            &requests.to_string(),
            "--timeout",
            "5",
        ])
        .stderr(Stdio::null())
        .output()
        .expect("httperf is installed (package httperf)");
    let text = String::from_utf8(output.stdout).unwrap();
    let figure = |line: &str, word: &str| -> f64 {
        let line =
            text.lines().find(|l| l.starts_with(line)).unwrap_or_else(|| panic!("no {line:?} in {text}"));
        let mut words = line.split_whitespace().skip_while(|w| *w != word).skip(1);
        words.next().and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {word} in {line}"))
    };
    Independent {
        replies: figure("Total:", "replies"),
        errors: figure("Errors:", "total"),
        rate: figure("Connection rate:", "rate:"),
        mean_ms: figure("Connection time [ms]: min", "avg"),
        median_ms: figure("Connection time [ms]: min", "median"),
    }
}

#[test]
fn agrees_with_httperf_at_a_constant_load() {
    let directory = tempfile::tempdir().unwrap();
    let nginx = Nginx::start(directory.path());
    let (rps, requests) = (200, 1000);
    let theirs = httperf(nginx.address, rps, requests);
    let (records, totals) = run(&plan(nginx.address, rps.into(), f64::from(requests / rps)));
    assert_eq!((theirs.replies, theirs.errors), (requests.into(), 0.0));
    assert_eq!((totals.ok, totals.errors), (u64::from(requests), 0));

    let last_us = records.iter().map(|record| record.at_us + record.latency_us).max().unwrap();
    let rate = records.len() as f64 / (last_us as f64 / 1e6);
    assert!((rate / theirs.rate - 1.0).abs() < 0.02, "{rate} and {} requests per second", theirs.rate);

    let latencies: Vec<f64> = records.iter().map(|record| record.latency_us as f64 / 1000.0).collect();
    let ours = Summary::of(&latencies).unwrap();
    let figures = format!("httperf: mean {} median {} ms; weir: {ours:?}", theirs.mean_ms, theirs.median_ms);
    eprintln!("{figures}");
    // httperf's median is the middle of a bin of 1 ms.
    assert!((ours.median - theirs.median_ms).abs() < 1.5, "{figures}");
    assert!((ours.mean / theirs.mean_ms - 1.0).abs() < 0.1, "{figures}");
}
