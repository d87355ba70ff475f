//! Places that are no tidy bucket: odd keys, objects that go while they are listed, a web server's
//! own listing.
//!
//! In       moto for keys that no file can have, versitygw, nginx.
//! Out      tests of what is added of them.
//! Not here parsers of listings (their unit tests), web servers with TLS (`web`).

use std::fs;

use carrack_testkit::s3::target_of;
use carrack_testkit::{Conduct, Fault};

use super::s3_fetch::{LITTLE_MEMORY, mixed};
use super::web::Plain;
use crate::support::s3::Bucket;
use crate::support::{Carrack, data};

#[test]
fn keys_with_spaces_and_unicode_are_names_in_the_dag() {
    let bucket = Bucket::new();
    let carrack = Carrack::reaching(&bucket);
    let tree = carrack.path("tree");
    let names = ["a b", "ü", "%41", "a+b", "x&y=z", "'quoted\"", "日本/語 #?"];
    for (number, name) in names.into_iter().enumerate() {
        let path = tree.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("content {number}")).unwrap();
    }
    bucket.put_tree("set/", &tree);
    let root = carrack.add(&[Bucket::url("set/")]);
    assert_eq!(root, [Carrack::new().add_one(&tree)]);
}

/// `//`, `.` and `..` name nothing in a directory. Whatever becomes of them, the other objects are
/// there, nothing is outside of the root, and nothing is taken for another.
#[test]
fn keys_that_are_no_paths_do_not_hide_the_others() {
    let bucket = Bucket::moto();
    let carrack = Carrack::reaching(&bucket);
    for key in ["a//b", "a/../b", "./a", "..", "a/b/", "good", "a/good too"] {
        bucket.put(&format!("set/{key}"), key.as_bytes());
    }
    let outcome = carrack.run(&["add", "-Q", &Bucket::url("set/")]);
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    for key in ["a//b", "a/../b"] {
        assert!(
            outcome.stderr.contains(key),
            "no word of {key}: {outcome:?}"
        );
    }
    let root = outcome.words().remove(0);
    let good = carrack.run(&["cat", &format!("{root}/good")]).ok();
    assert_eq!(good.stdout, b"good");
    let good = carrack.run(&["cat", &format!("{root}/a/good too")]).ok();
    assert_eq!(good.stdout, b"a/good too");
}

#[test]
fn an_object_that_goes_while_it_is_listed_is_named() {
    let bucket = Bucket::new();
    let carrack = Carrack::reaching(&bucket);
    for name in ["a", "gone", "z"] {
        bucket.put(&format!("set/{name}"), name.as_bytes());
    }
    let gone = Fault::Status {
        code: 404,
        retry_after: None,
    };
    let target = target_of("set/gone");
    bucket.proxy.set_below(&target, Conduct::always(gone));
    let outcome = carrack.run(&["add", "-Q", &Bucket::url("set/")]);
    assert!(outcome.stderr.contains("gone"), "{outcome:?}");
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    bucket.proxy.clear();
    assert_eq!(carrack.add(&[Bucket::url("set/")]).len(), 1);
}

#[test]
fn more_objects_than_a_page_of_the_listing_are_all_there() {
    let bucket = Bucket::new();
    let carrack = Carrack::reaching(&bucket);
    let tree = carrack.path("tree");
    data::folder(&tree, 2_300);
    bucket.put_tree("set/", &tree);
    let root = carrack.add(&[Bucket::url("set/")]);
    assert_eq!(root, [Carrack::new().add_one(&tree)]);
}

#[test]
fn a_web_server_with_its_listing_is_added_and_served() {
    let carrack = Carrack::new();
    let tree = carrack.path("files");
    mixed(&tree, 66, 6 << 20);
    let nginx = Plain::new(&carrack.path("nginx"), &tree);
    let local = Carrack::new();
    let root = local.add_one(&tree);
    assert_eq!(
        carrack.add(&[format!("{}/", nginx.proxy.url())]),
        [root.as_str()]
    );
    let lens = data::contents(&tree)
        .into_values()
        .map(|it| it.len() as u64);
    let len: u64 = lens.sum();
    let server = carrack.serve::<&str>(&[]);
    nginx.proxy.reset_counts();
    let car = server.get(&format!("/ipfs/{root}?format=car")).ok();
    let expected = fs::read(local.export(&root, "local.car")).unwrap();
    assert!(car.body == expected);
    let read = nginx.proxy.counts().body_bytes;
    assert!(read <= len * 21 / 20, "{read} bytes were read for {len}");
    // A file that is edited is not served as what it was, once memory has forgotten that.
    drop(server);
    let server = carrack.serve(&LITTLE_MEMORY);
    data::file(&tree.join("half"), 67, (3 << 20) + 12_345);
    let car = server.get(&format!("/ipfs/{root}?format=car"));
    assert!(car.status != 200 || !car.whole, "served what is gone");
    assert!(expected.starts_with(&car.body) || car.status != 200);
}

/// One file of a web server, its range support lost meanwhile.
#[test]
fn a_web_server_that_lost_its_ranges_gives_right_bytes_or_an_error() {
    let carrack = Carrack::new();
    let files = carrack.path("files");
    fs::create_dir_all(&files).unwrap();
    data::file(&files.join("object"), 68, 5 << 20);
    let nginx = Plain::new(&carrack.path("nginx"), &files);
    let root = carrack
        .add(&[format!("{}/object", nginx.proxy.url())])
        .remove(0);
    let expected = fs::read(carrack.export(&root, "calm.car")).unwrap();
    nginx.proxy.set(Conduct::always(Fault::IgnoreRange));
    let server = carrack.serve::<&str>(&[]);
    let car = server.get(&format!("/ipfs/{root}?format=car"));
    if car.status == 200 {
        assert!(expected.starts_with(&car.body), "wrong bytes");
        assert!(!car.whole || car.body == expected);
    }
}
