//! Secrets in URLs that people mistyped, taken out of what is said about them.
//!
//! In       text for people, with words of the command line in it.
//! Out      the same without the user and password of any URL, and without the query of one that is
//!          signed.
//! Not here refusing such URLs where one is asked for (`source::url`).
//!
//! A slip puts a URL where none belongs: `carrack https://user:password@host/` is an unknown
//! command, `https:/user…` a path. Whoever reports that repeats it, and must not repeat this.

use std::borrow::Cow;

use crate::source::url::is_secret;

/// What stands in place of a secret.
const REDACTED: &str = "***";

/// `text` without secrets.
#[must_use]
pub fn redacted(text: &str) -> Cow<'_, str> {
    if !text.contains(":/") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(":/") {
        let (before, from_colon) = rest.split_at(at);
        out.push_str(before);
        let end = from_colon.find(ends_word).unwrap_or(from_colon.len());
        let (word, after) = from_colon.split_at(end);
        without_secrets(word, &mut out);
        rest = after;
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// What no URL that somebody typed goes on behind. An apostrophe can be in a password.
fn ends_word(symbol: char) -> bool {
    symbol.is_whitespace() || symbol == '"'
}

/// A URL from the colon behind its scheme on.
fn without_secrets(word: &str, out: &mut String) {
    let start = word.len() - word.trim_start_matches([':', '/']).len();
    let (slashes, rest) = word.split_at(start);
    out.push_str(slashes);
    let authority = rest.split('/').next().unwrap_or(rest);
    // Behind a host comes nothing or a port; what else is there is a password, with a slash in it
    // perhaps.
    let is_host = match authority.split_once(':') {
        None => true,
        Some(_) if authority.starts_with('[') => true,
        Some((_, "")) => authority.len() == rest.len(),
        Some((_, port)) => port.chars().all(|c| c.is_ascii_digit()),
    };
    let user_end = match authority.rfind('@') {
        None if !is_host => rest.rfind('@'),
        found => found,
    };
    let mut shown = rest;
    if let Some(at) = user_end {
        out.push_str(REDACTED);
        shown = rest.get(at..).unwrap_or_default();
    }
    match shown.split_once('?') {
        Some((path, query)) if is_secret(query) => {
            out.push_str(path);
            out.push('?');
            out.push_str(REDACTED);
        }
        _ => out.push_str(shown),
    }
}

#[cfg(test)]
mod tests {
    use super::redacted;

    #[test]
    fn users_passwords_and_signatures_are_taken_out() {
        for (text, told) in [
            ("no 'https://u:pw@h/x' here", "no 'https://***@h/x' here"),
            ("s3://id:pw@bucket/key", "s3://***@bucket/key"),
            ("https:/u:pw@h/x: not found", "https:/***@h/x: not found"),
            ("/at/https:/u:p/w@h/x", "/at/https:/***@h/x"),
            ("https://u:p'w@h/", "https://***@h/"),
            ("https://u:p@w@h/", "https://***@h/"),
            ("https://u:/pw@h", "https://***@h"),
            ("https://token@h", "https://***@h"),
            (
                "http://u:1@h and http://v:2@h",
                "http://***@h and http://***@h",
            ),
            ("https://h/x?sig=pw&a=b more", "https://h/x?*** more"),
            ("\"https://h/x?X-Amz-Signature=pw\"", "\"https://h/x?***\""),
            ("ü https://ü:pw@h/€", "ü https://***@h/€"),
        ] {
            assert_eq!(redacted(text), told);
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "",
            "a@b: c",
            "listening on http://127.0.0.1:8080",
            "https://[::1]:8080/a@b",
            "s3://bucket/a@b:c",
            "https://h:81/a@b?page=2",
            "x:/",
            "://",
            "https://host",
            "https://host: not found",
        ] {
            assert_eq!(redacted(text), text);
        }
    }
}
