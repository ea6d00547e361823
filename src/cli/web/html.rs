//! HTML in which only literals of this program are markup.

use std::fmt::{self, Display, Write as _};

/// A piece of HTML. Only literals of this program enter it as markup. All else enters it as text, so a key, an outcome
/// or a message is never markup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Html(String);

impl Html {
    /// Appends markup. Only a literal, or a constant, lives long enough.
    pub(super) fn markup(&mut self, markup: &'static str) {
        self.0.push_str(markup);
    }

    /// Appends text, in an element or in a quoted attribute.
    pub(super) fn text(&mut self, text: impl Display) {
        // Ignore the result: writing to a string cannot fail.
        let _ = write!(Escaped(&mut self.0), "{text}");
    }

    pub(super) fn append(&mut self, html: &Html) {
        self.0.push_str(&html.0);
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0.into_bytes()
    }
}

/// Appends to a piece of HTML: literals as markup, values in parentheses as text.
macro_rules! html {
    ($html:expr; $($markup:literal $(($text:expr))*)+) => {
        $( $html.markup($markup); $( $html.text($text); )* )+
    };
}
pub(super) use html;

struct Escaped<'a>(&'a mut String);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                _ => self.0.push(c),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_never_markup() {
        let mut html = Html::default();
        html! { html; "<b title=\"" ("a\"b'c") "\">" ("<script>&amp;") "</b>" }
        let shown = String::from_utf8(html.into_bytes()).unwrap();
        assert_eq!(shown, "<b title=\"a&quot;b&#39;c\">&lt;script&gt;&amp;amp;</b>");
    }
}
