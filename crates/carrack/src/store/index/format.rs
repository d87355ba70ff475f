//! Layout of a segment file: numbers, header, record. The byte table is `docs/formats/segment.md`.
//!
//! In       header bytes of a file that may have been cut or damaged.
//! Out      table layouts whose every range was checked to lie inside the file.
//! Limits   [`TABLES_MAX`] tables a segment, digests of [`DIGEST_LEN_MIN`] to [`DIGEST_LEN_MAX`]
//!          bytes.
//! Not here reading records (`segment`), writing files (`write`).

use carrack_formats::Multihash;

use crate::error::{Error, ErrorKind, Result};
use crate::store::location::{ContainerId, Location};

/// First bytes of every segment file.
pub(super) const MAGIC: [u8; 8] = *b"CRKSEG01";
/// The version this program writes, and the newest it reads.
pub(super) const VERSION: u32 = 2;
/// The first version, which has no sums of pages. Read for ever, not written any more.
pub(super) const VERSION_WITHOUT_PAGE_SUMS: u32 = 1;
/// Bytes a page: the unit that one look-up touches.
pub(super) const PAGE_LEN: usize = 4096;
/// Bytes of the header before the first table descriptor.
pub(super) const HEADER_FIXED_LEN: usize = 64;
/// Bytes a table descriptor.
pub(super) const TABLE_LEN: usize = 136;
/// The same in version 1.
const TABLE_LEN_1: usize = 112;
/// Bytes of the sum of one page: BLAKE3, its first four.
pub(super) const PAGE_SUM_LEN: usize = 4;
/// Bytes of a checksum: BLAKE3, its first half.
pub(super) const SUM_LEN: usize = 16;
/// Bytes of a record beside its digest: container 5, offset 6, length 3.
pub(super) const PLACE_LEN: usize = 14;
/// Bytes of a filter block: one cache line.
pub(super) const FILTER_BLOCK_LEN: usize = 64;
/// Filter bits a record: one false positive in about 200 look-ups.
pub(super) const FILTER_BITS: u64 = 12;
/// Most tables in one segment. There are about 300 pairs of an allowed hash and a length.
pub(super) const TABLES_MAX: usize = 1024;
/// Shortest digest that is indexed, in bytes.
pub const DIGEST_LEN_MIN: usize = 20;
/// Longest digest that is indexed, in bytes.
pub const DIGEST_LEN_MAX: usize = 128;

/// Top bit of the 48-bit offset: [`Location::wrapped`].
const WRAPPED: u64 = 1 << 47;

/// Checksum of a section or a header.
pub(super) type Sum = [u8; SUM_LEN];

/// The first half of a BLAKE3 hash.
pub(super) fn sum_of(hash: &blake3::Hash) -> Sum {
    let mut sum = [0; SUM_LEN];
    for (to, from) in sum.iter_mut().zip(hash.as_bytes()) {
        *to = *from;
    }
    sum
}

/// The sum of one page of records, padding included.
pub(super) fn page_sum_of(page: &[u8]) -> [u8; PAGE_SUM_LEN] {
    let [a, b, c, d, ..] = *blake3::hash(page).as_bytes();
    [a, b, c, d]
}

/// Where one table lies in its file. Parsed ones were checked; see [`Header::parse`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TableLayout {
    pub(super) code: u64,
    pub(super) digest_len: usize,
    pub(super) n_records: u64,
    pub(super) n_pages: u64,
    pub(super) filter_offset: u64,
    pub(super) n_filter_blocks: u64,
    pub(super) fence_offset: u64,
    pub(super) records_offset: u64,
    pub(super) filter_sum: Sum,
    pub(super) fence_sum: Sum,
    pub(super) records_sum: Sum,
    /// Where the sums of pages start; 0 in a file of version 1, which has none.
    pub(super) page_sums_offset: u64,
    pub(super) page_sums_sum: Sum,
}

