//! Requests of browsers, read within limits.

use std::io::{self, Read};

use super::reply::Status;

/// The largest number of bytes of a request line and its headers.
const MAX_HEAD: usize = 16 << 10;
/// The largest number of headers.
const MAX_HEADERS: usize = 64;
/// The largest number of bytes of a form.
const MAX_FORM: usize = 1 << 20;
/// The largest number of fields of a query or a form. Further ones are ignored.
const MAX_FIELDS: usize = 64;
/// The number of bytes that one read may return.
const CHUNK: usize = 4 << 10;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Method {
    #[default]
    Get,
    Head,
    Post,
}

#[derive(Debug, Default)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) path: String,
    /// The header `Host`, which may occur only once.
    pub(super) host: Option<String>,
    pub(super) origin: Option<String>,
    /// The header `Sec-Fetch-Site`.
    pub(super) site: Option<String>,
    pub(super) query: Fields,
    pub(super) form: Fields,
}

impl Request {
    /// Returns false if the browser reports that another page sent the request. `none` means that the
    /// user opened the page directly.
    pub(super) fn is_from_our_site(&self) -> bool {
        self.site.as_deref().is_none_or(|site| ["same-origin", "none"].contains(&site))
    }
}

/// The fields of a query or of a form, in their order.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    fn parse(bytes: &[u8]) -> Self {
        Self(
            form_urlencoded::parse(bytes)
                .take(MAX_FIELDS)
                .map(|(name, value)| (name.into_owned(), value.into_owned()))
                .collect(),
        )
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Returns the first field of this name, or an empty text.
    pub(super) fn get(&self, name: &str) -> &str {
        self.iter().find(|(other, _)| *other == name).map_or("", |(_, value)| value)
    }

    pub(super) fn contains(&self, name: &str, value: &str) -> bool {
        self.iter().any(|field| field == (name, value))
    }
}

/// The reason why there is no request to answer.
#[derive(Debug)]
pub(super) enum Unread {
    /// The client has gone, or is too slow.
    Gone,
    /// The request breaks a rule.
    Bad(Status),
}

impl From<io::Error> for Unread {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

/// The size of the head, and of the form that comes after it.
struct Sizes {
    head: usize,
    form: usize,
}

/// Reads one request.
pub(super) fn read(from: &mut impl Read) -> Result<Request, Unread> {
    let mut bytes = Vec::new();
    let (mut request, sizes) = loop {
        if let Some(parsed) = head(&bytes).map_err(Unread::Bad)? {
            break parsed;
        }
        if bytes.len() >= MAX_HEAD {
            return Err(Unread::Bad(Status::HEADERS_TOO_LARGE));
        }
        read_some(from, &mut bytes, CHUNK)?;
    };
    let end = sizes.head + sizes.form;
    while bytes.len() < end {
        let missing = end - bytes.len();
        read_some(from, &mut bytes, missing.min(CHUNK))?;
    }
    request.form = Fields::parse(bytes.get(sizes.head..end).unwrap_or_default());
    Ok(request)
}

/// Appends the bytes of one read. Allocates memory only for bytes that have arrived.
fn read_some(from: &mut impl Read, bytes: &mut Vec<u8>, most: usize) -> Result<(), Unread> {
    let mut chunk = [0; CHUNK];
    let chunk = chunk.get_mut(..most).unwrap_or_default();
    let count = from.read(chunk)?;
    bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
    if count == 0 { Err(Unread::Gone) } else { Ok(()) }
}

/// Parses the head. Returns `None` if it is not complete.
fn head(bytes: &[u8]) -> Result<Option<(Request, Sizes)>, Status> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let head = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Status::HEADERS_TOO_LARGE),
        Err(_) => return Err(Status::BAD_REQUEST),
    };
    let method = match parsed.method {
        Some("GET") => Method::Get,
        Some("HEAD") => Method::Head,
        Some("POST") => Method::Post,
        _ => return Err(Status::METHOD_NOT_ALLOWED),
    };
    let (path, query) =
        parsed.path.unwrap_or_default().split_once('?').unwrap_or((parsed.path.unwrap_or_default(), ""));
    let header = |name: &str| only(parsed.headers, name);
    let form = if method == Method::Post { form_size(&header)? } else { 0 };
    let request = Request {
        method,
        path: path.to_owned(),
        host: header("Host")?.map(str::to_owned),
        origin: header("Origin")?.map(str::to_owned),
        site: header("Sec-Fetch-Site")?.map(str::to_owned),
        query: Fields::parse(query.as_bytes()),
        form: Fields::default(),
    };
    Ok(Some((request, Sizes { head, form })))
}

