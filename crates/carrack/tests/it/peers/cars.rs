//! CARs written by carrack read by others, and theirs read by carrack.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::peers::kubo::Kubo;
use crate::peers::{program, read_car, run};
use crate::support::{Carrack, data, made};

/// A store with a tree that has small and large files and a sharded folder; its root.
fn with_tree() -> (Carrack, PathBuf, String) {
    let carrack = Carrack::new();
    let tree = carrack.path("tree");
    data::tree(&tree, 11, 120, 30_000);
    data::folder(&tree.join("many"), 6_000);
    data::file(&tree.join("large"), 12, (6 << 20) + 1);
    let root = carrack.add_one(&tree);
    (carrack, tree, root)
}

fn lines(text: &str, first_word: &str) -> Vec<String> {
    let rest = |line: &str| {
        line.strip_prefix(first_word)
            .map(|rest| rest.trim().to_owned())
    };
    text.lines().filter_map(rest).collect()
}

#[test]
fn exports_are_read_by_go_car_and_ipld_car_alike() {
    let (carrack, _, root) = with_tree();
    let car = carrack.export(&root, "out.car");
    let by_go = read_car("gocar", &car);
    assert_eq!(by_go, read_car("ipldcar", &car));
    assert_eq!(lines(&by_go, "root"), [root.as_str()]);
    assert!(
        lines(&by_go, "block")[0].starts_with(&root),
        "the root is not the first block"
    );
}

/// The blocks are kubo's own; kubo also writes repeated blocks once.
#[test]
fn exports_equal_those_of_kubo() {
    let (carrack, tree, root) = with_tree();
    let kubo = Kubo::new("unixfs-v1-2025");
    assert_eq!(kubo.add(&tree), root);
    let theirs = carrack.path("theirs.car");
    kubo.export(&root, &theirs);
    let ours = carrack.export(&root, "ours.car");
    let (ours, theirs) = (read_car("gocar", &ours), read_car("gocar", &theirs));
    assert_eq!(lines(&ours, "root"), lines(&theirs, "root"));
    let (mut ours, mut theirs) = (lines(&ours, "block"), lines(&theirs, "block"));
    ours.sort();
    ours.dedup();
    theirs.sort();
    theirs.dedup();
    assert_eq!(ours, theirs);
}

/// Imports `car` into a store of its own, compares root, file content and a fresh export.
fn imports_whole(car: &Path, root: &str, tree: &Path) {
    let carrack = Carrack::new();
    let outcome = carrack.run(&["import", "-Q", car.to_str().unwrap()]).ok();
    assert_eq!(outcome.words(), [root]);
    let large = carrack.run(&["cat", &format!("{root}/large")]).ok();
    assert_eq!(large.stdout, std::fs::read(tree.join("large")).unwrap());
    carrack.run(&["verify", root]).ok();
    let again = carrack.export(root, "again.car");
    let (mut ours, mut theirs) = (read_car("gocar", &again), read_car("gocar", car));
    for text in [&mut ours, &mut theirs] {
        let mut blocks = lines(text, "block");
        blocks.sort();
        blocks.dedup();
        *text = blocks.join("\n");
    }
    assert_eq!(ours, theirs);
}

#[test]
fn cars_written_by_go_car_are_imported_in_all_three_forms() {
    let (carrack, tree, root) = with_tree();
    let source = carrack.export(&root, "out.car");
    for kind in ["v1", "v2-sorted", "v2-multihash"] {
        let written = carrack.path(&format!("{kind}.car"));
        let mut command = Command::new(program("gocar"));
        command.args(["write", kind]).args([&source, &written]);
        run(command);
        imports_whole(&written, &root, &tree);
    }
}

#[test]
fn cars_written_by_ipld_car_are_imported() {
    let (carrack, tree, root) = with_tree();
    let source = carrack.export(&root, "out.car");
    let written = carrack.path("written.car");
    let mut command = Command::new(program("ipldcar"));
    command.arg("write").args([&source, &written]);
    run(command);
    imports_whole(&written, &root, &tree);
}

#[test]
fn cars_written_by_kubo_are_imported() {
    let (carrack, tree, root) = with_tree();
    let kubo = Kubo::new("unixfs-v1-2025");
    assert_eq!(kubo.add(&tree), root);
    let written = carrack.path("written.car");
    kubo.export(&root, &written);
    imports_whole(&written, &root, &tree);
}

/// kubo reads both codecs; what it sends of them is all there is.
#[test]
fn signed_and_git_objects_are_exported_as_kubo_does() {
    for blocks in [made::jose(), made::git()] {
        let carrack = Carrack::new();
        let car = carrack.path("made.car");
        std::fs::write(&car, made::car(&[&blocks[0].cid], &blocks)).unwrap();
        let import = ["import", "-Q", "--allow-legacy-hashes"];
        let args = [&import[..], &[car.to_str().unwrap()]].concat();
        let root = carrack.run(&args).ok().words().remove(0);
        let kubo = Kubo::new("unixfs-v1-2025");
        kubo.run_with(&["dag", "import", "--offline", "--pin-roots=false"], &car);
        let theirs = carrack.path("theirs.car");
        kubo.export(&root, &theirs);
        let ours = carrack.export(&root, "ours.car");
        let cids = |car: &Path| made::cids_of(&std::fs::read(car).unwrap());
        assert_eq!(cids(&ours).len(), blocks.len());
        assert_eq!(cids(&ours), cids(&theirs));
    }
}
