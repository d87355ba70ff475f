//! Secrets are planted, everything goes wrong, and then they are looked for.
//!
//! In       keys, passwords, tokens and signatures in each place where one may be; buckets and web
//!          servers that fail in many ways, and repeat what they were told.
//! Out      a test that greps all that was written anywhere.
//! Limits   everything is told that carrack can tell: `RUST_LOG=trace`.
//! Not here secrets in URLs that people type (`sources`).

use std::fs;

use crate::sources::is_nowhere;
use crate::support::http::request;
use crate::support::web::{Asked, Web};
use crate::support::{Carrack, finish};

const KEY_ID: &str = "AKIAPLANTEDPLANTED01";
const SECRET_KEY: &str = "planted+secret/key+of+the+bucket+0000001";
const SESSION: &str = "planted/session/token/of/the/bucket/0002==";
const LOGIN: &str = "planted-login-of-the-web-server-0003";
const SIGNATURE: &str = "plantedsignatureofaredirect0004";
const PROXY: &str = "planted-password-of-the-proxy-0005";
const AZURE: &str = "cGxhbnRlZC1rZXktb2YtYXp1cmUtMDAwNg==";
const GOOGLE: &str = "planted-private-key-of-google-0007";
const CLIENT: &str = "planted-token-of-a-client-0008";

/// Everything that was written so far.
#[derive(Default)]
struct Told(String);

impl Told {
    /// Runs a command with all secrets in its environment.
    fn run(&mut self, carrack: &Carrack, args: &[&str]) {
        self.run_with(carrack, args, &[]);
    }

    fn run_with(&mut self, carrack: &Carrack, args: &[&str], variables: &[(&str, &str)]) {
        let mut command = carrack.command(args);
        command.envs(environment()).envs(variables.iter().copied());
        let outcome = finish(command);
        assert!(
            !outcome.stderr.contains("panicked"),
            "{args:?}: {outcome:?}"
        );
        self.0.push_str(&format!("\n>>> {args:?}\n"));
        self.0.push_str(&String::from_utf8_lossy(&outcome.stdout));
        self.0.push_str(&outcome.stderr);
    }

    fn has_no_secret(&self) {
        for secret in [
            KEY_ID, SECRET_KEY, SESSION, LOGIN, SIGNATURE, PROXY, AZURE, GOOGLE, CLIENT,
        ] {
            let Some(at) = self.0.find(secret) else {
                continue;
            };
            let before = &self.0[..at];
            let command = before.rfind("\n>>> ").map_or("", |at| &before[at..]);
            let command = command.lines().nth(1).unwrap_or_default();
            let line = before.rfind('\n').map_or(0, |at| at + 1);
            panic!(
                "{secret} was told by {command}: {}",
                &self.0[line..at + secret.len()]
            );
        }
    }
}