/// Returns the value of a header. Rejects a header that comes twice, because programs differ in which one they use.
fn only<'a>(headers: &[httparse::Header<'a>], name: &str) -> Result<Option<&'a str>, Status> {
    let mut values = headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value);
    let value = values.next().map(|value| std::str::from_utf8(value).map_err(|_| Status::BAD_REQUEST)).transpose()?;
    if values.next().is_some() { Err(Status::BAD_REQUEST) } else { Ok(value) }
}

fn form_size<'a>(header: &impl Fn(&str) -> Result<Option<&'a str>, Status>) -> Result<usize, Status> {
    if header("Transfer-Encoding")?.is_some() {
        return Err(Status::LENGTH_REQUIRED);
    }
    let length = header("Content-Length")?.ok_or(Status::LENGTH_REQUIRED)?;
    if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Status::BAD_REQUEST);
    }
    // A number that cannot be parsed exceeds the limit too.
    let length = length.parse().ok().filter(|length| *length <= MAX_FORM).ok_or(Status::FORM_TOO_LARGE)?;
    let kind = header("Content-Type")?.unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") { Ok(length) } else { Err(Status::NOT_A_FORM) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(bytes: &[u8]) -> Option<u16> {
        match read(&mut &*bytes) {
            Err(Unread::Bad(status)) => Some(status.code()),
            Err(Unread::Gone) => Some(0),
            Ok(_) => None,
        }
    }

    #[test]
    fn requests_are_read_and_bad_ones_get_a_status() {
        let form = "Content-Type: application/x-www-form-urlencoded\r\n";
        let post = |headers: &str| status(format!("POST /a HTTP/1.1\r\nHost: h\r\n{headers}\r\na=1").as_bytes());
        assert_eq!(post(&format!("{form}Content-Length: 3\r\n")), None);
        assert_eq!(post(&format!("{form}Content-Length: 4\r\n")), Some(0), "the form is cut off");
        assert_eq!(post(form), Some(411));
        assert_eq!(post(&format!("{form}Transfer-Encoding: chunked\r\nContent-Length: 3\r\n")), Some(411));
        for length in ["-1", "+3", "", "3, 3", "0x3"] {
            assert_eq!(post(&format!("{form}Content-Length: {length}\r\n")), Some(400), "{length}");
        }
        for length in ["1048577", "99999999999999999999999999"] {
            assert_eq!(post(&format!("{form}Content-Length: {length}\r\n")), Some(413), "{length}");
        }
        assert_eq!(post(&format!("{form}Content-Length: 3\r\nContent-Length: 3\r\n")), Some(400));
        assert_eq!(post("Content-Type: text/plain\r\nContent-Length: 3\r\n"), Some(415));
        assert_eq!(status(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), Some(400));
        assert_eq!(status(b"PUT / HTTP/1.1\r\n\r\n"), Some(405));
        assert_eq!(status(b"\x16\x03\x01\x02\x00\x01\x00"), Some(400), "TLS");
        assert_eq!(status(b"GET / HTTP/1.1\r\nHost"), Some(0), "half a head");
        let many = "a: b\r\n".repeat(MAX_HEADERS + 1);
        assert_eq!(status(format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes()), Some(431));
        let long = "x".repeat(2 * MAX_HEAD);
        assert_eq!(status(format!("GET / HTTP/1.1\r\na: {long}\r\n\r\n").as_bytes()), Some(431));
    }

    #[test]
    fn fields_are_decoded() {
        let request =
            read(&mut &b"GET /t/records?status=failed&status=released&key=%2Fa%2520b+c HTTP/1.1\r\n\r\n"[..]).unwrap();
        assert_eq!(
            (request.path.as_str(), request.query.get("key"), request.query.get("none")),
            ("/t/records", "/a%20b c", "")
        );
        assert!(request.query.contains("status", "released") && !request.query.contains("status", "succeeded"));
    }
}
