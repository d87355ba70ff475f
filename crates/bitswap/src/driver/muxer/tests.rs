//! Peers that send over yamux and are not read.

use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{AsyncReadExt, AsyncWriteExt};
use tokio_util::compat::TokioAsyncReadCompatExt;

use super::super::windows::{FREE_LEN, UNREAD_MAX};
use super::*;

/// What lies in the pipe between both, in bytes.
const PIPE_LEN: usize = 4 << 10;

/// Both ends of a connection: the peer is driven by yamux as it is.
fn pair() -> (
    yamux::Connection<impl AsyncRead + AsyncWrite + Unpin + Send>,
    Muxer<impl AsyncRead + AsyncWrite + Unpin + Send + 'static>,
) {
    let (near, far) = tokio::io::duplex(PIPE_LEN);
    let peer = yamux::Connection::new(near.compat(), yamux::Config::default(), yamux::Mode::Client);
    let Yamux(config) = Yamux::default();
    (peer, Muxer::new(far.compat(), config, yamux::Mode::Server))
}

/// Opens streams and writes as much as it can on each; how much that is. `answers`: it reads, too.
async fn flood(
    mut peer: yamux::Connection<impl AsyncRead + AsyncWrite + Unpin + Send + 'static>,
    n_streams: usize,
) -> Arc<AtomicUsize> {
    let n_written = Arc::<AtomicUsize>::default();
    let mut streams = Vec::new();
    for _ in 0..n_streams {
        let opened = poll_fn(|cx| peer.poll_new_outbound(cx)).await;
        streams.push(opened.unwrap());
    }
    for mut stream in streams {
        let n_written = Arc::clone(&n_written);
        tokio::spawn(async move {
            while let Ok(n) = stream.write(&[7; 16 << 10]).await {
                n_written.fetch_add(n, Ordering::Relaxed);
            }
        });
    }
    tokio::spawn(async move { while poll_fn(|cx| peer.poll_next_inbound(cx)).await.is_some() {} });
    n_written
}

/// Drives a connection, and takes no stream from it.
async fn ended<C>(muxer: &mut Muxer<C>) -> yamux::ConnectionError
where
    C: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let polled = poll_fn(|cx| Pin::new(&mut *muxer).poll(cx)).await;
    polled.map(drop).unwrap_err()
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_nobody_reads_holds_little_and_ends() {
    let (peer, mut muxer) = pair();
    let _written = flood(peer, STREAMS_MAX).await;
    let start = tokio::time::Instant::now();
    let error = ended(&mut muxer).await;
    assert!(matches!(error, yamux::ConnectionError::Io(_)), "{error}");
    let took = start.elapsed();
    assert!(took >= UNREAD_TIME && took < UNREAD_TIME + Duration::from_secs(1));
    let len = muxer.unread.len();
    assert!(len > FREE_LEN && len <= UNREAD_MAX, "{len}");
}

#[tokio::test(start_paused = true)]
async fn what_is_read_goes_on_however_much_it_is() {
    const LEN: usize = 8 << 20;
    let (peer, mut muxer) = pair();
    let _written = flood(peer, 4).await;
    let mut streams = Vec::new();
    let mut n_read = 0;
    let (sender, mut read) = tokio::sync::mpsc::channel(64);
    while n_read < LEN {
        tokio::select! {
            stream = poll_fn(|cx| Pin::new(&mut muxer).poll_inbound(cx)) => {
                let (mut stream, sender) = (stream.unwrap(), sender.clone());
                streams.push(tokio::spawn(async move {
                    let mut buffer = vec![0; 10_000];
                    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                        let _ = sender.send(n).await;
                    }
                }));
            }
            Some(n) = read.recv() => n_read += n,
        }
    }
    assert_eq!(streams.len(), 4);
    assert!(muxer.unread.len() <= UNREAD_MAX);
}

#[tokio::test(start_paused = true)]
async fn streams_that_are_dropped_make_room_for_others() {
    let (peer, mut muxer) = pair();
    let _written = flood(peer, 16).await;
    // Four windows are more than a connection may have.
    for _ in 0..16 {
        let stream = poll_fn(|cx| Pin::new(&mut muxer).poll_inbound(cx)).await;
        let (mut stream, mut some) = (stream.unwrap(), [0; 100]);
        tokio::select! {
            error = ended(&mut muxer) => panic!("{error}"),
            read = stream.read_exact(&mut some) => read.unwrap(),
        }
    }
    tokio::select! {
        error = ended(&mut muxer) => panic!("{error}"),
        () = tokio::time::sleep(Duration::from_secs(1)) => {}
    }
    assert_eq!(muxer.unread.len(), 0);
}

/// The head of a frame with data.
#[expect(clippy::big_endian_bytes, reason = "yamux writes in network order")]
fn head(stream: u32, len: u32) -> Vec<u8> {
    let fields = [stream.to_be_bytes(), len.to_be_bytes()].concat();
    [&[0, 0, 0, 1][..], &fields].concat()
}

#[tokio::test]
async fn a_frame_longer_than_a_window_ends_the_connection_by_its_head() {
    let (mut near, far) = tokio::io::duplex(PIPE_LEN);
    let Yamux(config) = Yamux::default();
    let mut muxer = Muxer::new(far.compat(), config, yamux::Mode::Server);
    let head = head(1, YAMUX_STREAM_WINDOW as u32 + 1);
    tokio::io::AsyncWriteExt::write_all(&mut near, &head)
        .await
        .unwrap();
    let error = tokio::time::timeout(Duration::from_secs(5), ended(&mut muxer)).await;
    let error = error.unwrap();
    assert!(
        error.to_string().contains("longer than a window"),
        "{error}"
    );
}