fn environment() -> Vec<(&'static str, String)> {
    let google = format!("{{\"private_key\":\"{GOOGLE}\",\"client_email\":\"a@b\"}}");
    [
        ("RUST_LOG", "trace".to_owned()),
        ("AWS_ACCESS_KEY_ID", KEY_ID.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
        ("AWS_SESSION_TOKEN", SESSION.to_owned()),
        ("AZURE_STORAGE_ACCOUNT_NAME", "account".to_owned()),
        ("AZURE_STORAGE_ACCOUNT_KEY", AZURE.to_owned()),
        ("GOOGLE_SERVICE_ACCOUNT_KEY", google),
    ]
    .into()
}

/// What was asked, as XML can hold it.
fn repeated(asked: &Asked) -> String {
    let head = asked.head.replace('&', "&amp;").replace('<', "&lt;");
    format!("you sent {head} {SESSION} {KEY_ID}")
}

/// A bucket that answers all alike, and repeats what it was told.
fn bucket(fault: &'static str) -> Web {
    Web::start(move |asked| {
        let error = |status: u16, code: &str, more: &str| {
            let message = repeated(asked);
            let xml =
                format!("<Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>");
            asked.answer(status, "", xml.as_bytes())
        };
        match fault {
            "refused" => error(403, "AccessDenied", ""),
            "unknown" => error(400, "InvalidArgument", ""),
            "signature" => error(403, "SignatureDoesNotMatch", ""),
            "failing" => error(500, "InternalError", ""),
            "code" => error(400, &repeated(asked), ""),
            "region" => error(
                301,
                "PermanentRedirect",
                &format!("<Region>{SESSION}</Region>"),
            ),
            "no XML" => asked.answer(200, "", repeated(asked).as_bytes()),
            "broken XML" => {
                let xml = format!("<ListBucketResult><{SESSION}>{}", repeated(asked));
                asked.answer(200, "", xml.as_bytes())
            }
            _ => asked.answer(501, "", repeated(asked).as_bytes()),
        }
    })
}

#[test]
fn what_a_bucket_repeats_of_its_keys_is_told_to_nobody() {
    let mut told = Told::default();
    for fault in [
        "refused",
        "unknown",
        "signature",
        "failing",
        "code",
        "region",
        "no XML",
        "broken XML",
        "unsupported",
    ] {
        let (carrack, web) = (Carrack::new(), bucket(fault));
        let endpoint = [("AWS_ENDPOINT_URL", web.url())];
        let endpoint = endpoint.each_ref().map(|(name, url)| (*name, url.as_str()));
        told.run_with(&carrack, &["add", "s3://bucket/set"], &endpoint);
        if fault != "failing" {
            let args = [
                "source",
                "add",
                "s3://bucket/set",
                "--json",
                "--endpoint",
                &web.url(),
            ];
            told.run(&carrack, &args);
            told.run_with(&carrack, &["import", "s3://bucket/x.car"], &endpoint);
        }
        assert!(!web.asked().is_empty(), "{fault}: it was not asked");
        let signed = web.asked().iter().any(|asked| asked.head.contains(SESSION));
        assert!(signed, "{fault}: the keys were not used");
        is_nowhere(&carrack.path("data"), SECRET_KEY.as_bytes());
        is_nowhere(&carrack.path("data"), SESSION.as_bytes());
    }
    let carrack = Carrack::new();
    let nowhere = "http://127.0.0.1:9";
    for place in ["gs://bucket/set", "az://container/set"] {
        told.run(&carrack, &["source", "add", place, "--endpoint", nowhere]);
        told.run(
            &carrack,
            &["source", "add", place, "--endpoint", nowhere, "--json"],
        );
    }
    told.has_no_secret();
}

/// A web server that wants a login and sends on to signed URLs.
fn web(fault: &'static str) -> Web {
    let signed = format!("X-Amz-Signature={SIGNATURE}&X-Amz-Credential={KEY_ID}");
    Web::start(move |asked| {
        let (path, query) = asked.target.split_once('?').unwrap_or((&asked.target, ""));
        match (path, fault) {
            ("/set/", "page") => asked.page(&[format!("file?{signed}").as_bytes()]),
            ("/set/", "list") => {
                let text = format!("#carrack-manifest\nfile?{signed}\n");
                asked.answer(200, "Content-Type: text/plain\r\n", text.as_bytes())
            }
            ("/set/", _) => asked.page(&[b"file", b"other"]),
            ("/set/other", _) => asked.file(b"other"),
            _ if query.is_empty() && fault == "elsewhere" => {
                asked.sends_on(&format!("http://user:{LOGIN}@elsewhere.invalid/x?{signed}"))
            }
            _ if query.is_empty() && fault == "login" => {
                let host = asked.header("host").unwrap_or_default();
                asked.sends_on(&format!("http://user:{SIGNATURE}@{host}/set/file?{signed}"))
            }
            _ if query.is_empty() => asked.sends_on(&format!("{path}?{signed}")),
            (_, "gone") => asked.answer(404, "", repeated(asked).as_bytes()),
            (_, "refused") => asked.answer(403, "", repeated(asked).as_bytes()),
            (_, "circles") => asked.sends_on(&asked.target),
            (_, "short") => {
                let answer = asked.answer(206, "Content-Range: bytes 0-9/10\r\n", b"0123456789");
                answer[..answer.len() - 5].to_vec()
            }
            _ => asked.file(b"ten bytes!"),
        }
    })
}

#[test]
fn logins_and_signatures_of_redirects_are_told_to_nobody() {
    let mut told = Told::default();
    for fault in [
        "gone",
        "refused",
        "circles",
        "page",
        "list",
        "elsewhere",
        "login",
        "served",
    ] {
        let (carrack, web) = (Carrack::new(), web(fault));
        let login = carrack.path("login");
        fs::write(&login, format!("Authorization: Bearer {LOGIN}\n")).unwrap();
        let (url, file) = (
            format!("{}/set/", web.url()),
            format!("file:{}", login.display()),
        );
        let args = ["source", "add", &url, "--credentials", &file];
        told.run(&carrack, &args);
        told.run(&carrack, &["source", "rescan", &url, "--json"]);
        told.run(&carrack, &["source", "status", "--json"]);
        told.run(&carrack, &["source", "list", "--json"]);
        told.run(&carrack, &["verify"]);
        told.run(&carrack, &["add", &format!("{url}file")]);
        let with_login = web.asked().iter().any(|asked| asked.head.contains(LOGIN));
        assert!(with_login, "{fault}: the login was not sent");
        for secret in [LOGIN, SIGNATURE] {
            is_nowhere(&carrack.path("data"), secret.as_bytes());
        }
    }
    let carrack = Carrack::new();
    let proxy = format!("http://user:{PROXY}@127.0.0.1:9");
    let through = [
        ("http_proxy", proxy.as_str()),
        ("HTTP_PROXY", &proxy),
        ("ALL_PROXY", &proxy),
    ];
    told.run_with(&carrack, &["add", "http://set.invalid/file"], &through);
    told.has_no_secret();
}

#[test]
fn secrets_of_clients_and_sources_are_in_no_log_of_a_node() {
    let (carrack, web) = (Carrack::new(), web("served"));
    let url = format!("{}/set/", web.url());
    let root = carrack.add(&[&url]).remove(0);
    let mut told = Told::default();
    for format in ["text", "json"] {
        let log = carrack.path(&format!("access-{format}"));
        let mut command = carrack.command(&["serve", "--listen", "127.0.0.1:0", "--p2p", "off"]);
        command.arg("--access-log").arg(&log).envs(environment());
        if format == "json" {
            command.arg("--json");
        }
        let server = crate::support::Server::of(command);
        for path in [
            format!("/ipfs/{root}/file?format=raw"),
            "/ipfs/none".to_owned(),
        ] {
            let joint = if path.contains('?') { '&' } else { '?' };
            for name in ["token", "access_token", "X-Amz-Signature", "api_key"] {
                let path = format!("{path}{joint}{name}={CLIENT}");
                let referer = format!("https://user:{CLIENT}@h/x?sig={CLIENT}");
                let bearer = format!("Bearer {CLIENT}");
                let headers = [("Authorization", bearer.as_str()), ("Referer", &referer)];
                request(&server.url, "GET", &path, &headers);
            }
        }
        told.0.push_str(&server.terminate().1);
        let log = fs::read_to_string(&log).unwrap();
        assert!(log.contains("/ipfs/none"), "{log}");
        told.0.push_str(&log);
    }
    told.has_no_secret();
}
