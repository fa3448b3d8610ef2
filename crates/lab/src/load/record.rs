//! What became of each request, one JSON line each.

use std::fs;
use std::io::{self, BufRead, Write};
use std::net::IpAddr;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::generator::Plan;

/// First line of a result file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Wall clock at which the schedule starts; times of records are relative to it.
    pub started_at_unix_ns: u64,
    /// Length of the schedule.
    pub duration_s: f64,
    /// Given up this long after a request was due.
    pub timeout_s: f64,
    /// Connections were reused.
    pub keepalive: bool,
    /// Source addresses; records name them by index.
    pub sources: Vec<IpAddr>,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When it was due, microseconds after the start.
    pub at_us: u64,
    /// How late the generator started it.
    pub late_us: u64,
    /// From start to established connection; absent when one was reused or none was established.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_us: Option<u64>,
    /// From when it was due to the last octet of the response, or to the failure.
    pub latency_us: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// HTTP status, if a response's head came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Edge that answered, from `X-Weir-Edge`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge: Option<Box<str>>,
    /// Index of the source address.
    pub source: usize,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A complete response with a status below 400.
    Ok,
    /// A complete response with a status of 400 or above.
    HttpError,
    /// The connection was refused.
    ConnectRefused,
    /// No connection within the timeout.
    ConnectTimeout,
    /// Unreachable, or another error before the connection stood.
    ConnectFailed,
    /// No local port was free towards the target.
    NoLocalPort,
    /// The request could not be written.
    SendFailed,
    /// Connected, but no complete response within the timeout.
    ReadTimeout,
    /// The connection broke before the response was complete.
    Reset,
    /// The server closed before the response was complete.
    Truncated,
    /// The octets received are no HTTP response.
    Malformed,
    /// Not sent: as many requests as allowed were already under way.
    InFlightLimit,
}

impl Outcome {
    /// Anything but a good response.
    #[must_use]
    pub fn is_error(self) -> bool {
        self != Self::Ok
    }

    /// Given up by the clock.
    #[must_use]
    pub fn is_timeout(self) -> bool {
        matches!(self, Self::ConnectTimeout | Self::ReadTimeout)
    }
}

impl Header {
    /// The line for a run that starts now.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            started_at_unix_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            duration_s: plan.schedule.duration_s(),
            timeout_s: plan.timeout.as_secs_f64(),
            keepalive: plan.keepalive,
            sources: plan.sources.clone(),
        }
    }
}

/// Writes a result file.
#[derive(Debug)]
pub struct RecordWriter<W> {
    out: W,
}

impl<W: Write> RecordWriter<W> {
    /// Begins with the header.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn new(mut out: W, header: &Header) -> io::Result<Self> {
        write_line(&mut out, header)?;
        Ok(Self { out })
    }

    /// Appends one request.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        write_line(&mut self.out, record)
    }

    /// Everything is written.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A result file as read back.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordFile {
    /// Its first line.
    pub header: Header,
    /// Its requests, in the order they ended.
    pub records: Vec<Record>,
}

/// Reads a result file.
///
/// # Errors
/// Unreadable file, or a line that is not what [`RecordWriter`] writes, with its number.
pub fn read_records(path: &Path) -> anyhow::Result<RecordFile> {
    let file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut lines = io::BufReader::new(file).lines();
    let first = lines.next().with_context(|| format!("{} is empty", path.display()))??;
    let header =
        serde_json::from_str(&first).with_context(|| format!("{}:1: not a load result", path.display()))?;
    let mut records = Vec::new();
    for (index, line) in lines.enumerate() {
        let record =
            serde_json::from_str(&line?).with_context(|| format!("{}:{}", path.display(), index + 2))?;
        records.push(record);
    }
    Ok(RecordFile { header, records })
}

fn write_line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let header = Header {
            started_at_unix_ns: 1,
            duration_s: 2.0,
            timeout_s: 10.0,
            keepalive: false,
            sources: vec!["10.200.0.1".parse().unwrap()],
        };
        let ok = Record {
            at_us: 1_500,
            late_us: 3,
            connect_us: Some(40_000),
            latency_us: 81_000,
            outcome: Outcome::Ok,
            status: Some(200),
            edge: Some("edge1".into()),
            source: 0,
        };
        let lost = Record {
            connect_us: None,
            status: None,
            edge: None,
            outcome: Outcome::ConnectTimeout,
            ..ok.clone()
        };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("load.jsonl");
        let mut writer = RecordWriter::new(fs::File::create(&path).unwrap(), &header).unwrap();
        writer.write(&ok).unwrap();
        writer.write(&lost).unwrap();
        writer.finish().unwrap();
        assert_eq!(read_records(&path).unwrap(), RecordFile { header, records: vec![ok, lost] });
    }
}
