//! Where a block's bytes lie: a container, an offset and a length.
//!
//! Limits   containers < 2^40, offsets < 2^47 bytes, lengths < 2^24 bytes: what a record holds.
//! Not here how a container is opened (`source`), what it is called (`store::catalog`).

/// One immutable version of one object of a source, or a pack. Never reused. Below 2^40.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(pub u64);

/// Where the bytes of one block lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The container that holds them.
    pub container: ContainerId,
    /// First byte, from the start of the container. Below 2^47.
    pub offset: u64,
    /// Number of bytes there. Below 2^24.
    pub len: u32,
    /// The bytes are the payload of a dag-pb UnixFS file leaf whose few framing bytes lie nowhere:
    /// they are made again on reading (`formats::unixfs::leaf`). `len` is that of the payload.
    pub wrapped: bool,
}

impl Location {
    /// First container id that does not fit a record.
    pub const CONTAINER_END: u64 = 1 << 40;
    /// First offset that does not fit a record.
    pub const OFFSET_END: u64 = 1 << 47;
    /// First length that does not fit a record.
    pub const LEN_END: u32 = 1 << 24;
}
