//! An error as it can be stored.

use std::error::Error as StdError;
use std::fmt::{self, Write as _};

use serde::ser::{Serialize, SerializeStruct as _, Serializer};

use crate::types::error;

/// The longest message or cause, in bytes.
const MAX_TEXT_BYTES: usize = 4096;

/// The most causes; a chain of sources may be longer, or not end.
const MAX_CAUSES: usize = 16;

/// An error as it can be stored: its text and that of its causes. It is the `E` of a manager that names none.
///
/// Any [`std::error::Error`] becomes one by `?`, so that a closure may fail with whatever it meets. What is replayed is
/// text only: 4 KiB of the message and of each of the first 16 causes, without types and backtraces. Store an enum of
/// your own where the caller must tell failures apart.
///
/// A failure that is made from an [`Error`](crate::Error) of this crate, or from an error that prints one or has one as its
/// source, is never stored as an outcome: see [`ErrorKind::EngineFailure`](crate::ErrorKind::EngineFailure).
///
/// It cannot implement `std::error::Error` itself, for the reason that `anyhow::Error` does not: the conversion from every
/// error would overlap that from itself. It converts into a boxed error instead. Its `Debug` is its text, as of any error.
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
    /// It was made from an error of this crate.
    #[serde(skip)]
    is_of_engine: bool,
}

impl Failure {
    /// A failure of this text without causes.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(boundary(&message, MAX_TEXT_BYTES));
        Self { message, causes: Vec::new(), is_of_engine: false }
    }

    /// A failure with the text of a boxed error and of its causes.
    ///
    /// For errors that do not implement [`std::error::Error`] themselves but convert into a box: `anyhow::Error`, a
    /// `Box<dyn Error>`, a text.
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

    /// The text, without the causes.
    #[must_use]
    pub fn message(&self) -> &str {
        self.meet();
        &self.message
    }

    /// The causes, the nearest first.
    pub fn causes(&self) -> impl Iterator<Item = &str> {
        self.meet();
        self.causes.iter().map(String::as_str)
    }

    /// An operation that turns it into another failure has met the error that it was made from.
    fn meet(&self) {
        if self.is_of_engine {
            error::meet();
        }
    }
}

/// Failures of the same text are equal.
impl PartialEq for Failure {
    fn eq(&self, other: &Self) -> bool {
        (&self.message, &self.causes) == (&other.message, &other.causes)
    }
}

impl Eq for Failure {}

impl Serialize for Failure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // By this the codec finds out that the failure that it encodes is one, or has one inside.
        self.meet();
        let mut fields = serializer.serialize_struct("Failure", 2)?;
        fields.serialize_field("message", &self.message)?;
        fields.serialize_field("causes", &self.causes)?;
        fields.end()
    }
}

impl<X: StdError> From<X> for Failure {
    fn from(error: X) -> Self {
        let sources = std::iter::successors(error.source(), |&cause| cause.source());
        let met = error::met();
        let (message, causes) = (text(&error), sources.take(MAX_CAUSES).map(text).collect());
        Self { message, causes, is_of_engine: error::met() != met }
    }
}

/// Prints the message and the causes, `message: cause: cause`, but none with which the text before it ends already.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())?;
        let mut before = self.message.as_str();
        for cause in self.causes().filter(|cause| !cause.is_empty()) {
            // Many errors print their source as well as returning it.
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
        Box::new(Told(failure))
    }
}

impl From<Failure> for Box<dyn StdError> {
    fn from(failure: Failure) -> Self {
        Box::new(Told(failure))
    }
}

/// A failure inside a box. It has no source: its text has the causes already.
struct Told(Failure);

impl StdError for Told {}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The text of an error, cut before it takes more memory than is kept of it.
fn text(error: &dyn StdError) -> String {
    let mut cut = Cut(String::new());
    // An `Err` is the cut, or a `Display` that gave up: what it wrote until then is the text.
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

/// The end of the longest prefix of at most `limit` bytes that is whole characters.
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
