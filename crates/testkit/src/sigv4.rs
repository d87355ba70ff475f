//! Signed URLs for clients that only know HTTP.
//!
//! In       a key, a method, a host and a path.
//! Out      the path with a query that S3 takes for an hour.
//! Not here signing headers: the program under test does that by its own code.
//!
//! Spec: <https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html>

use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

const BLOCK_LEN: usize = 64;

/// Who signs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key<'a> {
    pub(crate) id: &'a str,
    pub(crate) secret: &'a str,
    pub(crate) region: &'a str,
}

/// `path` begins with `/` and is not encoded yet; `host` is what the client will send.
pub(crate) fn presigned(key: Key<'_>, method: &str, host: &str, path: &str) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    presigned_at(key, method, host, path, since.map_or(0, |it| it.as_secs()))
}

fn presigned_at(key: Key<'_>, method: &str, host: &str, path: &str, now: u64) -> String {
    let path = encoded(path, b"/");
    let (day, time) = date(now);
    let scope = format!("{day}/{}/s3/aws4_request", key.region);
    let query = format!(
        "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={}&X-Amz-Date={time}\
         &X-Amz-Expires=3600&X-Amz-SignedHeaders=host",
        encoded(&format!("{}/{scope}", key.id), b"")
    );
    let request = format!("{method}\n{path}\n{query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD");
    let digest = hex(&Sha256::digest(request.as_bytes()));
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{digest}");
    let mut signer = format!("AWS4{}", key.secret).into_bytes();
    for part in [day.as_str(), key.region, "s3", "aws4_request", &to_sign] {
        signer = hmac(&signer, part.as_bytes());
    }
    format!("{path}?{query}&X-Amz-Signature={}", hex(&signer))
}

/// All but letters, digits, `-._~` and `kept` as `%XX`.
pub(crate) fn encoded(text: &str, kept: &[u8]) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || kept.contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// `20130524` and `20130524T000000Z`.
fn date(seconds: u64) -> (String, String) {
    let (mut days, rest) = (seconds / 86_400, seconds % 86_400);
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for len in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < len {
            break;
        }
        days -= len;
        month += 1;
    }
    let day = format!("{year:04}{month:02}{:02}", days + 1);
    let time = format!(
        "{day}T{:02}{:02}{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    );
    (day, time)
}

/// RFC 2104.
fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut block = match key.len() > BLOCK_LEN {
        true => Sha256::digest(key).to_vec(),
        false => key.to_vec(),
    };
    block.resize(BLOCK_LEN, 0);
    let with = |mask: u8| block.iter().map(|byte| byte ^ mask).collect::<Vec<u8>>();
    let inner = Sha256::digest([with(0x36), message.to_vec()].concat());
    Sha256::digest([with(0x5c), inner.to_vec()].concat()).to_vec()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::{Key, date, hex, hmac, presigned_at};

    #[test]
    fn the_mac_is_that_of_rfc_4231() {
        let mac = hex(&hmac(b"Jefe", b"what do ya want for nothing?"));
        assert!(mac.starts_with("5bdcc146bf60754e6a042426089575c7"));
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        assert_eq!(date(1_369_353_600).1, "20130524T000000Z");
        assert_eq!(date(951_782_399).1, "20000228T235959Z");
        assert_eq!(date(951_782_400).1, "20000229T000000Z");
        assert_eq!(date(1_798_761_599).1, "20261231T235959Z");
    }

    #[test]
    fn the_same_request_is_signed_the_same_way() {
        let key = Key {
            id: "id",
            secret: "secret",
            region: "us-east-1",
        };
        let url = presigned_at(key, "GET", "h", "/b/a b", 1_369_353_600);
        assert!(url.starts_with("/b/a%20b?X-Amz-Algorithm=AWS4-HMAC-SHA256"));
        let other = presigned_at(key, "PUT", "h", "/b/a b", 1_369_353_600);
        assert_ne!(url, other);
    }
}
