//! The configuration file: what the defaults do not fit.
//!
//! In       a TOML file that is named, or [`FILE_NAME`] in the data directory if there is one.
//! Out      [`Config`]; every key that is not in the file has its default. An error names the file,
//!          the line and what is allowed.
//! Limits   [`FILE_LEN_MAX`]; each value has bounds of its own. Unknown keys are errors.
//! Not here arguments, which decide what is served and where (`cli`); what numbers mean
//!          (`docs/operations/configuration.md`). No secrets: this file may be shown to anybody.

mod rising;
mod value;

use std::fs::File;
use std::io::{ErrorKind as IoKind, Read};
use std::path::Path;

use carrack_bitswap::budget::{Rates, Shares};
use carrack_bitswap::driver::ConnectionLimits;
use carrack_bitswap::server::Options;
use serde::Deserialize;

use self::value::{Answer, Count, Net, Rate, Seconds, Size, SizeRate};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::http::limits::Limits;

/// The file in the data directory that is read if none is named.
pub const FILE_NAME: &str = "carrack.toml";
/// Bytes of a file.
pub const FILE_LEN_MAX: u64 = 1 << 20;

/// What a file says, and defaults for the rest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// `[bitswap]` and `[bitswap.budget]`.
    pub server: Options,
    /// `[bitswap.connections]`.
    pub connections: ConnectionLimits,
    /// `[http]`. The budget of bytes in flight is for an argument to say.
    pub http: Limits,
}

impl Config {
    /// Reads the file that is `named`, which must be there, or the one in `data_dir`, which need
    /// not.
    ///
    /// # Errors
    /// `Invalid`: the file is none, or says something that means nothing, and where.
    /// `Unavailable`: it cannot be read.
    pub fn load(named: Option<&Path>, data_dir: &Path) -> Result<Self> {
        let usual = data_dir.join(FILE_NAME);
        let path = named.unwrap_or(&usual);
        let cannot = || format!("cannot read the configuration {}", path.display());
        let file = match File::open(path) {
            Err(error) if error.kind() == IoKind::NotFound && named.is_none() => {
                return Ok(Self::default());
            }
            Err(error) if error.kind() == IoKind::NotFound => {
                return Err(Error::with(ErrorKind::Invalid, cannot(), error));
            }
            opened => opened.context(ErrorKind::Unavailable, cannot)?,
        };
        let mut text = Vec::new();
        file.take(FILE_LEN_MAX + 1)
            .read_to_end(&mut text)
            .context(ErrorKind::Unavailable, cannot)?;
        if text.len() as u64 > FILE_LEN_MAX {
            let message = format!("it is longer than {FILE_LEN_MAX} bytes");
            return Err(Error::with(ErrorKind::Invalid, cannot(), message));
        }
        let text = String::from_utf8(text).context(ErrorKind::Invalid, cannot)?;
        Self::parse(&text).map_err(|error| {
            let place = match error.line {
                Some(line) => format!("{}:{line}", path.display()),
                None => path.display().to_string(),
            };
            Error::new(ErrorKind::Invalid, format!("{place}: {}", error.message))
        })
    }

    /// What `text` says.
    ///
    /// # Errors
    /// What means nothing, and where.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let tables: Tables = toml::from_str(text).map_err(|error| ConfigError {
            line: error.span().map(|span| line_of(text, span.start)),
            message: error.message().to_owned(),
        })?;
        let mut config = Self::default();
        tables.bitswap.apply(&mut config);
        tables.http.apply(&mut config.http);
        config.check()?;
        rising::settle(text, &mut config)?;
        Ok(config)
    }

    /// What no value shows on its own.
    fn check(&self) -> Result<(), ConfigError> {
        let options = &self.server;
        let rising = [
            ("outstanding_bytes_min", options.outstanding_min),
            ("outstanding_bytes_max", options.outstanding_max),
            ("outstanding_bytes_all_max", options.outstanding_all_max),
        ];
        for pair in rising.windows(2) {
            if let [(less, least), (more, most)] = pair
                && least > most
            {
                return Err(ConfigError {
                    line: None,
                    message: format!(
                        "[bitswap] {less} is {least}, which must not be more than {more}, {most}"
                    ),
                });
            }
        }
        Ok(())
    }
}

/// What a file says that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ConfigError {
    /// The line, counted from 1, if it is one line's fault.
    pub line: Option<usize>,
    /// What is wrong with it.
    pub message: String,
}

