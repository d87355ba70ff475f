//! Each fault that a network or a store can have, between carrack and a real S3 server.
//!
//! In       versitygw behind the faulty proxy.
//! Out      for each fault: right bytes or a clear error, in time, and nothing left open.
//! Limits   an answer within [`TIME_MAX`], which is beyond every deadline of a source.
//! Not here objects that change (`s3_fetch`), the deadlines themselves (unit tests).

use std::time::{Duration, Instant};

use carrack_testkit::s3::target_of;
use carrack_testkit::{Conduct, Fault};

use super::s3_fetch::LITTLE_MEMORY;
use crate::support::s3::Bucket;
use crate::support::{Carrack, Server, data};

const TIME_MAX: Duration = Duration::from_secs(100);

/// One object of some blocks, added while all was well, and served.
struct Served {
    bucket: Bucket,
    carrack: Carrack,
    server: Server,
    root: String,
    car: Vec<u8>,
}

fn served() -> Served {
    let bucket = Bucket::new();
    let carrack = Carrack::reaching(&bucket);
    bucket.put("set/large", &data::Seeded::new(71).bytes(24 << 20));
    bucket.put("set/small", &data::Seeded::new(72).bytes(70_000));
    let root = carrack.add(&[Bucket::url("set/")]).remove(0);
    let car = std::fs::read(carrack.export(&root, "calm.car")).unwrap();
    let server = carrack.serve(&LITTLE_MEMORY);
    Served {
        bucket,
        carrack,
        server,
        root,
        car,
    }
}

impl Served {
    fn every_object(&self, conduct: Conduct) {
        self.bucket.proxy.set_below(&target_of("set/"), conduct);
    }

    /// Some answers are bad, the others make up for them: the client sees nothing of it.
    fn survives(&self, fault: Fault, share: f64) {
        self.every_object(Conduct::default().with(fault.clone(), share));
        let start = Instant::now();
        self.bucket.proxy.reset_counts();
        for _ in 0..30 {
            if self.bucket.proxy.counts().faults >= 3 {
                break;
            }
            let answer = self.server.get(&format!("/ipfs/{}?format=car", self.root));
            let (code, n) = (answer.status, answer.body.len());
            assert!(answer.whole && code == 200, "{fault:?}: {code}, {n} bytes");
            assert!(answer.body == self.car, "{fault:?}: wrong bytes");
        }
        assert!(start.elapsed() < TIME_MAX);
        assert!(self.bucket.proxy.counts().faults > 0, "nothing was wrong");
        self.bucket.nothing_is_open();
    }

    /// All answers are bad: the client gets an error, or a cut answer of right bytes; afterwards
    /// all is well again.
    fn refuses(&self, fault: Fault) {
        self.every_object(Conduct::always(fault));
        let start = Instant::now();
        let answer = self.server.get(&format!("/ipfs/{}?format=car", self.root));
        match answer.status {
            200 => {
                assert!(
                    !answer.whole,
                    "nothing could be read and the answer is whole"
                );
                assert!(self.car.starts_with(&answer.body), "wrong bytes");
            }
            404 | 409 | 500 | 502 | 503 => assert!(!answer.body.is_empty(), "no word of why"),
            status => panic!("{status}"),
        }
        assert!(start.elapsed() < TIME_MAX, "{:?}", start.elapsed());
        self.bucket.nothing_is_open();
        self.bucket.proxy.clear();
        self.recovers();
    }

    /// Once the source is sound again it is served again, after its health was looked at.
    fn recovers(&self) {
        let deadline = Instant::now() + TIME_MAX;
        loop {
            let answer = self.server.get(&format!("/ipfs/{}?format=car", self.root));
            if answer.status == 200 && answer.whole {
                assert!(answer.body == self.car);
                return;
            }
            if Instant::now() > deadline {
                let status = self.carrack.run(&["source", "status", "--json"]);
                panic!("still {} after {TIME_MAX:?}\n{status:?}", answer.status);
            }
            std::thread::park_timeout(Duration::from_millis(200));
        }
    }
}

const fn status(code: u16, retry_after: Option<u32>) -> Fault {
    Fault::Status { code, retry_after }
}

