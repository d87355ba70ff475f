//! Raw blocks: one block, whole or a range of it.
//!
//! In       a parsed request for a raw or JSON block.
//! Out      200, 206, 304, 404, 412, 416. `HEAD` reads no block.
//! Limits   a block at hand is answered without leaving the reactor; any other waits for room in
//!          the budget before it is read.
//! Not here which bytes are right: the store gives verified ones.

use std::sync::Arc;

use bytes::Bytes;
use carrack_formats::cid;
use carrack_formats::walk::Resolved;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderValue};

use super::backend::Backend;
use super::conditions::{self, Verdict};
use super::headers::{self, Target};
use super::pool::{self, Reserved};
use super::request::{Format, RangeSpec};
use super::service::Job;
use crate::http::refusal::Refusal;
use crate::http::service::{Answer, Service as _};

/// The part of a block that a `Range` header selects.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Selected {
    Whole,
    /// First and last byte.
    Part(u64, u64),
    Unsatisfiable,
}

/// The answer, if it takes no disk access: absent blocks, identity CIDs, blocks in memory. `None`:
/// use [`answer`].
pub(crate) fn try_answer<B: Backend>(job: &Job<B>) -> Option<Result<Answer, Refusal>> {
    let request = &job.request;
    let root = request.root;
    let wants_block = !request.head && !request.is_conditional() && request.format == Format::Raw;
    if !request.segments.is_empty() || !wants_block {
        return job.require_root().err().map(Err);
    }
    let target = Target {
        terminus: &root,
        roots: &[root],
    };
    match job.gateway.backend().try_get(&root) {
        Ok(Some(bytes)) => {
            let reserved = job.try_reserve(bytes.len())?;
            Some(Ok(block(job, target, bytes, reserved)))
        }
        Ok(None) => None,
        Err(error) => Some(Err(job.absent_or(Refusal::from_block_error(&error)))),
    }
}

/// What a visit to the disk found at the end of the path.
enum Visit {
    /// The block is not here, or its source has changed.
    Absent,
    /// It is not a JSON block, and one was asked for.
    NotJson,
    /// It can be served; its bytes were not wanted yet, lie elsewhere, or there was no room.
    Known { len: usize, source: Option<u32> },
    /// Its bytes.
    Block { bytes: Bytes, reserved: Reserved },
}

/// The answer to any request for a block whose root the index knows.
pub(crate) async fn answer<B: Backend>(job: &Job<B>) -> Result<Answer, Refusal> {
    let request = &job.request;
    let wants_block = !request.head && !request.is_conditional();
    let (resolved, visit) = visit(job, wants_block).await?;
    let target = Target {
        terminus: &resolved.terminus,
        roots: &resolved.roots,
    };
    let (len, source) = match visit {
        Visit::Block { bytes, reserved } => return Ok(block(job, target, bytes, reserved)),
        Visit::Known { len, source } => (len, source),
        Visit::Absent => return Err(job.absent(target.terminus)),
        Visit::NotJson => {
            return Err(Refusal::new(
                StatusCode::NOT_ACCEPTABLE,
                "format=json is for blocks that are JSON already: raw and json codecs",
            ));
        }
    };
    let etag = headers::etag(request, target.terminus);
    match conditions::judge(request, &etag) {
        Verdict::Holds => {}
        Verdict::Known => return Ok(super::service::not_modified(etag)),
        Verdict::Fails => return Err(Refusal::unmatched()),
    }
    if request.head {
        let mut fields = headers::success(request, &job.uri, target, etag);
        fields.insert(CONTENT_LENGTH, HeaderValue::from(len));
        return Ok(Answer::new(StatusCode::OK, fields, Bytes::new()));
    }
    let _place = job
        .enter(source)
        .map_err(|error| Refusal::from_error(&error))?;
    let awaited = job.reserve(source, len).await?;
    let (backend, cid) = (job.gateway.backend().clone(), resolved.terminus);
    let bytes = backend
        .get(&cid)
        .await
        .map_err(|error| job.absent_or(Refusal::from_block_error(&error)))?;
    Ok(block(job, target, bytes, awaited.came()))
}

