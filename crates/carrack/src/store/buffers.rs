//! Buffers that are used again: frames of a CAR are read, hashed and sent in place.
//!
//! In       a length in bytes.
//! Out      an initialised buffer that becomes `Bytes` without a copy and comes back when dropped.
//! Limits   at most `free_max` buffers are kept; a longer request gets a buffer of its own.
//! Not here the budget of bytes in flight (`gateway`).

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Length of a pooled buffer: one 1 MiB leaf with its frame head, or a batch of small blocks.
pub const BUFFER_LEN: usize = (1 << 20) + (64 << 10);

/// A bounded stack of free buffers.
#[derive(Debug)]
pub struct BufferPool {
    free: Mutex<Vec<Box<[u8]>>>,
    free_max: usize,
}

/// A buffer on loan. Dropping it, or the `Bytes` made from it, gives it back.
#[derive(Debug)]
pub struct Buffer {
    data: Box<[u8]>,
    len: usize,
    /// `None`: too long to be pooled.
    pool: Option<Arc<BufferPool>>,
}

impl BufferPool {
    /// A pool that keeps at most `free_max` idle buffers of [`BUFFER_LEN`].
    #[must_use]
    pub fn new(free_max: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Mutex::new(Vec::new()),
            free_max,
        })
    }

    /// A buffer of `len` bytes. What is in it is left from its last use.
    #[must_use]
    pub fn take(self: &Arc<Self>, len: usize) -> Buffer {
        if len > BUFFER_LEN {
            return Buffer {
                data: vec![0; len].into_boxed_slice(),
                len,
                pool: None,
            };
        }
        let free = self
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let data = free.unwrap_or_else(|| vec![0; BUFFER_LEN].into_boxed_slice());
        Buffer {
            data,
            len,
            pool: Some(Arc::clone(self)),
        }
    }
}

impl Buffer {
    /// The bytes, to be filled.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.data.get_mut(..self.len).unwrap_or_default()
    }

    /// Hands the buffer over as `Bytes`, without a copy.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.data.get(..self.len).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(pool) = self.pool.take() else { return };
        let mut free = pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < pool.free_max {
            free.push(std::mem::take(&mut self.data));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BUFFER_LEN, BufferPool};

    #[test]
    fn a_dropped_buffer_is_used_again_and_the_pool_is_bounded() {
        let pool = BufferPool::new(1);
        let (first, second) = (pool.take(10), pool.take(BUFFER_LEN));
        drop(first);
        drop(second);
        assert_eq!(pool.free.lock().unwrap().len(), 1);
        let bytes = pool.take(7).freeze();
        assert_eq!(bytes.len(), 7);
        drop(bytes);
        assert_eq!(pool.free.lock().unwrap().len(), 1);
        assert_eq!(pool.take(BUFFER_LEN + 1).freeze().len(), BUFFER_LEN + 1);
    }
}
