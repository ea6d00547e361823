//! HTTP responses that can be stored.

use crate::types::value::Value;
use http::header::{
    CONNECTION, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    DATE, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::de::{Deserialize, Deserializer, Error as _};
use serde::{Serialize, Serializer};
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

/// The header that marks a replay.
pub(crate) const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The header that marks a response whose body was not stored. Its value is the size of the body in bytes.
pub(crate) const BODY_OMITTED: HeaderName = HeaderName::from_static("idempotent-body-omitted");

/// Headers that belong to one connection or to the framing of one message (RFC 9110, section 7.6.1), and the mark of a
/// replay.
const OF_THE_CONNECTION: [HeaderName; 11] = [
    CONNECTION,
    CONTENT_LENGTH,
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    REPLAYED,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Headers that describe the body and have no meaning without it.
const OF_THE_BODY: [HeaderName; 6] = [
    CONTENT_DISPOSITION,
    CONTENT_ENCODING,
    CONTENT_LANGUAGE,
    CONTENT_RANGE,
    CONTENT_TYPE,
    HeaderName::from_static("content-digest"),
];

/// Headers that only the first client gets, by default.
pub(crate) const OF_THE_FIRST_ANSWER: [HeaderName; 3] = [DATE, SET_COOKIE, WWW_AUTHENTICATE];

/// An HTTP response that can be stored and replayed byte for byte: status, headers and body.
///
/// The version and the extensions of an [`http::Response`] are not kept. All headers of one name are kept, in order.
/// `Debug` shows neither the body nor the values of headers.
///
/// Some headers belong to one answer only and are not stored:
///
/// - headers of the connection: `Connection` and the headers that it names, `Keep-Alive`, `Proxy-Authenticate`,
///   `Proxy-Authorization`, `Proxy-Connection`, `TE`, `Trailer`, `Transfer-Encoding`, `Upgrade`
/// - `Content-Length`, which the server sets
/// - `Idempotent-Replayed`, if an upstream has set it
/// - the headers set by [`not_stored`](Self::not_stored); by default `Date`, `Set-Cookie` and `WWW-Authenticate`
///
/// ```
/// use http::{StatusCode, header};
/// use oncekey::http::Response;
///
/// let created = Response::new(StatusCode::CREATED)
///     .header(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"))
///     .body(r#"{"charge":"ch_1"}"#);
/// let sent: http::Response<Vec<u8>> = created.clone().into();
/// assert_eq!(
///     (sent.status(), &sent.body()[..]),
///     (StatusCode::CREATED, &br#"{"charge":"ch_1"}"#[..])
/// );
/// assert_eq!(Response::from(sent), created);
/// ```
#[derive(Clone)]
pub struct Response {
    status: StatusCode,
    /// In a box, because each `?` moves the response if it is an error.
    headers: Box<HeaderMap>,
    body: Value,
    /// The list that replaces the default list.
    not_stored: Option<Arc<[HeaderName]>>,
}

impl Response {
    /// Creates a response with this status, no headers and an empty body.
    #[must_use]
    pub fn new(status: StatusCode) -> Self {
        Self { status, headers: Box::default(), body: Value::default(), not_stored: None }
    }

    /// Adds a header. Headers of the same name stay.
    ///
    /// # Panics
    ///
    /// If the response has more names of headers than a [`HeaderMap`] can hold, which is over 24,000.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.append(name, value);
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into().into();
        self
    }

    /// Sets the headers that are not stored. Replaces the default list: `Date`, `Set-Cookie` and `WWW-Authenticate`.
    /// Headers of the connection are never stored.
    ///
    /// [`Requests::handle`](crate::http::Requests::handle) replaces this list by
    /// [`HandleOptions::not_replayed`](crate::http::HandleOptions::not_replayed).
    ///
    /// ```
    /// use http::header::{DATE, HeaderValue, SET_COOKIE};
    /// use oncekey::{Engine, Manager, http::Response};
    ///
    /// let manager: Manager<Response> = Engine::temporary()?.manager("responses")?;
    /// let dated = Response::new(http::StatusCode::OK)
    ///     .header(DATE, HeaderValue::from_static("Tue, 15 Nov 1994 08:12:31 GMT"))
    ///     .header(SET_COOKIE, HeaderValue::from_static("session=1"))
    ///     .not_stored([SET_COOKIE]);
    /// manager.execute("k", |_claim| Ok(dated)).unwrap();
    /// let stored = manager.get("k")?.unwrap().into_outcome().unwrap().unwrap();
    /// assert!(
    ///     stored.headers().contains_key(DATE) && !stored.headers().contains_key(SET_COOKIE)
    /// );
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    #[must_use]
    pub fn not_stored(self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.with_not_stored(names.into_iter().collect())
    }

    pub(crate) fn with_not_stored(mut self, names: Arc<[HeaderName]>) -> Self {
        self.not_stored = Some(names);
        self
    }

    /// Removes the body and the headers that describe it, and adds `Idempotent-Body-Omitted` with the size of the body
    /// in bytes. Use it to store a response that is too large with its body.
    ///
    /// ```
    /// let large = oncekey::http::Response::new(http::StatusCode::OK).body("x".repeat(5_000));
    /// let bare = large.without_body();
    /// assert!(bare.body_bytes().is_empty());
    /// assert_eq!(bare.headers()["idempotent-body-omitted"], "5000");
    /// ```
    #[must_use]
    pub fn without_body(mut self) -> Self {
        for name in &OF_THE_BODY {
            self.headers.remove(name);
        }
        // A full map has no room for one more name. Then leave the mark out.
        let _ = self.headers.try_insert(BODY_OMITTED, HeaderValue::from(self.body.len()));
        self.body = Value::default();
        self
    }

    /// Removes all headers except the mark of an omitted body.
    pub(crate) fn without_headers(mut self) -> Self {
        let mark = self.headers.remove(BODY_OMITTED);
        self.headers.clear();
        if let Some(mark) = mark {
            self.headers.insert(BODY_OMITTED, mark);
        }
        self
    }

    pub(crate) fn without(mut self, name: &HeaderName) -> Self {
        self.headers.remove(name);
        self
    }

    /// Returns the status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns the headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Returns the body.
    #[must_use]
    pub fn body_bytes(&self) -> &[u8] {
        &self.body
    }
}

impl<B: Into<Vec<u8>>> From<http::Response<B>> for Response {
    fn from(response: http::Response<B>) -> Self {
        let (parts, body) = response.into_parts();
        Self { status: parts.status, headers: Box::new(parts.headers), body: body.into().into(), not_stored: None }
    }
}

/// Two responses are equal if their statuses, headers and bodies are equal.
impl PartialEq for Response {
    fn eq(&self, other: &Self) -> bool {
        (self.status, &self.headers, &self.body) == (other.status, &other.headers, &other.body)
    }
}

impl Eq for Response {}

impl From<Response> for http::Response<Vec<u8>> {
    fn from(response: Response) -> Self {
        let mut sent = Self::new(response.body.into());
        *sent.status_mut() = response.status;
        *sent.headers_mut() = *response.headers;
        sent
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Response")
            .field("status", &self.status)
            .field("headers", &names)
            .field("body", &self.body)
            .finish_non_exhaustive()
    }
}

/// The stored form: status, headers, body. The headers have the order of the map's iterator: in order of insertion, but
/// all headers of one name together.
type Written<H> = (u16, H, Value);

impl Serialize for Response {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let left_out = left_out(&self.headers, self.not_stored.as_deref().unwrap_or(&OF_THE_FIRST_ANSWER));
        let stored = self.headers.iter().filter(|(name, _)| !left_out.contains(*name));
        let headers = stored.map(|(name, value)| (name.as_str(), Value::from(value.as_bytes())));
        let written: Written<Vec<(&str, Value)>> = (self.status.as_u16(), headers.collect(), self.body.clone());
        written.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Response {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (status, written, body): Written<Vec<(String, Value)>> = Deserialize::deserialize(deserializer)?;
        let status = StatusCode::from_u16(status).map_err(D::Error::custom)?;
        let mut headers = Box::<HeaderMap>::default();
        for (name, value) in written {
            let name: HeaderName = name.parse().map_err(D::Error::custom)?;
            let value = HeaderValue::from_bytes(&value).map_err(D::Error::custom)?;
            headers.try_append(name, value).map_err(D::Error::custom)?;
        }
        // A response from the store is stored again unchanged, so the list is empty.
        Ok(Self { status, headers, body, not_stored: Some([].into()) })
    }
}

/// Removes the headers that belong to one answer only.
pub(crate) fn leave_out(headers: &mut HeaderMap, listed: &[HeaderName]) {
    for name in left_out(headers, listed) {
        headers.remove(name);
    }
}

/// Returns the names of the headers in the map that belong to one answer only.
fn left_out(headers: &HeaderMap, listed: &[HeaderName]) -> HashSet<HeaderName> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named = values.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok());
    let all = named.chain(OF_THE_CONNECTION).chain(listed.iter().cloned());
    all.filter(|name| headers.contains_key(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::codec::{decode_plain as decode, encode_checked, encode_plain};
    use crate::types::error::ErrorKind;
    use http::header::{LOCATION, VARY};

    fn encode<S: Serialize>(value: &S) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_plain(&mut bytes, "outcome", value, 1 << 20).unwrap();
        bytes
    }

    fn full() -> Response {
        Response::new(StatusCode::CREATED)
            .header(LOCATION, HeaderValue::from_static("/charges/1"))
            .header(VARY, HeaderValue::from_static("a=4111"))
            .header(CONTENT_TYPE, HeaderValue::from_bytes(b"caf\xc3\xa9\xff").unwrap())
            .header(VARY, HeaderValue::from_static("b=2"))
            .header(VARY, HeaderValue::from_static("a=4111"))
            .body([0, 0xff, b'4', b'1', b'1', b'1'])
    }

    #[test]
    fn a_response_is_read_back_unchanged() {
        let (bytes, _) = encode_checked("outcome", &full(), 1 << 10).unwrap();
        let read: Response = crate::types::codec::decode("outcome", &bytes).unwrap();
        assert_eq!(read, full());
        assert!(bytes.ends_with(&encode(&read)), "the encoding is compact");
        let several: Vec<_> = read.headers().get_all(VARY).iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(several, [&b"a=4111"[..], b"b=2", b"a=4111"]);
        assert_eq!(read.headers()[CONTENT_TYPE].as_bytes(), b"caf\xc3\xa9\xff");
        let names: Vec<_> = read.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["location", "vary", "content-type"]);
        let through: Response = http::Response::from(full()).into();
        assert_eq!(through, full());
    }

    #[test]
    fn headers_of_one_answer_are_not_stored() {
        let text = |text: &'static str| HeaderValue::from_static(text);
        let stored = |response: &Response| -> Vec<String> {
            let (bytes, _) = encode_checked("outcome", response, 1 << 10).unwrap();
            let read: Response = crate::types::codec::decode("outcome", &bytes).unwrap();
            let (again, _) = encode_checked("outcome", &read, 1 << 10).unwrap();
            assert_eq!(again, bytes, "a stored response is stored again unchanged");
            read.headers().keys().map(ToString::to_string).collect()
        };
        let full = OF_THE_CONNECTION
            .into_iter()
            .chain(OF_THE_FIRST_ANSWER)
            .fold(full(), |response, name| response.header(name, text("x")))
            .header(CONNECTION, text("close, X-Hop,, ("))
            .header(HeaderName::from_static("x-hop"), text("x"));
        assert_eq!(stored(&full), ["location", "vary", "content-type"]);
        let kept = full.clone().not_stored([LOCATION]);
        assert_eq!(stored(&kept), ["vary", "content-type", "date", "set-cookie", "www-authenticate"]);
        assert_eq!(kept, full, "the list of headers that are not stored does not count");
    }

    #[test]
    fn a_response_without_its_body_is_marked_and_keeps_the_other_headers() {
        let described =
            OF_THE_BODY.into_iter().fold(full(), |response, name| response.header(name, HeaderValue::from_static("x")));
        let bare = described.without_body();
        assert_eq!((bare.status(), bare.body_bytes()), (StatusCode::CREATED, &b""[..]));
        let names: HashSet<_> = bare.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["location", "vary", "idempotent-body-omitted"].into());
        assert_eq!(bare.headers()[BODY_OMITTED], "6");
        let smallest = bare.without_headers();
        assert_eq!((smallest.headers().len(), &smallest.headers()[BODY_OMITTED]), (1, &HeaderValue::from(6)));
    }

    // Stores contain these bytes.
    #[test]
    fn the_format_is_that_of_the_first_release() {
        let small = Response::new(StatusCode::OK).header(LOCATION, HeaderValue::from_static("/")).body("b");
        let bytes = encode(&small);
        assert_eq!(bytes, b"\xc8\0\x01\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0location\x01\0\0\0\0\0\0\0/\x01\0\0\0\0\0\0\0b");
    }

    #[test]
    fn every_status_and_many_headers_are_read_back_in_order() {
        for code in 100..=999 {
            let mut response = Response::new(StatusCode::from_u16(code).unwrap());
            for number in 0..code % 70 {
                // Every third name is repeated.
                let name = format!("x-{}", if number % 3 == 0 { number / 6 } else { number });
                response = response.header(name.parse().unwrap(), HeaderValue::from(number));
            }
            let (bytes, _) = encode_checked("outcome", &response, 1 << 14).unwrap();
            let read: Response = crate::types::codec::decode("outcome", &bytes).unwrap();
            assert_eq!(read, response);
            assert!(read.headers().iter().eq(response.headers().iter()), "{code}");
        }
    }

    #[test]
    fn bytes_that_are_not_a_response_are_rejected() {
        let written = |status: u16, name: &str, value: &[u8]| {
            encode(&(status, vec![(name, Value::from(value))], Value::default()))
        };
        assert!(decode::<Response>("outcome", &written(200, "a", b"b")).is_ok());
        for junk in
            [written(99, "a", b"b"), written(1000, "a", b"b"), written(200, "", b"b"), written(200, "a b", b"b")]
        {
            assert_eq!(decode::<Response>("outcome", &junk).unwrap_err().kind(), ErrorKind::Codec);
        }
        assert_eq!(decode::<Response>("outcome", &written(200, "a", b"b\n")).unwrap_err().kind(), ErrorKind::Codec);
        let many: Vec<_> = (0..40_000).map(|number| (format!("x-{number}"), Value::default())).collect();
        let bytes = encode(&(200_u16, many, Value::default()));
        assert!(decode::<Response>("outcome", &bytes).is_err_and(|error| error.kind() == ErrorKind::Codec));
    }

    #[test]
    fn debug_shows_no_payload() {
        let text = format!("{:?}", full());
        assert!(text.contains("201") && text.contains("vary") && text.contains("6 bytes"), "{text}");
        assert!(!text.contains("4111") && !text.contains("charges"), "{text}");
    }
}
