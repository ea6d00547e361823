//! Outcomes as people read and write them.

use std::fmt::Write as _;

use serde_json::{Value as Json, json};

use super::describe::{Describers, Stored};
use super::out::{self, Done, Stop, is_readable};
use super::store::Store;
#[cfg(feature = "http")]
use crate::http::Response;
use crate::{Failure, Record, RecordInfo, Status, Value, admin::RawManager, admin::RecordFilter};

/// The number of characters shown of text.
const PREVIEW_CHARS: usize = 4_000;
/// The number of bytes shown of data that is not text.
const PREVIEW_BYTES: usize = 256;
/// The number of outcomes whose type a new one is compared with.
const SAMPLES: usize = 16;

/// An outcome of a type that this crate knows, or of JSON.
#[derive(Debug)]
enum Readable {
    #[cfg(feature = "http")]
    Response(Response),
    Failure(Failure),
    Text(String),
    Bytes(Vec<u8>),
    Plain(Json),
    Json(Json),
}

impl Readable {
    fn read(bytes: &[u8]) -> Option<Self> {
        #[cfg(feature = "http")]
        if let Ok(response) = RawManager::decode(bytes) {
            return Some(Self::Response(response));
        }
        let failure = || RawManager::decode(bytes).ok().map(Self::Failure);
        let text = || RawManager::decode(bytes).ok().map(Self::Text);
        let binary = || RawManager::decode(bytes).ok().map(Self::Bytes);
        let number = || RawManager::decode::<u64>(bytes).map(Json::from);
        let signed = || RawManager::decode::<i64>(bytes).map(Json::from);
        let truth = || RawManager::decode::<bool>(bytes).map(Json::from);
        let plain = || number().or_else(|_| signed()).or_else(|_| truth()).ok().map(Self::Plain);
        let json = || serde_json::from_slice(RawManager::json(bytes)?).ok().map(Self::Json);
        failure().or_else(text).or_else(binary).or_else(plain).or_else(json)
    }

    /// Returns true if both are of the same type, as far as it is known.
    fn is_like(&self, other: &Self) -> bool {
        // Any type may be stored as JSON.
        !matches!(self, Self::Json(_)) && std::mem::discriminant(self) == std::mem::discriminant(other)
    }

    fn to_json(&self) -> Json {
        match self {
            #[cfg(feature = "http")]
            Self::Response(response) => {
                let headers = response.headers().iter();
                let headers = headers.map(|(name, value)| json!([name.as_str(), out::bytes(value.as_bytes())]));
                let body = body_json(response.body_bytes());
                json!({ "status": response.status().as_u16(), "headers": headers.collect::<Vec<_>>(), "body": body })
            }
            Self::Failure(failure) => {
                json!({ "message": failure.message(), "causes": failure.causes().collect::<Vec<_>>() })
            }
            Self::Text(text) => text.as_str().into(),
            Self::Bytes(bytes) => out::bytes(bytes),
            Self::Plain(value) | Self::Json(value) => value.clone(),
        }
    }

    fn to_text(&self) -> String {
        match self {
            #[cfg(feature = "http")]
            Self::Response(response) => {
                let mut text = format!("HTTP {}", response.status());
                for (name, value) in response.headers() {
                    // Ignore the result: writing to a string cannot fail.
                    let _ = write!(text, "\n{name}: {}", escaped(&String::from_utf8_lossy(value.as_bytes())));
                }
                let body = response.body_bytes();
                match serde_json::from_slice::<Json>(body) {
                    Ok(value) => text + "\n" + &pretty(&value),
                    Err(_) if body.is_empty() => text + "\nno body",
                    Err(_) => text + "\n" + &preview(body),
                }
            }
            Self::Failure(failure) => format!("failure: {}", escaped(&failure.to_string())),
            Self::Text(text) => preview(text.as_bytes()),
            Self::Bytes(bytes) => preview(bytes),
            Self::Plain(value) | Self::Json(value) => pretty(value),
        }
    }
}

#[cfg(feature = "http")]
fn body_json(body: &[u8]) -> Json {
    serde_json::from_slice(body).unwrap_or_else(|_| out::bytes(body))
}

/// Returns the content of an outcome, for people.
pub(super) fn text(bytes: &[u8]) -> String {
    Readable::read(bytes).map_or_else(|| preview(bytes), |readable| readable.to_text())
}

/// Returns the content of an outcome, for machines. `None` if its type is not known.
pub(super) fn to_json(bytes: &[u8]) -> Option<Json> {
    Readable::read(bytes).map(|readable| readable.to_json())
}

fn pretty(value: &Json) -> String {
    let text = serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string());
    let cut: String = text.chars().take(PREVIEW_CHARS).collect();
    escaped(&cut) + if cut.len() < text.len() { " ..." } else { "" }
}

/// Escapes control characters, which a terminal could execute, and invisible characters.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        if matches!(c, '\n' | '"' | '\'' | '\\') { escaped.push(c) } else { escaped.extend(c.escape_debug()) }
    }
    escaped
}

