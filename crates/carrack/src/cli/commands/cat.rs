//! `carrack cat`.

use crate::cli::Env;
use crate::cli::args::CatArgs;
use crate::cli::output::write_error;
use crate::error::{Error, ErrorKind, Result};
use crate::store::file_reader::{FileReader, file_len};

/// Writes a file's bytes to standard output.
///
/// # Errors
/// `Invalid` for a directory or a range outside the file; those of reading.
pub fn run(args: &CatArgs, env: &mut Env<'_>) -> Result<()> {
    let (_, resolved) = super::resolve(&args.target, env)?;
    let len = file_len(env.blocks, &resolved.terminus)?;
    let (from, to) = match &args.range {
        Some(range) => parse_range(range, len)?,
        None => (0, len),
    };
    let mut reader = FileReader::new(env.blocks.clone(), resolved.terminus, from, to);
    while let Some(piece) = reader.next_piece()? {
        env.out.data().write_all(&piece).map_err(write_error)?;
    }
    Ok(())
}

/// `a-b` (both included), `a-`, `-n` as a half-open range of a file of `len` bytes.
fn parse_range(text: &str, len: u64) -> Result<(u64, u64)> {
    let bad = |why: &str| Error::new(ErrorKind::Invalid, format!("range {text:?}: {why}"));
    let number = |text: &str| {
        text.parse::<u64>()
            .map_err(|_| bad("write a-b, a- or -n, in bytes"))
    };
    let (from, to) = text
        .split_once('-')
        .ok_or_else(|| bad("write a-b, a- or -n, in bytes"))?;
    let (from, to) = match (from, to) {
        ("", n) => (len.saturating_sub(number(n)?), len),
        (from, "") => (number(from)?, len),
        (from, to) => (number(from)?, number(to)?.saturating_add(1).min(len)),
    };
    if from > to || (from >= len && len > 0) {
        return Err(bad(&format!("the file has {len} bytes")));
    }
    Ok((from, to))
}

#[cfg(test)]
mod tests {
    use super::parse_range;

    #[test]
    fn ranges_are_inclusive_and_stay_inside_the_file() {
        assert_eq!(parse_range("0-0", 10).unwrap(), (0, 1));
        assert_eq!(parse_range("3-", 10).unwrap(), (3, 10));
        assert_eq!(parse_range("-4", 10).unwrap(), (6, 10));
        assert_eq!(parse_range("-40", 10).unwrap(), (0, 10));
        assert_eq!(parse_range("8-99", 10).unwrap(), (8, 10));
        assert_eq!(
            parse_range(&format!("0-{}", u64::MAX), 10).unwrap(),
            (0, 10)
        );
        for bad in ["", "5", "a-b", "6-2", "10-", "--1", "99999999999999999999-"] {
            assert!(parse_range(bad, 10).is_err(), "{bad}");
        }
    }
}
