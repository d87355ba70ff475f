//! Where a web source may connect to: what the configuration names, and the public Internet.
//!
//! In       the hosts that were named, whether private addresses are meant, URLs and names.
//! Out      leave to send a request; of a name only addresses that may be connected to.
//! Limits   a name is looked up once for a connection, and what was checked is what is connected
//!          to: a name that leads elsewhere a moment later leads nowhere else.
//! Not here which origins a request may be sent on to (`source::web`). NAT64 prefixes of a
//!          network's own, which nobody can tell from other addresses. What a proxy connects to:
//!          it looks names up itself.
//!
//! Spec: the IANA special-purpose address registries (RFC 6890), RFC 6052 (NAT64), RFC 3056 (6to4).

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::source::{SourceError, SourceErrorKind};

/// What a name was found to lead to.
type Found = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;
type LookUp = Arc<dyn Fn(&str) -> Found + Send + Sync>;

/// Why a connection was not made.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "{host} leads to {address}, which is an address of this machine or of a private network: if \
     that is meant, say so by carrack source add URL --allow-private (carrack source relocate NAME \
     URL --allow-private for a source that is there)"
)]
pub(super) struct Private {
    host: String,
    address: IpAddr,
}

/// The rule of one source. It is also the resolver of its connections.
#[derive(Clone)]
pub(super) struct Reach {
    /// Private addresses are meant.
    private: bool,
    /// Hosts that somebody named as an address, or as `localhost`.
    meant: Arc<[String]>,
    /// The machine's proxies, by their name.
    proxies: Arc<[String]>,
    look_up: LookUp,
}

impl std::fmt::Debug for Reach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reach")
            .field("private", &self.private)
            .field("meant", &self.meant)
            .finish_non_exhaustive()
    }
}

impl Reach {
    /// The rule of a source that names the hosts of `named`.
    pub(super) fn new(named: &[Url], private: bool) -> Self {
        let hosts = named.iter().filter_map(Url::host_str);
        let hosts = hosts.filter(|host| *host == "localhost" || literal(host).is_some());
        let matcher = Matcher::from_env();
        let proxy = |url: &Url| {
            let found = matcher.intercept(&url.as_str().parse().ok()?)?;
            found.uri().host().map(str::to_owned)
        };
        Self {
            private,
            meant: hosts.map(str::to_owned).collect(),
            proxies: named.iter().filter_map(proxy).collect(),
            look_up: Arc::new(|name| Box::pin(look_up(name.to_owned()))),
        }
    }

    /// Whether a request for `url` may be made. Names are checked when they are looked up.
    pub(super) fn check(&self, url: &Url, what: &str) -> Result<(), SourceError> {
        let host = url.host_str().unwrap_or_default();
        let Some(address) = literal(host) else {
            return Ok(());
        };
        if self.private || self.is_meant(host) || is_public(address) {
            return Ok(());
        }
        let host = host.to_owned();
        Err(refused(&Private { host, address }, what))
    }

    fn is_meant(&self, host: &str) -> bool {
        self.meant.iter().any(|meant| meant == host)
    }
}

impl Resolve for Reach {
    fn resolve(&self, name: Name) -> Resolving {
        let host = name.as_str().to_owned();
        let is_proxy = self.proxies.contains(&host);
        let all = self.private || is_proxy || self.is_meant(&host);
        let found = (self.look_up)(&host);
        Box::pin(async move {
            let found = found.await?;
            let first = found.first().copied();
            let allowed: Vec<SocketAddr> = found
                .into_iter()
                .filter(|address| all || is_public(*address))
                .map(|address| SocketAddr::new(address, 0))
                .collect();
            match first {
                Some(address) if allowed.is_empty() => Err(Private { host, address }.into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

async fn look_up(name: String) -> io::Result<Vec<IpAddr>> {
    let found = tokio::net::lookup_host((name, 0)).await?;
    Ok(found.map(|address| address.ip()).collect())
}

/// The error that says it, if a connection was not made for this reason.
pub(super) fn refusal(error: &reqwest::Error, what: &str) -> Option<SourceError> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(private) = error.downcast_ref::<Private>() {
            return Some(refused(private, what));
        }
        cause = error.source();
    }
    None
}

fn refused(private: &Private, what: &str) -> SourceError {
    SourceError::new(SourceErrorKind::Unusable, format!("{what}: {private}"))
}

/// The address that a host of a URL is, if it is no name.
fn literal(host: &str) -> Option<IpAddr> {
    let inner = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    inner.unwrap_or(host).parse().ok()
}

/// Whether an address is one of the public Internet, whatever form it is written in.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = match (a, b, c) {
        (0 | 10 | 127, ..) => true, // This network, private, this machine.
        (100, 64..=127, _) => true, // Carriers' own (RFC 6598).
        (169, 254, _) => true,      // Link-local: metadata of clouds.
        (172, 16..=31, _) => true,  // Private.
        (192, 0, 0 | 2) => true,    // Protocols' own; examples.
        (192, 88, 99) => true,      // 6to4 relays.
        (192, 168, _) => true,      // Private.
        (198, 18..=19, _) => true,  // Benchmarks.
        (198, 51, 100) => true,     // Examples.
        (203, 0, 113) => true,      // Examples.
        (224..=255, ..) => true,    // Multicast, reserved, broadcast.
        _ => false,
    };
    !special
}

/// Only 2000::/3 is given out; of it and of NAT64 what stands for an IPv4 address is that.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [_, _, a, b, c, d, .., e, f, g, h] = address.octets();
    let inner = || is_public_v4(Ipv4Addr::new(a, b, c, d));
    let last = || is_public_v4(Ipv4Addr::new(e, f, g, h));
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, ..] => last(),    // IPv4-mapped.
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => last(), // NAT64.
        [0x2002, ..] => inner(),                  // 6to4.
        [0x2001, 0..=0x1ff, ..] => false,         // Protocols' own: Teredo, benchmarks, ORCHID.
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false, // Examples.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests;
