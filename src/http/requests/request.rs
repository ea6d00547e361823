//! What a request is, and what can be changed in one.

use std::fmt;

use http::Method;
use serde::Serialize;

use super::invalid;
use super::options::HandleOptions;
use crate::http::problem::Problem;
use crate::http::response::Response;
use crate::types::context::Context;
use crate::types::error::Result;
use crate::types::fingerprint::Fingerprint;
use crate::types::key::Key;
use crate::types::options::BeginOptions;
use crate::types::record::RecordInfo;

const METHOD: &str = "method";
const PATH: &str = "path";
const PARAMS: &str = "params";

/// A request as its record has it.
pub(super) struct Described {
    pub(super) fingerprint: Fingerprint,
    /// What older rules make of it.
    pub(super) accepted: Vec<Fingerprint>,
    pub(super) context: Context,
}

/// How a generation of this request starts.
impl From<Described> for BeginOptions {
    fn from(request: Described) -> Self {
        let begin = Self::new().fingerprint(request.fingerprint).context(request.context);
        request.accepted.into_iter().fold(begin, Self::also_accept)
    }
}

impl Described {
    pub(super) fn with_params(
        method: &str,
        path: &str,
        params: &(impl Serialize + ?Sized),
        keep_params: bool,
    ) -> Result<Self> {
        let context = if keep_params { kept(params)? } else { Context::new() };
        Self::new(method, path, Fingerprint::of(params)?, context)
    }

    fn new(method: &str, path: &str, params: Fingerprint, context: Context) -> Result<Self> {
        check(method, path)?;
        let fingerprint = digest(method, path, params);
        Ok(Self { fingerprint, accepted: Vec::new(), context: context.with(METHOD, method).with(PATH, path) })
    }

    /// The body is never kept, and the query as the text that it is.
    pub(super) fn of<B: AsRef<[u8]>>(
        request: &http::Request<B>,
        options: &HandleOptions,
        keep_params: bool,
    ) -> Result<Self, Problem> {
        let (method, uri) = (request.method().as_str(), request.uri());
        check(method, uri.path()).map_err(Problem::bad_target)?;
        let fingerprint = options.same.fingerprint(request).map_err(Problem::bad_content)?;
        // An older rule that cannot read it has no record of it.
        let accepted = options.older.iter().filter_map(|rule| rule.fingerprint(request).ok()).collect();
        let context = Context::new().with(METHOD, method).with(PATH, uri.path());
        let context = match uri.query().filter(|_| keep_params) {
            Some(query) => context.with_encoded(PARAMS, query)?,
            None => context,
        };
        Ok(Self { fingerprint, accepted, context })
    }
}

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

pub(super) fn digest(method: &str, path: &str, params: Fingerprint) -> Fingerprint {
    Fingerprint::builder().part(method).part(path).part(params.as_bytes()).finish()
}

fn kept(params: &(impl Serialize + ?Sized)) -> Result<Context> {
    Context::new().with_encoded(PARAMS, params)
}

#[derive(Clone)]
struct Params {
    fingerprint: Fingerprint,
    /// An error counts only if they are to be kept.
    kept: Result<Context>,
}

impl Params {
    fn of(params: &(impl Serialize + ?Sized)) -> Result<Self> {
        Ok(Self { fingerprint: Fingerprint::of(params)?, kept: kept(params) })
    }
}

/// A request to be made by [`Requests::create`](crate::http::Requests::create). Without parameters it is the one whose parameters
/// are `()`.
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
    key: Option<Key>,
    params: Option<Params>,
}

impl NewRequest {
    /// A request of this method and path, which are checked when it is made.
    pub fn new(method: impl AsRef<str>, path: impl AsRef<str>) -> Self {
        Self { method: method.as_ref().to_owned(), path: path.as_ref().to_owned(), key: None, params: None }
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
        self.params = Some(Params::of(params)?);
        Ok(self)
    }

    pub(super) fn described(self, keep_params: bool) -> Result<(Key, Described)> {
        let params = self.params.map_or_else(|| Params::of(&()), Ok)?;
        let context = if keep_params { params.kept? } else { Context::new() };
        let described = Described::new(&self.method, &self.path, params.fingerprint, context)?;
        Ok((self.key.unwrap_or_else(Key::generate), described))
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
