//! Work to measure with, and the bound to measure against.
//!
//! In       sizes and URLs.
//! Out      files, CIDs; the rate of sha256 on all cores; what clients saw.
//! Not here what the servers used meanwhile (`process`).

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use carrack_formats::sha256::Sha256;

use super::process::cpu_seconds_here;
use crate::shell::{Result, output};

/// A stream of numbers that a seed decides (SplitMix64).
pub(crate) struct Seeded(u64);

impl Seeded {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            let number = self.next().to_le_bytes();
            part.copy_from_slice(number.split_at(part.len()).0);
        }
    }
}

/// Writes `len` bytes to `path`.
pub(crate) fn file(path: &Path, seed: u64, len: u64) -> Result {
    let mut out = File::create(path)?;
    let (mut random, mut buffer) = (Seeded(seed), vec![0; 1 << 20]);
    let mut left = len;
    while left > 0 {
        random.fill(&mut buffer);
        let part = usize::try_from(left.min(1 << 20))?;
        out.write_all(buffer.split_at(part).0)?;
        left -= part as u64;
    }
    Ok(())
}

/// `n_files` files of 1 to 64 KiB, a hundred a folder; their bytes together.
pub(crate) fn tree(dir: &Path, n_files: u64) -> Result<u64> {
    let (mut random, mut buffer) = (Seeded(2), vec![0; 64 << 10]);
    let mut total = 0;
    for number in 0..n_files {
        let folder = dir.join(format!("{:04}", number / 100));
        if number % 100 == 0 {
            fs::create_dir_all(&folder)?;
        }
        let len = 1024 + random.next() % (63 << 10);
        let bytes = buffer.split_at_mut(usize::try_from(len)?).0;
        random.fill(bytes);
        fs::write(folder.join(format!("file-{number:05}")), bytes)?;
        total += len;
    }
    Ok(total)
}

/// The raw CIDv1 of `data`.
pub(crate) fn raw_cid(data: &[u8]) -> String {
    let digest = Sha256::digest(data);
    let bytes = [0x01, 0x55, 0x12, 0x20].iter().copied().chain(digest);
    let (mut text, mut buffer, mut n_bits) = (String::from("b"), 0_u32, 0_u32);
    let mut push = |buffer: u32, shift: u32| {
        let index = (buffer >> shift) & 31;
        let letter = if index < 26 {
            u32::from('a') + index
        } else {
            u32::from('2') + index - 26
        };
        text.extend(char::from_u32(letter));
    };
    for byte in bytes {
        buffer = (buffer << 8) | u32::from(byte);
        n_bits += 8;
        while n_bits >= 5 {
            n_bits -= 5;
            push(buffer, n_bits);
        }
        buffer &= (1 << n_bits) - 1;
    }
    if n_bits > 0 {
        push(buffer << (5 - n_bits), 0);
    }
    text
}

/// The CIDs of the leaves of a file cut into blocks of `block_len`; `each` sees the blocks.
pub(crate) fn leaves(
    path: &Path,
    block_len: usize,
    mut each: impl FnMut(&str, &[u8]) -> Result,
) -> Result<Vec<String>> {
    let mut file = File::open(path)?;
    let mut block = vec![0; block_len];
    let mut cids = Vec::new();
    while file.read_exact(&mut block).is_ok() {
        let cid = raw_cid(&block);
        each(&cid, &block)?;
        cids.push(cid);
    }
    Ok(cids)
}

/// Rate and cost of sha256 alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound {
    /// Bytes a second on all cores.
    pub(crate) rate: f64,
    /// CPU seconds for 10^9 bytes.
    pub(crate) cpu_per_gb: f64,
}

/// Hashes 1 MiB blocks of memory on all cores, `n_bytes` on each; the best of three.
pub(crate) fn sha256_bound(n_bytes: u64) -> Result<Bound> {
    let n_threads = std::thread::available_parallelism()?.get();
    let mut data = vec![0; 64 << 20];
    Seeded(3).fill(&mut data);
    let mut best = Bound {
        rate: 0.0,
        cpu_per_gb: f64::MAX,
    };
    for _ in 0..3 {
        let (start, cpu) = (Instant::now(), cpu_seconds_here());
        std::thread::scope(|scope| {
            for _ in 0..n_threads {
                scope.spawn(|| {
                    let blocks = data.chunks(1 << 20).cycle().take((n_bytes >> 20) as usize);
                    for block in blocks {
                        std::hint::black_box(Sha256::digest(block));
                    }
                });
            }
        });
        let hashed = (n_bytes * n_threads as u64) as f64;
        best.rate = best.rate.max(hashed / start.elapsed().as_secs_f64());
        best.cpu_per_gb = best
            .cpu_per_gb
            .min((cpu_seconds_here() - cpu) / hashed * 1e9);
    }
    Ok(best)
}

