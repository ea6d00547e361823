//! Rules that decide whether two HTTP requests are the same.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::uri::PathAndQuery;

use crate::types::error::{self, Error, ErrorKind, Result};
use crate::types::fingerprint::{Fingerprint, FingerprintBuilder};

/// A rule that decides whether two HTTP requests are the same, for
/// [`HandleOptions::same_request`](crate::http::HandleOptions::same_request).
///
/// Every rule compares the method and the path. The rules differ in how they compare the rest.
#[derive(Clone)]
pub struct SameRequest(Rule);

/// Any error.
type Cause = Box<dyn std::error::Error + Send + Sync>;

type Custom = dyn Fn(&http::Request<&[u8]>) -> Result<Fingerprint, Cause> + Send + Sync;

#[derive(Clone)]
enum Rule {
    Bytes,
    Content,
    Custom(Arc<Custom>),
}

impl SameRequest {
    /// Compares the query and the body byte by byte. This is the default.
    #[must_use]
    pub fn by_bytes() -> Self {
        Self(Rule::Bytes)
    }

    /// Compares the query byte by byte, and the body by its `Content-Type`:
    ///
    /// | `Content-Type` | compared |
    /// |---|---|
    /// | `application/json`, `application/*+json` | the JSON value, as by [`Fingerprint::of_json`] |
    /// | `application/x-www-form-urlencoded` | the decoded names and values; the order counts only among values of one name |
    /// | `multipart/*` | the parts, in order, byte by byte; not the boundary, nor the text before and after the parts |
    /// | any other, or none | the bytes |
    ///
    /// A body that is malformed for its type is compared byte by byte.
    #[must_use]
    pub fn by_content() -> Self {
        Self(Rule::Content)
    }

    /// Compares the fingerprint that the closure returns. Use it for requests with fields that change from attempt to
    /// attempt.
    ///
    /// If the closure returns an error, the request gets 400 `bad_content`. The response's extensions contain the
    /// error, for the log.
    ///
    /// ```
    /// use http::StatusCode;
    /// use oncekey::{
    ///     Engine, Fingerprint,
    ///     http::{HandleOptions, Response, SameRequest},
    /// };
    ///
    /// let engine = Engine::temporary()?;
    /// // An envelope has a fresh `attempt_id` each time; the amount is the payment.
    /// let same = SameRequest::by(|request| {
    ///     let text = std::str::from_utf8(request.body())?;
    ///     let amount = text
    ///         .split('&')
    ///         .find_map(|member| member.strip_prefix("amount="))
    ///         .unwrap_or_default();
    ///     Ok(Fingerprint::builder().part(amount).finish())
    /// });
    /// let payments =
    ///     engine.requests("payments")?.with_handling(HandleOptions::new().same_request(same));
    /// let pay = |body: &'static str| {
    ///     let request = http::Request::post("/payments")
    ///         .header("idempotency-key", "k1")
    ///         .body(body)
    ///         .unwrap();
    ///     payments
    ///         .handle(&request, |_request, _claim| Ok(Response::new(StatusCode::CREATED)))
    ///         .status()
    /// };
    /// assert_eq!(pay("attempt_id=1&amount=20"), 201);
    /// assert_eq!(pay("attempt_id=2&amount=20"), 201);
    /// assert_eq!(pay("attempt_id=3&amount=21"), 422);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn by(
        rule: impl Fn(&http::Request<&[u8]>) -> Result<Fingerprint, Box<dyn std::error::Error + Send + Sync>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self(Rule::Custom(Arc::new(rule)))
    }

    pub(super) fn fingerprint<B: AsRef<[u8]>>(&self, request: &http::Request<B>) -> Result<Fingerprint> {
        let (method, uri, body) = (request.method().as_str(), request.uri(), request.body().as_ref());
        let target = uri.path_and_query().map_or(uri.path(), PathAndQuery::as_str);
        Ok(match &self.0 {
            Rule::Bytes => digest(method, target, Fingerprint::builder().part(body).finish()),
            Rule::Content => {
                let kind = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
                digest(method, target, by_content(kind.unwrap_or_default(), body))
            }
            Rule::Custom(rule) => {
                let mut view = http::Request::new(body);
                *view.method_mut() = request.method().clone();
                *view.uri_mut() = uri.clone();
                view.headers_mut().clone_from(request.headers());
                let refused = |cause| Error::new(ErrorKind::Codec, format!("request cannot be fingerprinted: {cause}"));
                digest(method, uri.path(), rule(&view).map_err(refused)?)
            }
        })
    }
}