impl TableLayout {
    /// Bytes a record.
    pub(super) const fn record_len(&self) -> usize {
        self.digest_len + PLACE_LEN
    }

    /// Records a full page.
    pub(super) const fn records_per_page(&self) -> usize {
        PAGE_LEN / self.record_len()
    }
}

/// Filter blocks for `n_records` records; never zero.
pub(super) const fn n_filter_blocks(n_records: u64) -> u64 {
    let bits = n_records.saturating_mul(FILTER_BITS);
    let blocks = bits.div_ceil(FILTER_BLOCK_LEN as u64 * 8);
    if blocks == 0 { 1 } else { blocks }
}

/// The header of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: u64,
    pub(super) n_records: u64,
    pub(super) file_len: u64,
    /// Ascending by (code, digest length).
    pub(super) tables: Vec<TableLayout>,
}

/// Bytes of a header with room for `n_tables` tables: whole pages.
pub(super) const fn header_len(n_tables: usize) -> usize {
    (HEADER_FIXED_LEN + n_tables * TABLE_LEN + SUM_LEN).next_multiple_of(PAGE_LEN)
}

/// The fewest bytes that a header of this version has.
const fn header_len_min(version: u32, n_tables: usize) -> usize {
    if version == VERSION_WITHOUT_PAGE_SUMS {
        (HEADER_FIXED_LEN + n_tables * TABLE_LEN_1 + SUM_LEN).next_multiple_of(PAGE_LEN)
    } else {
        header_len(n_tables)
    }
}

impl Header {
    /// The header's bytes, `header_len` long, which must have room for the tables.
    pub(super) fn encode(&self, header_len: usize) -> Vec<u8> {
        debug_assert!(header_len >= self::header_len(self.tables.len()));
        let mut bytes = Vec::with_capacity(header_len);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(header_len as u32).to_le_bytes());
        bytes.extend_from_slice(&(self.tables.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&self.id.to_le_bytes());
        bytes.extend_from_slice(&self.n_records.to_le_bytes());
        bytes.extend_from_slice(&self.file_len.to_le_bytes());
        bytes.resize(HEADER_FIXED_LEN, 0);
        for table in &self.tables {
            bytes.extend_from_slice(&table.code.to_le_bytes());
            bytes.extend_from_slice(&(table.digest_len as u16).to_le_bytes());
            bytes.extend_from_slice(&(table.record_len() as u16).to_le_bytes());
            bytes.extend_from_slice(&(table.records_per_page() as u16).to_le_bytes());
            bytes.extend_from_slice(&[0; 2]);
            for number in [
                table.n_records,
                table.n_pages,
                table.filter_offset,
                table.n_filter_blocks,
                table.fence_offset,
                table.records_offset,
            ] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            bytes.extend_from_slice(&table.filter_sum);
            bytes.extend_from_slice(&table.fence_sum);
            bytes.extend_from_slice(&table.records_sum);
            bytes.extend_from_slice(&table.page_sums_offset.to_le_bytes());
            bytes.extend_from_slice(&table.page_sums_sum);
        }
        bytes.resize(header_len - SUM_LEN, 0);
        let sum = sum_of(&blake3::hash(&bytes));
        bytes.extend_from_slice(&sum);
        bytes
    }

