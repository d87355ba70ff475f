//! Keys that a service gives out, and clocks that were wrong when it did.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Credentials;
use crate::source::config::Environment;

/// A metadata service of an instance. Each of its keys has another name and is good for a century,
/// as an hour is by a clock that is a century behind.
fn service() -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let n_given = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&n_given);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let mut request = String::new();
            reader.read_line(&mut request).unwrap();
            let mut line = String::new();
            while reader.read_line(&mut line).unwrap() > 2 {
                line.clear();
            }
            let body = if request.contains("/security-credentials/role") {
                let n = counter.fetch_add(1, Ordering::SeqCst);
                format!(
                    r#"{{"AccessKeyId":"key{n}","SecretAccessKey":"s","Token":"t",
                    "Expiration":"2126-01-01T00:00:00Z"}}"#
                )
            } else {
                "role".to_owned() // Or the token that requests are to show.
            };
            let len = body.len();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {len}\r\nconnection: close");
            let mut stream = reader.into_inner();
            let _ = stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes());
        }
    });
    (url, n_given)
}

/// A clock that was behind when keys came makes them look good for years: refused, they are asked
/// for again, once a minute however often strangers have requests refused.
#[tokio::test]
async fn keys_that_a_wrong_clock_keeps_alive_are_renewed_when_they_are_refused() {
    let (url, n_given) = service();
    let environment = Environment::new([("AWS_METADATA_ENDPOINT".to_owned(), url)]);
    let credentials = Credentials::new("env", &environment, "us-east-1").unwrap();
    let name = async || credentials.get().await.unwrap().unwrap().key_id.clone();
    assert_eq!(name().await, "key0");
    assert_eq!(name().await, "key0", "kept");
    for _ in 0..3 {
        credentials.refused();
        assert_eq!(name().await, "key1");
    }
    assert_eq!(n_given.load(Ordering::SeqCst), 2);
}
