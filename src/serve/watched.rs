use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use super::{HEAD_TIMEOUT, IDLE_TIMEOUT, WRITE_TIMEOUT, seldom::Seldom};

/// How often it is looked whether a connection is idle, and how often that is so until it has been for too long: to set a limit anew for
/// each request costs more than this.
const LOOK_EVERY: Duration = Duration::from_secs(IDLE_TIMEOUT.as_secs() / LOOKS);
const LOOKS: u64 = 10;

/// What a connection's requests are up to, told by the side that answers them.
#[derive(Debug)]
pub(super) struct Activity {
    began: AtomicU64,
    ended: AtomicU64,
    /// How often any connection of the listener was used: which of two was used later needs no clock.
    uses: Arc<AtomicU64>,
    /// When this one was, as a number of those.
    used: AtomicU64,
    /// Whether an answer on it has no end of its own.
    endless: AtomicBool,
    /// How often all had been used when an answer of this one was last begun.
    answered: AtomicU64,
}

/// How often a connection is used between two answers, as a rule: an answer is taken, and a request comes.
const OWN_USES: u64 = 2;

impl Activity {
    /// That of a connection that was just made, of a listener whose connections were used so often.
    pub(super) fn new(uses: Arc<AtomicU64>) -> Self {
        let activity = Self {
            began: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            uses,
            used: AtomicU64::new(0),
            endless: AtomicBool::new(false),
            answered: AtomicU64::new(0),
        };
        activity.used();
        activity
    }

    /// A request's head is complete.
    pub(super) fn request_began(&self) {
        count_one(&self.began);
        self.used();
    }

    /// A request's answer is ready to be written.
    pub(super) fn request_ended(&self) {
        count_one(&self.ended);
    }

    /// Lets other connections go first, so that what they ask is read before an answer is sent, and many answers leave in a row:
    /// whoever has asked many things and is woken by the first then finds the others there, while one at a time would wake him
    /// each time. Where no other connection was used since this one's last answer, nobody is waited for.
    pub(super) async fn others_first(&self) {
        let uses = self.uses.load(Ordering::Relaxed);
        if uses.wrapping_sub(self.answered.load(Ordering::Relaxed)) > OWN_USES {
            behind_what_is_ready().await;
        }
        self.answered.store(self.uses.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// The answer that begins has no end of its own. It is the connection's last: whoever wants to ask more uses another.
    pub(super) fn never_ends(&self) {
        self.endless.store(true, Ordering::Relaxed);
    }

    /// Whether such an answer was begun.
    pub(super) fn has_no_end(&self) -> bool {
        self.endless.load(Ordering::Relaxed)
    }

    /// The caller has sent a request or taken something of an answer.
    fn used(&self) {
        self.used.store(self.uses.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// When it was last used: a higher number is later.
    pub(super) fn used_at(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether a request is being answered.
    pub(super) fn is_busy(&self) -> bool {
        self.now().1
    }

    /// How many requests have begun, and whether the last of them is still being answered.
    fn now(&self) -> (u64, bool) {
        let began = self.began.load(Ordering::Relaxed);
        (began, self.ended.load(Ordering::Relaxed) != began)
    }
}

/// Goes to the end of the tasks that are ready. Tokio's own yielding would ask the kernel for news before, which costs more
/// than this is to spare.
async fn behind_what_is_ready() {
    let mut is_behind = false;
    poll_fn(|context| {
        if std::mem::replace(&mut is_behind, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Counts one more. Only the connection's own task does; others read.
fn count_one(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// A stream that fails with `TimedOut` when a request's head, the next request, or the caller's taking of an answer is
/// awaited too long. While a request is answered there is no limit here: whoever answers it has one.
pub(super) struct Watched<S> {
    stream: S,
    activity: Arc<Activity>,
    /// How many requests had begun when the first byte of the next came.
    head_after: Option<u64>,
    /// The head that `read_limit` is set for, by how many requests had begun before it; `None` where it is set for the next look.
    head: Option<u64>,
    /// How many requests had begun at the last look, and how many looks before had found as many.
    looked: (u64, u64),
    read_limit: Seldom<Pin<Box<Sleep>>>,
    write_limit: Option<Pin<Box<Sleep>>>,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, activity: Arc<Activity>) -> Self {
        let read_limit = Seldom::new(Box::pin(sleep(LOOK_EVERY)));
        Self { stream, activity, head_after: None, head: None, looked: (0, 0), read_limit, write_limit: None }
    }

    /// Whether what is read has been awaited too long; arranges to be woken when it has.
    ///
    /// The limit is set while a request is still answered too, since hyper does not always read again once it is.
    fn poll_read_limit(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let (began, busy) = self.activity.now();
        let head = (!busy && self.head_after == Some(began)).then_some(began);
        if self.head != head {
            self.head = head;
            self.looked = (began, 0);
            self.limit_read(if head.is_some() { HEAD_TIMEOUT } else { LOOK_EVERY });
        }
        loop {
            ready!(Pin::new(&mut self.read_limit).poll(context));
            if head.is_some() {
                return Poll::Ready(());
            }
            let looks = if busy || self.looked.0 != began { 0 } else { self.looked.1 + 1 };
            if looks == LOOKS {
                return Poll::Ready(());
            }
            self.looked = (began, looks);
            self.limit_read(LOOK_EVERY);
        }
    }

    fn limit_read(&mut self, limit: Duration) {
        self.read_limit.change().as_mut().reset(Instant::now() + limit);
    }

    fn watch_write(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_pending() {
            let limit = self.write_limit.get_or_insert_with(|| Box::pin(sleep(WRITE_TIMEOUT)));
            ready!(limit.as_mut().poll(context));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        self.write_limit = None;
        if let Poll::Ready(Ok(1..)) = written {
            self.activity.used();
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(context, buffer) {
            if buffer.filled().len() > before {
                let (began, busy) = self.activity.now();
                self.head_after = (!busy).then_some(began);
            }
            return Poll::Ready(read);
        }
        ready!(self.poll_read_limit(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch_write(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.watch_write(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether an answer may be sent before others had their turn.
    fn is_sent_at_once(activity: &Activity) -> bool {
        let mut others = Box::pin(activity.others_first());
        let mut context = Context::from_waker(std::task::Waker::noop());
        if others.as_mut().poll(&mut context).is_ready() {
            return true;
        }
        assert!(others.as_mut().poll(&mut context).is_ready(), "others go first once");
        false
    }

    #[test]
    fn others_go_first_where_others_were_there_since_the_last_answer() {
        let uses = Arc::new(AtomicU64::new(1));
        let [one, other] = [(); 2].map(|()| Activity::new(Arc::clone(&uses)));
        let asks = |activity: &Activity| {
            activity.request_began();
            let at_once = is_sent_at_once(activity);
            activity.used();
            at_once
        };
        asks(&one);
        assert!((0..3).all(|_| asks(&one)), "it is alone");
        for _ in 0..3 {
            assert!(!asks(&other) && !asks(&one));
        }
        assert!(asks(&one), "it is alone again");
    }
}
