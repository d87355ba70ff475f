//! Whether a server answers ranges, found out where an answer leaves it open.
//!
//! In       a whole answer to a range, and a way to ask for one byte.
//! Out      yes or no, remembered for each server.
//! Limits   one question a server and [`NO_TIME`]; [`SERVERS_MAX`] servers are remembered.
//!
//! A server may answer a range that is all of a file by the file. One that answers each range so
//! can be read from the beginning only: its large files cannot be served in place.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use http::header::{ACCEPT_ENCODING, RANGE};
use http::{HeaderMap, HeaderValue};
use reqwest::Response;
use tokio::sync::OnceCell;

use crate::source::SourceError;

/// A server that has none may get them.
const NO_TIME: Duration = Duration::from_secs(60);
const SERVERS_MAX: usize = 64;

/// What is known of a source's servers.
#[derive(Debug, Default)]
pub(in crate::source) struct Ranges {
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Debug, Clone)]
struct Known {
    /// Whoever comes while it is being found out waits for it.
    answered: Arc<OnceCell<bool>>,
    since: Instant,
}

impl Ranges {
    /// Whether `server` answers ranges. `probe` asks for the second byte of a file alone.
    ///
    /// # Errors
    /// Those of the probe that pass. Cancel-safe.
    pub(in crate::source) async fn are_answered(
        &self,
        server: &str,
        probe: impl Future<Output = Result<Response, SourceError>> + Send,
    ) -> Result<bool, SourceError> {
        let answered = self.of(server);
        let finding = answered.get_or_try_init(|| async {
            match probe.await {
                Ok(response) => Ok(response.status() == StatusCode::PARTIAL_CONTENT),
                Err(error) if error.is_passing() => Err(error),
                Err(_) => Ok(false),
            }
        });
        finding.await.copied()
    }

    /// Whether some server was found to have none.
    pub(in crate::source) fn are_missing(&self) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .values()
            .any(|known| known.answered.get() == Some(&false))
    }

    fn of(&self, server: &str) -> Arc<OnceCell<bool>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(server)
            && (found.answered.get() != Some(&false) || found.since.elapsed() < NO_TIME)
        {
            return Arc::clone(&found.answered);
        }
        if known.len() >= SERVERS_MAX {
            known.clear();
        }
        let new = Known {
            answered: Arc::default(),
            since: Instant::now(),
        };
        let answered = Arc::clone(&new.answered);
        known.insert(server.to_owned(), new);
        answered
    }
}

/// What a probe asks for.
pub(in crate::source) fn second_byte() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(RANGE, HeaderValue::from_static("bytes=1-1"));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers
}
