//! Reads one HTTP/1.1 response as it comes in; keeps the head, counts the body.

use thiserror::Error;

/// What the generator needs from a response's head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    pub(super) edge: Option<Box<str>>,
    /// The server will close the connection.
    pub(super) close: bool,
    length: Option<u64>,
}

/// A response on its way.
#[derive(Debug)]
pub(super) struct ResponseReader {
    buffer: Vec<u8>,
    head: Head,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Body { missing: u64 },
    UntilClose,
    Complete,
}

/// Largest head read; nginx's is about 300 octets.
const MAX_HEAD: usize = 16 * 1024;

/// Why octets are no response.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum ResponseError {
    #[error("status line is not HTTP/1.x: {0:?}")]
    StatusLine(String),
    #[error("header line without a colon: {0:?}")]
    HeaderLine(String),
    #[error("Content-Length: {0:?}")]
    ContentLength(String),
    #[error("Transfer-Encoding: {0:?}, only identity is read")]
    TransferEncoding(String),
    #[error("head longer than {MAX_HEAD} octets")]
    LongHead,
    #[error("{0} octets behind the end of the response")]
    Trailing(usize),
    #[error("connection closed inside the response")]
    Truncated,
}

impl ResponseReader {
    pub(super) fn new() -> Self {
        Self { buffer: Vec::new(), head: Head::default(), state: State::Head }
    }

    /// Ready for the next response of the same connection.
    pub(super) fn reset(&mut self) {
        self.buffer.clear();
        self.head = Head::default();
        self.state = State::Head;
    }

    pub(super) fn head(&self) -> &Head {
        &self.head
    }

    /// Nothing of the response has come yet.
    pub(super) fn is_untouched(&self) -> bool {
        self.state == State::Head && self.buffer.is_empty()
    }

    /// Takes octets off the connection; true once the response is complete.
    pub(super) fn push(&mut self, octets: &[u8]) -> Result<bool, ResponseError> {
        if self.state != State::Head {
            return self.count_body(octets);
        }
        // The end of the head may straddle two reads by up to three octets.
        let from = self.buffer.len().saturating_sub(3);
        self.buffer.extend_from_slice(octets);
        let Some(end) = find(&self.buffer[from..], b"\r\n\r\n").map(|at| from + at) else {
            return if self.buffer.len() > MAX_HEAD { Err(ResponseError::LongHead) } else { Ok(false) };
        };
        self.head = parse_head(&self.buffer[..end])?;
        let body = self.buffer.split_off(end + 4);
        self.buffer.clear();
        self.state = match (self.head.status, self.head.length) {
            (100..=199, _) => State::Head,
            (204 | 304, _) => State::Body { missing: 0 },
            (_, Some(length)) => State::Body { missing: length },
            (_, None) => State::UntilClose,
        };
        if self.state == State::Head && body.is_empty() { Ok(false) } else { self.push(&body) }
    }

    /// The server has closed its side.
    pub(super) fn close(&mut self) -> Result<(), ResponseError> {
        match self.state {
            State::UntilClose | State::Complete => {
                self.state = State::Complete;
                Ok(())
            }
            State::Head | State::Body { .. } => Err(ResponseError::Truncated),
        }
    }

    fn count_body(&mut self, octets: &[u8]) -> Result<bool, ResponseError> {
        let missing = match self.state {
            State::UntilClose => return Ok(false),
            State::Body { missing } => missing,
            State::Head | State::Complete => 0,
        };
        let arrived = octets.len() as u64;
        if arrived > missing {
            return Err(ResponseError::Trailing(octets.len()));
        }
        self.state =
            if arrived == missing { State::Complete } else { State::Body { missing: missing - arrived } };
        Ok(self.state == State::Complete)
    }
}