    /// Reads and checks the header of a whole file.
    pub(super) fn parse(file: &[u8]) -> Result<Self> {
        let mut fixed = Fields { rest: file };
        if fixed.take::<8>()? != MAGIC {
            return Err(damaged("it does not begin with CRKSEG01"));
        }
        let version = u32::from_le_bytes(fixed.take()?);
        if !(VERSION_WITHOUT_PAGE_SUMS..=VERSION).contains(&version) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("its version is {version}, this program reads up to {VERSION}"),
            ));
        }
        let header_len = u32::from_le_bytes(fixed.take()?) as usize;
        let n_tables = fixed.u64()?;
        let id = fixed.u64()?;
        let n_records = fixed.u64()?;
        let file_len = fixed.u64()?;
        if n_tables > TABLES_MAX as u64 {
            return Err(damaged("it claims too many tables"));
        }
        let n_tables = n_tables as usize; // Fits: at most TABLES_MAX.
        let header_ok = header_len.is_multiple_of(PAGE_LEN)
            && (header_len_min(version, n_tables)..=self::header_len(TABLES_MAX))
                .contains(&header_len);
        if !header_ok {
            return Err(damaged("its header length is wrong"));
        }
        let header = file.get(..header_len).ok_or_else(cut)?;
        let (body, sum) = header
            .split_at_checked(header_len - SUM_LEN)
            .ok_or_else(cut)?;
        if sum_of(&blake3::hash(body)) != sum {
            return Err(damaged("its header does not match its checksum"));
        }
        if file_len != file.len() as u64 {
            return Err(damaged("its length is not what its header says"));
        }
        let mut fields = Fields {
            rest: body.get(HEADER_FIXED_LEN..).ok_or_else(cut)?,
        };
        let mut tables = Vec::with_capacity(n_tables);
        for _ in 0..n_tables {
            tables.push(parse_table(
                &mut fields,
                version,
                header_len as u64,
                file_len,
            )?);
        }
        check_tables(&tables, n_records)?;
        Ok(Self {
            id,
            n_records,
            file_len,
            tables,
        })
    }
}

/// One descriptor, with every range inside the file.
fn parse_table(
    fields: &mut Fields<'_>,
    version: u32,
    header_len: u64,
    file_len: u64,
) -> Result<TableLayout> {
    let code = fields.u64()?;
    let digest_len = usize::from(u16::from_le_bytes(fields.take()?));
    let record_len = usize::from(u16::from_le_bytes(fields.take()?));
    let records_per_page = usize::from(u16::from_le_bytes(fields.take()?));
    let _reserved: [u8; 2] = fields.take()?;
    let mut table = TableLayout {
        code,
        digest_len,
        n_records: fields.u64()?,
        n_pages: fields.u64()?,
        filter_offset: fields.u64()?,
        n_filter_blocks: fields.u64()?,
        fence_offset: fields.u64()?,
        records_offset: fields.u64()?,
        filter_sum: fields.take()?,
        fence_sum: fields.take()?,
        records_sum: fields.take()?,
        page_sums_offset: 0,
        page_sums_sum: Sum::default(),
    };
    if version > VERSION_WITHOUT_PAGE_SUMS {
        table.page_sums_offset = fields.u64()?;
        table.page_sums_sum = fields.take()?;
    }
    if !(DIGEST_LEN_MIN..=DIGEST_LEN_MAX).contains(&digest_len) {
        return Err(damaged("a table has an impossible digest length"));
    }
    let shape_ok = table.record_len() == record_len
        && table.records_per_page() == records_per_page
        && table.n_records > 0
        && table.n_filter_blocks > 0
        && table.n_pages == table.n_records.div_ceil(records_per_page as u64);
    if !shape_ok {
        return Err(damaged("the counts of a table do not agree"));
    }
    let sections = [
        (
            table.filter_offset,
            table.n_filter_blocks,
            FILTER_BLOCK_LEN as u64,
        ),
        (table.fence_offset, table.n_pages, 8),
        (table.records_offset, table.n_pages, PAGE_LEN as u64),
    ];
    let page_sums = (table.page_sums_offset, table.n_pages, PAGE_SUM_LEN as u64);
    let page_sums = (version > VERSION_WITHOUT_PAGE_SUMS).then_some(page_sums);
    for (offset, count, unit) in sections.into_iter().chain(page_sums) {
        let end = count
            .checked_mul(unit)
            .and_then(|len| len.checked_add(offset));
        let inside = offset >= header_len && end.is_some_and(|end| end <= file_len);
        if !inside || !offset.is_multiple_of(unit) {
            return Err(damaged("a section lies outside the file"));
        }
    }
    Ok(table)
}