#[test]
fn throttling_and_errors_of_the_store_are_ridden_out() {
    let served = served();
    served.survives(status(503, None), 0.3);
    served.survives(status(503, Some(1)), 0.2);
    served.survives(status(429, Some(1)), 0.2);
    served.survives(status(500, None), 0.3);
}

#[test]
fn dropped_connections_are_resumed() {
    let served = served();
    served.survives(Fault::Reset, 0.4);
    served.survives(Fault::Refuse, 0.3);
    served.survives(Fault::Cut, 0.4);
}

/// Wrong bytes are read once more and no oftener, so that lies must be rare to be survived.
#[test]
fn wrong_bytes_are_asked_for_again() {
    served().survives(Fault::FlipBit, 0.04);
}

#[test]
fn a_store_that_refuses_everything_is_an_error_in_time() {
    served().refuses(status(503, None));
}

#[test]
fn a_store_that_drops_everything_is_an_error_in_time() {
    served().refuses(Fault::Reset);
}

/// Both at once, because each takes the whole patience of a read.
#[test]
fn a_store_that_hangs_before_or_in_its_answers_is_an_error_in_time() {
    std::thread::scope(|scope| {
        for fault in [Fault::Hang, Fault::HangInBody] {
            scope.spawn(|| served().refuses(fault));
        }
    });
}

#[test]
fn wrong_bytes_never_get_through() {
    served().refuses(Fault::FlipBit);
}

#[test]
fn another_version_is_not_served_as_this_one() {
    served().refuses(Fault::OtherVersion);
}

#[test]
fn bodies_in_gzip_are_not_taken_for_the_object() {
    served().refuses(Fault::Gzip);
}

#[test]
fn a_range_of_other_bytes_is_refused() {
    served().refuses(Fault::WrongContentRange);
}

#[test]
fn bodies_that_end_early_are_refused() {
    served().refuses(Fault::Short);
}

/// 200 to a ranged request is either refused or read as what it is, the whole object.
#[test]
fn a_store_that_lost_its_ranges_gives_right_bytes_or_an_error() {
    for fault in [Fault::IgnoreRange, Fault::RangeAs200] {
        let served = served();
        served.every_object(Conduct::always(fault));
        let answer = served
            .server
            .get(&format!("/ipfs/{}?format=car", served.root));
        if answer.status == 200 {
            assert!(served.car.starts_with(&answer.body), "wrong bytes");
            assert!(!answer.whole || answer.body == served.car);
        }
        served.bucket.nothing_is_open();
    }
}

/// Of four sources one hangs: what the others hold is served meanwhile.
#[test]
fn one_slow_backend_read_does_not_hold_the_others() {
    let bucket = Bucket::new();
    let carrack = Carrack::reaching(&bucket);
    let roots: Vec<String> = (0..4)
        .map(|number| {
            let content = data::Seeded::new(80 + number).bytes(3 << 20);
            bucket.put(&format!("source-{number}/object"), &content);
            let url = Bucket::url(&format!("source-{number}/"));
            carrack.add(&[url]).remove(0)
        })
        .collect();
    let server = carrack.serve::<&str>(&[]);
    let hangs = Conduct::always(Fault::Hang);
    bucket.proxy.set_below(&target_of("source-0/"), hangs);
    std::thread::scope(|scope| {
        let slow = || server.get(&format!("/ipfs/{}?format=car", roots[0]));
        let hanging: Vec<_> = (0..8).map(|_| scope.spawn(slow)).collect();
        let deadline = Instant::now() + Duration::from_secs(10);
        while bucket.proxy.counts().in_flight == 0 {
            assert!(Instant::now() < deadline, "nobody asks the stalled source");
            std::thread::park_timeout(Duration::from_millis(5));
        }
        let start = Instant::now();
        for root in &roots[1..] {
            server.get(&format!("/ipfs/{root}?format=car")).ok();
        }
        let took = start.elapsed();
        assert!(
            took < Duration::from_secs(5),
            "{took:?} beside a stalled source"
        );
        bucket.proxy.clear();
        drop(hanging);
    });
}