impl fmt::Debug for SameRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Rule::Bytes => "SameRequest(bytes)",
            Rule::Content => "SameRequest(content)",
            Rule::Custom(_) => "SameRequest(closure)",
        })
    }
}

fn by_content(kind: &str, body: &[u8]) -> Fingerprint {
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let structured = if essence == "application/json"
        || essence.starts_with("application/") && essence.ends_with("+json")
    {
        error::handled(|| Fingerprint::of_json(body).ok())
            .map(|value| Fingerprint::builder().part("json").part(value.as_bytes()))
    } else if essence == "application/x-www-form-urlencoded" {
        let parts = Fingerprint::builder().part("form");
        Some(form(body).into_iter().fold(parts, |parts, (name, value)| parts.part(name).part(value)))
    } else if essence.starts_with("multipart/") {
        let parts = boundary(kind).and_then(|boundary| multipart(&boundary, body));
        parts.map(|parts| parts.into_iter().fold(Fingerprint::builder().part("multipart"), FingerprintBuilder::part))
    } else {
        None
    };
    structured.unwrap_or_else(|| Fingerprint::builder().part(body)).finish()
}

/// Returns the pairs of a form, sorted by name. Pairs of one name keep their order.
fn form(body: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let pairs = body.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty());
    let mut pairs: Vec<_> = pairs
        .map(|pair| {
            let (name, value) = split_once(pair, b"=").unwrap_or((pair, &[]));
            (form_decoded(name), form_decoded(value))
        })
        .collect();
    pairs.sort_by(|(one, _), (other, _)| one.cmp(other));
    pairs
}

/// Decodes a name or value of a form. A percent sign without two hexadecimal digits stands for itself, as in browsers
/// and servers.
fn form_decoded(mut text: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut decoded = Vec::with_capacity(text.len());
    while let [first, rest @ ..] = text {
        text = rest;
        decoded.push(match (first, rest) {
            (b'+', _) => b' ',
            (b'%', [high, low, rest @ ..]) => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => {
                    text = rest;
                    high << 4 | low
                }
                _ => b'%',
            },
            _ => *first,
        });
    }
    decoded
}

/// Returns the parameter `boundary` of a content type.
fn boundary(kind: &str) -> Option<Cow<'_, str>> {
    let is_boundary = |parameter: &&str| {
        parameter.split_once('=').is_some_and(|(name, _)| name.trim().eq_ignore_ascii_case("boundary"))
    };
    let (_, value) = kind.split(';').find(is_boundary)?.split_once('=')?;
    let value = value.trim();
    match value.strip_prefix('"') {
        Some(quoted) => Some(quoted.strip_suffix('"')?.replace('\\', "").into()),
        None => Some(value.into()),
    }
    .filter(|boundary: &Cow<'_, str>| !boundary.is_empty())
}

/// Returns the parts between the delimiters, with their headers. Returns `None` if the body is malformed (RFC 2046,
/// section 5.1).
fn multipart<'a>(boundary: &str, body: &'a [u8]) -> Option<Vec<&'a [u8]>> {
    let delimiter = format!("\r\n--{boundary}").into_bytes();
    // The body may begin with the first delimiter.
    let first = delimiter.strip_prefix(b"\r\n")?;
    let mut rest = match body.strip_prefix(first) {
        Some(rest) => rest,
        None => split_once(body, &delimiter)?.1,
    };
    let mut parts = Vec::new();
    while !rest.starts_with(b"--") {
        let (padding, _) = split_once(rest, b"\r\n")?;
        if !padding.iter().all(|byte| matches!(byte, b' ' | b'\t')) {
            return None;
        }
        // Keep the line break: the next delimiter may begin with it.
        let part = rest.strip_prefix(padding)?;
        let (part, after) = split_once(part, &delimiter)?;
        parts.push(part);
        rest = after;
    }
    Some(parts)
}

fn split_once<'a>(bytes: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = bytes.windows(separator.len()).position(|window| window == separator)?;
    let (before, rest) = bytes.split_at_checked(at)?;
    Some((before, rest.strip_prefix(separator)?))
}

