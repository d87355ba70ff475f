//! Cut answers as clients and proxies of the world see them.
//!
//! In       curl, nginx as a reverse proxy.
//! Out      errors where an answer is cut, also by HTTP/1.0, which has no mark of its end.
//! Not here raw sockets (`crate::cut_answers`).

use std::process::Command;

use carrack_testkit::nginx::{Nginx, Site};

use crate::cut_answers::served;
use crate::peers::program;
use crate::support::{Carrack, finish, http};

/// How curl ends that fetches `url` in this version.
fn curl(version: &str, url: &str) -> i32 {
    let mut command = Command::new(program("curl"));
    command.args(["--silent", "--fail", version, "--output", "/dev/null", url]);
    finish(command).code()
}

#[test]
fn curl_fails_on_a_car_that_fails_in_the_middle_in_every_version() {
    let carrack = Carrack::new();
    let (server, cut, whole) = served(&carrack);
    for version in ["--http1.0", "--http1.1", "--http2-prior-knowledge"] {
        let url = |root: &str| format!("{}/ipfs/{root}?format=car", server.url);
        assert_eq!(curl(version, &url(&whole)), 0, "{version}");
        assert_ne!(curl(version, &url(&cut)), 0, "{version}");
    }
}

#[test]
fn nginx_passes_on_that_a_car_failed_in_the_middle_in_every_version() {
    let carrack = Carrack::new();
    let (server, cut, whole) = served(&carrack);
    for version in ["1.0", "1.1"] {
        let lines = format!(
            "location /ipfs/ {{ proxy_pass {}; proxy_http_version {version}; }}",
            server.url
        );
        let state = carrack.path(&format!("nginx-{version}"));
        let site = Site {
            lines: &lines,
            ..Site::new(&state, carrack.dir())
        };
        let nginx = Nginx::start(&program("nginx"), &site).unwrap();
        let get = |root: &str| {
            let path = format!("/ipfs/{root}?format=car");
            http::request(nginx.url(), "GET", &path, &[])
        };
        let answer = get(&whole).ok();
        assert!(answer.body.len() > 20 << 20, "{version}");
        let answer = get(&cut);
        assert!(answer.status != 200 || !answer.whole, "{version}");
    }
}
