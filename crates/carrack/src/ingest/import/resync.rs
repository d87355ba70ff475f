//! Behind a section that cannot be read: the next one that proves itself by its hash.
//!
//! In       bytes of a damaged CAR, from where it cannot be read on.
//! Out      where the next section begins whose block is what it is called.
//! Limits   what is hashed in vain: at most [`IN_VAIN_MAX`] bytes a CAR, then the rest is given up.
//! Not here reading on from there (`ingest::import`). A block that is itself a CAR has sections,
//!          too: those inside of a damaged one are sound blocks and taken as such.

use carrack_formats::car::{CarError, Parser, Section, Step};
use carrack_formats::{cid, varint};

use super::{CarFailure, HEAD_LEN, ImportOptions, Window, verify_at};
use crate::source::local::LocalFile;

/// Bytes hashed of what looked like a section and was none.
const IN_VAIN_MAX: u64 = 256 << 20;
/// Longest length prefix of a section that is taken, and the first two bytes of its CID.
const FRONT_LEN: usize = 4 + 2;

/// What is left to be spent on a CAR.
#[derive(Debug)]
pub(super) struct Resync {
    in_vain_left: u64,
}

impl Default for Resync {
    fn default() -> Self {
        Self {
            in_vain_left: IN_VAIN_MAX,
        }
    }
}

impl Resync {
    /// Where the next sound section of a file begins, from `from` on.
    pub(super) fn in_file(
        &mut self,
        file: &LocalFile,
        window: &mut Window<'_>,
        options: &ImportOptions,
        from: u64,
        end: u64,
        go_on: &mut dyn FnMut(u64) -> Result<(), CarFailure>,
    ) -> Result<Option<u64>, CarFailure> {
        let (mut at, mut buffer) = (from, Vec::new());
        while at < end {
            let (bytes, is_last) = window.at(at, HEAD_LEN, end)?;
            let Some(skip) = front(bytes) else {
                at += passed(bytes.len(), is_last);
                go_on(at)?;
                continue;
            };
            at += skip as u64;
            let (bytes, is_last) = window.at(at, HEAD_LEN, end)?;
            if let Some(section) = section_at(bytes, is_last, at, Some(end), options) {
                match verify_at(file, &section, &mut buffer) {
                    Ok(()) => return Ok(Some(at)),
                    Err(CarFailure::Car(_)) if self.may_go_on(&section) => {}
                    Err(CarFailure::Car(_)) => return Ok(None),
                    Err(error) => return Err(error),
                }
            }
            at += 1;
        }
        Ok(None)
    }

    /// Whether one more may be hashed.
    pub(super) fn may_go_on(&mut self, section: &Section) -> bool {
        let left = self.in_vain_left.checked_sub(u64::from(section.data_len));
        self.in_vain_left = left.unwrap_or_default();
        left.is_some()
    }
}

/// Where in `bytes` a section may begin: a length, and what CIDs begin with.
pub(super) fn front(bytes: &[u8]) -> Option<usize> {
    bytes.windows(FRONT_LEN).position(|front| {
        let prefix_len = front.iter().take(4).position(|&byte| byte < 0x80);
        let Some(last) = prefix_len else { return false };
        match front.get(last + 1..) {
            Some([0x12, 0x20, ..]) => true,
            Some([0x01, codec, ..]) => *codec != 0,
            _ => false,
        }
    })
}

/// Bytes without a front that need not be looked at again.
pub(super) fn passed(len: usize, is_last: bool) -> u64 {
    let passed = match is_last {
        true => len,
        false => len.saturating_sub(FRONT_LEN - 1),
    };
    passed.max(1) as u64
}

/// The section at byte `at` of the CAR, where `bytes` begin, if there may be one.
pub(super) fn section_at(
    bytes: &[u8],
    is_last: bool,
    at: u64,
    end: Option<u64>,
    options: &ImportOptions,
) -> Option<Section> {
    let (len, _) = varint::read(bytes).ok()??;
    if len == 0 {
        return None; // Padding.
    }
    let mut parser = Parser::resume(options.limits, at);
    if let Some(end) = end {
        parser.set_end(end);
    }
    let Ok(Step::Section(section)) = parser.next(bytes, is_last) else {
        return None;
    };
    let is_in = end.is_none_or(|end| section.end() <= end);
    let is_proof = cid::identity_data(&section.cid).is_none();
    let is_allowed: Result<(), CarError> = options.check_hash(&section);
    (is_in && is_proof && is_allowed.is_ok()).then_some(section)
}