/// Returns the fingerprint of a request with this method and path.
pub(super) fn digest(method: &str, path: &str, params: Fingerprint) -> Fingerprint {
    Fingerprint::builder().part(method).part(path).part(params.as_bytes()).finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: &str = "application/x-www-form-urlencoded";

    #[track_caller]
    fn same(kind: &str, one: &str, other: &str) {
        assert_eq!(by_content(kind, one.as_bytes()), by_content(kind, other.as_bytes()), "{kind}: {one} and {other}");
    }

    #[track_caller]
    fn differ(kind: &str, one: &str, other: &str) {
        assert_ne!(by_content(kind, one.as_bytes()), by_content(kind, other.as_bytes()), "{kind}: {one} and {other}");
    }

    #[test]
    fn a_json_body_is_compared_by_value_if_its_type_is_json() {
        for kind in ["application/json", "Application/JSON; charset=utf-8", "application/vnd.shop.v2+json"] {
            same(kind, r#"{"a":1,"b":2}"#, r#"{ "b": 2.0, "a": 1 }"#);
            differ(kind, r#"{"a":1}"#, r#"{"a":2}"#);
            differ(kind, r#"{"a":1,"a":2}"#, r#"{"a":2}"#);
            differ(kind, "{", "{ ");
        }
        for kind in ["", "text/plain", "application/jsonp", "text/x+json"] {
            differ(kind, r#"{"a":1,"b":2}"#, r#"{"b":2,"a":1}"#);
        }
        assert_ne!(by_content("application/json", b"1"), by_content("text/plain", b"1"));
    }

    #[test]
    fn a_form_is_compared_by_its_decoded_pairs() {
        same(FORM, "a=1&b=2", "b=2&a=1");
        same(FORM, "a=x+y&b=%41", "b=A&a=x%20y&");
        same(FORM, "a=%zz&b=%&c=%4", "c=%4&b=%&a=%25zz");
        same("application/x-www-form-urlencoded;charset=UTF-8", "a&b", "b=&a=");
        differ(FORM, "a=1&a=2", "a=2&a=1");
        differ(FORM, "a=1&b=2", "a=2&b=1");
        differ(FORM, "a=1%26b=2", "a=1&b=2");
        differ(FORM, "a=1", "A=1");
        differ("text/plain", "a=1&b=2", "b=2&a=1");
    }

    fn upload(boundary: &str, parts: &[&str]) -> (String, Vec<u8>) {
        let mut body = Vec::new();
        for part in parts {
            body.extend_from_slice(format!("--{boundary}\r\nX: y\r\n\r\n{part}\r\n").as_bytes());
        }
        body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
        (format!("multipart/form-data; boundary={boundary}"), body)
    }

    #[test]
    fn a_multipart_body_is_compared_without_its_boundary() {
        let of = |(kind, body): (String, Vec<u8>)| by_content(&kind, &body);
        let one = of(upload("abc", &["1", "", "3\r\n"]));
        assert_eq!(one, of(upload("----WebKit'x", &["1", "", "3\r\n"])));
        for parts in [&["1", "", "3"][..], &["1", "3\r\n"], &["", "1", "3\r\n"], &["1", "", "3\r\n", ""], &[]] {
            assert_ne!(one, of(upload("abc", parts)), "{parts:?}");
        }
        let (_, body) = upload("a;b", &["1"]);
        assert_ne!(
            by_content("multipart/mixed; boundary=x", &body),
            by_content("multipart/mixed; boundary=y", b"--y--")
        );
        let quoted = by_content("Multipart/Mixed; charset=x; Boundary=\"abc\"", &upload("abc", &["1"]).1);
        assert_eq!(quoted, of(upload("xyz", &["1"])));
        let around = [b"preamble\r\n", &upload("abc", &["1"]).1[..], b"epilogue"].concat();
        assert_eq!(by_content("multipart/mixed; boundary=abc", &around), quoted);
    }

    #[test]
    fn a_malformed_body_is_compared_by_its_bytes_and_junk_never_panics() {
        let bytes = |body: &[u8]| Fingerprint::builder().part(body).finish();
        for body in ["", "--abc", "--abc\r\n", "--abc\r\n\r\n1\r\n--abcd--", "--abcx\r\n\r\n1\r\n--abc--", "--ab--"] {
            assert_eq!(by_content("multipart/mixed; boundary=abc", body.as_bytes()), bytes(body.as_bytes()), "{body}");
        }
        for kind in ["multipart/mixed", "multipart/mixed; boundary=", "multipart/mixed; boundary=\"", "multipart/"] {
            assert_eq!(by_content(kind, b"--\r\n\r\n--"), bytes(b"--\r\n\r\n--"), "{kind}");
        }
        // A fixed sequence: xorshift.
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..20_000 {
            let junk: Vec<u8> = (0..12)
                .map(|_| {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    b"-\r\na%=&+\" ;"[usize::try_from(seed % 11).unwrap()]
                })
                .collect();
            for kind in [FORM, "multipart/mixed; boundary=a", "application/json"] {
                let _ = by_content(kind, &junk);
            }
        }
    }
}
