//! A failure of an operation in a form that can be stored.

use std::error::Error as StdError;
use std::fmt::{self, Write as _};

use serde::ser::{Serialize, SerializeStruct as _, Serializer};

use crate::types::error;

/// The largest length of a message or cause, in bytes.
const MAX_TEXT_BYTES: usize = 4096;

/// The largest number of causes that are kept. A chain of sources may be longer, or endless.
const MAX_CAUSES: usize = 16;

/// An error that can be stored: its message and the messages of its causes. The default failure type of a manager.
///
/// The `?` operator converts any [`std::error::Error`] into a `Failure`, so a closure may return errors of any type.
/// Only text is stored: up to 4 KiB of the message and of each of the first 16 causes, without types and backtraces. If
/// callers must distinguish failures, use an enum of your own instead.
///
/// A failure that comes from an [`Error`](crate::Error) of this crate is never stored as an outcome, nor inside one.
/// This includes errors that print such an error or have one as their source. See
/// [`ErrorKind::EngineFailure`](crate::ErrorKind::EngineFailure).
///
/// `Failure` does not implement `std::error::Error`. As with `anyhow::Error`, the conversion from every error would
/// then overlap the conversion from itself. Instead it can be converted into a boxed error. `Debug` prints the same
/// text as `Display`.
///
/// ```
/// use oncekey::Failure;
///
/// fn parse(text: &str) -> Result<u32, Failure> {
///     Ok(text.parse()?)
/// }
/// assert_eq!(parse("x").unwrap_err().message(), "invalid digit found in string");
/// assert_eq!(Failure::new("card declined").to_string(), "card declined");
/// ```
#[derive(Clone, serde::Deserialize)]
pub struct Failure {
    message: String,
    causes: Vec<String>,
    /// True if it was made from an error of this crate.
    #[serde(skip)]
    is_of_engine: bool,
}

impl Failure {
    /// Creates a failure with this message and no causes. A message over 4 KiB is cut.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(boundary(&message, MAX_TEXT_BYTES));
        Self { message, causes: Vec::new(), is_of_engine: false }
    }

    /// Creates a failure from a boxed error and its causes.
    ///
    /// Use it for errors that do not implement [`std::error::Error`] but convert into a box: text, `anyhow::Error`,
    /// `Box<dyn Error>`.
    ///
    /// ```
    /// use oncekey::Failure;
    ///
    /// type Boxed = Box<dyn std::error::Error + Send + Sync>;
    /// fn parse(text: &str) -> Result<u32, Boxed> {
    ///     Ok(text.parse()?)
    /// }
    /// let failure = parse("x").map_err(Failure::from_boxed).unwrap_err();
    /// assert_eq!(failure.message(), "invalid digit found in string");
    /// ```
    #[must_use]
    pub fn from_boxed(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let error: Box<dyn StdError + Send + Sync> = error.into();
        Self::from(&*error)
    }

    /// Returns the message, without the causes.
    #[must_use]
    pub fn message(&self) -> &str {
        self.count_use();
        &self.message
    }

    /// Returns the causes, nearest first.
    pub fn causes(&self) -> impl Iterator<Item = &str> {
        self.count_use();
        self.causes.iter().map(String::as_str)
    }

    /// Counts the engine's error from which this failure was made. The operation may turn this failure into another
    /// one.
    fn count_use(&self) {
        if self.is_of_engine {
            error::count_use();
        }
    }
}

/// Failures with the same text are equal.
impl PartialEq for Failure {
    fn eq(&self, other: &Self) -> bool {
        (&self.message, &self.causes) == (&other.message, &other.causes)
    }
}

impl Eq for Failure {}

impl Serialize for Failure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Count here: the codec then learns that the value it encodes is such a failure, or contains one.
        self.count_use();
        let mut fields = serializer.serialize_struct("Failure", 2)?;
        fields.serialize_field("message", &self.message)?;
        fields.serialize_field("causes", &self.causes)?;
        fields.end()
    }
}

impl<X: StdError> From<X> for Failure {
    fn from(error: X) -> Self {
        let sources = std::iter::successors(error.source(), |&cause| cause.source());
        let uses = error::uses();
        let (message, causes) = (text(&error), sources.take(MAX_CAUSES).map(text).collect());
        Self { message, causes, is_of_engine: error::uses() != uses }
    }
}

