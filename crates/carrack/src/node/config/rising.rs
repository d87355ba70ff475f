//! Bounds of which each must not be more than the next.
//!
//! In       what a file says, and the numbers that follow of it.
//! Out      numbers that do not contradict each other; what was not said gives way to what was.
//! Not here bounds of one value (`value`).

use std::fmt::Debug;

use super::{Config, ConfigError};

/// Bounds by key, the least first.
type Chain<'a, T, const N: usize> = [(&'static str, &'a mut T); N];

/// Brings the bounds of `config` into their order. `text` is what the file says.
///
/// # Errors
/// It says of a bound that it is more than one that has to be as much at least.
pub(super) fn settle(text: &str, config: &mut Config) -> Result<(), ConfigError> {
    let said: toml::Table = toml::from_str(text).map_err(|error| ConfigError {
        line: None,
        message: error.message().to_owned(),
    })?;
    http(&Said::new(&said, "http"), config)?;
    bitswap(&Said::new(&said, "bitswap"), config)?;
    connections(&Said::new(&said, "bitswap.connections"), config)?;
    rates(&said, config)
}

/// The keys that one section of a file has.
struct Said<'a> {
    section: &'static str,
    table: Option<&'a toml::Table>,
}

impl<'a> Said<'a> {
    fn new(file: &'a toml::Table, section: &'static str) -> Self {
        let mut table = Some(file);
        for name in section.split('.') {
            table = table.and_then(|table| table.get(name)?.as_table());
        }
        Self { section, table }
    }

    /// From the most on: a bound that is more than the next one follows it, unless it was said.
    fn rise<T: Copy + Debug + Ord, const N: usize>(
        &self,
        chain: Chain<'_, T, N>,
    ) -> Result<(), ConfigError> {
        // The bound above, by the name of the one that it comes from.
        let mut above: Option<(&str, T)> = None;
        for (key, value) in chain.into_iter().rev() {
            if let Some((next, most)) = above
                && *value > most
            {
                if self.table.is_some_and(|table| table.contains_key(key)) {
                    let bound = format!("which must not be more than {next}, {most:?}");
                    return Err(ConfigError {
                        line: None,
                        message: format!("[{}] {key} is {value:?}, {bound}", self.section),
                    });
                }
                *value = most;
                continue;
            }
            above = Some((key, *value));
        }
        Ok(())
    }
}

fn http(said: &Said<'_>, config: &mut Config) -> Result<(), ConfigError> {
    let to = &mut config.http;
    said.rise([
        (
            "connections_per_address_max",
            &mut to.connections_per_address_max,
        ),
        (
            "connections_per_subnet_max",
            &mut to.connections_per_subnet_max,
        ),
        ("connections_max", &mut to.connections_max),
    ])?;
    said.rise([
        ("requests_per_address_max", &mut to.requests_per_address_max),
        ("requests_per_subnet_max", &mut to.requests_per_subnet_max),
        ("requests_max", &mut to.requests_max),
    ])?;
    let (address, subnet) = (
        &mut to.in_flight_per_address_percent,
        &mut to.in_flight_per_subnet_percent,
    );
    said.rise([
        ("in_flight_per_address_percent", address),
        ("in_flight_per_subnet_percent", subnet),
    ])?;
    said.rise([
        ("progress_time_s", &mut to.progress_timeout),
        ("request_time_s", &mut to.request_timeout),
    ])?;
    said.rise([
        ("answer_time_s", &mut to.answer_timeout),
        ("request_time_s", &mut to.request_timeout),
    ])
}

fn bitswap(said: &Said<'_>, config: &mut Config) -> Result<(), ConfigError> {
    let to = &mut config.server;
    said.rise([
        ("wants_address_max", &mut to.wants_shares.address_max),
        ("wants_subnet_max", &mut to.wants_shares.subnet_max),
        ("wants_max", &mut to.wants_max),
    ])?;
    let shares = &mut to.outstanding_shares;
    said.rise([
        ("outstanding_bytes_address_max", &mut shares.address_max),
        ("outstanding_bytes_subnet_max", &mut shares.subnet_max),
        ("outstanding_bytes_all_max", &mut to.outstanding_all_max),
    ])?;
    let shares = &mut to.frames_shares;
    said.rise([
        ("frames_bytes_address_max", &mut shares.address_max),
        ("frames_bytes_subnet_max", &mut shares.subnet_max),
        ("frames_bytes_max", &mut to.frames_len_max),
    ])?;
    said.rise([
        ("small_block_bytes_max", &mut to.small_block_len),
        ("block_bytes_max", &mut to.block_len_max),
    ])
}

fn connections(said: &Said<'_>, config: &mut Config) -> Result<(), ConfigError> {
    let to = &mut config.connections;
    said.rise([
        ("pending_per_address_max", &mut to.pending_per_address_max),
        ("pending_per_subnet_max", &mut to.pending_per_subnet_max),
        ("pending_max", &mut to.pending_max),
    ])?;
    said.rise([
        ("per_address_max", &mut to.per_address_max),
        ("per_subnet_max", &mut to.per_subnet_max),
        ("established_max", &mut to.established_max),
    ])
}

/// Of an address and of its subnet. A peer may have several addresses.
fn rates(file: &toml::Table, config: &mut Config) -> Result<(), ConfigError> {
    let budget = &config.server.budget;
    let (address, subnet) = (budget.address, budget.subnet);
    let pairs = [
        (
            "entries_per_second",
            address.entries_per_second,
            subnet.entries_per_second,
        ),
        (
            "messages_per_second",
            address.messages_per_second,
            subnet.messages_per_second,
        ),
        (
            "streams_per_second",
            address.streams_per_second,
            subnet.streams_per_second,
        ),
        (
            "bytes_per_hour",
            address.bytes_per_hour,
            subnet.bytes_per_hour,
        ),
    ];
    let said = Said::new(file, "bitswap.budget.address");
    for (key, address, subnet) in pairs {
        // What is without bounds is more than anything, and needs not be brought down.
        let (mut less, mut more) = (address.unwrap_or(u64::MAX), subnet.unwrap_or(u64::MAX));
        let of_subnet = "that of [bitswap.budget.subnet]";
        said.rise([(key, &mut less), (of_subnet, &mut more)])?;
    }
    Ok(())
}
