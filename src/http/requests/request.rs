//! The description of a request, and the changes that can be made to one.

use std::fmt;
use std::time::Duration;

use http::Method;
use serde::Serialize;

use super::invalid;
use super::options::HandleOptions;
use super::same::digest;
use crate::http::problem::Problem;
use crate::http::response::Response;
use crate::types::context::Context;
use crate::types::error::{self, Result};
use crate::types::fingerprint::Fingerprint;
use crate::types::key::Key;
use crate::types::options::CallOptions;
use crate::types::record::RecordInfo;

const METHOD: &str = "method";
const PATH: &str = "path";
const PARAMS: &str = "params";

/// Checks the method and the path. Both checks fail if the two arguments are swapped.
fn check(method: &str, path: &str) -> Result<()> {
    if Method::from_bytes(method.as_bytes()).is_err() {
        return Err(invalid(&format!("\"{}\" is not an HTTP method", shown(method))));
    }
    if !path.starts_with('/') {
        return Err(invalid(&format!("\"{}\" is not a path: it does not begin with a slash", shown(path))));
    }
    Ok(())
}

/// Returns the first 64 characters, escaped, for a message. The text may have any length.
fn shown(text: &str) -> String {
    text.chars().take(64).collect::<String>().escape_default().to_string()
}

fn kept(params: &(impl Serialize + ?Sized)) -> Result<Context> {
    Context::new().with_encoded(PARAMS, params)
}

/// The part of a request that is compared in addition to its method and path.
#[derive(Clone)]
enum Content {
    Params {
        fingerprint: Fingerprint,
        /// The parameters for the context. An error is returned only if they are kept.
        kept: Result<Context>,
    },
    /// Read by a rule. The fingerprints include the method and the path already.
    Ruled { fingerprint: Fingerprint, accepted: Vec<Fingerprint>, query: Option<String> },
}

impl Content {
    fn of(params: &(impl Serialize + ?Sized), kept: Result<Context>) -> Result<Self> {
        Ok(Self::Params { fingerprint: Fingerprint::of(params)?, kept })
    }
}

/// A request for [`Requests::create`](crate::http::Requests::create), [`begin`](crate::http::Requests::begin) or
/// [`drive_new`](crate::http::Requests::drive_new). [`Requests::read`](crate::http::Requests::read) creates one from an
/// [`http::Request`].
///
/// ```
/// use oncekey::{Key, http::NewRequest};
///
/// let request = NewRequest::new("POST", "/orders")
///     .key(Key::new("order-17")?)
///     .params(&("cart", 17))?;
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct NewRequest {
    method: String,
    path: String,
    pub(super) key: Option<Key>,
    wait: Option<Duration>,
    content: Option<Content>,
}

impl NewRequest {
    /// Creates a request with this method and path. The call that takes the request checks both. The parameters are
    /// `()` until [`params`](Self::params) sets others.
    pub fn new(method: impl AsRef<str>, path: impl AsRef<str>) -> Self {
        let (method, path) = (method.as_ref().to_owned(), path.as_ref().to_owned());
        Self { method, path, key: None, wait: None, content: None }
    }

    /// Sets the key. Default: a new random key.
    pub fn key(mut self, key: Key) -> Self {
        self.key = Some(key);
        self
    }

    /// Sets the parameters. Only their fingerprint is stored, unless
    /// [`keep_params`](crate::http::Requests::keep_params) is set.
    ///
    /// # Errors
    ///
    /// `Codec` if the parameters cannot be serialized.
    pub fn params(mut self, params: &(impl Serialize + ?Sized)) -> Result<Self> {
        self.content = Some(Content::of(params, kept(params))?);
        Ok(self)
    }

    /// Sets how long [`begin`](crate::http::Requests::begin) and [`drive_new`](crate::http::Requests::drive_new) wait
    /// for another owner. Default: zero for `begin`, 2 s for `drive_new`; [`HandleOptions::wait`] if the request comes
    /// from [`Requests::read`](crate::http::Requests::read).
    pub fn wait(mut self, timeout: Duration) -> Self {
        self.wait = Some(timeout);
        self
    }

    /// Sets the parameters. Encodes them for the context only if they are kept.
    pub(super) fn with_params(self, params: &impl Serialize, keep_params: bool) -> Result<Self> {
        let kept = if keep_params { kept(params) } else { Ok(Context::new()) };
        Ok(Self { content: Some(Content::of(params, kept)?), ..self })
    }

