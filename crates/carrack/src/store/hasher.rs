//! Digests of what many tasks have in memory, hashed together.
//!
//! In       messages that somebody owns: filled frames, leaves of a file that is being added.
//! Out      their SHA2-256 digests.
//! Limits   as many groups at once as there are processors; the queue holds what its askers hold.
//! Not here the bytes themselves, whose budget is the asker's.
//!
//! A processor may hash [several messages](messages_at_once) in little more time than one. Who asks
//! while nothing is hashed is hashed at once, alone; who comes meanwhile is hashed together with
//! the others that came, and where some came, a group waits a moment for more: a large one takes
//! hardly longer than a small one. Another processor joins in when there is enough for a
//! group of its own.

use std::collections::VecDeque;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use carrack_formats::Cid;
use carrack_formats::cid::SHA2_256;
use carrack_formats::sha256::{Digest, digest_all, messages_at_once};
use tokio::sync::oneshot;

use super::buffers::Buffer;
use super::hold;
use crate::error::{Context, Error, ErrorKind, Result};

/// How long a group waits to become larger: twice what the last one took, and at most so long.
const LINGER_MAX: Duration = Duration::from_millis(20);

/// What can be hashed.
pub trait Messages: Send + Sync + 'static {
    /// The messages, in the order of their digests.
    fn messages(&self) -> Vec<&[u8]>;
}

/// What is held as long as the messages are.
impl<M: Messages, T: Send + Sync + 'static> Messages for (M, T) {
    fn messages(&self) -> Vec<&[u8]> {
        self.0.messages()
    }
}

impl Messages for Buffer {
    fn messages(&self) -> Vec<&[u8]> {
        vec![self.as_ref()]
    }
}

/// Whether this is the digest of a block that is hashed here.
#[must_use]
pub fn hashes(cid: &Cid) -> bool {
    cid.hash().code() == SHA2_256 && cid.hash().digest().len() == size_of::<Digest>()
}

/// Where tasks meet. Clones share it.
#[derive(Debug, Clone)]
pub struct Hasher {
    shared: Arc<Mutex<Shared>>,
    /// There is enough for a group.
    enough: Arc<Condvar>,
    groups_max: usize,
    /// Messages of a group, unless one asker brings more.
    group_len: usize,
}

#[derive(Default)]
struct Shared {
    jobs: VecDeque<Job>,
    n_messages: usize,
    /// Groups that are being hashed.
    n_groups: usize,
}

struct Job {
    messages: Arc<dyn Messages>,
    n_messages: usize,
    done: oneshot::Sender<Vec<Digest>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (jobs, groups) = (self.jobs.len(), self.n_groups);
        write!(f, "Shared({jobs} wait, {groups} groups)")
    }
}

impl Default for Hasher {
    fn default() -> Self {
        let groups_max = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            shared: Arc::default(),
            enough: Arc::default(),
            groups_max,
            group_len: messages_at_once(),
        }
    }
}

impl Hasher {
    /// Hashes on the blocking threads of the runtime that this is called on, and gives back what
    /// was given. Cancel-safe: what nobody waits for any more is hashed and dropped.
    ///
    /// # Errors
    /// `Internal`, if a thread panicked.
    pub async fn digests<M: Messages>(&self, messages: M) -> Result<(M, Vec<Digest>)> {
        self.begin(messages).done().await
    }

    /// Begins to hash, whether or not anybody waits for it.
    #[must_use]
    pub fn begin<M: Messages>(&self, messages: M) -> Pending<M> {
        let n_messages = messages.messages().len();
        let messages = Arc::new(messages);
        let (done, digests) = oneshot::channel();
        let job = Job {
            messages: Arc::clone(&messages) as Arc<dyn Messages>,
            n_messages,
            done,
        };
        if self.enter(job) {
            let hasher = self.clone();
            tokio::task::spawn_blocking(move || hasher.work());
        }
        Pending { messages, digests }
    }

    /// Queues a job; whether another thread is to work.
    fn enter(&self, job: Job) -> bool {
        let mut shared = hold(&self.shared);
        shared.n_messages += job.n_messages;
        shared.jobs.push_back(job);
        let is_free = shared.n_groups < self.groups_max;
        if shared.n_messages >= self.group_len {
            self.enough.notify_one();
        }
        let starts = shared.n_groups == 0 || (is_free && shared.n_messages >= self.group_len);
        shared.n_groups += usize::from(starts);
        starts
    }

