//! An answer that is not the data: a status and one sentence.
//!
//! In       a status and a sentence, or the product's error.
//! Out      [`Refusal`]: what a client is told; never a file name, never a cause.
//! Not here which header goes with it (`headers`).

use std::borrow::Cow;

use http::StatusCode;

use super::body::Full;
use crate::error::{Error, ErrorKind};

/// A status and one sentence for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The status.
    pub status: StatusCode,
    /// The sentence, without its full stop.
    pub sentence: Cow<'static, str>,
    /// A later request may succeed: say when.
    pub retry: bool,
}

impl Refusal {
    /// A refusal that repeating will not change.
    pub fn new(status: StatusCode, sentence: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            sentence: sentence.into(),
            retry: false,
        }
    }

    /// What a client is told about `error`. The error's own words name files and disks and stay
    /// in the log; those about a missing path are about the request and are passed on.
    #[must_use]
    pub fn from_error(error: &Error) -> Self {
        let kind = error.kind();
        let sentence = match kind {
            // Limits and codecs that are not known are about the DAG, and name nothing else.
            ErrorKind::NotFound
            | ErrorKind::Invalid
            | ErrorKind::Limit
            | ErrorKind::TooLarge
            | ErrorKind::Partial => Cow::Owned(printable(&error.chain())),
            ErrorKind::Changed => Cow::Borrowed("the source of this content has changed"),
            ErrorKind::Unavailable | ErrorKind::Unreachable | ErrorKind::Busy => {
                Cow::Borrowed("the source of this content cannot be read now")
            }
            _ => Cow::Borrowed("this node failed to read its own data"),
        };
        let status = StatusCode::from_u16(kind.codes().0);
        Self {
            status: status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            sentence,
            retry: matches!(
                kind,
                ErrorKind::Unavailable
                    | ErrorKind::Unreachable
                    | ErrorKind::Busy
                    | ErrorKind::Limit
            ),
        }
    }

    /// The same for a raw block. Deployed block clients drop a whole host on 409 and 503, so a
    /// block whose source changed, or is down while others may not be, is one that is not here.
    #[must_use]
    pub fn from_block_error(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::Changed => Self::new(
                StatusCode::NOT_FOUND,
                "the block is not here: its source has changed",
            ),
            ErrorKind::Unreachable => Self::new(
                StatusCode::NOT_FOUND,
                "the block is not here now: its source does not answer",
            ),
            _ => Self::from_error(error),
        }
    }

    /// There is something, and not what the client has a part of.
    #[must_use]
    pub const fn unmatched() -> Self {
        Self {
            status: StatusCode::PRECONDITION_FAILED,
            sentence: Cow::Borrowed("the entity tag of this content is none that If-Match names"),
            retry: false,
        }
    }

    /// As many requests are being answered as may be.
    #[must_use]
    pub const fn too_many(full: Full) -> Self {
        let sentence = match full {
            Full::Node => "this node answers as many requests as it can",
            Full::Client => "your address has as many requests under way here as it may",
        };
        Self {
            status: StatusCode::TOO_MANY_REQUESTS,
            sentence: Cow::Borrowed(sentence),
            retry: true,
        }
    }

    /// The answer has not begun in the time that it may take.
    #[must_use]
    pub const fn late() -> Self {
        Self {
            status: StatusCode::GATEWAY_TIMEOUT,
            sentence: Cow::Borrowed("the source of this content does not answer in time"),
            retry: true,
        }
    }

    /// All of the budget of bytes is taken by other answers.
    #[must_use]
    pub fn no_room() -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            sentence: Cow::Borrowed("this node is busy with other answers"),
            retry: true,
        }
    }
}

/// Characters of a sentence that are passed on.
const SENTENCE_CHARS_MAX: usize = 600;

/// `text` without control characters and not too long: path segments come from the client.
fn printable(text: &str) -> String {
    text.chars()
        .take(SENTENCE_CHARS_MAX)
        .flat_map(|character| {
            let escape = character.is_control();
            let escaped = escape.then(|| character.escape_default());
            let plain = (!escape).then_some(character);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use carrack_formats::Cid;
    use carrack_formats::walk::WalkError;

    use super::*;
    use crate::store::car_stream::walk_error;

    /// Whoever is told to wait asks again, for ever.
    #[test]
    fn what_waiting_does_not_help_is_no_429() {
        let cid = Box::new(Cid::default());
        let limits = [
            WalkError::TooDeep { cid, limit: 1024 },
            WalkError::StackTooLarge { limit: 7 },
            WalkError::TooManyBlocks { limit: 7 },
        ];
        for error in limits {
            let said = error.to_string();
            let error = walk_error(error);
            let refusal = Refusal::from_error(&error);
            assert_eq!((refusal.status.as_u16(), refusal.retry), (501, false));
            assert!(refusal.sentence.contains(&said), "{}", refusal.sentence);
            assert_eq!(error.kind().codes().1, 5);
        }
        let busy = Refusal::from_error(&Error::new(ErrorKind::Limit, "memory"));
        assert_eq!((busy.status.as_u16(), busy.retry), (429, true));
    }
}
