//! Unsigned varints: seven bits a byte, least significant first.
//!
//! In       a slice that begins with a varint.
//! Out      its value and length; or that more bytes are needed.
//! Limits   [`LEN_MAX`] bytes, so at most 63 bits. Only the shortest form of a number is accepted:
//!          a CID or a CAR with a longer one would have two encodings.
//! Not here protobuf varints, which allow ten bytes and padding (`dag::pb`).
//!
//! Spec: <https://github.com/multiformats/unsigned-varint>

/// Most bytes a varint may have.
pub const LEN_MAX: usize = 9;

/// The largest value that fits into [`LEN_MAX`] bytes.
pub const VALUE_MAX: u64 = (1 << 63) - 1;

/// Why bytes are no varint. The caller knows where they lie and says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VarintError {
    /// There is no end within [`LEN_MAX`] bytes.
    #[error("varint is longer than {LEN_MAX} bytes")]
    TooLong,
    /// The last byte is zero: the same number has a shorter form.
    #[error("varint is not in its shortest form")]
    NotMinimal,
}

/// Reads the varint at the front of `bytes`: its value and how many bytes it takes.
///
/// `None`: the slice ends inside the varint.
///
/// # Errors
/// [`VarintError`] as soon as no continuation could make the bytes a varint.
pub fn read(bytes: &[u8]) -> Result<Option<(u64, usize)>, VarintError> {
    let mut value = 0u64;
    for (index, &byte) in bytes.iter().take(LEN_MAX).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            if byte == 0 && index > 0 {
                return Err(VarintError::NotMinimal);
            }
            return Ok(Some((value, index + 1)));
        }
    }
    if bytes.len() >= LEN_MAX {
        Err(VarintError::TooLong)
    } else {
        Ok(None)
    }
}

/// Appends `value`. Values above [`VALUE_MAX`] take ten bytes, which [`read`] refuses.
pub fn write(out: &mut Vec<u8>, mut value: u64) {
    debug_assert!(
        value <= VALUE_MAX,
        "a varint of this project has at most 63 bits"
    );
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// How many bytes [`write()`] appends for `value`.
pub const fn len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_length_and_form() {
        let max = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        let over = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        type Read = Result<Option<(u64, usize)>, VarintError>;
        let table: &[(&[u8], Read)] = &[
            (&[], Ok(None)),
            (&[0], Ok(Some((0, 1)))),
            (&[0x7f, 9], Ok(Some((127, 1)))),
            (&[0x80], Ok(None)),
            (&[0x80, 0x01], Ok(Some((128, 2)))),
            (&[0x80, 0x00], Err(VarintError::NotMinimal)),
            (&[0xff, 0x80, 0x00], Err(VarintError::NotMinimal)),
            (&[0x80, 0x80, 0x80, 0x80, 0x10], Ok(Some((1 << 32, 5)))),
            (&max, Ok(Some((VALUE_MAX, 9)))),
            (&over, Err(VarintError::TooLong)),
            (&over[..9], Err(VarintError::TooLong)),
            (&over[..8], Ok(None)),
            (&[0x80; 64], Err(VarintError::TooLong)),
        ];
        for (bytes, want) in table {
            assert_eq!(read(bytes), *want, "{bytes:02x?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read(value in 0..=VALUE_MAX, shift in 0u32..63, tail: [u8; 3]) {
            let value = value >> shift;
            let mut bytes = Vec::new();
            write(&mut bytes, value);
            let written = bytes.len();
            proptest::prop_assert_eq!(written, len(value));
            for cut in 0..written {
                proptest::prop_assert_eq!(read(&bytes[..cut]), Ok(None));
            }
            bytes.extend_from_slice(&tail);
            proptest::prop_assert_eq!(read(&bytes), Ok(Some((value, written))));
        }

        /// Two different byte strings never give the same number.
        #[test]
        fn what_is_read_writes_the_same_bytes(bytes: [u8; 12]) {
            if let Ok(Some((value, read_len))) = read(&bytes) {
                let mut again = Vec::new();
                write(&mut again, value);
                proptest::prop_assert_eq!(&again, &bytes[..read_len]);
            }
        }
    }
}
