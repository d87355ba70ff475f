//! Roots equal to those that kubo computes, over sizes, shapes, names and both profiles.

use std::fs;
use std::path::Path;

use crate::peers::kubo::Kubo;
use crate::support::{Carrack, data};

const V1: &str = "unixfs-v1-2025";
const V0: &str = "unixfs-v0-2015";

/// Adds `path` by both with the same options and compares the roots.
fn same_root(kubo: &Kubo, carrack: &Carrack, path: &Path, profile: &str, chunker: Option<&str>) {
    let theirs: Vec<String> = chunker
        .iter()
        .map(|size| format!("--chunker={size}"))
        .collect();
    let theirs: Vec<&str> = theirs.iter().map(String::as_str).collect();
    let expected = kubo.cid_of(path, &theirs);
    let path_text = path.to_str().unwrap();
    let mut ours = vec!["--profile", profile];
    if let Some(chunker) = chunker {
        ours.extend(["--chunker", chunker]);
    }
    ours.push(path_text);
    assert_eq!(
        carrack.add(&ours),
        [expected],
        "{path_text} {profile} {chunker:?}"
    );
}

fn file_sizes_around(profile: &str, chunk: u64) {
    let (kubo, carrack) = (Kubo::new(profile), Carrack::new());
    for len in [0, 1, chunk - 1, chunk, chunk + 1, 2 * chunk, 3 * chunk + 5] {
        let path = carrack.path(&format!("file-{len}"));
        data::file(&path, len, len);
        same_root(&kubo, &carrack, &path, profile, None);
    }
}

#[test]
fn files_around_one_chunk_v1() {
    file_sizes_around(V1, 1 << 20);
}

#[test]
fn files_around_one_chunk_v0() {
    file_sizes_around(V0, 256 << 10);
}