/// The first of two who want the same blocks leaves; the second gets them.
#[test]
fn a_cancelled_first_request_does_not_fail_the_second() {
    let served = served();
    served.every_object(Conduct {
        latency: Duration::from_millis(400),
        ..Conduct::default()
    });
    let path = format!("/ipfs/{}?format=car", served.root);
    for _ in 0..5 {
        let address = served.server.url.strip_prefix("http://").unwrap();
        let mut first = std::net::TcpStream::connect(address).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
        std::io::Write::write_all(&mut first, request.as_bytes()).unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| served.server.get(&path));
            std::thread::park_timeout(Duration::from_millis(150));
            drop(first);
            assert!(second.join().unwrap().ok().body == served.car);
        });
    }
    served.bucket.nothing_is_open();
}

/// Its raw block is not found, its CAR is refused; the server goes on.
#[test]
fn a_block_whose_object_is_gone_answers_an_error_and_no_panic() {
    let served = served();
    served.bucket.server.delete("set/large").unwrap();
    let car = served
        .server
        .get(&format!("/ipfs/{}/large?format=car", served.root));
    assert!(car.status != 200 || !car.whole, "{}", car.status);
    let small = served
        .server
        .get(&format!("/ipfs/{}/small?format=car", served.root));
    small.ok();
    let (status, log) = served.server.terminate();
    assert!(status.success(), "{status}");
    assert!(!log.contains("panicked"), "{log}");
}

/// The object is gone from the bucket, the same bytes lie on this disk.
#[test]
fn a_valid_second_copy_is_tried() {
    let bucket = Bucket::new();
    let carrack = Carrack::reaching(&bucket);
    let content = data::Seeded::new(90).bytes(3 << 20);
    bucket.put("set/object", &content);
    let copy = carrack.path("object");
    std::fs::write(&copy, &content).unwrap();
    let far = carrack.add(&[Bucket::url("set/object")]);
    assert_eq!(carrack.add(&[&copy]), far);
    bucket.server.delete("set/object").unwrap();
    let server = carrack.serve::<&str>(&[]);
    server.get(&format!("/ipfs/{}?format=car", far[0])).ok();
}

/// The object changes between two reads of one answer: it is cut, not spliced.
#[test]
fn resume_never_splices() {
    let bucket = Bucket::new();
    let carrack = Carrack::reaching(&bucket);
    let old = data::Seeded::new(91).bytes(40 << 20);
    bucket.put("set/object", &old);
    let root = carrack.add(&[Bucket::url("set/object")]).remove(0);
    let car = std::fs::read(carrack.export(&root, "calm.car")).unwrap();
    let server = carrack.serve::<&str>(&[]);
    bucket.proxy.set(Conduct {
        latency: Duration::from_millis(20),
        bandwidth: Some(10_000_000),
        faults: vec![(Fault::Cut, 0.5)],
    });
    let answer = std::thread::scope(|scope| {
        let fetch = scope.spawn(|| server.get(&format!("/ipfs/{root}?format=car")));
        while bucket.bytes_read("set/object") < (old.len() as u64) + (5 << 20) {
            assert!(!fetch.is_finished(), "over before the object was replaced");
            std::thread::park_timeout(Duration::from_millis(2));
        }
        bucket.put("set/object", &data::Seeded::new(92).bytes(40 << 20));
        fetch.join().unwrap()
    });
    assert!(car.starts_with(&answer.body), "bytes of another version");
    assert!(!answer.whole || answer.body.len() == car.len());
}

/// TERM while reads hang: the process ends in time, and its connections with it.
#[test]
fn shutdown_closes_sources() {
    let served = served();
    served.every_object(Conduct::always(Fault::Hang));
    let path = format!("/ipfs/{}?format=car", served.root);
    let address = served
        .server
        .url
        .strip_prefix("http://")
        .unwrap()
        .to_owned();
    let mut client = std::net::TcpStream::connect(&address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    std::io::Write::write_all(&mut client, request.as_bytes()).unwrap();
    std::thread::park_timeout(Duration::from_millis(300));
    let start = Instant::now();
    let (status, log) = served.server.terminate_within(Duration::from_secs(50));
    assert!(
        status.success(),
        "{status} after {:?}\n{log}",
        start.elapsed()
    );
    served.bucket.nothing_is_open();
}
