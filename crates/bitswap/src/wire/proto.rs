//! Fields of protobuf messages.
//!
//! In       the bytes of a message.
//! Out      its fields one by one, borrowed from it.
//! Limits   a budget of fields for a message and all that lie in it. Nothing is allocated.
//! Not here what fields mean; groups, which proto3 does not have.
//!
//! Spec: <https://protobuf.dev/programming-guides/encoding/>

use super::WireError;

/// Longest form of a number, in bytes.
const NUMBER_LEN_MAX: usize = 10;

/// What a field holds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Four or eight bytes, which no field here has.
    Fixed,
}

/// One field.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field<'a> {
    pub(super) number: u64,
    pub(super) value: Value<'a>,
}

/// How many fields a message may still have.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    left: usize,
}

impl Budget {
    pub(super) const fn new(limit: usize) -> Self {
        Self { limit, left: limit }
    }

    fn take(&mut self) -> Result<(), WireError> {
        let limit = self.limit;
        let left = self.left.checked_sub(1);
        self.left = left.ok_or(WireError::TooManyFields { limit })?;
        Ok(())
    }
}

/// A walk over the fields of a message, or of one within it.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
    /// Where `rest` starts in the outermost message.
    offset: usize,
}

impl<'a> Fields<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            offset: 0,
        }
    }

    /// The fields of a message that was the last field of this walk.
    pub(super) const fn within(&self, bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            offset: self.offset.saturating_sub(bytes.len()),
        }
    }

    /// The next field; `None` at the end of the message.
    #[inline]
    pub(super) fn next(&mut self, budget: &mut Budget) -> Result<Option<Field<'a>>, WireError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        budget.take()?;
        let offset = self.offset;
        let tag = self.number()?;
        let number = tag >> 3;
        if number == 0 || number >= 1 << 29 {
            return Err(WireError::FieldInvalid { offset });
        }
        let value = match tag & 7 {
            0 => Value::Number(self.number()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let len = self.number()?;
                Value::Bytes(self.take(len)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return Err(WireError::FieldInvalid { offset }),
        };
        Ok(Some(Field { number, value }))
    }

    /// Protobuf allows longer forms of a number than its shortest, and negative ones have ten
    /// bytes.
    #[inline]
    fn number(&mut self) -> Result<u64, WireError> {
        if let [byte, rest @ ..] = self.rest
            && *byte < 0x80
        {
            self.rest = rest;
            self.offset += 1;
            return Ok(u64::from(*byte));
        }
        self.long_number()
    }

    fn long_number(&mut self) -> Result<u64, WireError> {
        let offset = self.offset;
        let mut value = 0;
        for (index, &byte) in self.rest.iter().take(NUMBER_LEN_MAX).enumerate() {
            if index + 1 == NUMBER_LEN_MAX && byte > 1 {
                break; // Bits beyond the 64th, or no end.
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                self.rest = self.rest.get(index + 1..).unwrap_or_default();
                self.offset += index + 1;
                return Ok(value);
            }
        }
        if self.rest.len() < NUMBER_LEN_MAX {
            Err(WireError::Truncated { offset })
        } else {
            Err(WireError::NumberInvalid { offset })
        }
    }

    /// The next `len` bytes, if there are as many.
    #[inline]
    fn take(&mut self, len: u64) -> Result<&'a [u8], WireError> {
        let offset = self.offset;
        let split = usize::try_from(len)
            .ok()
            .and_then(|len| self.rest.split_at_checked(len));
        let (taken, rest) = split.ok_or(WireError::Truncated { offset })?;
        self.rest = rest;
        self.offset += taken.len();
        Ok(taken)
    }
}
