//! Whether a node is of use, and which of its parts are not.
//!
//! In       what the node and its parts say of themselves.
//! Out      what `/readyz` answers.
//! Not here who starts parts again (`node::supervisor`); the route (`gateway::service`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What `/readyz` says. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<State>);

#[derive(Debug, Default)]
struct State {
    ready: AtomicBool,
    /// Parts that are not running, and why.
    down: Mutex<BTreeMap<&'static str, String>>,
}

impl Readiness {
    /// Sets whether the node is of use.
    pub fn set(&self, ready: bool) {
        self.0.ready.store(ready, Relaxed);
    }

    /// Whether the node is of use.
    #[must_use]
    pub fn get(&self) -> bool {
        self.0.ready.load(Relaxed)
    }

    /// Parts that are not running, a sentence each.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        let down = self.hold();
        let sentence = |(part, why): (&&str, &String)| format!("{part}: {why}");
        down.iter().map(sentence).collect()
    }

    /// Names a part that is not running, and why.
    pub fn set_down(&self, part: &'static str, why: String) {
        self.hold().insert(part, why);
    }

    /// A part runs again.
    pub fn set_up(&self, part: &'static str) {
        self.hold().remove(part);
    }

    fn hold(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        let down = self.0.down.lock();
        down.unwrap_or_else(PoisonError::into_inner)
    }
}