    /// Reads an HTTP request with this key.
    pub(super) fn read<B: AsRef<[u8]>>(
        key: Option<Key>,
        request: &http::Request<B>,
        options: &HandleOptions,
    ) -> Result<Self, Problem> {
        let (method, uri) = (request.method().as_str(), request.uri());
        check(method, uri.path()).map_err(Problem::bad_target)?;
        let fingerprint = options.same.fingerprint(request).map_err(Problem::bad_content)?;
        // If an older rule cannot read the request, no record was stored for it under that rule.
        let accepted =
            options.older.iter().filter_map(|rule| error::handled(|| rule.fingerprint(request).ok())).collect();
        let content = Content::Ruled { fingerprint, accepted, query: uri.query().map(ToOwned::to_owned) };
        Ok(Self { key, wait: Some(options.wait), content: Some(content), ..Self::new(method, uri.path()) })
    }

    /// Returns the key and the options to begin with.
    pub(super) fn described(self, keep_params: bool) -> Result<(Key, CallOptions)> {
        let Self { method, path, key, wait, content } = self;
        check(&method, &path)?;
        let (fingerprint, accepted, context) = match content.map_or_else(|| Content::of(&(), kept(&())), Ok)? {
            Content::Params { fingerprint, kept } => {
                let kept = if keep_params { kept? } else { Context::new() };
                (digest(&method, &path, fingerprint), Vec::new(), kept)
            }
            Content::Ruled { fingerprint, accepted, query } => {
                let query = query.filter(|_| keep_params);
                (fingerprint, accepted, query.map_or_else(|| Ok(Context::new()), |query| kept(&query))?)
            }
        };
        let context = context.with(METHOD, method).with(PATH, path);
        let options = CallOptions { wait, ..CallOptions::new().fingerprint(fingerprint).context(context) };
        Ok((key.unwrap_or_else(Key::generate), accepted.into_iter().fold(options, CallOptions::also_accept)))
    }
}

/// Does not show the parameters.
impl fmt::Debug for NewRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewRequest")
            .field("method", &self.method)
            .field("path", &self.path)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// The answer of [`Requests::create`](crate::http::Requests::create): the request, and whether this call created it.
#[derive(Clone, Debug)]
pub struct Created {
    info: RecordInfo,
    is_new: bool,
}

impl Created {
    pub(super) fn new((info, is_new): (RecordInfo, bool)) -> Self {
        Self { info, is_new }
    }

    /// Returns true if this call created the request, and false if the request existed before.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Returns the whole key, including the scope.
    #[must_use]
    pub fn key(&self) -> &Key {
        self.info.key()
    }

    /// Returns the record.
    #[must_use]
    pub fn info(&self) -> &RecordInfo {
        &self.info
    }

    /// Returns the record, by value.
    #[must_use]
    pub fn into_info(self) -> RecordInfo {
        self.info
    }
}

/// The changes that [`Requests::update`](crate::http::Requests::update) makes to a request.
///
/// ```
/// use http::StatusCode;
/// use oncekey::http::{RequestPatch, Response};
///
/// let further = RequestPatch::new().recovery_point("paid").checkpoint("ch_1");
/// let ended = RequestPatch::new().response(Response::new(StatusCode::CREATED));
/// ```
#[derive(Clone, Default)]
#[must_use]
pub struct RequestPatch {
    pub(super) recovery_point: Option<String>,
    pub(super) checkpoint: Option<Vec<u8>>,
    pub(super) response: Option<Response>,
}

impl RequestPatch {
    /// Creates an empty patch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the recovery point, which says how far the operation has come. The name has 1 to
    /// [`RecordInfo::MAX_RECOVERY_POINT_BYTES`](crate::RecordInfo::MAX_RECOVERY_POINT_BYTES) bytes, and is not
    /// [`FINISHED`](crate::stage::FINISHED).
    pub fn recovery_point(mut self, point: impl Into<String>) -> Self {
        self.recovery_point = Some(point.into());
        self
    }

    /// Sets the checkpoint, the data for the next stage.
    pub fn checkpoint(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.checkpoint = Some(bytes.into());
        self
    }

    /// Sets the response, which ends the request.
    pub fn response(mut self, response: Response) -> Self {
        self.response = Some(response);
        self
    }
}

/// Does not show the checkpoint.
impl fmt::Debug for RequestPatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestPatch")
            .field("recovery_point", &self.recovery_point)
            .field("checkpoint", &self.checkpoint.as_ref().map(Vec::len))
            .field("response", &self.response)
            .finish()
    }
}
