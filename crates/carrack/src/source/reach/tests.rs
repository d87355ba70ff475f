use std::net::{IpAddr, TcpListener};
use std::sync::Arc;

use reqwest::{Method, Request, Url};

use super::{Reach, is_public};
use crate::source::http::{Engine, install_crypto};
use crate::source::{SourceError, SourceErrorKind};

fn url(text: &str) -> Url {
    Url::parse(text).unwrap()
}

#[test]
fn addresses_that_are_no_public_ones_are_known_in_every_form() {
    for text in [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.127.255.255",
        "127.0.0.1",
        "127.255.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.8",
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2002:7f00:1::1",
        "2002:c0a8:101::1",
        "2002:a9fe:a9fe::",
        "2001::1",
        "2001:0:4136:e378::1",
        "2001:1::1",
        "2001:db8::1",
        "3fff::1",
        "fc00::1",
        "fdff::1",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "100::1",
        "4000::1",
    ] {
        assert!(!is_public(text.parse().unwrap()), "{text}");
    }
    for text in [
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.1",
        "100.63.0.1",
        "100.128.0.1",
        "126.0.0.1",
        "169.253.0.1",
        "172.15.0.1",
        "172.32.0.1",
        "192.0.1.1",
        "192.167.0.1",
        "198.17.0.1",
        "223.255.255.255",
        "::ffff:1.1.1.1",
        "64:ff9b::101:101",
        "2002:101:101::1",
        "2001:200::1",
        "2606:4700::1111",
        "2a00:1450::1",
    ] {
        assert!(is_public(text.parse().unwrap()), "{text}");
    }
}

#[test]
fn an_address_in_a_url_is_asked_only_if_it_was_named() {
    let reach = Reach::new(&[url("http://127.0.0.1:81/"), url("http://[::1]/")], false);
    for (asked, allowed) in [
        ("http://127.0.0.1:81/x", true),
        ("http://[::1]:9/x", true),
        ("http://127.0.0.2/", false),
        ("http://2130706434/", false), // 127.0.0.2 in another spelling.
        ("http://0x7f.0.2/", false),
        ("http://[::ffff:127.0.0.1]/", false),
        ("http://169.254.169.254/latest/", false),
        ("http://1.1.1.1/", true),
        ("http://name.invalid/", true), // Its addresses are.
    ] {
        let result = reach.check(&url(asked), "it");
        assert_eq!(result.is_ok(), allowed, "{asked}");
        if let Err(error) = result {
            assert_eq!(error.kind, SourceErrorKind::Unusable);
            assert!(error.what.contains("--allow-private"), "{error}");
        }
        let open = Reach::new(&[], true);
        assert!(open.check(&url(asked), "it").is_ok(), "{asked}");
    }
}

/// Sends a request to `host`, which leads to `addresses`, one of them a server of this test. What
/// came of it, and whether the server got a connection.
fn ask(
    named: &str,
    private: bool,
    host: &str,
    addresses: &[&str],
) -> (Result<(), SourceError>, bool) {
    install_crypto();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
    let mut reach = Reach::new(&[url(named)], private);
    reach.look_up = Arc::new(move |_| {
        let found = addresses.clone();
        Box::pin(async move { Ok(found) })
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let result = runtime.block_on(async {
        let engine = Engine::new(false, Some(reach)).unwrap();
        let request = Request::new(Method::GET, url(&format!("http://{host}:{port}/")));
        let sending = engine.send(request, "it");
        // A connection that was made gets no answer.
        match tokio::time::timeout(std::time::Duration::from_millis(700), sending).await {
            Ok(result) => result.map(|_| ()),
            Err(_) => Ok(()),
        }
    });
    (result, listener.accept().is_ok())
}

/// However often a name is looked up, each time it is what is connected to that is checked: a name
/// that was good a moment ago is none of its leave.
#[test]
fn a_name_that_leads_into_the_machine_is_not_connected_to() {
    for addresses in [
        &["127.0.0.1"][..],
        &["169.254.169.254", "127.0.0.1"],
        &["::ffff:127.0.0.1"],
    ] {
        let (result, is_connected) = ask("http://set.invalid/", false, "set.invalid", addresses);
        let error = result.unwrap_err();
        assert!(!is_connected, "{addresses:?}");
        assert_eq!(error.kind, SourceErrorKind::Unusable, "{error}");
        assert!(error.what.contains("set.invalid leads to"), "{error}");
    }
    let (result, is_connected) = ask("http://set.invalid/", true, "set.invalid", &["127.0.0.1"]);
    assert!(is_connected && result.is_ok(), "{result:?}");
    let (result, is_connected) = ask("http://localhost/", false, "localhost", &["127.0.0.1"]);
    assert!(is_connected && result.is_ok(), "{result:?}");
    let (result, is_connected) = ask("http://localhost/", false, "other.invalid", &["127.0.0.1"]);
    assert!(!is_connected && result.is_err());
}
