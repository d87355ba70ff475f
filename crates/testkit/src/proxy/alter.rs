//! Answers that lie: what becomes of a head and its body.
//!
//! In       a sound answer, its body whole.
//! Out      the altered one, framed as it claims.
//! Not here answers that break off or never come (`connection`).

use super::Fault;
use super::head::Head;

/// Longest body that is altered.
pub(super) const BODY_LEN_MAX: u64 = 256 << 20;

/// S3's answer to a client that asks too much, or at a bad time.
pub(super) fn refusal(code: u16, retry_after: Option<u32>) -> Vec<u8> {
    let (word, message) = match code {
        429 => ("TooManyRequests", "Please reduce your request rate."),
        500 => ("InternalError", "We encountered an internal error."),
        503 => ("SlowDown", "Please reduce your request rate."),
        _ => ("Refused", "The proxy was told to refuse this."),
    };
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{word}</Code>\
         <Message>{message}</Message><RequestId>proxy</RequestId></Error>"
    );
    let retry = retry_after.map(|seconds| format!("Retry-After: {seconds}\r\n"));
    format!(
        "HTTP/1.1 {code} {word}\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n{}\r\n\
         {body}",
        body.len(),
        retry.unwrap_or_default()
    )
    .into_bytes()
}

/// Faults that change the head and leave the body.
pub(super) fn head(fault: &Fault, head: &mut Head, body_len: u64) {
    match fault {
        Fault::OtherVersion => {
            head.set("ETag", "\"0123456789abcdef0123456789abcdef\"");
            head.set("Last-Modified", "Tue, 01 Jan 2030 00:00:00 GMT");
        }
        Fault::WrongContentRange => {
            if let Some((first, whole)) = head.content_range() {
                let (first, last) = (first + body_len, first + 2 * body_len.max(1) - 1);
                head.set("Content-Range", &format!("bytes {first}-{last}/{whole}"));
            }
        }
        Fault::RangeAs200 if head.status() == 206 => {
            head.set_first_line("HTTP/1.1 200 OK");
            head.remove("Content-Range");
        }
        _ => {}
    }
}

/// Whether the body must be at hand to be changed.
pub(super) const fn needs_body(fault: &Fault) -> bool {
    matches!(
        fault,
        Fault::FlipBit | Fault::Gzip | Fault::Short | Fault::IgnoreRange
    )
}

/// Faults that change the body, and the head to fit.
pub(super) fn body(fault: &Fault, head: &mut Head, mut body: Vec<u8>) -> Vec<u8> {
    match fault {
        Fault::FlipBit => {
            let middle = body.len() / 2;
            if let Some(byte) = body.get_mut(middle) {
                *byte ^= 0x10;
            }
        }
        Fault::Gzip => {
            body = gzip(&body);
            head.set("Content-Encoding", "gzip");
        }
        Fault::Short => body.truncate(body.len() / 2),
        Fault::IgnoreRange => {
            if let Some((first, whole)) = head.content_range().filter(|_| head.status() == 206) {
                body = placed(&body, first, whole.min(BODY_LEN_MAX));
                head.set_first_line("HTTP/1.1 200 OK");
                head.remove("Content-Range");
            }
        }
        _ => {}
    }
    head.set("Content-Length", &body.len().to_string());
    body
}

/// `part` at `first` in zeros.
fn placed(part: &[u8], first: u64, whole: u64) -> Vec<u8> {
    let mut all = vec![0; usize::try_from(whole).unwrap_or(0)];
    let places = all.iter_mut().skip(usize::try_from(first).unwrap_or(0));
    for (place, byte) in places.zip(part) {
        *place = *byte;
    }
    all
}

/// RFC 1952 with stored blocks: valid, though it saves nothing.
fn gzip(data: &[u8]) -> Vec<u8> {
    const STORED_LEN_MAX: usize = 65_535;
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let mut blocks = data.chunks(STORED_LEN_MAX).peekable();
    if blocks.peek().is_none() {
        out.extend([1, 0, 0, 0xff, 0xff]);
    }
    while let Some(block) = blocks.next() {
        let len = u16::try_from(block.len()).unwrap_or(u16::MAX);
        out.push(u8::from(blocks.peek().is_none()));
        out.extend(len.to_le_bytes());
        out.extend((!len).to_le_bytes());
        out.extend(block);
    }
    out.extend(crc32(data).to_le_bytes());
    out.extend((data.len() as u32).to_le_bytes());
    out
}

fn crc32(data: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::{crc32, gzip};

    #[test]
    fn the_checksum_is_the_known_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn no_bytes_are_gzipped_to_one_empty_block() {
        let empty = gzip(b"");
        assert_eq!(empty.len(), 10 + 5 + 8);
    }
}