/// One visit to the blocking pool for all that most requests need.
async fn visit<B: Backend>(job: &Job<B>, wants_block: bool) -> Result<(Resolved, Visit), Refusal> {
    let (backend, pool) = (job.gateway.backend().clone(), job.gateway.pool().clone());
    let watch = Arc::clone(&job.watch);
    let wants_json = job.request.format == Format::Json;
    let resolved = job.resolve().await;
    let resolved = resolved.map_err(|error| job.absent_or(Refusal::from_block_error(&error)))?;
    let visited = pool::run(move || {
        let terminus = resolved.terminus;
        if wants_json && !matches!(terminus.codec(), cid::RAW | cid::JSON) {
            return Ok((resolved, Visit::NotJson));
        }
        let Some(len) = backend.stat(&terminus)? else {
            return Ok((resolved, Visit::Absent));
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let reserve = || pool.try_reserve(len, watch.account());
        let here = match wants_block.then(reserve).flatten() {
            Some(reserved) => backend
                .get_here_blocking(&terminus)?
                .map(|bytes| Visit::Block { bytes, reserved }),
            None => None,
        };
        let visit = here.unwrap_or_else(|| Visit::Known {
            len,
            source: backend.source_of(&terminus),
        });
        Ok((resolved, visit))
    });
    let (resolved, visit) = visited
        .await
        .map_err(|error| job.absent_or(Refusal::from_block_error(&error)))?;
    if resolved.remainder {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "the path ends inside a document, which is no block of its own: ask for the CAR",
        ));
    }
    Ok((resolved, visit))
}

/// 200, 206 or 416 for a block whose bytes are here.
fn block<B: Backend>(job: &Job<B>, target: Target<'_>, bytes: Bytes, reserved: Reserved) -> Answer {
    let request = &job.request;
    let etag = headers::etag(request, target.terminus);
    let len = bytes.len() as u64;
    let in_range = request.if_range.as_ref().is_none_or(|asked| *asked == etag);
    let selected = if in_range {
        select(&request.ranges, len)
    } else {
        Selected::Whole
    };
    let mut fields = headers::success(request, &job.uri, target, etag);
    if selected == Selected::Whole {
        return job.with_bytes(StatusCode::OK, fields, bytes, reserved);
    }
    let Some((part, content_range)) = part(&bytes, &selected) else {
        return out_of_range(job, len);
    };
    fields.insert(CONTENT_RANGE, content_range);
    job.with_bytes(StatusCode::PARTIAL_CONTENT, fields, part, reserved)
}

fn out_of_range<B: Backend>(job: &Job<B>, len: u64) -> Answer {
    let sentence = format!("the range is outside of the block, which has {len} bytes");
    let refusal = Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, sentence);
    let mut answer = job.gateway.refuse(&refusal);
    if let Ok(value) = HeaderValue::try_from(format!("bytes */{len}")) {
        answer.headers.insert(CONTENT_RANGE, value);
    }
    answer
}

/// The selected bytes and their Content-Range.
fn part(bytes: &Bytes, selected: &Selected) -> Option<(Bytes, HeaderValue)> {
    let Selected::Part(first, last) = selected else {
        return None;
    };
    let value = HeaderValue::try_from(format!("bytes {first}-{last}/{}", bytes.len())).ok()?;
    let first = usize::try_from(*first).ok()?;
    let end = usize::try_from(*last).ok()?.checked_add(1)?;
    (first <= end && end <= bytes.len()).then(|| (bytes.slice(first..end), value))
}

/// The first range that the block can satisfy: a multipart answer is never worth its framing.
pub(super) fn select(ranges: &[RangeSpec], len: u64) -> Selected {
    if ranges.is_empty() {
        return Selected::Whole;
    }
    let end = len.saturating_sub(1);
    let satisfiable = ranges.iter().find_map(|range| match *range {
        RangeSpec::From { first, last } if first < len => {
            Some((first, last.map_or(end, |last| last.min(end))))
        }
        RangeSpec::Suffix { len: suffix } if suffix > 0 && len > 0 => {
            Some((len.saturating_sub(suffix), end))
        }
        _ => None,
    });
    satisfiable.map_or(Selected::Unsatisfiable, |(first, last)| {
        Selected::Part(first, last)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_meet_blocks_of_all_lengths() {
        let from = |first, last| RangeSpec::From { first, last };
        let suffix = |len| RangeSpec::Suffix { len };
        let table = [
            (vec![], 10, Selected::Whole),
            (vec![from(0, Some(0))], 10, Selected::Part(0, 0)),
            (vec![from(3, None)], 10, Selected::Part(3, 9)),
            (vec![from(3, Some(u64::MAX))], 10, Selected::Part(3, 9)),
            (vec![from(9, Some(9))], 10, Selected::Part(9, 9)),
            (vec![from(10, None)], 10, Selected::Unsatisfiable),
            (vec![suffix(3)], 10, Selected::Part(7, 9)),
            (vec![suffix(11)], 10, Selected::Part(0, 9)),
            (vec![suffix(0)], 10, Selected::Unsatisfiable),
            (
                vec![from(7, Some(9)), from(1, Some(3))],
                10,
                Selected::Part(7, 9),
            ),
            (
                vec![from(70, Some(90)), from(1, Some(3))],
                10,
                Selected::Part(1, 3),
            ),
            (vec![from(0, None)], 0, Selected::Unsatisfiable),
            (vec![suffix(1)], 0, Selected::Unsatisfiable),
        ];
        for (ranges, len, expected) in table {
            assert_eq!(select(&ranges, len), expected, "{ranges:?} of {len}");
        }
    }
}
