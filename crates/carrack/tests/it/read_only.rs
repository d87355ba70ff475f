//! Stores that cannot be written: on a read-only mount, of another user, with a catalog that was
//! not closed, or in use.
//!
//! In       stores that were made as usual.
//! Out      what only reads works, and not a byte changes; what writes says why it does not.
//! Not here full disks (`disk_full`).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::support::mount::Mount;
use crate::support::{Carrack, binary, data, finish};

const UNAVAILABLE: i32 = 8;
/// Of a user that owns nothing.
const NOBODY: u32 = 65534;

/// A store, and its root.
fn filled(carrack: &Carrack) -> String {
    let tree = carrack.path("tree");
    data::tree(&tree, 21, 60, 20_000);
    data::file(&tree.join("large"), 22, 3 << 20);
    carrack.add_one(&tree)
}

/// Everything that only reads; `run` runs a command on the store.
fn reads(root: &str, out: &Path, mut run: impl FnMut(&[&str])) {
    let car = out.join("out.car");
    let large = format!("{root}/large");
    run(&["ls"]);
    run(&["ls", root]);
    run(&["cat", &large]);
    run(&["export", root, "-o", car.to_str().unwrap()]);
    run(&["status"]);
    run(&["verify"]);
    run(&["index", "status"]);
    run(&["index", "verify"]);
    run(&["source", "list"]);
}

#[test]
fn a_store_on_a_read_only_mount_can_be_read() {
    let carrack = Carrack::new();
    let root = filled(&carrack);
    for unclean in [false, true] {
        if unclean {
            // Killed: redb has to repair its file, which it cannot write.
            let server = carrack.serve::<&str>(&[]);
            data::tree(&carrack.path("more"), 23, 10, 1_000);
            carrack.add_one(&carrack.path("more"));
            server.kill();
        }
        let before = fs::read(carrack.path("data/catalog.redb")).unwrap();
        let mount = Mount::read_only(&carrack.path("data"));
        let reader = Carrack::at(mount.path());
        reads(&root, carrack.dir(), |args| {
            let outcome = reader.run(args);
            assert_eq!(
                outcome.code(),
                0,
                "{args:?}, unclean: {unclean}: {}",
                outcome.stderr
            );
            assert_eq!(
                outcome
                    .stderr
                    .lines()
                    .filter(|line| line.contains("ERROR"))
                    .count(),
                0
            );
        });
        let tree = carrack.path("tree");
        let refused = reader
            .run(&["add", tree.to_str().unwrap()])
            .exits(UNAVAILABLE);
        assert!(refused.stderr.contains("Read-only"), "{}", refused.stderr);
        reader.run(&["rm", &root]).exits(UNAVAILABLE);
        assert!(fs::read(carrack.path("data/catalog.redb")).unwrap() == before);
    }
}

/// What is found out of service cannot be written down, and that is no error.
#[test]
fn a_changed_file_is_told_of_where_nothing_can_be_written() {
    let carrack = Carrack::new();
    let root = filled(&carrack);
    fs::write(
        carrack.path("tree/large"),
        data::Seeded::new(9).bytes(3 << 20),
    )
    .unwrap();
    let mount = Mount::read_only(&carrack.path("data"));
    let reader = Carrack::at(mount.path());
    let outcome = reader.run(&["cat", &format!("{root}/large")]).exits(7);
    assert!(!outcome.stderr.contains("WARN"), "{}", outcome.stderr);
    assert!(reader.run(&["status"]).ok().text().contains("large"));
}

#[test]
fn a_store_that_was_copied_without_its_lock_can_be_read_where_it_is() {
    let carrack = Carrack::new();
    let root = filled(&carrack);
    fs::remove_file(carrack.path("data/lock")).unwrap();
    let mount = Mount::read_only(&carrack.path("data"));
    Carrack::at(mount.path()).run(&["verify", &root]).ok();
    drop(mount);
    carrack.add_one(&carrack.path("tree"));
}

/// The owner's process is found through the mount, too.
#[test]
fn a_store_that_is_in_use_is_read_by_the_process_that_uses_it() {
    let carrack = Carrack::new();
    let root = filled(&carrack);
    let mount = Mount::read_only(&carrack.path("data"));
    let _server = carrack.serve::<&str>(&[]);
    let reader = Carrack::at(mount.path());
    reads(&root, carrack.dir(), |args| drop(reader.run(args).ok()));
}

#[test]
fn a_folder_without_a_store_that_cannot_be_written_is_no_store() {
    let carrack = Carrack::new();
    fs::create_dir(carrack.path("data")).unwrap();
    let mount = Mount::read_only(&carrack.path("data"));
    let refused = Carrack::at(mount.path()).run(&["ls"]).exits(3);
    assert!(refused.stderr.contains("no store"), "{}", refused.stderr);
}

#[test]
fn a_store_of_another_user_can_be_read() {
    let carrack = Carrack::new();
    let root = filled(&carrack);
    // Whoever is let in by its modes.
    let status = Command::new("chmod")
        .args(["-R", "a+rX"])
        .arg(carrack.dir())
        .status();
    assert!(status.unwrap().success());
    let out = tempfile::TempDir::new().unwrap();
    fs::set_permissions(out.path(), fs::Permissions::from_mode(0o777)).unwrap();
    // The build's folder may be closed to others.
    let program = out.path().join("carrack");
    fs::copy(binary(), &program).unwrap();
    reads(&root, out.path(), |args| {
        let mut command = Command::new(&program);
        command
            .args(args)
            .env("CARRACK_DATA_DIR", carrack.path("data"));
        command.current_dir("/").uid(NOBODY).gid(NOBODY);
        let outcome = finish(command);
        assert_eq!(outcome.code(), 0, "{args:?}: {}", outcome.stderr);
    });
}