/// Returns text on one line, or a hex dump of the first bytes if it is not text.
pub(super) fn preview(bytes: &[u8]) -> String {
    if let Some(text) = std::str::from_utf8(bytes).ok().filter(|text| is_readable(text)) {
        let cut = text.chars().take(PREVIEW_CHARS).collect::<String>();
        let more = if cut.len() < text.len() { " ..." } else { "" };
        return format!("\"{}\"{more}", cut.escape_debug());
    }
    let mut dump = String::new();
    for (line, row) in bytes.chunks(16).take(PREVIEW_BYTES / 16).enumerate() {
        // Ignore the result: writing to a string cannot fail.
        let _ = write!(dump, "\n  {:04x} ", 16 * line);
        for byte in row {
            let _ = write!(dump, " {byte:02x}");
        }
        let text =
            row.iter().map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' });
        let gap = 3 * (16 - row.len()) + 2;
        let _ = write!(dump, "{:gap$}{}", "", text.collect::<String>());
    }
    if bytes.len() > PREVIEW_BYTES {
        dump.push_str("\n  ...");
    }
    dump
}

/// An outcome in the form in which an operator gives it.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) is_failure: bool,
    pub(super) content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    /// The bytes that `get --outcome` prints.
    Stored(Value),
    Json(Json),
    Text(String),
    #[cfg(feature = "http")]
    Response(Response),
}

impl Given {
    /// Encodes it as an outcome of the record's manager, and checks that the manager can read it.
    pub(super) fn encode(
        &self,
        store: &dyn Store,
        describers: &Describers,
        info: &RecordInfo,
        unchecked: bool,
    ) -> Done<Value> {
        let manager = info.manager();
        let unfit = |why: &dyn std::fmt::Display| {
            Stop::Usage(format!("this is no outcome of {manager}, schema {}: {why}", info.schema()))
        };
        let value = if let Content::Json(value) = &self.content {
            Some(value.clone())
        } else if let Content::Text(text) = &self.content {
            Some(text.as_str().into())
        } else {
            None
        };
        let described = value.and_then(|value| describers.encode(info, self.is_failure, value));
        let is_encoded = described.is_some();
        let bytes = match (described, &self.content) {
            (Some(encoded), _) => encoded.map_err(|why| unfit(&why))?,
            (None, Content::Stored(bytes)) => bytes.clone(),
            (None, Content::Json(value)) => RawManager::encode(value)?,
            // The default type of failures.
            (None, Content::Text(text)) if self.is_failure => RawManager::encode(&Failure::new(text.as_str()))?,
            (None, Content::Text(text)) => RawManager::encode(text)?,
            #[cfg(feature = "http")]
            (None, Content::Response(response)) => RawManager::encode(response)?,
        };
        let outcome: Stored<'_> = if self.is_failure { Err(&bytes) } else { Ok(&bytes) };
        match describers.check(info, outcome) {
            Some(checked) => checked.map_err(|why| unfit(&why))?,
            None if is_encoded => {}
            None => {
                RawManager::check_encoded(&bytes)
                    .map_err(|why| unfit(&format_args!("{why}; --as text or --as json encodes it")))?;
                if !unchecked && !is_like_others(store, info, &bytes, self.is_failure)? {
                    if let (Content::Text(text), true) = (&self.content, self.is_failure) {
                        let failure = RawManager::encode(text)?;
                        if is_like_others(store, info, &failure, true)? {
                            return Ok(failure);
                        }
                    }
                    return Err(unfit(
                        &"nothing shows that the service can read it. A program of the service knows the types \
                          (`oncekey::cli::Describers`). This program accepts an outcome if the manager has stored \
                          one of the same form, or the same bytes; --unchecked skips this check",
                    ));
                }
            }
        }
        Ok(bytes)
    }
}

/// Returns true if the manager has an outcome of the same known type, or the same outcome.
fn is_like_others(store: &dyn Store, info: &RecordInfo, bytes: &Value, is_failure: bool) -> Done<bool> {
    let status = if is_failure { Status::Failed } else { Status::Succeeded };
    let (readable, schema) = (Readable::read(bytes), info.schema());
    let filter = RecordFilter::new().manager(info.manager()).status(status);
    let mut samples = 0;
    for other in store.records(filter.matching(move |other| other.schema() == schema))? {
        let other = other?;
        let has_length = other.outcome_bytes() == bytes.len() as u64;
        if !has_length && (samples >= SAMPLES || readable.is_none()) {
            continue;
        }
        samples += 1;
        let record = store.get(other.manager(), other.key())?;
        let Some(Ok(theirs) | Err(theirs)) = record.as_ref().and_then(Record::outcome) else { continue };
        let alike = || Some(readable.as_ref()?.is_like(&Readable::read(theirs)?));
        if theirs == bytes || alike() == Some(true) || is_json_of_any_kind(theirs, bytes) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns true if both are of a type that takes any JSON.
fn is_json_of_any_kind(one: &[u8], other: &[u8]) -> bool {
    [one, other].iter().all(|bytes| RawManager::decode::<Json>(bytes).is_ok())
}
