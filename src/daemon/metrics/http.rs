//! As much of HTTP/1.1 as somebody needs who asks for one document (RFC 9112 §2-§3, §9.6; RFC 9110 §9.3, §15).
//!
//! One request a connection: the answer says so, and whatever follows the head is not read.

/// What became of the bytes of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// It is not complete.
    Incomplete,
    /// It asks for the metrics.
    Metrics(Part),
    /// It asks for something else, or is no request.
    Refused(Status, Part),
}

/// What is sent of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// Without its body: the answer to HEAD.
    HeadAlone,
}

/// The status of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    TooLarge,
    VersionNotSupported,
}

impl Status {
    fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::RequestTimeout => "408 Request Timeout",
            Self::TooLarge => "431 Request Header Fields Too Large",
            Self::VersionNotSupported => "505 HTTP Version Not Supported",
        }
    }
}

/// Reads what has come so far.
pub(super) fn read(bytes: &[u8]) -> Head {
    // Empty lines before a request are passed over (RFC 9112 §2.2).
    let start = bytes.iter().position(|byte| !b"\r\n".contains(byte));
    let Some(bytes) = start.and_then(|start| bytes.get(start..)) else {
        return match bytes.len() > MOST_BYTES {
            true => Head::Refused(Status::BadRequest, Part::Whole),
            false => Head::Incomplete,
        };
    };
    // What is no text is no request: no need to wait for the end of its line.
    let text = |byte: &u8| matches!(byte, b'\t' | b'\r' | b'\n' | b' '..=b'~' | 0x80..);
    if !bytes.iter().all(text) {
        return Head::Refused(Status::BadRequest, Part::Whole);
    }
    let mut lines = Lines(bytes);
    let mut request = None;
    let mut hosts = 0;
    loop {
        let Some(line) = lines.next() else {
            return match bytes.len() > MOST_BYTES {
                true => Head::Refused(Status::TooLarge, Part::Whole),
                false => Head::Incomplete,
            };
        };
        if line.is_empty() {
            break;
        }
        if request.is_none() {
            request = Some(line);
            continue;
        }
        // No space before the colon, and no line that goes on with the one before (RFC 9112 §5).
        match line.iter().position(|byte| *byte == b':') {
            Some(end) if line.get(..end).is_some_and(is_token) => {
                let is_host = line
                    .get(..end)
                    .is_some_and(|name| name.eq_ignore_ascii_case(b"host"));
                hosts += usize::from(is_host);
            }
            _ => return Head::Refused(Status::BadRequest, Part::Whole),
        }
    }
    asked(request.unwrap_or_default(), hosts)
}

fn asked(line: &[u8], hosts: usize) -> Head {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Head::Refused(Status::BadRequest, Part::Whole);
    };
    let part = match method {
        b"HEAD" => Part::HeadAlone,
        _ => Part::Whole,
    };
    let refused = |status| Head::Refused(status, part);
    if !is_token(method) || target.is_empty() {
        return refused(Status::BadRequest);
    }
    match version {
        // RFC 9112 §3.2.
        b"HTTP/1.1" if hosts != 1 => return refused(Status::BadRequest),
        b"HTTP/1.0" | b"HTTP/1.1" => {}
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => {
            return refused(Status::VersionNotSupported);
        }
        _ => return refused(Status::BadRequest),
    }
    match path(target) {
        b"/metrics" if !matches!(method, b"GET" | b"HEAD") => refused(Status::MethodNotAllowed),
        b"/metrics" => Head::Metrics(part),
        _ => refused(Status::NotFound),
    }
}

/// The path of a target: of the usual form, or of the one for proxies, which is to be understood too (RFC 9112 §3.2.2).
fn path(target: &[u8]) -> &[u8] {
    let target = match target.strip_prefix(b"http://") {
        Some(rest) => {
            let end = rest.iter().position(|byte| *byte == b'/');
            end.and_then(|end| rest.get(end..)).unwrap_or_default()
        }
        None => target,
    };
    let end = target.iter().position(|byte| *byte == b'?');
    end.and_then(|end| target.get(..end)).unwrap_or(target)
}

/// RFC 9110 §5.6.2.
fn is_token(word: &[u8]) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !word.is_empty() && word.iter().all(allowed)
}

/// Whole lines, without their ends.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == b'\n')?;
        let line = self.0.get(..end)?;
        self.0 = self.0.get(end + 1..).unwrap_or_default();
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }
}

