//! Bytes of catalog values: fixed little-endian fields, lengths before bytes, a version first.
//!
//! In       values of one table, or bytes that redb gave back.
//! Out      bytes, or a `Corrupt` error: what redb returns has passed its checksum, so a value that
//!          does not parse is a bug or a damaged disk.
//! Not here which fields a value has (`record`).

use crate::error::{Error, ErrorKind, Result};

/// First byte of every value but of stale marks with ranges. A reader refuses others.
pub(super) const VALUE_VERSION: u8 = 1;

/// Appends fields.
#[derive(Debug, Default)]
pub(super) struct Writer {
    pub(super) bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn versioned(capacity: usize) -> Self {
        Self::of_version(VALUE_VERSION, capacity)
    }

    pub(super) fn of_version(version: u8, capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity);
        bytes.push(version);
        Self { bytes }
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn i64(&mut self, value: i64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// A `u32` length and the bytes.
    pub(super) fn bytes(&mut self, value: &[u8]) {
        // Paths and CIDs: the kernel and the CID parser keep them far below 4 GiB.
        self.u32(value.len() as u32);
        self.bytes.extend_from_slice(value);
    }

    /// LEB128.
    pub(super) fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }
}

/// Takes fields from the front.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// From the version byte on, which the caller checks.
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Checks the version byte.
    pub(super) fn versioned(bytes: &'a [u8]) -> Result<Self> {
        let mut reader = Self::new(bytes);
        match reader.u8()? {
            VALUE_VERSION => Ok(reader),
            _ => Err(damaged()),
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (field, rest) = self.rest.split_first_chunk().ok_or_else(damaged)?;
        self.rest = rest;
        Ok(*field)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take()
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        self.take().map(u8::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.take().map(u64::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64> {
        self.take().map(i64::from_le_bytes)
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8]> {
        let len = self.u32()? as usize;
        let (field, rest) = self.rest.split_at_checked(len).ok_or_else(damaged)?;
        self.rest = rest;
        Ok(field)
    }

    pub(super) fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(damaged())
    }

    /// Nothing may follow the last field.
    pub(super) fn end(self) -> Result<()> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(damaged())
        }
    }
}

/// A value that this program did not write.
pub(super) fn damaged() -> Error {
    Error::new(ErrorKind::Corrupt, "a catalog value cannot be read")
}