fn parse_head(head: &[u8]) -> Result<Head, ResponseError> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let bad_status = || ResponseError::StatusLine(status_line.to_owned());
    let (version, rest) = status_line.split_once(' ').ok_or_else(bad_status)?;
    let status = rest.get(..3).and_then(|digits| digits.parse().ok()).ok_or_else(bad_status)?;
    if !matches!(version, "HTTP/1.1" | "HTTP/1.0") || status < 100 {
        return Err(bad_status());
    }
    let mut parsed = Head { status, close: version == "HTTP/1.0", ..Head::default() };
    for line in lines {
        let (name, value) = line.split_once(':').ok_or_else(|| ResponseError::HeaderLine(line.to_owned()))?;
        parsed.header(name, value.trim())?;
    }
    Ok(parsed)
}

impl Head {
    fn header(&mut self, name: &str, value: &str) -> Result<(), ResponseError> {
        if name.eq_ignore_ascii_case("content-length") {
            let length = value.parse().map_err(|_| ResponseError::ContentLength(value.to_owned()))?;
            // Two lengths that differ are how responses are smuggled (RFC 9112 §6.3).
            if self.length.is_some_and(|earlier| earlier != length) {
                return Err(ResponseError::ContentLength(value.to_owned()));
            }
            self.length = Some(length);
        } else if name.eq_ignore_ascii_case("connection") {
            self.close = value.eq_ignore_ascii_case("close");
        } else if name.eq_ignore_ascii_case("transfer-encoding") && !value.eq_ignore_ascii_case("identity") {
            return Err(ResponseError::TransferEncoding(value.to_owned()));
        } else if name.eq_ignore_ascii_case("x-weir-edge") {
            self.edge = Some(value.into());
        }
        Ok(())
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESPONSE: &[u8] =
        b"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Length: 5\r\nX-Weir-Edge: edge2\r\nConnection: close\r\n\r\nhello";

    #[test]
    fn complete_at_whatever_octet_it_is_cut() {
        for cut in 1..RESPONSE.len() {
            let mut reader = ResponseReader::new();
            assert_eq!(reader.push(&RESPONSE[..cut]), Ok(false), "cut at {cut}");
            assert_eq!(reader.push(&RESPONSE[cut..]), Ok(true), "cut at {cut}");
            assert_eq!(reader.head().status, 200);
            assert_eq!(reader.head().edge.as_deref(), Some("edge2"));
            assert!(reader.head().close);
        }
    }

    #[test]
    fn without_length_the_end_is_the_close() {
        let mut reader = ResponseReader::new();
        assert_eq!(reader.push(b"HTTP/1.1 200 OK\r\n\r\nsome"), Ok(false));
        assert_eq!(reader.push(b"thing"), Ok(false));
        assert_eq!(reader.close(), Ok(()));
    }

    #[test]
    fn a_close_inside_is_truncation() {
        let mut reader = ResponseReader::new();
        assert_eq!(reader.push(&RESPONSE[..RESPONSE.len() - 1]), Ok(false));
        assert_eq!(reader.close(), Err(ResponseError::Truncated));
        assert_eq!(ResponseReader::new().close(), Err(ResponseError::Truncated));
    }

    #[test]
    fn interim_responses_are_skipped_and_empty_bodies_end_at_once() {
        let mut reader = ResponseReader::new();
        assert_eq!(reader.push(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"), Ok(true));
        assert_eq!(reader.head().status, 204);
        reader.reset();
        assert!(reader.is_untouched());
        assert_eq!(reader.push(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"), Ok(true));
        assert_eq!(reader.head().status, 503);
    }

    #[test]
    fn what_is_no_response_is_refused_by_name() {
        let refuse = |octets: &[u8]| ResponseReader::new().push(octets).unwrap_err();
        assert_eq!(refuse(b"SSH-2.0-x\r\n\r\n"), ResponseError::StatusLine("SSH-2.0-x".into()));
        assert_eq!(
            refuse(b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n"),
            ResponseError::HeaderLine("nonsense".into())
        );
        assert_eq!(
            refuse(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
            ResponseError::ContentLength("2".into())
        );
        assert_eq!(
            refuse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
            ResponseError::TransferEncoding("chunked".into())
        );
        assert_eq!(refuse(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab"), ResponseError::Trailing(2));
        assert_eq!(refuse(&[b'x'; MAX_HEAD + 1]), ResponseError::LongHead);
    }
}
