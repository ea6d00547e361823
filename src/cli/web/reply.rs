//! Replies to browsers.

use std::borrow::Cow;
use std::io::{self, Write};

use super::html::Html;

/// Headers that let a page load only files of this server and send forms only to it, and let no other page show it in a
/// frame.
///
/// `same-origin` and not `no-referrer`: with the latter, browsers send the origin `null` with forms, which is refused.
/// No page links to another site, so no other site gets the address.
const HEADERS: &str = "Content-Security-Policy: default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; \
    connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'\r\n\
    Cache-Control: no-store\r\n\
    Referrer-Policy: same-origin\r\n\
    X-Content-Type-Options: nosniff\r\n\
    X-Frame-Options: DENY\r\n\
    Cross-Origin-Opener-Policy: same-origin\r\n\
    Cross-Origin-Resource-Policy: same-origin\r\n\
    Connection: close\r\n";

/// The status of a reply: its code and its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Status(u16, &'static str);

impl Status {
    pub(super) const OK: Self = Self(200, "OK");
    pub(super) const UNCHANGED: Self = Self(204, "No Content");
    pub(super) const SEE_OTHER: Self = Self(303, "See Other");
    pub(super) const BAD_REQUEST: Self = Self(400, "Bad Request");
    pub(super) const FORBIDDEN: Self = Self(403, "Forbidden");
    pub(super) const NOT_FOUND: Self = Self(404, "Not Found");
    pub(super) const METHOD_NOT_ALLOWED: Self = Self(405, "Method Not Allowed");
    pub(super) const CONFLICT: Self = Self(409, "Conflict");
    pub(super) const LENGTH_REQUIRED: Self = Self(411, "Length Required");
    pub(super) const FORM_TOO_LARGE: Self = Self(413, "Content Too Large");
    pub(super) const NOT_A_FORM: Self = Self(415, "Unsupported Media Type");
    pub(super) const MISDIRECTED: Self = Self(421, "Misdirected Request");
    pub(super) const HEADERS_TOO_LARGE: Self = Self(431, "Request Header Fields Too Large");
    pub(super) const FAILED: Self = Self(500, "Internal Server Error");
    pub(super) const UNAVAILABLE: Self = Self(503, "Service Unavailable");

    pub(super) fn code(self) -> u16 {
        self.0
    }

    pub(super) fn reason(self) -> &'static str {
        self.1
    }
}

#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: Status,
    kind: &'static str,
    /// One more header.
    extra: Option<String>,
    body: Cow<'static, [u8]>,
}

impl Reply {
    pub(super) fn html(status: Status, html: Html) -> Self {
        Self { status, kind: "text/html; charset=utf-8", extra: None, body: html.into_bytes().into() }
    }

    pub(super) fn text(status: Status, text: String) -> Self {
        Self { status, kind: "text/plain; charset=utf-8", extra: None, body: text.into_bytes().into() }
    }

    /// Returns a file that is part of this program.
    pub(super) fn file(kind: &'static str, text: &'static str) -> Self {
        Self { status: Status::OK, kind, extra: None, body: text.as_bytes().into() }
    }

    /// Returns bytes that a browser stores as a file and does not show.
    pub(super) fn download(bytes: Vec<u8>) -> Self {
        let extra = Some("Content-Disposition: attachment; filename=\"outcome.bin\"".to_owned());
        Self { status: Status::OK, kind: "application/octet-stream", extra, body: bytes.into() }
    }

    /// Sends the browser to a page of ours. `to` consists of characters of addresses only.
    pub(super) fn see_other(to: &str) -> Self {
        let extra = Some(format!("Location: {to}"));
        Self { status: Status::SEE_OTHER, kind: "text/plain; charset=utf-8", extra, body: Cow::Borrowed(b"") }
    }

    pub(super) fn unchanged() -> Self {
        Self { status: Status::UNCHANGED, kind: "text/plain; charset=utf-8", extra: None, body: Cow::Borrowed(b"") }
    }

    /// Writes the reply, without its body if only the head was asked for.
    pub(super) fn write(&self, to: &mut impl Write, only_head: bool) -> io::Result<()> {
        let (code, reason) = (self.status.code(), self.status.reason());
        let mut bytes = format!("HTTP/1.1 {code} {reason}\r\n{HEADERS}Content-Type: {}\r\n", self.kind).into_bytes();
        if let Some(extra) = &self.extra {
            write!(bytes, "{extra}\r\n")?;
        }
        if self.status == Status::METHOD_NOT_ALLOWED {
            bytes.extend_from_slice(b"Allow: GET, HEAD, POST\r\n");
        }
        // A reply without content has no length.
        if self.status != Status::UNCHANGED {
            write!(bytes, "Content-Length: {}\r\n", self.body.len())?;
        }
        bytes.extend_from_slice(b"\r\n");
        to.write_all(&bytes)?;
        if only_head { Ok(()) } else { to.write_all(&self.body) }
    }
}
