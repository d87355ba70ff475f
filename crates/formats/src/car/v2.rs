//! CARv2 framing: where the CARv1 in it lies, and its index.
//!
//! In       the first [`START_LEN`] bytes of a file and the file's length.
//! Out      [`Header`], whose ranges are inside of the file.
//! Limits   offsets are added with care: none reaches past the file.
//! Not here the payload (`car::v1`), the index (`car::index`).
//!
//! Spec: <https://ipld.io/specs/transport/car/carv2/>

use super::CarError;

/// The first bytes of each CARv2: a CARv1 header that says version 2.
pub const PRAGMA: [u8; 11] = *b"\x0a\xa1\x67version\x02";
/// Bytes of the header after the pragma.
pub const HEADER_LEN: usize = 40;
/// Bytes of pragma and header: what [`parse`] looks at.
pub const START_LEN: usize = PRAGMA.len() + HEADER_LEN;

/// The fixed part of a CARv2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// 128 flags. The highest bit of the first byte: the index has identity CIDs, too.
    pub characteristics: [u8; 16],
    /// Byte of the file where the CARv1 starts.
    pub data_offset: u64,
    /// Bytes of the CARv1.
    pub data_len: u64,
    /// Byte of the file where the index starts, if there is one.
    pub index_offset: Option<u64>,
}

impl Header {
    /// The byte of the file after the CARv1, for [`Parser::set_end`](super::Parser::set_end).
    pub fn data_end(&self) -> u64 {
        self.data_offset.saturating_add(self.data_len)
    }
}

/// Whether a file that starts with `bytes` is a CARv2; `None`: too few bytes to say.
pub fn is_v2(bytes: &[u8]) -> Option<bool> {
    if let Some(start) = bytes.get(..PRAGMA.len()) {
        return Some(start == PRAGMA);
    }
    if PRAGMA.starts_with(bytes) {
        None
    } else {
        Some(false)
    }
}

/// Reads the start of a CARv2 file of `file_len` bytes.
///
/// # Errors
/// `Truncated` if `bytes` has fewer than [`START_LEN`]; `V2Header` if it is no CARv2 or names
/// bytes outside of the file.
pub fn parse(bytes: &[u8], file_len: u64) -> Result<Header, CarError> {
    if is_v2(bytes) == Some(false) {
        return Err(CarError::V2Header {
            offset: 0,
            reason: "it does not start like a CARv2",
        });
    }
    let truncated = CarError::Truncated { offset: 0 };
    let Some(fields) = bytes.get(PRAGMA.len()..START_LEN) else {
        return Err(truncated);
    };
    let Some((characteristics, fields)) = fields.split_first_chunk::<16>() else {
        return Err(truncated);
    };
    let (words, _) = fields.as_chunks::<8>();
    let &[data_offset, data_len, index_offset] = words else {
        return Err(truncated);
    };
    let header = Header {
        characteristics: *characteristics,
        data_offset: u64::from_le_bytes(data_offset),
        data_len: u64::from_le_bytes(data_len),
        index_offset: Some(u64::from_le_bytes(index_offset)).filter(|&offset| offset != 0),
    };
    check(&header, file_len)?;
    Ok(header)
}

/// The start of a CARv2 whose CARv1 follows at once, and whose index follows that.
pub fn write(data_len: u64, has_index: bool) -> [u8; START_LEN] {
    let data_offset = START_LEN as u64;
    let index_offset = if has_index {
        data_offset.saturating_add(data_len)
    } else {
        0
    };
    let mut out = [0; START_LEN];
    let fields = PRAGMA
        .into_iter()
        .chain([0; 16])
        .chain(data_offset.to_le_bytes())
        .chain(data_len.to_le_bytes())
        .chain(index_offset.to_le_bytes());
    for (place, byte) in out.iter_mut().zip(fields) {
        *place = byte;
    }
    out
}

fn check(header: &Header, file_len: u64) -> Result<(), CarError> {
    let invalid = |offset, reason| Err(CarError::V2Header { offset, reason });
    if header.data_offset < START_LEN as u64 {
        return invalid(27, "the data starts inside of the header");
    }
    let Some(data_end) = header.data_offset.checked_add(header.data_len) else {
        return invalid(35, "the data ends past all numbers");
    };
    if data_end > file_len {
        return invalid(35, "the data ends past the file");
    }
    if header.data_len == 0 {
        return invalid(35, "the data has no bytes");
    }
    match header.index_offset {
        Some(offset) if offset < data_end => invalid(43, "the index starts inside of the data"),
        Some(offset) if offset >= file_len => invalid(43, "the index starts past the file"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(data_offset: u64, data_len: u64, index_offset: u64) -> Vec<u8> {
        let words = [data_offset, data_len, index_offset]
            .map(u64::to_le_bytes)
            .concat();
        [&PRAGMA[..], &[0; 16], &words].concat()
    }

    #[test]
    fn what_is_written_is_read() {
        for (data_len, has_index) in [(1, false), (1, true), (1 << 40, true)] {
            let bytes = write(data_len, has_index);
            let header = parse(&bytes, 51 + data_len + 10).unwrap();
            assert_eq!((header.data_offset, header.data_len), (51, data_len));
            assert_eq!(header.index_offset, has_index.then_some(51 + data_len));
            assert_eq!(header.data_end(), 51 + data_len);
            for cut in 0..bytes.len() {
                let got = parse(&bytes[..cut], u64::MAX);
                assert_eq!(got, Err(CarError::Truncated { offset: 0 }), "{cut}");
                assert_eq!(is_v2(&bytes[..cut]), (cut >= 11).then_some(true), "{cut}");
            }
        }
        assert_eq!(is_v2(b"\x0a\xa1\x67versioo"), Some(false));
        assert_eq!(is_v2(&[0x3a]), Some(false));
    }

    #[test]
    fn ranges_outside_of_the_file_are_refused() {
        let table = [
            (51, 49, 0, None),
            (51, 49, 100, Some(43)), // The file has 100 bytes.
            (51, 48, 99, None),
            (60, 40, 0, None),
            (60, 41, 0, Some(35)),
            (50, 10, 0, Some(27)),
            (0, 100, 0, Some(27)),
            (51, 0, 0, Some(35)),
            (51, u64::MAX, 0, Some(35)),
            (u64::MAX, 2, 0, Some(35)),
            (u64::MAX, u64::MAX, u64::MAX, Some(35)),
            (1 << 63, 1 << 63, 0, Some(35)),
            (51, 20, 70, Some(43)),
            (51, 20, 71, None),
            (51, 20, 1, Some(43)),
            (51, 20, u64::MAX, Some(43)),
        ];
        for (data_offset, data_len, index_offset, bad) in table {
            let got = parse(&start(data_offset, data_len, index_offset), 100);
            let field = match got {
                Ok(_) => None,
                Err(CarError::V2Header { offset, .. }) => Some(offset),
                Err(error) => panic!("{error}"),
            };
            assert_eq!(field, bad, "{data_offset} {data_len} {index_offset}");
        }
    }
}
