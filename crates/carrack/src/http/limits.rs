//! Every number that bounds what a remote client can make this node do, with its reason.
//!
//! In       nothing: the defaults; the command line may replace single fields.
//! Out      [`Limits`], passed by value to the listener and the gateway.
//! Not here limits of the formats (block, section, CID, depth): `carrack-formats` names those.

use std::time::Duration;

use carrack_bitswap::budget::{Budget, Network};

/// Bounds on connections, requests and memory. All may be changed; none may be absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Open connections. Each costs about 20 KiB and a descriptor: 80 MiB and a quarter of the
    /// usual hard limit of descriptors at the most.
    pub connections_max: usize,
    /// Open connections from one address (an IPv6 /64): a quarter of all, so that one client cannot
    /// keep the others away. A reverse proxy needs a few hundred.
    pub connections_per_address_max: usize,
    /// Open connections from an IPv4 /24 or IPv6 /48: half of all, for who has many addresses.
    pub connections_per_subnet_max: usize,
    /// Networks whose addresses and subnets have no bound of their own: proxies bring everyone.
    pub trusted: Vec<Network>,
    /// From accept to the first byte. Browsers open spare connections and use them soon or never.
    pub first_byte_timeout: Duration,
    /// From the first byte of a request head to its last one: a head fits one packet or two.
    pub header_timeout: Duration,
    /// Between requests on one connection. Deployed block clients close theirs after 30 s; longer
    /// than that, so that the client decides and no request meets a closing connection.
    pub idle_timeout: Duration,
    /// While an answer is being written: a client that takes no byte for so long is gone. The
    /// trustless gateway specification calls 30 s a safe default.
    pub progress_timeout: Duration,
    /// The whole of one request. A client that needs longer asks for ranges.
    pub request_timeout: Duration,
    /// From a request to the head of its answer, beyond it 504: two reads of a slow source, each of
    /// which has a minute.
    pub answer_timeout: Duration,
    /// After a SIGTERM connections are still taken for this long, so that whoever sends requests
    /// here sees that `/readyz` says 503 and sends them elsewhere: two looks of a balancer that
    /// looks each second, or one of HAProxy by default. A signal from a terminal does not wait.
    pub drain_time: Duration,
    /// Running responses get this long to end when the node stops.
    pub shutdown_timeout: Duration,
    /// Requests being answered at once; beyond it 429. What deployed gateways use. Those that need
    /// what sources elsewhere have are a quarter of them for each, half for all.
    pub requests_max: usize,
    /// The same of one address (an IPv6 /64): a quarter of all. A block client has 16 to 64 under
    /// way.
    pub requests_per_address_max: usize,
    /// The same of an IPv4 /24 or IPv6 /48: half of all.
    pub requests_per_subnet_max: usize,
    /// What a client that got 429 or 503 is told to wait, in seconds.
    pub retry_after_s: u32,
    /// Request line and headers of one request, in bytes: deep paths fit, header floods do not.
    pub request_head_len_max: usize,
    /// Request headers of one request. Browsers behind two proxies send about 40.
    pub request_headers_max: usize,
    /// Path segments after the CID.
    pub path_segments_max: usize,
    /// One decoded path segment, in bytes: above the 255 of file systems, room for map keys.
    pub path_segment_len_max: usize,
    /// HTTP/2 streams of one connection. Block clients use 16 to 64.
    pub h2_streams_max: u32,
    /// HTTP/2 streams that the client reset before they were taken up: more is an attack
    /// (CVE-2023-44487).
    pub h2_pending_resets_max: usize,
    /// HTTP/2 streams that this end had to reset for errors of the client, per connection.
    pub h2_local_resets_max: usize,
    /// Interval of HTTP/2 pings on a silent connection; half of `progress_timeout`, so that a dead
    /// peer is noticed within it.
    pub h2_ping_interval: Duration,
    /// Bytes of blocks and CAR frames between being read and being written to a socket, over all
    /// responses. The node's memory is this, the connections, and the block cache.
    pub bytes_in_flight_max: usize,
    /// What one address may have of `bytes_in_flight_max`, in percent: clients that take nothing
    /// hold up nobody else.
    pub in_flight_per_address_percent: usize,
    /// The same of an IPv4 /24 or IPv6 /48: half of the memory stays for others.
    pub in_flight_per_subnet_percent: usize,
    /// How long a request waits for room in `bytes_in_flight_max` before it gets 503. Deployed
    /// block clients give a request 5 s in all, and take silence worse than 503.
    pub room_timeout: Duration,
    /// Batches of one CAR that are read ahead of the one being written. Three hide the latency of
    /// a slow disk; as many as are hashed at once, twice, while there is plenty of room.
    pub batches_ahead_max: usize,
    /// Blocks of one CAR, duplicates counted: a DAG of 31 blocks can be an answer of 2^30. More
    /// than a walk without duplicates remembers, so that it binds for `dups=y` alone.
    pub car_blocks_max: u64,
    /// Bytes that all walks over DAGs hold together, beyond 64 KiB each: open nodes, and what
    /// answers without duplicates remember. Most need nothing of it; four million blocks take
    /// 140 MiB: one address may have half of what is free, and so one of the largest answers.
    pub walk_bytes_max: usize,
    /// Blocking jobs (disk reads, hashing) that run at once. Enough for the queue depth of an SSD;
    /// with a warm page cache the number of cores decides.
    pub blocking_jobs_max: usize,
    /// Largest piece handed to an HTTP/2 stream at once, in bytes. It must leave within
    /// `progress_timeout`, so it sets the slowest rate: 2 KiB/s.
    pub h2_piece_len: usize,
    /// Lines of the access log that wait for the disk; beyond it lines are dropped and counted.
    pub access_log_lines_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            connections_per_address_max: 1024,
            connections_per_subnet_max: 2048,
            trusted: Budget::default().trusted,
            first_byte_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(90),
            progress_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(3600),
            answer_timeout: Duration::from_secs(120),
            drain_time: Duration::from_secs(2),
            shutdown_timeout: Duration::from_secs(30),
            requests_max: 4096,
            requests_per_address_max: 1024,
            requests_per_subnet_max: 2048,
            retry_after_s: 60,
            request_head_len_max: 16 * 1024,
            request_headers_max: 100,
            path_segments_max: 256,
            path_segment_len_max: 4096,
            h2_streams_max: 128,
            h2_pending_resets_max: 20,
            h2_local_resets_max: 128,
            h2_ping_interval: Duration::from_secs(15),
            bytes_in_flight_max: 128 * 1024 * 1024,
            in_flight_per_address_percent: 25,
            in_flight_per_subnet_percent: 50,
            room_timeout: Duration::from_secs(4),
            batches_ahead_max: 32,
            car_blocks_max: 16_000_000,
            walk_bytes_max: 512 * 1024 * 1024,
            blocking_jobs_max: 32,
            h2_piece_len: 64 * 1024,
            access_log_lines_max: 8192,
        }
    }
}

