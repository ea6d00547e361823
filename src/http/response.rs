//! An HTTP response as it can be stored.

use crate::types::value::Value;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::de::{Deserialize, Deserializer, Error as _};
use serde::{Serialize, Serializer};
use std::fmt;

/// An HTTP response as it can be stored: status, headers and body, which is replayed byte for byte.
///
/// The version and the extensions of an [`http::Response`] are not kept. Of headers with the same name, all are kept, in their
/// order. `Debug` shows neither the body nor the values of headers.
///
/// ```
/// use http::{StatusCode, header};
/// use oncekey::Response;
///
/// let created = Response::new(StatusCode::CREATED)
///     .header(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"))
///     .body(r#"{"charge":"ch_1"}"#);
/// let sent: http::Response<Vec<u8>> = created.clone().into();
/// assert_eq!((sent.status(), &sent.body()[..]), (StatusCode::CREATED, &br#"{"charge":"ch_1"}"#[..]));
/// assert_eq!(Response::from(sent), created);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Response {
    status: StatusCode,
    /// In a box, because a large error is moved at every `?`.
    headers: Box<HeaderMap>,
    body: Value,
}

impl Response {
    /// A response with this status, no headers and an empty body.
    #[must_use]
    pub fn new(status: StatusCode) -> Self {
        Self { status, headers: Box::default(), body: Value::default() }
    }

    /// The response with one header more; those of the same name stay.
    ///
    /// # Panics
    ///
    /// When there are more names than a [`HeaderMap`] can hold, which is over 24,000.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.append(name, value);
        self
    }

    /// The response with this body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into().into();
        self
    }

    /// Its status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Its headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Its body.
    #[must_use]
    pub fn body_bytes(&self) -> &[u8] {
        &self.body
    }
}

impl<B: Into<Vec<u8>>> From<http::Response<B>> for Response {
    fn from(response: http::Response<B>) -> Self {
        let (parts, body) = response.into_parts();
        Self { status: parts.status, headers: Box::new(parts.headers), body: body.into().into() }
    }
}

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
            .finish()
    }
}

/// How it is written: status, headers in the order in which the map gives them, which is the order in which they were put in
/// except that those of one name stand together, body.
type Written<H> = (u16, H, Value);

impl Serialize for Response {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let headers = self.headers.iter().map(|(name, value)| (name.as_str(), Value::from(value.as_bytes())));
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
        Ok(Self { status, headers, body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::codec::{decode_plain as decode, encode_checked, encode_plain};
    use crate::types::error::ErrorKind;
    use http::header::{CONTENT_TYPE, LOCATION, SET_COOKIE};

    fn encode<S: Serialize>(value: &S) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_plain(&mut bytes, "outcome", value, 1 << 20).unwrap();
        bytes
    }

    fn full() -> Response {
        Response::new(StatusCode::CREATED)
            .header(LOCATION, HeaderValue::from_static("/charges/1"))
            .header(SET_COOKIE, HeaderValue::from_static("a=4111"))
            .header(CONTENT_TYPE, HeaderValue::from_bytes(b"caf\xc3\xa9\xff").unwrap())
            .header(SET_COOKIE, HeaderValue::from_static("b=2"))
            .header(SET_COOKIE, HeaderValue::from_static("a=4111"))
            .body([0, 0xff, b'4', b'1', b'1', b'1'])
    }

    #[test]
    fn it_comes_back_as_it_was() {
        let (bytes, _) = encode_checked("outcome", &full(), 1 << 10).unwrap();
        let read: Response = crate::types::codec::decode("outcome", &bytes).unwrap();
        assert_eq!(read, full());
        assert!(bytes.ends_with(&encode(&read)), "it is compact");
        let cookies: Vec<_> = read.headers().get_all(SET_COOKIE).iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(cookies, [&b"a=4111"[..], b"b=2", b"a=4111"]);
        assert_eq!(read.headers()[CONTENT_TYPE].as_bytes(), b"caf\xc3\xa9\xff");
        let names: Vec<_> = read.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["location", "set-cookie", "content-type"]);
        let through: Response = http::Response::from(full()).into();
        assert_eq!(through, full());
    }

    // These bytes are in stores.
    #[test]
    fn the_format_is_that_of_the_first_release() {
        let small = Response::new(StatusCode::OK).header(LOCATION, HeaderValue::from_static("/")).body("b");
        let bytes = encode(&small);
        assert_eq!(bytes, b"\xc8\0\x01\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0location\x01\0\0\0\0\0\0\0/\x01\0\0\0\0\0\0\0b");
    }

    #[test]
    fn every_status_and_many_headers_come_back_in_their_order() {
        for code in 100..=999 {
            let mut response = Response::new(StatusCode::from_u16(code).unwrap());
            for number in 0..code % 70 {
                // Every third name comes again.
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
    fn what_is_no_response_is_refused() {
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
        assert!(text.contains("201") && text.contains("set-cookie") && text.contains("6 bytes"), "{text}");
        assert!(!text.contains("4111") && !text.contains("charges"), "{text}");
    }
}
