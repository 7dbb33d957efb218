//! An answer that is made while it is sent.

use std::{
    io::{self, Write},
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame};
use tokio::sync::mpsc;

/// How many pieces may wait for the caller; whoever makes more waits.
const MAX_WAITING: usize = 8;

/// A piece of the answer.
enum Piece {
    Bytes(Bytes),
    /// All of it was sent.
    End,
}

/// The end of a download that is written to, from a thread that may block.
pub(super) struct Upload(mpsc::Sender<io::Result<Piece>>);

/// The end that is sent to the caller. Only where the writer said so does the answer end well: if it fails, or dies, the
/// connection is cut, so that the caller cannot take a part for the whole.
pub(super) struct Download {
    pieces: mpsc::Receiver<io::Result<Piece>>,
    first: Option<Bytes>,
    ended: bool,
}

/// Both ends of an answer.
pub(super) fn download() -> (Upload, Download) {
    let (sender, pieces) = mpsc::channel(MAX_WAITING);
    (Upload(sender), Download { pieces, first: None, ended: false })
}

impl Upload {
    /// All was written.
    pub(super) fn finish(self) {
        let _nobody_waits = self.0.blocking_send(Ok(Piece::End));
    }

    /// The rest cannot be made.
    pub(super) fn fail(self) {
        let _nobody_waits = self.0.blocking_send(Err(io::Error::other("the answer could not be completed")));
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Piece::Bytes(Bytes::copy_from_slice(bytes));
        self.0
            .blocking_send(Ok(piece))
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the caller went away"))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Download {
    /// Waits for the first piece; false where there will be none.
    pub(super) async fn has_begun(&mut self) -> bool {
        match self.pieces.recv().await {
            Some(Ok(Piece::Bytes(bytes))) => {
                self.first = Some(bytes);
                true
            }
            _ => false,
        }
    }

    /// As the body of an answer.
    pub(super) fn into_body(self) -> Body {
        Body::new(self)
    }
}

impl HttpBody for Download {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let piece = ready!(self.pieces.poll_recv(context));
        self.ended = !matches!(piece, Some(Ok(Piece::Bytes(_))));
        Poll::Ready(match piece {
            Some(Ok(Piece::Bytes(bytes))) => Some(Ok(Frame::data(bytes))),
            Some(Ok(Piece::End)) => None,
            Some(Err(error)) => Some(Err(error)),
            None => Some(Err(io::Error::other("whoever made the answer died"))),
        })
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn received(make: impl FnOnce(Upload) + Send + 'static) -> Result<Vec<u8>, axum::Error> {
        let (upload, mut download) = download();
        std::thread::spawn(move || make(upload));
        assert!(download.has_begun().await);
        Ok(download.into_body().collect().await?.to_bytes().to_vec())
    }

    #[tokio::test]
    async fn it_ends_well_only_where_the_writer_said_so() {
        let many = || (0..100_u8).collect::<Vec<_>>();
        let whole = received(move |mut upload| {
            many().chunks(3).for_each(|piece| upload.write_all(piece).unwrap());
            upload.finish();
        });
        assert_eq!(whole.await.unwrap(), many());
        let failed = received(|mut upload| {
            upload.write_all(b"part").unwrap();
            upload.fail();
        });
        failed.await.unwrap_err();
        let died = received(|mut upload| upload.write_all(b"part").unwrap());
        died.await.unwrap_err();
    }

    #[tokio::test]
    async fn a_caller_who_goes_away_is_noticed_by_the_writer() {
        let (mut upload, download) = download();
        drop(download);
        let written = tokio::task::spawn_blocking(move || upload.write(b"x")).await.unwrap();
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
