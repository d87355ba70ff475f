//! Files and trees from a seed.
//!
//! In       a seed and a size.
//! Out      the same bytes each time.
//! Not here DAGs and CARs made by hand: the format crate's tests have those.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;

/// A stream of numbers that a seed decides (SplitMix64).
#[derive(Debug, Clone)]
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

    /// A number from `low` to `high`, both included.
    pub(crate) const fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// Writes a file of `len` bytes.
pub(crate) fn file(path: &Path, seed: u64, len: u64) {
    let mut out = BufWriter::new(fs::File::create(path).unwrap());
    let mut random = Seeded::new(seed);
    let mut left = len;
    while left > 0 {
        let part = left.min(1 << 20);
        out.write_all(&random.bytes(usize::try_from(part).unwrap()))
            .unwrap();
        left -= part;
    }
    out.flush().unwrap();
}

/// A file of zeros that takes no space.
pub(crate) fn sparse(path: &Path, len: u64) {
    fs::File::create(path).unwrap().set_len(len).unwrap();
}

/// A tree of `n_files` files of up to `len_max` bytes, 100 a folder, two levels deep.
pub(crate) fn tree(dir: &Path, seed: u64, n_files: u64, len_max: u64) {
    let mut random = Seeded::new(seed);
    for number in 0..n_files {
        let folder = dir
            .join(format!("part {}", number / 100))
            .join(format!("{}", number % 7));
        fs::create_dir_all(&folder).unwrap();
        let len = random.between(0, len_max);
        let bytes = random.bytes(usize::try_from(len).unwrap());
        fs::write(folder.join(format!("file-{number}.bin")), bytes).unwrap();
    }
}

/// One folder with `n_files` files of a few bytes.
pub(crate) fn folder(dir: &Path, n_files: u64) {
    fs::create_dir_all(dir).unwrap();
    for number in 0..n_files {
        fs::write(
            dir.join(format!("entry-{number:06}")),
            format!("{number}\n"),
        )
        .unwrap();
    }
}

/// Every regular file below `dir` with its content; symbolic links with their target.
pub(crate) fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let name = path
                .strip_prefix(dir)
                .unwrap()
                .to_string_lossy()
                .into_owned();
            if path.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                found.insert(name, target.into_os_string().into_encoded_bytes());
            } else if path.is_dir() {
                open.push(path);
            } else {
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}
