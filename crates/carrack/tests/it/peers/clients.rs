//! The README's first promise: curl, lassie and kubo take what `carrack serve` offers, unchanged.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::peers::kubo::Kubo;
use crate::peers::{program, read_car, run};
use crate::support::{Carrack, Server, data};

struct Served {
    carrack: Carrack,
    server: Server,
    tree: PathBuf,
    root: String,
}

fn served() -> Served {
    let carrack = Carrack::new();
    let tree = carrack.path("tree");
    data::tree(&tree, 21, 150, 50_000);
    data::folder(&tree.join("many"), 6_000);
    data::file(&tree.join("large"), 22, (7 << 20) + 9);
    let root = carrack.add_one(&tree);
    let server = carrack.serve::<&str>(&[]);
    Served {
        carrack,
        server,
        tree,
        root,
    }
}

fn curl(url: &str, to: &Path) {
    let mut command = Command::new(program("curl"));
    command
        .args(["--silent", "--show-error", "--fail", "--output"])
        .arg(to)
        .arg(url);
    run(command);
}

/// Imports `car` into a fresh kubo and compares every file with the tree.
fn kubo_gets_the_tree(car: &Path, root: &str, tree: &Path, to: &Path) {
    let kubo = Kubo::new("unixfs-v1-2025");
    let imported = kubo.run_with(&["dag", "import", "--offline", "--stats=false"], car);
    assert!(imported.contains(root), "{imported}");
    kubo.get(root, to);
    assert_eq!(data::contents(to), data::contents(tree));
}

#[test]
fn kubo_imports_the_car_that_curl_fetched() {
    let Served {
        carrack,
        server,
        tree,
        root,
    } = served();
    let car = carrack.path("curl.car");
    curl(&format!("{}/ipfs/{root}?format=car", server.url), &car);
    kubo_gets_the_tree(&car, &root, &tree, &carrack.path("got"));
}

#[test]
fn lassie_fetches_the_tree() {
    let Served {
        carrack,
        server,
        tree,
        root,
    } = served();
    let car = carrack.path("lassie.car");
    let mut command = Command::new(program("lassie"));
    command
        .args(["fetch", "--providers", &server.url, "--output"])
        .arg(&car)
        .arg(&root);
    command.env("HOME", carrack.dir());
    run(command);
    kubo_gets_the_tree(&car, &root, &tree, &carrack.path("got"));
}

#[test]
fn lassie_fetches_one_file_by_path() {
    let Served {
        carrack,
        server,
        tree,
        root,
    } = served();
    let car = carrack.path("lassie.car");
    let mut command = Command::new(program("lassie"));
    command.args([
        "fetch",
        "--providers",
        &server.url,
        "--dag-scope",
        "entity",
        "--output",
    ]);
    command
        .arg(&car)
        .arg(format!("{root}/large"))
        .env("HOME", carrack.dir());
    run(command);
    let mirror = Carrack::new();
    mirror.run(&["import", car.to_str().unwrap()]).ok();
    let got = mirror.run(&["cat", &format!("{root}/large")]).ok();
    assert_eq!(got.stdout, std::fs::read(tree.join("large")).unwrap());
}

/// What is served and what is exported are the same CAR, and curl's `--head` tells no other length.
#[test]
fn curl_gets_the_same_car_as_an_export() {
    let Served {
        carrack,
        server,
        root,
        ..
    } = served();
    let car = carrack.path("curl.car");
    curl(&format!("{}/ipfs/{root}?format=car", server.url), &car);
    let exported = carrack.export(&root, "export.car");
    assert_eq!(read_car("gocar", &car), read_car("gocar", &exported));
}

#[test]
fn http2_with_prior_knowledge_serves_the_same_car() {
    let Served {
        carrack,
        server,
        root,
        ..
    } = served();
    let [one, two] = ["one.car", "two.car"].map(|name| carrack.path(name));
    let url = format!("{}/ipfs/{root}?format=car", server.url);
    curl(&url, &one);
    let mut command = Command::new(program("curl"));
    command.args([
        "--silent",
        "--show-error",
        "--fail",
        "--http2-prior-knowledge",
        "--output",
    ]);
    command.arg(&two).arg(url);
    run(command);
    assert_eq!(std::fs::read(one).unwrap(), std::fs::read(two).unwrap());
}