    /// Hashes group after group until nothing waits.
    fn work(&self) {
        let mut linger = Duration::ZERO;
        while let Some(group) = self.next_group(linger) {
            let (start, is_alone) = (Instant::now(), group.len() == 1);
            // Messages that panic fail those who ask for this group, and nobody behind them.
            let digests = catch_unwind(AssertUnwindSafe(|| digests_of(&group)));
            let mut digests = digests.unwrap_or_default().into_iter();
            for job in group {
                drop(job.messages);
                let digests: Vec<_> = digests.by_ref().take(job.n_messages).collect();
                if digests.len() == job.n_messages {
                    let _ = job.done.send(digests); // Its asker may have left.
                }
            }
            linger = match is_alone {
                true => Duration::ZERO, // Perhaps nobody else is there.
                false => (2 * start.elapsed()).min(LINGER_MAX),
            };
        }
    }

    /// What is to be hashed next, after waiting as long for more; `None`: this thread is not needed
    /// any more.
    fn next_group(&self, linger: Duration) -> Option<Vec<Job>> {
        let mut shared = hold(&self.shared);
        if !linger.is_zero() {
            let lacks = |shared: &mut Shared| shared.n_messages < self.group_len;
            let waited = self.enough.wait_timeout_while(shared, linger, lacks);
            shared = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let (mut group, mut n) = (Vec::new(), 0);
        while n < self.group_len
            && let Some(job) = shared.jobs.pop_front()
        {
            n += job.n_messages;
            group.push(job);
        }
        shared.n_messages -= n;
        if group.is_empty() {
            shared.n_groups -= 1; // Under the lock that found nothing: nobody is left behind.
            return None;
        }
        Some(group)
    }
}

fn digests_of(group: &[Job]) -> Vec<Digest> {
    let all = group.iter().flat_map(|job| job.messages.messages());
    digest_all(&all.collect::<Vec<_>>())
}

/// Digests that are on their way.
#[derive(Debug)]
pub struct Pending<M> {
    messages: Arc<M>,
    digests: oneshot::Receiver<Vec<Digest>>,
}

impl<M: Messages> Pending<M> {
    /// What was given, and its digests.
    ///
    /// # Errors
    /// As [`Hasher::digests`].
    pub async fn done(self) -> Result<(M, Vec<Digest>)> {
        let what = || "a hashing thread ended".to_owned();
        let digests = self.digests.await.context(ErrorKind::Internal, what)?;
        // The thread let go of them before it told.
        let messages = Arc::into_inner(self.messages)
            .ok_or_else(|| Error::new(ErrorKind::Internal, "messages are still held"))?;
        Ok((messages, digests))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use carrack_formats::sha256::Sha256;
    use tokio::task::JoinSet;

    use super::{Hasher, LINGER_MAX, Messages};

    impl Messages for Vec<u8> {
        fn messages(&self) -> Vec<&[u8]> {
            vec![self]
        }
    }

    struct Many(Vec<Vec<u8>>);

    impl Messages for Many {
        fn messages(&self) -> Vec<&[u8]> {
            self.0.iter().map(Vec::as_slice).collect()
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn each_asker_gets_the_digests_of_its_own_messages() {
        let hasher = Hasher::default();
        let mut askers = JoinSet::new();
        for number in 0..200u8 {
            let hasher = hasher.clone();
            askers.spawn(async move {
                let n = usize::from(number % 5);
                let message = |index: usize| vec![number; 1000 * index + usize::from(number)];
                let messages: Vec<_> = (0..n).map(message).collect();
                let expected: Vec<_> = messages.iter().map(|it| Sha256::digest(it)).collect();
                let (back, digests) = hasher.digests(Many(messages.clone())).await.unwrap();
                assert_eq!((back.0, digests), (messages, expected));
            });
        }
        while let Some(asker) = askers.join_next().await {
            asker.unwrap();
        }
        while super::hold(&hasher.shared).n_groups > 0 {
            tokio::time::sleep(LINGER_MAX).await; // For ever, if a thread does not end.
        }
    }

    #[tokio::test]
    async fn who_leaves_holds_up_nobody() {
        let hasher = Hasher::default();
        for number in 0..50 {
            let asking = hasher.digests(vec![number; 100_000]);
            let asking = tokio::time::timeout(std::time::Duration::ZERO, asking);
            let _ = asking.await;
        }
        let (_, digests) = hasher.digests(vec![7; 10]).await.unwrap();
        assert_eq!(digests, [Sha256::digest(&[7; 10])]);
    }

    /// Fails the thread that hashes.
    #[derive(Default)]
    struct Broken(AtomicBool);

    impl Messages for Broken {
        fn messages(&self) -> Vec<&[u8]> {
            assert!(!self.0.swap(true, Ordering::Relaxed), "as it must not");
            vec![b"data"]
        }
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_others_go_on() {
        let hasher = Hasher::default();
        for _ in 0..2 * hasher.groups_max {
            assert!(hasher.digests(Broken::default()).await.is_err());
        }
        assert!(hasher.digests(vec![1]).await.is_ok());
    }
}
