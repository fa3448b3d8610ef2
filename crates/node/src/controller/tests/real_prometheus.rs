//! The source against Prometheus itself, scraping a small endpoint on loopback.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::controller::source::LoadMeter;
use balance::{Measurement, MeasurementKind};

/// What the scraped endpoint shows.
#[derive(Default)]
struct Shown {
    scrapes: AtomicU64,
    broken: AtomicBool,
}

async fn show(State(shown): State<Arc<Shown>>) -> Result<String, StatusCode> {
    if shown.broken.load(Ordering::Relaxed) {
        return Err(StatusCode::INTERNAL_SERVER_ERROR);
    }
    let scrapes = shown.scrapes.fetch_add(1, Ordering::Relaxed);
    let minute_ago = unix_time(&Clock::start()).as_millis() - 60_000;
    Ok(format!(
        "offered{{eid=\"a\"}} 412.5\noffered{{eid=\"b\"}} 1\nnot_a_number NaN\nold 7 {minute_ago}\n\
         # TYPE requests_total counter\nrequests_total {}\n",
        scrapes * 100
    ))
}

/// A Prometheus on a free port; it ends with the value.
struct RealPrometheus {
    _child: tokio::process::Child,
    _directory: tempfile::TempDir,
    address: SocketAddr,
}

impl RealPrometheus {
    async fn scraping(target: SocketAddr) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("prometheus.yml");
        let scrape = format!(
            "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\n\
             scrape_configs: [{{job_name: gateway, static_configs: [{{targets: [\"{target}\"]}}]}}]\n"
        );
        std::fs::write(&config, scrape).unwrap();
        // Free now; nothing else on this machine asks for a port between here and Prometheus's bind
        // but by bad luck, and then the test fails with Prometheus's own message.
        let address = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
        let child = tokio::process::Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=error")
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("`prometheus` is installed (Debian: apt install prometheus)");
        Self { _child: child, _directory: directory, address }
    }

    async fn measure(&self, query: &str) -> Measurement {
        let mut source = prometheus_source(self.address, query);
        source.timeout = Duration::from_secs(5);
        LoadMeter::new(&source, service(source.clone()).eid, Clock::start()).unwrap().measure().await
    }

    async fn until(&self, query: &str, kind: MeasurementKind) -> Measurement {
        let give_up = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            let measurement = self.measure(query).await;
            if measurement.kind() == kind {
                return measurement;
            }
            assert!(tokio::time::Instant::now() < give_up, "{query}: {measurement}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn prometheus_itself() {
    let shown = Arc::new(Shown::default());
    let target = serve(Router::new().route("/metrics", get(show)).with_state(shown.clone())).await;
    let prometheus = RealPrometheus::scraping(target).await;

    let fresh = prometheus.until("offered{eid=\"a\"}", MeasurementKind::Fresh).await;
    assert_eq!(fresh.fresh().unwrap().rps(), 412.5);
    let sum = prometheus.until("sum(offered)", MeasurementKind::Fresh).await;
    assert_eq!(sum.fresh().unwrap().rps(), 413.5);
    let both = prometheus.measure("sum(offered{eid=\"a\"}) + sum(offered{eid=\"b\"})").await;
    assert_eq!(both.fresh().unwrap().rps(), 413.5);
    let rate = prometheus.until("sum(rate(requests_total[2s]))", MeasurementKind::Fresh).await;
    assert!(rate.fresh().unwrap().rps() > 0.0);
    let scalar = prometheus.measure("scalar(offered{eid=\"a\"})").await;
    assert_eq!(scalar.kind(), MeasurementKind::Fresh);

    // The evaluation time of `old` and `sum(old)` is now; their sample is a minute old.
    for query in ["old", "sum(old)", "old + on() offered{eid=\"a\"}"] {
        let stale = prometheus.measure(query).await;
        assert!(
            matches!(stale, Measurement::Stale { age, .. } if (59..65).contains(&age.as_secs())),
            "{query}: {stale}"
        );
    }
    assert_eq!(prometheus.measure("offered").await, Measurement::SeveralSeries { count: 2 });
    assert_eq!(prometheus.measure("not_a_number").await, Measurement::NotANumber);
    assert_eq!(prometheus.measure("absent_metric").await, Measurement::Empty);
    assert_eq!(prometheus.measure("offered[1m]").await.kind(), MeasurementKind::Malformed);
    assert_eq!(prometheus.measure("vector(1)").await.kind(), MeasurementKind::Malformed);
    let refused = prometheus.measure("sum(offered").await;
    assert!(
        matches!(&refused, Measurement::HttpError { status: 400, message } if message.contains("parse error")),
        "{refused}"
    );

    // A failed scrape ends the series at once, long before Prometheus's lookback.
    shown.broken.store(true, Ordering::Relaxed);
    prometheus.until("offered{eid=\"a\"}", MeasurementKind::Empty).await;
    shown.broken.store(false, Ordering::Relaxed);
    prometheus.until("offered{eid=\"a\"}", MeasurementKind::Fresh).await;
}
