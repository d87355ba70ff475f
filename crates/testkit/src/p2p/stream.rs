//! One stream: bytes in both directions, in whatever order and amount a test likes.
//!
//! In       a stream of the muxer, or what lies under the muxer.
//! Out      `futures` reading and writing, and whole frames.
//! Limits   none: who reads decides how much.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::core::muxing::SubstreamBox;
use multistream_select::Negotiated;

/// What any layer of a connection can be.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

enum Inner {
    Raw(SubstreamBox),
    Agreed(Negotiated<SubstreamBox>),
    Unmuxed(Box<dyn Duplex>),
}

/// A stream. Dropped before [`Stream::finish`] it is reset.
pub struct Stream(Inner);

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

impl Stream {
    pub(super) const fn raw(stream: SubstreamBox) -> Self {
        Self(Inner::Raw(stream))
    }

    pub(super) const fn agreed(stream: Negotiated<SubstreamBox>) -> Self {
        Self(Inner::Agreed(stream))
    }

    pub(super) fn unmuxed(stream: impl Duplex + 'static) -> Self {
        Self(Inner::Unmuxed(Box::new(stream)))
    }

    fn part(&mut self) -> Pin<&mut dyn Duplex> {
        match &mut self.0 {
            Inner::Raw(stream) => Pin::new(stream),
            Inner::Agreed(stream) => Pin::new(stream),
            Inner::Unmuxed(stream) => Pin::new(stream),
        }
    }

    /// Writes all of `bytes` and flushes. Waits as long as the server does not read.
    ///
    /// # Errors
    /// The stream was reset or the connection ended.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes).await?;
        self.flush().await
    }

    /// Ends our side; the server may still write.
    ///
    /// # Errors
    /// As [`Stream::send`].
    pub async fn finish(&mut self) -> io::Result<()> {
        self.close().await
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// `UnexpectedEof` when there are fewer.
    pub async fn receive(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read_exact(&mut bytes).await?;
        Ok(bytes)
    }

    /// The body of the next frame, which its length precedes as a varint; `None` at a clean end.
    /// With it comes how many bytes the length took.
    ///
    /// # Errors
    /// `UnexpectedEof` inside a frame; `InvalidData` for a length over `len_max`.
    pub async fn receive_frame(&mut self, len_max: usize) -> io::Result<Option<(Bytes, usize)>> {
        let mut len = 0_u64;
        let mut n_bytes = 0;
        loop {
            let mut byte = [0];
            if self.read(&mut byte).await? == 0 {
                return match n_bytes {
                    0 => Ok(None),
                    _ => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
            let [byte] = byte;
            len |= u64::from(byte & 0x7f) << (7 * n_bytes);
            n_bytes += 1;
            if byte < 0x80 {
                break;
            }
            if n_bytes == 9 {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "endless length"));
            }
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > len_max {
            let why = format!("a frame of {len} bytes, limit is {len_max}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(Some((self.receive(len).await?.into(), n_bytes)))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.part().poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.part().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.part().poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.part().poll_close(context)
    }
}