/// The line in which byte `offset` stands, counted from 1.
fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or_default();
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct Tables {
    http: HttpTable,
    bitswap: BitswapTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct HttpTable {
    connections_max: Option<Count<1, 1_048_576>>,
    connections_per_address_max: Option<Count<1, 1_048_576>>,
    connections_per_subnet_max: Option<Count<1, 1_048_576>>,
    requests_max: Option<Count<1, 1_048_576>>,
    requests_per_address_max: Option<Count<1, 1_048_576>>,
    requests_per_subnet_max: Option<Count<1, 1_048_576>>,
    in_flight_per_address_percent: Option<Count<1, 100>>,
    in_flight_per_subnet_percent: Option<Count<1, 100>>,
    trusted: Option<Vec<Net>>,
    progress_time_s: Option<Seconds<1, 3600>>,
    answer_time_s: Option<Seconds<5, 3600>>,
    request_time_s: Option<Seconds<60, 604_800>>,
    idle_time_s: Option<Seconds<1, 86_400>>,
    drain_time_s: Option<Seconds<0, 300>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct BitswapTable {
    wants_per_peer_max: Option<Count<1, 1_048_576>>,
    wants_max: Option<Count<1, 1_073_741_824>>,
    wants_address_max: Option<Count<1, 1_073_741_824>>,
    wants_subnet_max: Option<Count<1, 1_073_741_824>>,
    lists_bytes_max: Option<Size<{ 1 << 20 }, { 1 << 40 }>>,
    want_time_s: Option<Seconds<1, 86_400>>,
    outstanding_bytes_min: Option<Size<{ 64 << 10 }, { 1 << 40 }>>,
    outstanding_bytes_max: Option<Size<{ 64 << 10 }, { 1 << 40 }>>,
    outstanding_bytes_all_max: Option<Size<{ 4 << 20 }, { 1 << 40 }>>,
    outstanding_bytes_address_max: Option<Size<{ 64 << 10 }, { 1 << 40 }>>,
    outstanding_bytes_subnet_max: Option<Size<{ 64 << 10 }, { 1 << 40 }>>,
    // A message of 4 MiB must fit, and a semaphore counts with 32 bits.
    frames_bytes_max: Option<Size<{ 4 << 20 }, { 1 << 31 }>>,
    frames_bytes_address_max: Option<Size<{ 64 << 10 }, { 1 << 31 }>>,
    frames_bytes_subnet_max: Option<Size<{ 64 << 10 }, { 1 << 31 }>>,
    // With one more block of 2 MiB it must fit a message.
    message_bytes: Option<Size<1024, { 1 << 20 }>>,
    small_block_bytes_max: Option<Size<0, { 64 << 10 }>>,
    block_bytes_max: Option<Size<1024, { 2 << 20 }>>,
    connections_per_peer_max: Option<Count<1, 1024>>,
    streams_per_peer_max: Option<Count<1, 1024>>,
    stream_idle_time_s: Option<Seconds<1, 86_400>>,
    pace_bytes_per_second_min: Option<Size<1, { 1 << 30 }>>,
    pace_grace_s: Option<Seconds<1, 3600>>,
    budget: BudgetTable,
    connections: ConnectionsTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct BudgetTable {
    burst_s: Option<Seconds<1, 3600>>,
    beyond: Option<Answer>,
    patience_s: Option<Seconds<0, 86_400>>,
    trusted: Option<Vec<Net>>,
    peer: RatesTable,
    address: RatesTable,
    subnet: RatesTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct RatesTable {
    entries_per_second: Option<Rate>,
    messages_per_second: Option<Rate>,
    streams_per_second: Option<Rate>,
    bytes_per_hour: Option<SizeRate>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct ConnectionsTable {
    established_max: Option<Count<1, 1_048_576>>,
    pending_max: Option<Count<1, 65_536>>,
    pending_per_address_max: Option<Count<1, 65_536>>,
    pending_per_subnet_max: Option<Count<1, 65_536>>,
    per_address_max: Option<Count<1, 1_048_576>>,
    per_subnet_max: Option<Count<1, 1_048_576>>,
    trusted: Option<Vec<Net>>,
}

/// Replaces a default by what the file says.
fn set<T>(value: &mut T, said: Option<T>) {
    if let Some(said) = said {
        *value = said;
    }
}

fn set_shares(shares: &mut Shares, address_max: Option<usize>, subnet_max: Option<usize>) {
    set(&mut shares.address_max, address_max);
    set(&mut shares.subnet_max, subnet_max);
}

impl HttpTable {
    fn apply(self, to: &mut Limits) {
        let counts = [
            (&mut to.connections_max, self.connections_max),
            (
                &mut to.connections_per_address_max,
                self.connections_per_address_max,
            ),
            (
                &mut to.connections_per_subnet_max,
                self.connections_per_subnet_max,
            ),
            (&mut to.requests_max, self.requests_max),
            (
                &mut to.requests_per_address_max,
                self.requests_per_address_max,
            ),
            (
                &mut to.requests_per_subnet_max,
                self.requests_per_subnet_max,
            ),
        ];
        for (value, said) in counts {
            set(value, said.map(Count::get));
        }
        let (address, subnet) = (
            self.in_flight_per_address_percent,
            self.in_flight_per_subnet_percent,
        );
        set(
            &mut to.in_flight_per_address_percent,
            address.map(Count::get),
        );
        set(&mut to.in_flight_per_subnet_percent, subnet.map(Count::get));
        set(&mut to.trusted, self.trusted.map(networks));
        set(
            &mut to.progress_timeout,
            self.progress_time_s.map(Seconds::get),
        );
        set(&mut to.answer_timeout, self.answer_time_s.map(Seconds::get));
        set(
            &mut to.request_timeout,
            self.request_time_s.map(Seconds::get),
        );
        set(&mut to.idle_timeout, self.idle_time_s.map(Seconds::get));
        set(&mut to.drain_time, self.drain_time_s.map(Seconds::get));
    }
}

impl BitswapTable {
    fn apply(self, config: &mut Config) {
        let to = &mut config.server;
        set(
            &mut to.wants_per_peer_max,
            self.wants_per_peer_max.map(Count::get),
        );
        set(&mut to.wants_max, self.wants_max.map(Count::get));
        set_shares(
            &mut to.wants_shares,
            self.wants_address_max.map(Count::get),
            self.wants_subnet_max.map(Count::get),
        );
        set(&mut to.lists_len_max, self.lists_bytes_max.map(Size::get));
        set(&mut to.want_time, self.want_time_s.map(Seconds::get));
        set(
            &mut to.outstanding_min,
            self.outstanding_bytes_min.map(Size::get),
        );
        set(
            &mut to.outstanding_max,
            self.outstanding_bytes_max.map(Size::get),
        );
        set(
            &mut to.outstanding_all_max,
            self.outstanding_bytes_all_max.map(Size::get),
        );
        set_shares(
            &mut to.outstanding_shares,
            self.outstanding_bytes_address_max.map(Size::get),
            self.outstanding_bytes_subnet_max.map(Size::get),
        );
        set(&mut to.frames_len_max, self.frames_bytes_max.map(Size::get));
        set_shares(
            &mut to.frames_shares,
            self.frames_bytes_address_max.map(Size::get),
            self.frames_bytes_subnet_max.map(Size::get),
        );
        set(&mut to.message_len, self.message_bytes.map(Size::get));
        set(
            &mut to.small_block_len,
            self.small_block_bytes_max.map(Size::bytes),
        );
        set(&mut to.block_len_max, self.block_bytes_max.map(Size::bytes));
        let connections = self.connections_per_peer_max.map(Count::get);
        set(&mut to.connections_per_peer_max, connections);
        set(
            &mut to.streams_per_peer_max,
            self.streams_per_peer_max.map(Count::get),
        );
        set(
            &mut to.stream_idle_time,
            self.stream_idle_time_s.map(Seconds::get),
        );
        set(
            &mut to.pace.rate_min,
            self.pace_bytes_per_second_min.map(Size::bytes),
        );
        set(&mut to.pace.grace, self.pace_grace_s.map(Seconds::get));
        let budget = &mut to.budget;
        set(&mut budget.burst, self.budget.burst_s.map(Seconds::get));
        set(
            &mut budget.beyond,
            self.budget.beyond.map(|answer| answer.0),
        );
        set(
            &mut budget.patience,
            self.budget.patience_s.map(Seconds::get),
        );
        set(&mut budget.trusted, self.budget.trusted.map(networks));
        self.budget.peer.apply(&mut budget.peer);
        self.budget.address.apply(&mut budget.address);
        self.budget.subnet.apply(&mut budget.subnet);
        self.connections.apply(&mut config.connections);
    }
}

impl RatesTable {
    fn apply(self, to: &mut Rates) {
        set(
            &mut to.entries_per_second,
            self.entries_per_second.map(|rate| rate.0),
        );
        set(
            &mut to.messages_per_second,
            self.messages_per_second.map(|rate| rate.0),
        );
        set(
            &mut to.streams_per_second,
            self.streams_per_second.map(|rate| rate.0),
        );
        set(
            &mut to.bytes_per_hour,
            self.bytes_per_hour.map(|rate| rate.0),
        );
    }
}

impl ConnectionsTable {
    fn apply(self, to: &mut ConnectionLimits) {
        set(
            &mut to.established_max,
            self.established_max.map(Count::get),
        );
        set(&mut to.pending_max, self.pending_max.map(Count::get));
        set(
            &mut to.pending_per_address_max,
            self.pending_per_address_max.map(Count::get),
        );
        set(
            &mut to.pending_per_subnet_max,
            self.pending_per_subnet_max.map(Count::get),
        );
        set(
            &mut to.per_address_max,
            self.per_address_max.map(Count::get),
        );
        set(&mut to.per_subnet_max, self.per_subnet_max.map(Count::get));
        set(&mut to.trusted, self.trusted.map(networks));
    }
}

fn networks(said: Vec<Net>) -> Vec<carrack_bitswap::budget::Network> {
    said.into_iter().map(|net| net.0).collect()
}

#[cfg(test)]
mod tests;
