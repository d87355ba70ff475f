//! Digests of what many tasks have in memory, hashed together.
//!
//! In       messages that somebody owns: filled frames, leaves of a file that is being added.
//! Out      their SHA2-256 digests.
//! Limits   as many groups at once as there are processors; the queue holds what its askers hold.
//! Not here the bytes themselves, whose budget is the asker's.
//!
//! A processor may hash sixteen messages in little more time than one ([`digest_all`]). Nobody
//! waits for others to come: who asks while a processor is free is hashed at once, alone. The
//! busier they are, the larger the groups.

use std::collections::VecDeque;
use std::num::NonZero;
use std::sync::{Arc, Mutex};

use carrack_formats::sha256::{Digest, digest_all};
use tokio::sync::oneshot;

use super::hold;
use crate::error::{Context, Error, ErrorKind, Result};

/// Messages of a group, unless one asker brings more.
const GROUP_MAX: usize = 16;

/// What can be hashed.
pub trait Messages: Send + Sync + 'static {
    /// The messages, in the order of their digests.
    fn messages(&self) -> Vec<&[u8]>;
}

impl Messages for Vec<u8> {
    fn messages(&self) -> Vec<&[u8]> {
        vec![self]
    }
}

/// What is held as long as the messages are.
impl<M: Messages, T: Send + Sync + 'static> Messages for (M, T) {
    fn messages(&self) -> Vec<&[u8]> {
        self.0.messages()
    }
}

/// Where tasks meet. Clones share it.
#[derive(Debug, Clone)]
pub struct Hasher {
    shared: Arc<Mutex<Shared>>,
    groups_max: usize,
}

#[derive(Default)]
struct Shared {
    jobs: VecDeque<Job>,
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
            groups_max,
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
        let what = || "a hashing thread ended".to_owned();
        let digests = digests.await.context(ErrorKind::Internal, what)?;
        // The thread let go of them before it told.
        let messages = Arc::into_inner(messages)
            .ok_or_else(|| Error::new(ErrorKind::Internal, "messages are still held"))?;
        Ok((messages, digests))
    }

    /// Queues a job; whether another thread is to work.
    fn enter(&self, job: Job) -> bool {
        let mut shared = hold(&self.shared);
        shared.jobs.push_back(job);
        let is_free = shared.n_groups < self.groups_max;
        shared.n_groups += usize::from(is_free);
        is_free
    }

    /// Hashes group after group until nothing waits.
    fn work(&self) {
        let mut turn = Turn {
            hasher: self,
            is_over: false,
        };
        while let Some(group) = turn.next() {
            let all: Vec<Vec<&[u8]>> = group.iter().map(|job| job.messages.messages()).collect();
            let mut digests = digest_all(&all.concat()).into_iter();
            drop(all);
            for job in group {
                drop(job.messages);
                let digests = digests.by_ref().take(job.n_messages).collect();
                let _ = job.done.send(digests); // Its asker may have left.
            }
        }
    }
}

/// One thread's turn, which ends even when it panics.
struct Turn<'a> {
    hasher: &'a Hasher,
    is_over: bool,
}

impl Turn<'_> {
    fn next(&mut self) -> Option<Vec<Job>> {
        let mut shared = hold(&self.hasher.shared);
        let (mut group, mut n) = (Vec::new(), 0);
        while n < GROUP_MAX
            && let Some(job) = shared.jobs.pop_front()
        {
            n += job.n_messages;
            group.push(job);
        }
        if group.is_empty() {
            shared.n_groups -= 1; // Under the lock that found nothing: nobody is left behind.
            self.is_over = true;
            return None;
        }
        Some(group)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            hold(&self.hasher.shared).n_groups -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use carrack_formats::sha256::Sha256;
    use tokio::task::JoinSet;

    use super::{Hasher, Messages};

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
        assert_eq!(super::hold(&hasher.shared).n_groups, 0);
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
