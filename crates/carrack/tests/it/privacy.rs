//! What other users of the machine can see and do: nothing.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::mount::Mount;
use crate::support::{Carrack, binary, data, finish};

/// A user who is nobody here.
const STRANGER: u32 = 65_534;

/// What lies below a directory, itself included, with its mode.
fn modes(dir: &Path) -> Vec<(String, u32)> {
    let mut found = vec![(dir.display().to_string(), mode(dir))];
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match std::fs::symlink_metadata(&path).unwrap().is_dir() {
            true => found.extend(modes(&path)),
            false => found.push((path.display().to_string(), mode(&path))),
        }
    }
    found
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o777
}

/// Packs hold uploads, the catalog names of files, the identity a key: none of it is for others,
/// whatever the mask of whoever started the program.
#[test]
fn the_data_directory_is_its_owners_alone() {
    let carrack = Carrack::new();
    let tree = carrack.path("tree");
    data::tree(&tree, 1, 20, 5_000);
    let mut add = carrack.command(&["add", tree.to_str().unwrap()]);
    // A shell whose mask hides nothing.
    let loose = |command: &mut Command| {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "umask 0; exec \"$0\" \"$@\""]);
        shell.arg(command.get_program()).args(command.get_args());
        shell.envs(
            command
                .get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        );
        shell
    };
    finish(loose(&mut add)).ok();
    let server = carrack.serve_peers::<&str>(&[]);
    let dir = carrack.path("data");
    let found = modes(&dir);
    assert!(found.iter().any(|(name, _)| name.ends_with("identity.key")));
    let socket = std::fs::symlink_metadata(dir.join("control.sock")).unwrap();
    assert!(socket.file_type().is_socket());
    let open: Vec<_> = found.iter().filter(|(_, mode)| mode & 0o077 != 0).collect();
    assert!(open.is_empty(), "{open:#?}");
    drop(server);
}

/// The socket of a running node, made reachable by hand: it asks who is there.
#[test]
fn another_user_gets_no_command_carried_out() {
    let uid = rustix::process::geteuid();
    assert!(
        uid.is_root(),
        "this test becomes another user: run it as root"
    );
    let carrack = Carrack::new();
    let path = carrack.path("file");
    data::file(&path, 1, 5_000);
    let root = carrack.add_one(&path);
    let server = carrack.serve::<&str>(&[]);
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let dir = carrack.path("data");
    open(carrack.dir(), 0o755);
    open(&dir, 0o755);
    open(&dir.join("control.sock"), 0o666);
    open(&dir.join("lock"), 0o666);
    open(&dir.join("format"), 0o644);
    // Somewhere that a stranger can run it from.
    let program = carrack.path("carrack");
    std::fs::copy(binary(), &program).unwrap();
    open(&program, 0o755);
    let as_stranger = |args: &[&str]| {
        let mut command = Command::new(&program);
        command
            .args(args)
            .env("CARRACK_DATA_DIR", &dir)
            .current_dir("/")
            .stdin(Stdio::null())
            .uid(STRANGER)
            .gid(STRANGER);
        finish(command)
    };
    let refused = as_stranger(&["rm", &root]);
    assert_ne!(refused.code(), 0, "{}", refused.stderr);
    let still: Vec<_> = carrack.run(&["ls", "--json"]).ok().json();
    assert_eq!(still.len(), 1);
    drop(server);
}

/// A process of another user that took the place of the node hears nothing of a client's keys.
#[test]
fn keys_are_not_handed_to_whoever_listens() {
    let uid = rustix::process::geteuid();
    assert!(
        uid.is_root(),
        "this test becomes another user: run it as root"
    );
    let carrack = Carrack::new();
    let dir = carrack.path("data");
    carrack.run(&["status"]).ok();
    // It holds the lock, as a node does, and writes down what it is told.
    let heard = carrack.path("heard");
    std::fs::write(&heard, b"").unwrap();
    for path in [carrack.dir(), &dir] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    for path in [&heard, &dir.join("lock")] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).unwrap();
    }
    let listener = "use Socket; use Fcntl ':flock'; use POSIX;\n\
                    $| = 1; POSIX::setgid(65534); POSIX::setuid(65534);\n\
                    open(my $lock, '+<', \"$ARGV[0]/lock\") or die; flock($lock, LOCK_EX) or die;\n\
                    socket(my $s, AF_UNIX, SOCK_STREAM, 0) or die;\n\
                    bind($s, sockaddr_un(\"$ARGV[0]/control.sock\")) or die;\n\
                    listen($s, 1) or die;\n\
                    print \"ready\\n\"; accept(my $c, $s) or die;\n\
                    alarm 5; sysread($c, my $told, 1 << 20);\n\
                    open(my $out, '>', $ARGV[1]) or die; print $out $told; close $out;\n";
    let mut thief = Command::new("perl")
        .args(["-e", listener])
        .args([&dir, &heard])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    let mut out = std::io::BufReader::new(thief.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut out, &mut ready).unwrap();
    assert_eq!(ready, "ready\n");
    let mut command = carrack.command(&["source", "add", "s3://bucket/x"]);
    command.env("AWS_SECRET_ACCESS_KEY", "planted-secret");
    let refused = finish(command);
    let _ = thief.kill();
    thief.wait().unwrap();
    assert_eq!(refused.code(), 8, "{}", refused.stderr);
    assert!(refused.stderr.contains("user 65534"), "{}", refused.stderr);
    let heard = std::fs::read(&heard).unwrap();
    let heard = String::from_utf8_lossy(&heard);
    assert!(!heard.contains("planted-secret"), "{heard}");
}

/// A bind mount of its parent, a hard link of its key: other paths to the same files.
#[test]
fn the_data_directory_is_left_out_under_whatever_path_it_is_met() {
    let carrack = Carrack::new();
    let tree = carrack.path("tree");
    data::tree(&tree, 61, 5, 2_000);
    carrack.run(&["id"]).ok();
    carrack.add_one(&tree);
    let key = std::fs::read(carrack.path("data/identity.key")).unwrap();
    std::fs::hard_link(carrack.path("data/identity.key"), tree.join("link")).unwrap();
    let alias = Mount::alias(carrack.dir());
    let has_key = |bytes: &[u8]| bytes.windows(key.len()).any(|window| window == key);
    for place in [alias.path(), tree.as_path()] {
        let added = carrack.run(&["add", "-Q", place.to_str().unwrap()]).ok();
        assert!(added.stderr.contains("carrack's own"), "{}", added.stderr);
        let car = carrack.export(&added.words()[0], "alias.car");
        assert!(!has_key(&std::fs::read(car).unwrap()), "{place:?}");
        std::fs::remove_file(carrack.path("alias.car")).unwrap();
    }
    for place in ["data", "data/packs", "data/identity.key", "tree/link"] {
        let place = alias.path().join(place);
        let refused = carrack.run(&["add", place.to_str().unwrap()]).exits(2);
        assert!(
            refused.stderr.contains("carrack's own"),
            "{}",
            refused.stderr
        );
    }
}
