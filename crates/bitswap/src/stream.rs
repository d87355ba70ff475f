//! Streams of bytes, whoever opened them over whatever transport.

use futures_util::{AsyncRead, AsyncWrite};

/// Both ways at once.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A stream that somebody opened.
pub type ByteStream = Box<dyn Duplex>;