fn check_tables(tables: &[TableLayout], n_records: u64) -> Result<()> {
    let ascending = tables
        .iter()
        .zip(tables.iter().skip(1))
        .all(|(a, b)| (a.code, a.digest_len) < (b.code, b.digest_len));
    let total = tables
        .iter()
        .try_fold(0u64, |sum, table| sum.checked_add(table.n_records));
    if !ascending || total != Some(n_records) {
        return Err(damaged("its tables do not agree with its header"));
    }
    Ok(())
}

/// Little-endian fields, front to back.
struct Fields<'a> {
    rest: &'a [u8],
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (field, rest) = self.rest.split_first_chunk::<N>().ok_or_else(cut)?;
        self.rest = rest;
        Ok(*field)
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take()?))
    }
}

/// The file is not what was written.
pub(super) fn damaged(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, what)
}

fn cut() -> Error {
    damaged("it ends inside its header")
}

/// Appends one record. The caller has checked the location with [`check_location`].
pub(super) fn push_record(out: &mut Vec<u8>, digest: &[u8], location: Location) {
    let [c0, c1, c2, c3, c4, ..] = location.container.0.to_le_bytes();
    let offset = location.offset | if location.wrapped { WRAPPED } else { 0 };
    let [o0, o1, o2, o3, o4, o5, ..] = offset.to_le_bytes();
    let [l0, l1, l2, _] = location.len.to_le_bytes();
    out.extend_from_slice(digest);
    out.extend_from_slice(&[c0, c1, c2, c3, c4, o0, o1, o2, o3, o4, o5, l0, l1, l2]);
}

/// The location in the 14 bytes after a record's digest; `None` if there are not 14.
pub(super) fn read_place(place: &[u8]) -> Option<Location> {
    let &[c0, c1, c2, c3, c4, o0, o1, o2, o3, o4, o5, l0, l1, l2] = place.first_chunk()?;
    let offset = u64::from_le_bytes([o0, o1, o2, o3, o4, o5, 0, 0]);
    Some(Location {
        container: ContainerId(u64::from_le_bytes([c0, c1, c2, c3, c4, 0, 0, 0])),
        offset: offset & !WRAPPED,
        len: u32::from_le_bytes([l0, l1, l2, 0]),
        wrapped: offset & WRAPPED != 0,
    })
}

/// The first eight digest bytes as a number that orders like the digest.
#[expect(
    clippy::big_endian_bytes,
    reason = "digests order by their first byte first"
)]
pub(super) fn prefix_of(digest: &[u8]) -> u64 {
    digest
        .first_chunk()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// Digest bytes 8 to 16: what the filter's bits are picked by.
pub(super) fn filter_bits_of(digest: &[u8]) -> u64 {
    let bytes = digest.get(8..16).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The filter block of a digest prefix. Ascending with the prefix, so filters are built in order.
pub(super) const fn filter_block_of(prefix: u64, n_blocks: u64) -> u64 {
    ((prefix as u128 * n_blocks as u128) >> 64) as u64
}

/// Refuses what a record cannot hold.
pub(super) fn check_location(key: &Multihash, location: Location) -> Result<()> {
    let digest_len = key.digest().len();
    if !(DIGEST_LEN_MIN..=DIGEST_LEN_MAX).contains(&digest_len) {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("a digest of {digest_len} bytes cannot be indexed"),
        ));
    }
    if location.container.0 >= Location::CONTAINER_END
        || location.offset >= Location::OFFSET_END
        || location.len >= Location::LEN_END
    {
        return Err(Error::new(
            ErrorKind::Limit,
            format!(
                "container {}, offset {}, length {}: more than an index record holds",
                location.container.0, location.offset, location.len
            ),
        ));
    }
    Ok(())
}
