//! Checks the parameters of an item of a structured field: RFC 9651, sections 3.1.2 and 4.2.3.2.

/// The reason why parameters are malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    Name,
    Value,
    /// Other text follows the item.
    Trailing,
}

/// Checks the text after an item. The text is empty or consists of parameters, each `;name` or `;name=value`.
pub(super) fn check(mut rest: &[u8]) -> Result<(), Malformed> {
    while let [b';', parameter @ ..] = rest {
        // RFC 9651 allows spaces before the name, but no tabs.
        let (_, parameter) = split_while(parameter, |byte| byte == b' ');
        if !matches!(parameter, [b'a'..=b'z' | b'*', ..]) {
            return Err(Malformed::Name);
        }
        let is_name = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.' | b'*');
        (_, rest) = split_while(parameter, is_name);
        if let [b'=', value @ ..] = rest {
            rest = after_bare_item(value).ok_or(Malformed::Value)?;
        }
    }
    if rest.is_empty() { Ok(()) } else { Err(Malformed::Trailing) }
}

/// Splits after the longest prefix of bytes that match.
fn split_while(bytes: &[u8], matches: impl Fn(u8) -> bool) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| !matches(*byte)).unwrap_or(bytes.len());
    bytes.split_at_checked(end).unwrap_or((bytes, &[]))
}

/// Returns the text after the bare item at the front, or `None` if there is no such item.
fn after_bare_item(bytes: &[u8]) -> Option<&[u8]> {
    match bytes {
        [b'"', string @ ..] => after_string(string),
        [b'-' | b'0'..=b'9', ..] => after_number(bytes).map(|(rest, _)| rest),
        [b'A'..=b'Z' | b'a'..=b'z' | b'*', ..] => Some(split_while(bytes, is_token).1),
        [b':', binary @ ..] => after_binary(binary),
        [b'?', b'0' | b'1', rest @ ..] => Some(rest),
        [b'@', date @ ..] => after_number(date).and_then(|(rest, is_integer)| is_integer.then_some(rest)),
        [b'%', b'"', text @ ..] => after_display_string(text),
        _ => None,
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte)
}

/// Returns the text after a string. `string` begins after the opening quote.
fn after_string(mut string: &[u8]) -> Option<&[u8]> {
    loop {
        string = match string {
            [b'"', rest @ ..] => return Some(rest),
            [b'\\', b'"' | b'\\', rest @ ..] | [b' '..=b'[' | b']'..=b'~', rest @ ..] => rest,
            _ => return None,
        };
    }
}

/// Returns the text after a number, and whether the number is an integer. An integer has at most 15 digits. A decimal
/// has at most 12 digits before the point, and 1 to 3 after it.
fn after_number(bytes: &[u8]) -> Option<(&[u8], bool)> {
    let digits = bytes.strip_prefix(b"-").unwrap_or(bytes);
    let (integer, rest) = split_while(digits, |byte| byte.is_ascii_digit());
    let [b'.', fraction @ ..] = rest else {
        return matches!(integer.len(), 1..=15).then_some((rest, true));
    };
    let (fraction, rest) = split_while(fraction, |byte| byte.is_ascii_digit());
    (matches!(integer.len(), 1..=12) && matches!(fraction.len(), 1..=3)).then_some((rest, false))
}

/// Returns the text after a byte sequence in base64, whose padding may be missing. `bytes` begins after the opening
/// colon.
fn after_binary(bytes: &[u8]) -> Option<&[u8]> {
    let (data, rest) = split_while(bytes, |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'));
    let (padding, rest) = split_while(rest, |byte| byte == b'=');
    let is_whole = match (data.len() % 4, padding.len()) {
        (1, _) => false,
        (_, 0) => true,
        (over, padding) => over + padding == 4,
    };
    rest.strip_prefix(b":").filter(|_| is_whole)
}

/// Returns the text after a display string: percent-encoded UTF-8 in lower-case hexadecimal. `text` begins after the
/// opening quote.
fn after_display_string(mut text: &[u8]) -> Option<&[u8]> {
    let mut decoded = Vec::new();
    loop {
        text = match text {
            [b'"', rest @ ..] => return std::str::from_utf8(&decoded).is_ok().then_some(rest),
            [b'%', high, low, rest @ ..] => {
                decoded.push(nibble(*high)? << 4 | nibble(*low)?);
                rest
            }
            [byte @ (b' '..=b'$' | b'&'..=b'~'), rest @ ..] => {
                decoded.push(*byte);
                rest
            }
            _ => return None,
        };
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_only_the_characters_of_the_grammar() {
        for byte in 0..=u8::MAX {
            let first = byte.is_ascii_lowercase() || byte == b'*';
            assert_eq!(check(&[b';', byte, b'=', b'1']).is_ok(), first, "{byte}");
            let later = first || byte.is_ascii_digit() || matches!(byte, b'_' | b'-' | b'.');
            assert_eq!(check(&[b';', b'a', byte, b'=', b'1']).is_ok(), later, "{byte}");
        }
    }

    #[test]
    fn only_spaces_stand_before_a_name() {
        assert_eq!(check(b";  p"), Ok(()));
        assert_eq!(check(b";\tp"), Err(Malformed::Name));
        assert_eq!(check(b" ;p"), Err(Malformed::Trailing));
        assert_eq!(check(b";p ;q"), Err(Malformed::Trailing));
        assert_eq!(check(b";p =1"), Err(Malformed::Trailing));
    }

    #[test]
    fn numbers_have_the_digits_that_the_grammar_allows() {
        for value in ["0", "-0", "00", "999999999999999", "-999999999999999", "999999999999.999", "@0", "@-1"] {
            assert_eq!(check(format!(";p={value}").as_bytes()), Ok(()), "{value}");
        }
        for value in ["-", "--1", "1000000000000000", "1000000000000.1", "1.", ".1", "1.1234", "@1.5", "@", "@x"] {
            assert_eq!(check(format!(";p={value}").as_bytes()), Err(Malformed::Value), "{value}");
        }
    }
}
