//! Raw blocks: one block, whole or a range of it.
//!
//! In       a parsed request for a raw or JSON block.
//! Out      200, 206, 304, 404, 412, 416; `HEAD` is answered from the index alone.
//! Limits   a block at hand is answered without leaving the reactor; any other waits for room in
//!          the budget before it is read.
//! Not here which bytes are right: the store gives verified ones.

use bytes::Bytes;
use carrack_formats::cid;
use carrack_formats::walk::Resolved;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderValue};

use super::backend::Backend;
use super::headers::{self, Target};
use super::pool;
use super::refusal::Refusal;
use super::request::{Format, RangeSpec};
use super::service::{Answer, Job};

/// The part of a block that a `Range` header selects.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Selected {
    Whole,
    /// First and last byte.
    Part(u64, u64),
    Unsatisfiable,
}

/// The answer, if it takes no disk access: absent blocks, `HEAD`, blocks in memory. `None`: use
/// [`answer`].
pub(crate) fn try_answer<B: Backend>(job: &Job<B>) -> Option<Result<Answer, Refusal>> {
    let request = &job.request;
    if !request.segments.is_empty() {
        return None;
    }
    let root = request.root;
    let target = Target {
        terminus: &root,
        roots: &[root],
    };
    if request.head || !request.if_none_match.is_empty() || !is_raw(&request.format) {
        return match known(job, &target) {
            Ok(Known::Answer(answer)) => Some(Ok(answer)),
            Ok(Known::Wanted { .. }) => try_get(job, target),
            Err(refusal) => Some(Err(refusal)),
        };
    }
    try_get(job, target)
}

fn try_get<B: Backend>(job: &Job<B>, target: Target<'_>) -> Option<Result<Answer, Refusal>> {
    match job.gateway.backend().try_get(target.terminus) {
        Ok(Some(bytes)) => {
            let reserved = job.gateway.pool().try_reserve(bytes.len())?;
            Some(Ok(block(job, target, bytes, reserved)))
        }
        Ok(None) => None,
        Err(error) => Some(Err(job.absent_or(Refusal::from_block_error(&error)))),
    }
}

/// The answer to any request for a block.
pub(crate) async fn answer<B: Backend>(job: &Job<B>) -> Result<Answer, Refusal> {
    let resolved = resolve(job).await?;
    let target = Target {
        terminus: &resolved.terminus,
        roots: &resolved.roots,
    };
    let len = match known(job, &target)? {
        Known::Answer(answer) => return Ok(answer),
        Known::Wanted { len } => len,
    };
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let reserved = job.reserve(len).await?;
    let (backend, cid) = (job.gateway.backend().clone(), resolved.terminus);
    let bytes = pool::run(move || backend.get_blocking(&cid))
        .await
        .map_err(|error| job.absent_or(Refusal::from_block_error(&error)))?;
    Ok(block(job, target, bytes, reserved))
}

async fn resolve<B: Backend>(job: &Job<B>) -> Result<Resolved, Refusal> {
    let request = &job.request;
    if request.segments.is_empty() {
        return Ok(Resolved::root(request.root));
    }
    job.require_root()?;
    let (backend, root) = (job.gateway.backend().clone(), request.root);
    let segments = request.segments.clone();
    let resolved = pool::run(move || backend.resolve_blocking(root, segments))
        .await
        .map_err(|error| Refusal::from_block_error(&error))?;
    if resolved.remainder {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "the path ends inside a document, which is no block of its own: ask for the CAR",
        ));
    }
    Ok(resolved)
}

/// What the index alone says about a block.
#[expect(
    clippy::large_enum_variant,
    reason = "one a request, taken apart at once"
)]
enum Known {
    Answer(Answer),
    Wanted { len: u64 },
}

/// Whether the block is here, whether the client has it already, and the answer to `HEAD`.
fn known<B: Backend>(job: &Job<B>, target: &Target<'_>) -> Result<Known, Refusal> {
    let request = &job.request;
    if request.format == Format::Json && !matches!(target.terminus.codec(), cid::RAW | cid::JSON) {
        return Err(Refusal::new(
            StatusCode::NOT_ACCEPTABLE,
            "format=json is for blocks that are JSON already: raw and json codecs",
        ));
    }
    let len = job
        .gateway
        .backend()
        .stat(target.terminus)
        .map_err(|error| Refusal::from_block_error(&error))?
        .ok_or_else(|| job.absent(target.terminus))?;
    let etag = headers::etag(request, target.terminus);
    if headers::none_match_names(&request.if_none_match, &etag) {
        return Ok(Known::Answer(Answer::not_modified(etag)));
    }
    if !request.head {
        return Ok(Known::Wanted { len });
    }
    let mut fields = headers::success(request, &job.uri, *target, etag);
    fields.insert(CONTENT_LENGTH, HeaderValue::from(len));
    Ok(Known::Answer(Answer::new(
        StatusCode::OK,
        fields,
        Bytes::new(),
    )))
}

/// 200, 206 or 416 for a block whose bytes are here.
fn block<B: Backend>(
    job: &Job<B>,
    target: Target<'_>,
    bytes: Bytes,
    reserved: pool::Reserved,
) -> Answer {
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

const fn is_raw(format: &Format) -> bool {
    matches!(format, Format::Raw)
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