impl Limits {
    /// At most half of `n` descriptors for connections: the rest is for the files that are served,
    /// the store, peers and commands. A connection too many waits until one ends.
    #[must_use]
    pub fn within_descriptors(mut self, n: u64) -> Self {
        let n = usize::try_from(n / 2).unwrap_or(usize::MAX).max(1);
        self.connections_max = self.connections_max.min(n);
        self.connections_per_address_max = self.connections_per_address_max.min(n);
        self.connections_per_subnet_max = self.connections_per_subnet_max.min(n);
        self
    }
}

/// All response headers together, in bytes, status line included. Deployed block clients refuse
/// more (boxo `httpnet`, `MaxResponseHeaderBytes`); what does not fit is left out.
pub const RESPONSE_HEAD_LEN_MAX: usize = 2048;

/// Ranges in one `Range` header that are looked at; with more the header is ignored.
pub const RANGES_MAX: usize = 16;

/// A `filename` parameter, in bytes: what file systems take.
pub const FILENAME_LEN_MAX: usize = 255;

/// Media types in one `Accept` header that are looked at.
pub const ACCEPT_ENTRIES_MAX: usize = 32;

/// Entity tags in one `If-None-Match` header that are looked at.
pub const ENTITY_TAGS_MAX: usize = 64;