/// Numbers of leaves at which the tree changes its shape: a full node, one more, a full level.
fn leaf_counts_around(profile: &str, width: u64, chunk: u64) {
    let (kubo, carrack) = (Kubo::new(profile), Carrack::new());
    let chunker = format!("size-{chunk}");
    let full = width * width;
    for n_leaves in [width - 1, width, width + 1, 2 * width + 1, full, full + 1] {
        let path = carrack.path(&format!("leaves-{n_leaves}"));
        data::file(&path, n_leaves, n_leaves * chunk - chunk / 2);
        same_root(&kubo, &carrack, &path, profile, Some(&chunker));
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn trees_of_one_two_and_three_levels_v0() {
    leaf_counts_around(V0, 174, 256);
}

#[test]
fn trees_of_one_two_and_three_levels_v1() {
    leaf_counts_around(V1, 1024, 32);
}

#[test]
fn a_sparse_file_of_many_equal_blocks() {
    for profile in [V1, V0] {
        let (kubo, carrack) = (Kubo::new(profile), Carrack::new());
        let path = carrack.path("zeros");
        data::sparse(&path, (300 << 20) + 7);
        same_root(&kubo, &carrack, &path, profile, None);
    }
}

fn folders_of(profile: &str, counts: &[u64]) {
    let (kubo, carrack) = (Kubo::new(profile), Carrack::new());
    for &n_entries in counts {
        let path = carrack.path(&format!("folder-{n_entries}"));
        data::folder(&path, n_entries);
        same_root(&kubo, &carrack, &path, profile, None);
    }
}

#[test]
fn folders_up_to_twenty_thousand_entries_v1() {
    folders_of(V1, &[0, 1, 1_000, 5_000, 6_000, 20_000]);
}

#[test]
fn folders_up_to_twenty_thousand_entries_v0() {
    folders_of(V0, &[0, 1, 1_000, 5_000, 6_000, 20_000]);
}

#[test]
fn a_folder_of_a_hundred_thousand_entries_v1() {
    folders_of(V1, &[100_000]);
}

#[test]
fn a_folder_of_a_hundred_thousand_entries_v0() {
    folders_of(V0, &[100_000]);
}

/// Sharding starts at an estimated size of 256 KiB, which the old profile takes from names and
/// CIDs, the new one from the encoded block.
#[test]
fn folders_around_the_size_at_which_they_are_sharded() {
    for (profile, overhead) in [(V1, 46), (V0, 34)] {
        let (kubo, carrack) = (Kubo::new(profile), Carrack::new());
        for name_len in [57, 200_usize] {
            let long_name = usize::from(profile == V1 && name_len > 127) * 3;
            let border = 262_144 / (name_len + overhead + long_name);
            for n_entries in [border - 2, border - 1, border, border + 1, border + 2] {
                let path = carrack.path(&format!("border-{name_len}-{n_entries}"));
                fs::create_dir_all(&path).unwrap();
                for number in 0..n_entries {
                    fs::write(path.join(format!("{number:0name_len$}")), b"same").unwrap();
                }
                same_root(&kubo, &carrack, &path, profile, None);
                fs::remove_dir_all(path).unwrap();
            }
        }
    }
}

/// Names in several scripts, of one byte and of 255, and such that sort differently by bytes.
#[test]
fn names_in_every_script_links_and_nesting() {
    let names = [
        "a",
        "B",
        "Z",
        "z",
        "~",
        " ",
        "a b",
        "ä",
        "a\u{308}",
        "žluťoučký kůň",
        "日本語",
        "한국어",
        "עברית",
        "العربية",
        "ไทย",
        "हिन्दी",
        "🚢📦",
        "Ελληνικά",
        "кириллица",
        "%41",
        "a+b&c=d?e#f",
        "quote\"'`",
        "back\\slash",
        "new\nline",
        "tab\there",
        "-",
        "--help",
        "con.txt",
        "𠜎",
        "\u{202e}rtl",
        "\u{1}",
        "ﬁ",
        "İ",
        "ß",
    ];
    for profile in [V1, V0] {
        let (kubo, carrack) = (Kubo::new(profile), Carrack::new());
        let top = carrack.path("names");
        let mut dir = top.clone();
        for name in names {
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(name), name).unwrap();
            dir.push(format!("dir {name}"));
        }
        fs::create_dir_all(&dir).unwrap();
        fs::write(top.join("x".repeat(255)), b"long").unwrap();
        std::os::unix::fs::symlink("a", top.join("link")).unwrap();
        std::os::unix::fs::symlink("nowhere/at all", top.join("broken link")).unwrap();
        std::os::unix::fs::symlink("../..", top.join("loop")).unwrap();
        same_root(&kubo, &carrack, &top, profile, None);
    }
}

#[test]
fn a_tree_of_files_of_many_sizes() {
    for profile in [V1, V0] {
        let (kubo, carrack) = (Kubo::new(profile), Carrack::new());
        let top = carrack.path("tree");
        data::tree(&top, 7, 700, 40_000);
        data::file(&top.join("large"), 8, (5 << 20) + 3);
        same_root(&kubo, &carrack, &top, profile, None);
    }
}

/// One command with many paths prints their roots in order; `--wrap` makes a folder of them.
#[test]
fn several_paths_and_wrap() {
    let (kubo, carrack) = (Kubo::new(V1), Carrack::new());
    let paths = ["one", "two", "three"].map(|name| carrack.path(name));
    for (seed, path) in (0_u64..).zip(&paths) {
        data::file(path, seed, 10_000);
    }
    let expected: Vec<String> = paths.iter().map(|path| kubo.cid_of(path, &[])).collect();
    assert_eq!(carrack.add(&paths), expected);
    let folder = carrack.path("folder");
    fs::create_dir(&folder).unwrap();
    for path in &paths {
        fs::copy(path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let [one, two, three] = paths.each_ref().map(|path| path.to_str().unwrap());
    assert_eq!(
        carrack.add(&["--wrap", one, two, three]),
        [kubo.cid_of(&folder, &[])]
    );
}
