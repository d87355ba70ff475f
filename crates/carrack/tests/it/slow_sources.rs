//! A web server that gives nothing, beside what lies here.
//!
//! In       a server of the test's own (`support::web`) that hangs when it is told to.
//! Out      a failed test when what waits for it takes what is here out of service.
//! Not here how reads of one source leave room to those of another (`store::extent`).

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::data::Seeded;
use crate::support::web::Web;
use crate::support::{Carrack, http};

const N_FILES: usize = 16;
const FILE_LEN: usize = 800 << 10;

/// Behind a proxy all clients have one address, which is trusted.
#[test]
fn clients_that_wait_for_a_source_take_no_local_file_out_of_service() {
    let hangs = Arc::new(AtomicBool::new(false));
    let web = {
        let hangs = Arc::clone(&hangs);
        Web::start(move |asked| {
            let name = asked.target.trim_start_matches('/');
            let Ok(index) = name.parse::<u64>() else {
                let names: Vec<_> = (0..N_FILES).map(|index| index.to_string()).collect();
                let links: Vec<_> = names.iter().map(String::as_bytes).collect();
                return asked.page(&links);
            };
            while asked.method == "GET" && hangs.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(20));
            }
            asked.file(&Seeded::new(index).bytes(FILE_LEN))
        })
    };
    let carrack = Carrack::new();
    let local = carrack.path("local");
    fs::write(&local, Seeded::new(99).bytes(600 << 10)).unwrap();
    let here = carrack.add_one(&local);
    let there = carrack.add(&[format!("{}/", web.url())]).remove(0);
    // 4 MiB for blocks on their way.
    let server = carrack.serve(&["--block-budget", "16"]);
    hangs.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        for index in 0..N_FILES {
            let (url, path) = (&server.url, format!("/ipfs/{there}/{index}?format=raw"));
            scope.spawn(move || http::request(url, "GET", &path, &[]).status);
        }
        std::thread::sleep(Duration::from_millis(500));
        let raw = server.get(&format!("/ipfs/{here}?format=raw")).status;
        let car = server.get(&format!("/ipfs/{here}?format=car")).status;
        hangs.store(false, Ordering::SeqCst);
        assert_eq!((raw, car), (200, 200));
    });
}