/// Prints `message: cause: cause`. Skips a cause if the text before it already ends with it.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())?;
        let mut before = self.message.as_str();
        for cause in self.causes().filter(|cause| !cause.is_empty()) {
            // Many errors both print their source and return it.
            if !before.ends_with(cause) {
                write!(f, ": {cause}")?;
                before = cause;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Failure> for Box<dyn StdError + Send + Sync> {
    fn from(failure: Failure) -> Self {
        Box::new(Boxed(failure))
    }
}

impl From<Failure> for Box<dyn StdError> {
    fn from(failure: Failure) -> Self {
        Box::new(Boxed(failure))
    }
}

/// A failure inside a box, without a source, because its text already contains the causes.
struct Boxed(Failure);

impl StdError for Boxed {}

impl fmt::Display for Boxed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Boxed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Returns the text of an error. Stops at the limit, so that a long text does not take more memory than is kept.
fn text(error: &dyn StdError) -> String {
    let mut cut = Cut(String::new());
    // An error here is the limit, or a `Display` that failed. In both cases keep the text so far.
    let _ = write!(cut, "{error}");
    cut.0
}

struct Cut(String);

impl fmt::Write for Cut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = boundary(text, MAX_TEXT_BYTES.saturating_sub(self.0.len()));
        self.0.push_str(text.get(..end).unwrap_or_default());
        if end == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

/// Returns the length of the longest prefix that has at most `limit` bytes and ends at a character boundary.
fn boundary(text: &str, limit: usize) -> usize {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Layer(String, Option<Box<Layer>>);

    impl fmt::Display for Layer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(&self.0)
        }
    }

    impl StdError for Layer {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            self.1.as_deref().map(|layer| layer as _)
        }
    }

    fn layers<'a>(texts: impl DoubleEndedIterator<Item = &'a str>) -> Layer {
        let inner = texts.rev().fold(None, |inner, text| Some(Box::new(Layer(text.to_owned(), inner))));
        *inner.unwrap()
    }

    fn shown(texts: &[&str]) -> String {
        Failure::from(layers(texts.iter().copied())).to_string()
    }

    #[test]
    fn causes_are_kept_in_order() {
        let failure = Failure::from(layers(["charge", "connect", "refused"].into_iter()));
        assert_eq!(failure.message(), "charge");
        assert_eq!(failure.causes().collect::<Vec<_>>(), ["connect", "refused"]);
        assert_eq!(failure.to_string(), "charge: connect: refused");
    }

    #[test]
    fn display_does_not_repeat_a_cause() {
        assert_eq!(shown(&["charge: refused", "refused"]), "charge: refused");
        assert_eq!(shown(&["a: b: c", "b: c", "c"]), "a: b: c");
        assert_eq!(shown(&["refused", "refused", "refused"]), "refused");
        assert_eq!(shown(&["a", "", "b: c", "c"]), "a: b: c");
    }

    #[test]
    fn texts_and_causes_are_bounded() {
        let long = format!("a{}", "\u{e9}".repeat(3000));
        let failure = Failure::from(layers(std::iter::repeat_n(long.as_str(), 40)));
        assert_eq!(failure.causes().count(), MAX_CAUSES);
        for text in failure.causes().chain([failure.message(), Failure::new(long.clone()).message()]) {
            assert_eq!(text.len(), MAX_TEXT_BYTES - 1);
            assert!(long.starts_with(text));
        }
    }

    #[test]
    fn becomes_a_boxed_error_and_is_stored() {
        let failure = Failure::from(layers(["charge", "refused"].into_iter()));
        let sent: Box<dyn StdError + Send + Sync> = failure.clone().into();
        let boxed: Box<dyn StdError> = failure.clone().into();
        assert_eq!((sent.to_string(), format!("{boxed:?}")), ("charge: refused".into(), "charge: refused".into()));
        let bytes = bincode::serialize(&failure).unwrap();
        assert_eq!(bincode::deserialize::<Failure>(&bytes).unwrap(), failure);
    }
}
