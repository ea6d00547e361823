//! What a request is, and what can be changed in one.

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

/// Both checks fail when the two are swapped.
fn check(method: &str, path: &str) -> Result<()> {
    if Method::from_bytes(method.as_bytes()).is_err() {
        return Err(invalid(&format!("\"{}\" is not a method of HTTP", shown(method))));
    }
    if !path.starts_with('/') {
        return Err(invalid(&format!("\"{}\" is not a path, it does not begin with a slash", shown(path))));
    }
    Ok(())
}

/// It may be of any length here.
fn shown(text: &str) -> String {
    text.chars().take(64).collect::<String>().escape_default().to_string()
}

fn kept(params: &(impl Serialize + ?Sized)) -> Result<Context> {
    Context::new().with_encoded(PARAMS, params)
}

/// What a request is, beside its method and its path.
#[derive(Clone)]
enum Content {
    Params {
        fingerprint: Fingerprint,
        /// An error counts only if they are to be kept.
        kept: Result<Context>,
    },
    /// As rules have it: the fingerprints count method and path already.
    Ruled { fingerprint: Fingerprint, accepted: Vec<Fingerprint>, query: Option<String> },
}

impl Content {
    fn of(params: &(impl Serialize + ?Sized), kept: Result<Context>) -> Result<Self> {
        Ok(Self::Params { fingerprint: Fingerprint::of(params)?, kept })
    }
}

/// A request to be made by [`Requests::create`](crate::http::Requests::create), claimed by
/// [`begin`](crate::http::Requests::begin) or driven by [`drive_new`](crate::http::Requests::drive_new). Without parameters it is
/// the one whose parameters are `()`. [`Requests::read`](crate::http::Requests::read) makes it from an [`http::Request`].
///
/// ```
/// use oncekey::{Key, http::NewRequest};
///
/// let request = NewRequest::new("POST", "/orders").key(Key::new("order-17")?).params(&("cart", 17))?;
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
    /// A request of this method and path, which are checked when it is made.
    pub fn new(method: impl AsRef<str>, path: impl AsRef<str>) -> Self {
        let (method, path) = (method.as_ref().to_owned(), path.as_ref().to_owned());
        Self { method, path, key: None, wait: None, content: None }
    }

    /// Under this key. Defaults to one of its own.
    pub fn key(mut self, key: Key) -> Self {
        self.key = Some(key);
        self
    }

    /// With these parameters, of which only the fingerprint is stored unless the requests
    /// [keep them](crate::http::Requests::keep_params).
    ///
    /// # Errors
    ///
    /// `Codec` if they refuse to be serialized.
    pub fn params(mut self, params: &(impl Serialize + ?Sized)) -> Result<Self> {
        self.content = Some(Content::of(params, kept(params))?);
        Ok(self)
    }

    /// Sets how long [`begin`](crate::http::Requests::begin) and [`drive_new`](crate::http::Requests::drive_new) wait for another
    /// owner. Default: zero for `begin` and 2 s for `drive_new`; for a request that was
    /// [read](crate::http::Requests::read), [`HandleOptions::wait`].
    pub fn wait(mut self, timeout: Duration) -> Self {
        self.wait = Some(timeout);
        self
    }

    /// With parameters that are encoded only if they are to be kept.
    pub(super) fn with_params(self, params: &impl Serialize, keep_params: bool) -> Result<Self> {
        let kept = if keep_params { kept(params) } else { Ok(Context::new()) };
        Ok(Self { content: Some(Content::of(params, kept)?), ..self })
    }

    /// Reads an HTTP request that has this key.
    pub(super) fn read<B: AsRef<[u8]>>(
        key: Option<Key>,
        request: &http::Request<B>,
        options: &HandleOptions,
    ) -> Result<Self, Problem> {
        let (method, uri) = (request.method().as_str(), request.uri());
        check(method, uri.path()).map_err(Problem::bad_target)?;
        let fingerprint = options.same.fingerprint(request).map_err(Problem::bad_content)?;
        // An older rule that cannot read it has no record of it.
        let accepted =
            options.older.iter().filter_map(|rule| error::handled(|| rule.fingerprint(request).ok())).collect();
        let content = Content::Ruled { fingerprint, accepted, query: uri.query().map(ToOwned::to_owned) };
        Ok(Self { key, wait: Some(options.wait), content: Some(content), ..Self::new(method, uri.path()) })
    }

    /// Returns its key, and how its generation starts.
    pub(super) fn described(self, keep_params: bool) -> Result<(Key, CallOptions)> {
        let Self { method, path, key, wait, content: beside } = self;
        check(&method, &path)?;
        let (fingerprint, accepted, context) = match beside.map_or_else(|| Content::of(&(), kept(&())), Ok)? {
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

/// Shows no parameters.
impl fmt::Debug for NewRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewRequest")
            .field("method", &self.method)
            .field("path", &self.path)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// A request that [`Requests::create`](crate::http::Requests::create) was asked for, and whether it was there already.
#[derive(Clone, Debug)]
pub struct Created {
    info: RecordInfo,
    is_new: bool,
}

impl Created {
    pub(super) fn new((info, is_new): (RecordInfo, bool)) -> Self {
        Self { info, is_new }
    }

    /// Whether this call made it. Of one that was there, somebody has taken care already.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Its whole key, the scope included.
    #[must_use]
    pub fn key(&self) -> &Key {
        self.info.key()
    }

    /// Its record.
    #[must_use]
    pub fn info(&self) -> &RecordInfo {
        &self.info
    }

    /// Its record.
    #[must_use]
    pub fn into_info(self) -> RecordInfo {
        self.info
    }
}

/// What [`Requests::update`](crate::http::Requests::update) sets.
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
    /// A patch that says nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The stage that has ended last: 1 to [`RecordInfo::MAX_RECOVERY_POINT_BYTES`](crate::RecordInfo::MAX_RECOVERY_POINT_BYTES) bytes, not
    /// [`FINISHED`](crate::FINISHED).
    pub fn recovery_point(mut self, point: impl Into<String>) -> Self {
        self.recovery_point = Some(point.into());
        self
    }

    /// What the next stage needs to know.
    pub fn checkpoint(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.checkpoint = Some(bytes.into());
        self
    }

    /// The answer, which ends the request.
    pub fn response(mut self, response: Response) -> Self {
        self.response = Some(response);
        self
    }
}

/// Shows no checkpoint.
impl fmt::Debug for RequestPatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestPatch")
            .field("recovery_point", &self.recovery_point)
            .field("checkpoint", &self.checkpoint.as_ref().map(Vec::len))
            .field("response", &self.response)
            .finish()
    }
}
