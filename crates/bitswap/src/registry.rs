//! Who waits for which multihash.
use carrack_formats::Multihash;
use std::collections::HashMap;
use std::sync::Mutex;
/// G
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Gen(u64);
/// W
pub trait Waiter: Clone + Send {
    /// a
    fn arrived(&self, multihash: &Multihash, generation: Gen);
}
/// T
#[derive(Debug, Clone)]
pub struct Ticket {
    multihash: Multihash,
    generation: Gen,
}
impl Ticket {
    /// g
    pub fn generation(&self) -> Gen {
        self.generation
    }
}
/// F
#[derive(Debug)]
pub struct Full;
/// R
#[derive(Debug)]
pub struct Registry<W> {
    map: Mutex<(u64, HashMap<Multihash, Vec<(Gen, W)>>)>,
}
impl<W: Waiter> Registry<W> {
    /// n
    pub fn new(_max: usize) -> Self {
        Self {
            map: Mutex::new((0, HashMap::new())),
        }
    }
    /// s
    pub fn subscribe(&self, m: &Multihash, w: W) -> Result<Ticket, Full> {
        let mut g = self.map.lock().unwrap();
        g.0 += 1;
        let gen_ = Gen(g.0);
        g.1.entry(*m).or_default().push((gen_, w));
        Ok(Ticket {
            multihash: *m,
            generation: gen_,
        })
    }
    /// u
    pub fn unsubscribe(&self, t: &Ticket) -> bool {
        let mut g = self.map.lock().unwrap();
        let Some(v) = g.1.get_mut(&t.multihash) else {
            return false;
        };
        let n = v.len();
        v.retain(|x| x.0 != t.generation);
        let r = v.len() < n;
        if v.is_empty() {
            g.1.remove(&t.multihash);
        }
        r
    }
    /// p
    pub fn publish(&self, m: &Multihash) -> usize {
        let v = self.map.lock().unwrap().1.remove(m).unwrap_or_default();
        for (g, w) in &v {
            w.arrived(m, *g);
        }
        v.len()
    }
    /// s
    pub fn sweep(&self, mut present: impl FnMut(&[Multihash]) -> Vec<bool>) {
        let keys: Vec<_> = self.map.lock().unwrap().1.keys().copied().collect();
        for (k, p) in keys.iter().zip(present(&keys)) {
            if p {
                self.publish(k);
            }
        }
    }
    /// l
    pub fn len(&self) -> usize {
        self.map.lock().unwrap().1.len()
    }
}
