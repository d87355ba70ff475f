//! What is watched changes, goes, comes back, or is something else now.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use super::{How, Name, SUPERSEDED_MAX, Spot, Watched, watch};
use crate::error::Result;
use crate::ingest::rescan::Rescanned;
use crate::ingest::tests::{Fixture, car, import_options, options, raw};

#[test]
fn a_folder_that_changes_becomes_new_roots_and_old_ones_go() {
    let fixture = Fixture::new();
    fixture.write("d/a", b"first");
    let dir = fixture.path("d");
    fixture.add(&[&dir]);
    let (interval, stop) = (Duration::from_secs(300), AtomicBool::new(false));
    let own = fixture.store().dir().to_owned();
    let watched = Watched::new(
        Spot::Here(Name::new(&dir).unwrap()),
        How::Add(options()),
        &own,
        interval,
    );
    assert!(watched.kernel.is_some());
    let (sender, receiver) = sync_channel(64);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut told = |done| drop(sender.send(done));
            watch(&mut [watched], &fixture.blocks, interval, &stop, &mut told);
        });
        for n in 0..SUPERSEDED_MAX + 3 {
            fixture.write("d/a", format!("version {n}").as_bytes());
            let done = receiver
                .recv_timeout(Duration::from_secs(60))
                .unwrap()
                .unwrap();
            assert_eq!((done.changes.changed, done.report.roots.len()), (1, 1));
        }
        std::fs::remove_dir_all(&dir).unwrap();
        let trouble = receiver.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(trouble.is_err());
        stop.store(true, Ordering::Relaxed);
    });
    // The one that was added, the newest, and those before it.
    assert_eq!(fixture.n_roots(), 1 + 1 + SUPERSEDED_MAX);
}

/// A place that is watched while `body` runs.
struct Watching<'a> {
    fixture: &'a Fixture,
    told: std::sync::mpsc::Receiver<Result<Rescanned>>,
}

fn while_watching(fixture: &Fixture, path: &Path, how: How, body: impl FnOnce(&Watching<'_>)) {
    while_watching_each(Duration::from_secs(300), fixture, path, how, body);
}

fn while_watching_each(
    interval: Duration,
    fixture: &Fixture,
    path: &Path,
    how: How,
    body: impl FnOnce(&Watching<'_>),
) {
    let stop = AtomicBool::new(false);
    let own = fixture.store().dir().to_owned();
    let watched = place_of(path, how, &own, interval);
    let (sender, told) = sync_channel(64);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut told = |done| drop(sender.send(done));
            watch(&mut [watched], &fixture.blocks, interval, &stop, &mut told);
        });
        let stops = Stops(&stop); // However the body ends.
        body(&Watching { fixture, told });
        drop(stops);
    });
}

fn place_of(path: &Path, how: How, own: &Path, interval: Duration) -> Watched {
    let name = Name::new(path).unwrap();
    Watched::new(Spot::Here(name), how, own, interval)
}

struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Watching<'_> {
    /// Waits until the bytes are there, whatever is told before.
    fn sees(&self, data: &[u8]) {
        let end = Instant::now() + Duration::from_secs(20);
        while !self.fixture.has(&raw(data)) {
            assert!(
                Instant::now() < end,
                "{:?} is not seen",
                str::from_utf8(data)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The next trouble.
    fn fails(&self) -> String {
        loop {
            let told = self.told.recv_timeout(Duration::from_secs(20));
            if let Err(error) = told.expect("no trouble was told") {
                return error.chain();
            }
        }
    }
}

fn adds() -> How {
    How::Add(options())
}

#[test]
fn a_folder_that_was_deleted_and_made_again_is_watched_again() {
    let fixture = Fixture::new();
    let dir = fixture.path("d");
    fixture.write("d/a", b"first");
    fixture.add(&[&dir]);
    while_watching(&fixture, &dir, adds(), |watching| {
        for n in 0..3 {
            std::fs::remove_dir_all(&dir).unwrap();
            let made = format!("made again {n}");
            fixture.write("d/a", made.as_bytes());
            watching.sees(made.as_bytes());
            let changed = format!("and changed {n}");
            fixture.write("d/sub/b", changed.as_bytes());
            watching.sees(changed.as_bytes());
        }
        std::fs::remove_dir_all(&dir).unwrap();
        watching.fails();
        fixture.write("d/a", b"back after a while");
        watching.sees(b"back after a while");
    });
}

#[test]
fn a_file_that_is_replaced_by_renames_is_watched_on() {
    let fixture = Fixture::new();
    let file = fixture.write("f", b"version 0");
    fixture.add(&[&file]);
    while_watching(&fixture, &file, adds(), |watching| {
        for n in 1..4 {
            let data = format!("version {n}");
            let next = fixture.write("next", data.as_bytes());
            std::fs::rename(next, &file).unwrap();
            watching.sees(data.as_bytes());
        }
        std::fs::write(&file, b"in place").unwrap();
        watching.sees(b"in place");
    });
}

#[test]
fn two_renames_that_swap_the_folder_are_seen() {
    let fixture = Fixture::new();
    let (dir, other) = (fixture.path("d"), fixture.path("other"));
    fixture.write("d/a", b"first");
    fixture.write("other/a", b"second");
    fixture.add(&[&dir]);
    while_watching(&fixture, &dir, adds(), |watching| {
        std::fs::rename(&dir, fixture.path("old")).unwrap();
        std::fs::rename(&other, &dir).unwrap();
        watching.sees(b"second");
        fixture.write("d/b", b"third");
        watching.sees(b"third");
        fixture.write("old/c", b"not here any more");
        fixture.write("d/c", b"fourth");
        watching.sees(b"fourth");
        assert!(!fixture.has(&raw(b"not here any more")));
    });
}

#[test]
fn a_parent_that_is_renamed_and_made_again_is_seen() {
    let fixture = Fixture::new();
    let dir = fixture.path("parent/d");
    fixture.write("parent/d/a", b"first");
    fixture.add(&[&dir]);
    while_watching(&fixture, &dir, adds(), |watching| {
        std::fs::rename(fixture.path("parent"), fixture.path("old")).unwrap();
        watching.fails();
        fixture.write("parent/d/a", b"second");
        watching.sees(b"second");
        fixture.write("parent/d/a", b"third");
        watching.sees(b"third");
    });
}

#[test]
fn a_symlink_that_was_named_is_followed_where_it_leads_now() {
    let fixture = Fixture::new();
    let link = fixture.path("current");
    fixture.write("one/a", b"first");
    fixture.write("two/a", b"second");
    std::os::unix::fs::symlink("one", &link).unwrap();
    fixture.add(&[&link]);
    while_watching(&fixture, &link, adds(), |watching| {
        std::os::unix::fs::symlink("two", fixture.path("next")).unwrap();
        std::fs::rename(fixture.path("next"), &link).unwrap();
        watching.sees(b"second");
        fixture.write("two/a", b"third");
        watching.sees(b"third");
    });
}

#[test]
fn a_symlink_in_the_place_of_what_is_watched_is_an_error_and_not_followed() {
    for name in ["d", "f", "x.car"] {
        let fixture = Fixture::new();
        fixture.write("d/a", b"first");
        fixture.write("f", b"first");
        let of = |data: &[u8]| car(&[raw(data)], &[(raw(data), data.to_vec())]);
        fixture.write("x.car", &of(b"first"));
        fixture.write("outside/d/a", b"secret");
        fixture.write("outside/f", b"secret");
        fixture.write("outside/x.car", &of(b"secret"));
        let path = fixture.path(name);
        let how = match name {
            "x.car" => {
                fixture.import(&path, &import_options()).unwrap();
                How::Import(import_options())
            }
            _ => {
                fixture.add(&[&path]);
                adds()
            }
        };
        while_watching(&fixture, &path, how, |watching| {
            std::fs::rename(&path, fixture.path("away")).unwrap();
            std::os::unix::fs::symlink(fixture.path("outside").join(name), &path).unwrap();
            let trouble = watching.fails();
            assert!(trouble.contains("symlink"), "{trouble}");
            assert!(!fixture.has(&raw(b"secret")), "{name} was followed");
            std::fs::remove_file(&path).unwrap();
            std::fs::rename(fixture.path("away"), &path).unwrap();
            std::thread::sleep(Duration::from_millis(1500)); // Seen again, as it was.
            match name {
                "d" => fixture.write("d/a", b"second"),
                "f" => fixture.write("f", b"second"),
                _ => fixture.write("x.car", &of(b"second")),
            };
            watching.sees(b"second");
        });
    }
}

/// A file system that is mounted until it is dropped.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    /// `None` where that is not allowed.
    fn on(path: &'a Path) -> Option<Self> {
        let mut mount = std::process::Command::new("mount");
        let mount = mount.args(["-t", "tmpfs", "none"]).arg(path).output();
        mount
            .is_ok_and(|done| done.status.success())
            .then_some(Self(path))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let mut umount = std::process::Command::new("umount");
        let done = umount.arg("-l").arg(self.0).output();
        assert!(done.is_ok_and(|done| done.status.success()));
    }
}

#[test]
fn a_disk_that_is_mounted_and_unmounted_is_seen() {
    let fixture = Fixture::new();
    let dir = fixture.path("d");
    fixture.write("d/a", b"below the disk");
    fixture.add(&[&dir]);
    while_watching(&fixture, &dir, adds(), |watching| {
        let Some(disk) = Mounted::on(&dir) else {
            return;
        };
        fixture.write("d/a", b"on the disk");
        watching.sees(b"on the disk");
        fixture.write("d/b", b"as well");
        watching.sees(b"as well");
        drop(disk);
        std::thread::sleep(Duration::from_millis(1500));
        fixture.write("d/c", b"below again");
        watching.sees(b"below again");
    });
}

#[test]
fn a_disk_in_a_watched_folder_is_seen_and_what_changes_on_it() {
    let fixture = Fixture::new();
    let dir = fixture.path("d");
    let inner = fixture.path("d/sub");
    fixture.write("d/a", b"first");
    fixture.write("d/sub/a", b"below the disk");
    fixture.add(&[&dir]);
    while_watching(&fixture, &dir, adds(), |watching| {
        // What is looked at once in any case is over.
        fixture.write("d/b", b"second");
        watching.sees(b"second");
        let Some(disk) = Mounted::on(&inner) else {
            return;
        };
        for n in 0..2 {
            let data = format!("on the disk {n}");
            fixture.write("d/sub/b", data.as_bytes());
            watching.sees(data.as_bytes());
        }
        drop(disk);
        fixture.write("d/sub/c", b"below again");
        watching.sees(b"below again");
    });
}

#[test]
fn a_disk_in_the_place_of_the_watched_one_is_seen() {
    let fixture = Fixture::new();
    let dir = fixture.path("d");
    std::fs::create_dir(&dir).unwrap();
    let Some(mut disk) = Mounted::on(&dir) else {
        return;
    };
    fixture.write("d/a", b"on the first");
    fixture.add(&[&dir]);
    while_watching(&fixture, &dir, adds(), |watching| {
        for n in 0..3 {
            drop(disk);
            disk = Mounted::on(&dir).unwrap();
            let data = format!("on another {n}");
            fixture.write("d/a", data.as_bytes());
            watching.sees(data.as_bytes());
        }
        drop(disk);
    });
}

#[test]
fn what_nothing_tells_of_is_found_by_time() {
    let fixture = Fixture::new();
    let dir = fixture.path("d");
    let file = fixture.write("d/a", b"version 0");
    let outside = fixture.path("outside");
    std::fs::hard_link(file, &outside).unwrap();
    fixture.add(&[&dir]);
    let interval = Duration::from_secs(1);
    while_watching_each(interval, &fixture, &dir, adds(), |watching| {
        for n in 1..4 {
            let data = format!("version {n}");
            std::fs::write(&outside, &data).unwrap();
            watching.sees(data.as_bytes());
        }
    });
}

#[test]
fn a_folder_that_takes_long_to_go_through_rests_in_proportion() {
    let fixture = Fixture::new();
    let dir = fixture.path("d");
    fixture.write("d/a", b"first");
    let own = fixture.store().dir().to_owned();
    let interval = Duration::from_secs(300);
    let mut place = place_of(&dir, adds(), &own, interval);
    assert_eq!(place.rest(interval), interval);
    place.rests(Duration::from_secs(60), interval);
    assert_eq!(place.rest(interval), Duration::from_secs(1200));
    let left = place.due.unwrap().duration_since(Instant::now());
    assert!(left > Duration::from_secs(1190), "{left:?}");
    // Where only time tells it is the interval that was asked for.
    place.kernel = None;
    assert_eq!(place.rest(interval), interval);
}

/// What was copied before goes with `rm` alone.
#[test]
fn a_copy_outlives_the_versions_of_the_watched_car() {
    let fixture = Fixture::new();
    let of = |data: &[u8]| car(&[raw(data)], &[(raw(data), data.to_vec())]);
    let path = fixture.write("x.car", &of(b"copied"));
    let own = fixture.store().dir().to_owned();
    let options = import_options();
    fixture
        .import_copy_at(&path, &of(b"copied"), &options)
        .unwrap();
    let mut place = place_of(&path, How::Import(options), &own, Duration::from_secs(300));
    let stop = AtomicBool::new(false);
    place.look(&fixture.blocks, &stop).unwrap();
    for n in 0..SUPERSEDED_MAX + 3 {
        fixture.write("x.car", &of(format!("version {n}").as_bytes()));
        place.look(&fixture.blocks, &stop).unwrap();
    }
    assert!(fixture.has(&raw(b"copied")));
    assert_eq!(fixture.n_roots(), 1 + SUPERSEDED_MAX + 1);
    fixture.remove(&raw(b"copied"));
    assert_eq!(fixture.n_packs(), 0);
}