/// GETs `path` and throws the body away; its length. A cut body is an error.
pub(crate) fn drain(url: &str, path: &str) -> Result<u64> {
    let address = url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut reader = BufReader::with_capacity(1 << 20, stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if !line.contains(" 200 ") {
        return Err(format!("{path}: {line}").into());
    }
    let (mut len, mut chunked) = (None, false);
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => len = Some(value.trim().parse()?),
            "transfer-encoding" => chunked = value.trim() == "chunked",
            _ => {}
        }
    }
    if !chunked {
        return skip(&mut reader, len.ok_or("neither a length nor chunks")?);
    }
    let mut total = 0;
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim(), 16).map_err(|_| "a cut body")?;
        if size == 0 {
            return Ok(total);
        }
        total += skip(&mut reader, size)?;
        skip(&mut reader, 2)?;
    }
}

fn skip(reader: &mut impl BufRead, len: u64) -> Result<u64> {
    let mut left = len;
    while left > 0 {
        let have = reader.fill_buf()?.len();
        if have == 0 {
            return Err("a cut body".into());
        }
        let part = left.min(have as u64);
        reader.consume(usize::try_from(part)?);
        left -= part;
    }
    Ok(len)
}

/// What wrk saw.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wrk {
    pub(crate) n_requests: f64,
    pub(crate) per_second: f64,
    pub(crate) p99_ms: f64,
    /// Answers of another status than 2xx and 3xx.
    pub(crate) n_refused: f64,
}

/// A list of paths for [`wrk`].
pub(crate) fn write_paths(file: &Path, paths: impl Iterator<Item = String>) -> Result<PathBuf> {
    let mut out = BufWriter::new(File::create(file)?);
    for path in paths {
        writeln!(out, "{path}")?;
    }
    out.flush()?;
    Ok(file.to_path_buf())
}

/// Asks for the paths of a list in turn, on `n_connections` at once.
pub(crate) fn wrk(
    program: &Path,
    url: &str,
    paths: &Path,
    n_connections: u32,
    seconds: u64,
) -> Result<Wrk> {
    let script = paths.with_extension("lua");
    let list = paths.to_str().ok_or("a path that is not text")?;
    fs::write(
        &script,
        format!(
            "local paths, at = {{}}, 0\n\
             -- Not before: wrk knows the Host header only now.\n\
             init = function()\n\
             for line in io.lines({list:?}) do paths[#paths + 1] = wrk.format('GET', line) end\n\
             end\n\
             request = function() at = at % #paths + 1 return paths[at] end\n"
        ),
    )?;
    let text = output(
        Command::new(program)
            .args(["-t1", "--latency", "--timeout", "30s"])
            .arg(format!("-c{n_connections}"))
            .arg(format!("-d{seconds}s"))
            .arg("-s")
            .arg(script)
            .arg(url),
    )?;
    parse_wrk(&text).ok_or_else(|| format!("what wrk printed has another form:\n{text}").into())
}

fn parse_wrk(text: &str) -> Option<Wrk> {
    let line = |mark: &str| text.lines().find(|line| line.contains(mark));
    let first = |line: &str| line.split_whitespace().next()?.parse().ok();
    let last = |line: &str| line.split_whitespace().last()?.parse().ok();
    let p99 = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("99%"))?
        .trim();
    let scale = [("us", 0.001), ("ms", 1.0), ("s", 1_000.0), ("m", 60_000.0)];
    let p99_ms = scale
        .iter()
        .find_map(|(unit, scale)| Some(p99.strip_suffix(unit)?.parse::<f64>().ok()? * scale))?;
    Some(Wrk {
        n_requests: first(line(" requests in ")?)?,
        per_second: last(line("Requests/sec:")?)?,
        p99_ms,
        n_refused: line("Non-2xx").and_then(last).unwrap_or(0.0),
    })
}

#[cfg(test)]
mod tests {
    use super::{parse_wrk, raw_cid};

    #[test]
    fn the_cid_of_no_bytes_is_the_known_one() {
        let known = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
        assert_eq!(raw_cid(b""), known);
    }

    #[test]
    fn the_figures_of_wrk_are_read() {
        let text = "  Latency Distribution\n     50%  249.00us\n     99%    1.31ms\n  \
                    59934 requests in 1.00s, 4.86MB read\n  Non-2xx or 3xx responses: 7\n\
                    Requests/sec:  59922.07\nTransfer/sec:      4.86MB\n";
        let wrk = parse_wrk(text).unwrap();
        assert_eq!((wrk.n_requests, wrk.per_second), (59_934.0, 59_922.07));
        assert_eq!((wrk.p99_ms, wrk.n_refused), (1.31, 7.0));
    }
}
