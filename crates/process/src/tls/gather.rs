//! Sends what is written one after the other together. A client of HTTP/2 flushes the head of a request, its message and its end
//! each for itself, as three TLS records in three packets, each of which wakes the server.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// As much is gathered at most: the longest TLS record (RFC 8446, section 5.1), in bytes.
const MOST: usize = 16 << 10;

/// A stream whose flush first waits for the end of the scheduler's queue, because the tasks in it may have more to write. With several
/// worker threads that is likely and not certain. What fills a record is not copied.
#[derive(Debug)]
pub struct Gathering<T> {
    stream: T,
    gathered: Vec<u8>,
    /// So much of it is written.
    written: usize,
    /// Others had their turn.
    waited: bool,
}

impl<T: AsyncWrite + Unpin> Gathering<T> {
    /// Gathers what is written to a stream.
    pub fn new(stream: T) -> Self {
        Self {
            stream,
            gathered: Vec::new(),
            written: 0,
            waited: false,
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.gathered.len() {
            let rest = &self.gathered[self.written..];
            let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += sent;
        }
        // Thousands of idle connections keep no memory for it.
        (self.gathered, self.written, self.waited) = (Vec::new(), 0, false);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gathering<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gathering<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.gathered.len() >= MOST {
            ready!(self.poll_send(cx))?;
        }
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        if self.gathered.is_empty() && length >= MOST {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        }
        let mut taken = 0;
        for slice in slices {
            let room = MOST - self.gathered.len();
            let part = &slice[..slice.len().min(room)];
            self.gathered.extend_from_slice(part);
            taken += part.len();
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.gathered.is_empty() {
            if !self.waited {
                self.waited = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(self.poll_send(cx))?;
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    /// Notes how much was written at a time.
    struct Noting(DuplexStream, Vec<usize>);

    impl AsyncWrite for Noting {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let written = ready!(Pin::new(&mut self.0).poll_write(cx, bytes))?;
            self.1.push(written);
            Poll::Ready(Ok(written))
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    fn pair(room: usize) -> (Gathering<Noting>, DuplexStream) {
        let (near, far) = duplex(room);
        (Gathering::new(Noting(near, Vec::new())), far)
    }

    #[tokio::test]
    async fn what_is_written_before_others_had_their_turn_goes_out_at_once() {
        let (mut near, mut far) = pair(1024);
        for part in ["head ", "message ", "end"] {
            near.write_all(part.as_bytes()).await.unwrap();
            assert_eq!(near.stream.1, [0_usize; 0], "nothing yet");
        }
        near.flush().await.unwrap();
        assert_eq!(near.stream.1, [16]);
        near.write_all(b"more").await.unwrap();
        near.shutdown().await.unwrap();
        assert_eq!(near.stream.1, [16, 4]);
        drop(near);
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "head message endmore");
    }

    #[tokio::test]
    async fn a_flush_waits_once_for_other_tasks_and_not_for_ever() {
        let (near, mut far) = pair(1024);
        let near = tokio::sync::Mutex::new(near);
        near.lock().await.write_all(b"a").await.unwrap();
        // As the task of an HTTP/2 connection, which others give frames while it flushes.
        let flushing = std::future::poll_fn(|cx| {
            let Ok(mut near) = near.try_lock() else {
                return Poll::Pending;
            };
            Pin::new(&mut *near).poll_flush(cx)
        });
        let writing = async { near.lock().await.write_all(b"b").await };
        let (flushed, written) = tokio::join!(biased; flushing, writing);
        flushed.unwrap();
        written.unwrap();
        assert_eq!(near.lock().await.stream.1, [2]);
        let mut both = [0; 2];
        far.read_exact(&mut both).await.unwrap();
        assert_eq!(&both, b"ab");
    }

    #[tokio::test]
    async fn nothing_is_lost_or_doubled_however_little_the_other_side_takes_at_a_time() {
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        for (room, piece) in [(7, 1000), (1000, 7), (64 << 10, 40 << 10), (5000, MOST)] {
            let (mut near, mut far) = pair(room);
            let sent = async {
                for part in bytes.chunks(piece) {
                    near.write_all(part).await.unwrap();
                    if part[0].is_multiple_of(3) {
                        near.flush().await.unwrap();
                    }
                }
                near.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let ((), read) = tokio::join!(sent, far.read_to_end(&mut got));
            read.unwrap();
            assert!(got == bytes, "{room} {piece}");
        }
    }

    #[tokio::test]
    async fn what_fills_a_record_goes_out_as_it_is() {
        let (mut near, _far) = pair(64 << 10);
        near.write_all(&[0; MOST]).await.unwrap();
        assert_eq!(near.stream.1, [MOST]);
        near.flush().await.unwrap();
        assert_eq!(near.stream.1, [MOST]);
    }
}