/// The bytes of an answer; a refusal has its status for a body.
pub(super) fn answer(status: Status, part: Part, body: Option<&str>) -> Vec<u8> {
    let line = status.line();
    let (body, kind) = match body {
        Some(body) => (body.to_owned(), "text/plain; version=0.0.4; charset=utf-8"),
        None if status == Status::NotFound => (
            format!("{line}: the metrics are at /metrics\n"),
            "text/plain; charset=utf-8",
        ),
        None => (format!("{line}\n"), "text/plain; charset=utf-8"),
    };
    let allow = match status {
        Status::MethodNotAllowed => "Allow: GET, HEAD\r\n",
        _ => "",
    };
    let length = body.len();
    let mut bytes = format!(
        "HTTP/1.1 {line}\r\n{allow}Content-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )
    .into_bytes();
    if part == Part::Whole {
        bytes.extend_from_slice(body.as_bytes());
    }
    bytes
}

/// The longest head. Prometheus sends some 300 bytes; a browser with cookies a few thousand.
pub(super) const MOST_BYTES: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_understood() {
        use Part::{HeadAlone, Whole};
        use Status::*;
        let bad = Head::Refused(BadRequest, Whole);
        for (text, head) in [
            (
                "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
                Head::Metrics(Whole),
            ),
            ("GET /metrics HTTP/1.0\r\n\r\n", Head::Metrics(Whole)),
            ("\r\nGET /metrics?a=b HTTP/1.0\n\n", Head::Metrics(Whole)),
            (
                "GET http://x:1/metrics HTTP/1.1\r\nhOST: x\r\nA:\r\n\r\n",
                Head::Metrics(Whole),
            ),
            (
                "HEAD /metrics HTTP/1.1\r\nHost:x\r\n\r\n",
                Head::Metrics(HeadAlone),
            ),
            (
                "POST /metrics HTTP/1.1\r\nHost:x\r\n\r\nbody",
                Head::Refused(MethodNotAllowed, Whole),
            ),
            (
                "GET / HTTP/1.1\r\nHost:x\r\n\r\n",
                Head::Refused(NotFound, Whole),
            ),
            (
                "HEAD /metricsx HTTP/1.0\r\n\r\n",
                Head::Refused(NotFound, HeadAlone),
            ),
            (
                "GET http://x HTTP/1.0\r\n\r\n",
                Head::Refused(NotFound, Whole),
            ),
            (
                "GET /metrics HTTP/2.0\r\n\r\n",
                Head::Refused(VersionNotSupported, Whole),
            ),
            ("GET /metrics HTTP/1.1\r\n\r\n", bad),
            ("GET /metrics HTTP/1.1\r\nHost:x\r\nHost:y\r\n\r\n", bad),
            ("GET /metrics\r\n\r\n", bad),
            ("GET  /metrics HTTP/1.0\r\n\r\n", bad),
            ("G@T /metrics HTTP/1.0\r\n\r\n", bad),
            ("GET /metrics HTTP/1.0 \r\n\r\n", bad),
            ("GET /metrics http/1.0\r\n\r\n", bad),
            ("GET /metrics HTTP/1.0\r\nA : b\r\n\r\n", bad),
            ("GET /metrics HTTP/1.0\r\n a: b\r\n\r\n", bad),
            ("GET /metrics HTTP/1.0\r\nnothing\r\n\r\n", bad),
            ("GET /metrics\0", bad),
            ("\x05\x01\x00", bad),
            ("\x16\x03\x01", bad),
        ] {
            assert_eq!(read(text.as_bytes()), head, "{text:?}");
        }
    }

    #[test]
    fn a_head_may_come_in_pieces() {
        let text = b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n";
        for end in 0..text.len() - 1 {
            assert_eq!(read(&text[..end]), Head::Incomplete, "{end}");
        }
        assert_eq!(read(text), Head::Metrics(Part::Whole));
    }

    #[test]
    fn a_head_has_a_limit() {
        let endless = format!("GET /metrics HTTP/1.1\r\nA: {}", "x".repeat(MOST_BYTES));
        assert_eq!(
            read(endless.as_bytes()),
            Head::Refused(Status::TooLarge, Part::Whole)
        );
        assert_eq!(
            read(&vec![b'\n'; MOST_BYTES + 1]),
            Head::Refused(Status::BadRequest, Part::Whole)
        );
    }

    #[test]
    fn answers_have_a_length_and_an_end() {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        assert_eq!(
            text(answer(Status::Ok, Part::Whole, Some("a 1\n"))),
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
             Content-Length: 4\r\nConnection: close\r\n\r\na 1\n"
        );
        let head = text(answer(Status::Ok, Part::HeadAlone, Some("a 1\n")));
        assert!(head.contains("Content-Length: 4\r\n") && head.ends_with("\r\n\r\n"));
        let refused = text(answer(Status::MethodNotAllowed, Part::Whole, None));
        assert!(
            refused.starts_with("HTTP/1.1 405 ") && refused.contains("\r\nAllow: GET, HEAD\r\n")
        );
    }
}
