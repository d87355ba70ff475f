//! Sixteen SHA2-256 at once, a message in each lane of AVX-512's registers.
//!
//! In       messages of any lengths.
//! Out      their digests.
//! Limits   about 6 KiB of state; nothing is copied but the ends of messages.
//! Not here when this is faster than one after the other (`super::digest_all`).
//!
//! Processors that have AVX-512 but no instructions for SHA (2017 to 2020, many of them in clouds)
//! hash about ten times as much this way. The compression function is FIPS 180-4, 6.2.2; a `Words`
//! holds one variable of it for all lanes.
//!
//! Spec: <https://doi.org/10.6028/NIST.FIPS.180-4>

use std::arch::x86_64::{
    __m512i as Words, _mm_extract_epi32, _mm512_add_epi32, _mm512_extracti32x4_epi32,
    _mm512_ror_epi32, _mm512_set_epi32, _mm512_set_epi64, _mm512_set1_epi32, _mm512_set4_epi32,
    _mm512_shuffle_epi8, _mm512_shuffle_i32x4, _mm512_srli_epi32, _mm512_ternarylogic_epi32,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use super::Digest;

/// Messages that are hashed at once.
pub(super) const LANES: usize = 16;
/// Bytes that the compression function takes at once.
const BLOCK_LEN: usize = 64;
/// Bytes of the message's length at its end.
const LENGTH_LEN: usize = 8;

type Block = [u8; BLOCK_LEN];
/// The eight variables of one message.
type State = [u32; 8];

/// Fractions of the square roots of the first 8 primes (5.3.3).
const START: State = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// Fractions of the cube roots of the first 64 primes (4.2.2), by 16 rounds.
#[rustfmt::skip]
const ROUNDS: [[u32; 16]; 4] = [
    [
        0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5,
        0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5,
        0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3,
        0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174,
    ],
    [
        0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc,
        0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da,
        0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7,
        0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967,
    ],
    [
        0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13,
        0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85,
        0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3,
        0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070,
    ],
    [
        0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5,
        0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3,
        0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208,
        0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2,
    ],
];

/// Whether this processor has what it takes.
pub(super) fn are_here() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
}

/// The digests of `messages`, in their order; `None` on a processor without AVX-512.
pub(super) fn digest_all(messages: &[&[u8]]) -> Option<Vec<Digest>> {
    if !are_here() {
        return None;
    }
    let mut digests = vec![Digest::default(); messages.len()];
    let mut waiting = messages.iter().zip(&mut digests);
    let mut lanes = [Lane::FREE; LANES];
    loop {
        for lane in lanes.iter_mut().filter(|lane| lane.digest.is_none()) {
            let next = waiting.next();
            *lane = next.map_or(Lane::FREE, |(message, digest)| Lane::new(message, digest));
        }
        // As far as all lanes can go together; one without a message follows another.
        let busy = lanes.iter().filter(|lane| lane.digest.is_some());
        let Some(longest) = busy.clone().map(Lane::blocks).max_by_key(|all| all.len()) else {
            break;
        };
        let n = busy.map(|lane| lane.blocks().len()).min().unwrap_or(0);
        let mut states: [State; LANES] = std::array::from_fn(|_| START);
        let mut inputs: [&[Block]; LANES] = [longest; LANES];
        for ((lane, state), input) in lanes.iter().zip(&mut states).zip(&mut inputs) {
            if lane.digest.is_some() {
                (*state, *input) = (lane.state, lane.blocks());
            }
        }
        #[expect(unsafe_code, reason = "see SAFETY")]
        // SAFETY: `are_here` has found both features that the function is compiled for.
        unsafe {
            compress(&mut states, &inputs, n);
        }
        for (lane, state) in lanes.iter_mut().zip(states) {
            lane.advance(n, state);
        }
    }
    Some(digests)
}

/// One message on its way.
struct Lane<'a> {
    state: State,
    /// Whole blocks of the message that are left.
    whole: &'a [Block],
    /// What comes behind them, at the end of this: the rest, the padding, the length (5.1.1).
    end: [Block; 2],
    /// Blocks of `end` that are left.
    n_end: usize,
    /// Where the digest goes; `None`: the lane is free.
    digest: Option<&'a mut Digest>,
}

impl<'a> Lane<'a> {
    const FREE: Self = Self {
        state: START,
        whole: &[],
        end: [[0; BLOCK_LEN]; 2],
        n_end: 0,
        digest: None,
    };

    fn new(message: &'a [u8], digest: &'a mut Digest) -> Self {
        let (whole, rest) = message.as_chunks();
        let n_end = 1 + usize::from(rest.len() >= BLOCK_LEN - LENGTH_LEN);
        let mut end = [[0; BLOCK_LEN]; 2];
        let padded = rest.iter().copied().chain([0x80]);
        let to = end.as_flattened_mut().iter_mut();
        to.skip((2 - n_end) * BLOCK_LEN)
            .zip(padded)
            .for_each(|(to, from)| *to = from);
        if let Some(length) = end.as_flattened_mut().last_chunk_mut::<LENGTH_LEN>() {
            *length = (message.len() as u64).wrapping_mul(8).to_be_bytes();
        }
        Self {
            state: START,
            whole,
            end,
            n_end,
            digest: Some(digest),
        }
    }

    /// What it can take next without a stop.
    fn blocks(&self) -> &[Block] {
        if self.whole.is_empty() {
            self.end.get(2 - self.n_end..).unwrap_or_default()
        } else {
            self.whole
        }
    }

    /// Has taken `n` of its blocks.
    fn advance(&mut self, n: usize, state: State) {
        self.state = state;
        if self.whole.is_empty() {
            self.n_end -= n.min(self.n_end);
        } else {
            self.whole = self.whole.get(n..).unwrap_or_default();
        }
        if self.n_end == 0
            && let Some(digest) = self.digest.take()
        {
            let words = digest.as_chunks_mut().0.iter_mut().zip(state);
            words.for_each(|(to, word)| *to = word.to_be_bytes());
        }
    }
}

/// One round (6.2.2, step 3) on the variables in the order in which they are named, and the word of
/// the schedule (step 1) that takes the place of the one it used.
macro_rules! round {
    ($w:ident, $keys:ident, $at:literal, $a:ident $b:ident $c:ident $d:ident $e:ident $f:ident
     $g:ident $h:ident) => {
        let sum = xor3(
            _mm512_ror_epi32::<6>($e),
            _mm512_ror_epi32::<11>($e),
            _mm512_ror_epi32::<25>($e),
        );
        let choice = _mm512_ternarylogic_epi32::<0xca>($e, $f, $g);
        let key = _mm512_set1_epi32($keys[$at].cast_signed());
        let first = add(add($h, sum), add(choice, add($w[$at], key)));
        let sum = xor3(
            _mm512_ror_epi32::<2>($a),
            _mm512_ror_epi32::<13>($a),
            _mm512_ror_epi32::<22>($a),
        );
        let majority = _mm512_ternarylogic_epi32::<0xe8>($a, $b, $c);
        $d = add($d, first);
        $h = add(first, add(sum, majority));
        let (near, far) = ($w[($at + 1) % 16], $w[($at + 14) % 16]);
        let near = xor3(
            _mm512_ror_epi32::<7>(near),
            _mm512_ror_epi32::<18>(near),
            _mm512_srli_epi32::<3>(near),
        );
        let far = xor3(
            _mm512_ror_epi32::<17>(far),
            _mm512_ror_epi32::<19>(far),
            _mm512_srli_epi32::<10>(far),
        );
        $w[$at] = add(add($w[$at], near), add($w[($at + 9) % 16], far));
    };
}

/// Takes the first `n` blocks of each input into the state of its lane.
#[target_feature(enable = "avx512f,avx512bw")]
fn compress(states: &mut [State; LANES], inputs: &[&[Block]; LANES], n: usize) {
    let mut state = pack(states);
    for at in 0..n {
        let Some(mut w) = words(inputs, at) else {
            return; // No input is shorter.
        };
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = state;
        for keys in &ROUNDS {
            round!(w, keys, 0, a b c d e f g h);
            round!(w, keys, 1, h a b c d e f g);
            round!(w, keys, 2, g h a b c d e f);
            round!(w, keys, 3, f g h a b c d e);
            round!(w, keys, 4, e f g h a b c d);
            round!(w, keys, 5, d e f g h a b c);
            round!(w, keys, 6, c d e f g h a b);
            round!(w, keys, 7, b c d e f g h a);
            round!(w, keys, 8, a b c d e f g h);
            round!(w, keys, 9, h a b c d e f g);
            round!(w, keys, 10, g h a b c d e f);
            round!(w, keys, 11, f g h a b c d e);
            round!(w, keys, 12, e f g h a b c d);
            round!(w, keys, 13, d e f g h a b c);
            round!(w, keys, 14, c d e f g h a b);
            round!(w, keys, 15, b c d e f g h a);
        }
        let after = [a, b, c, d, e, f, g, h];
        state = std::array::from_fn(|index| add(state[index], after[index]));
    }
    *states = unpack(state);
}

#[target_feature(enable = "avx512f")]
#[inline]
fn add(a: Words, b: Words) -> Words {
    _mm512_add_epi32(a, b)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn xor3(a: Words, b: Words, c: Words) -> Words {
    _mm512_ternarylogic_epi32::<0x96>(a, b, c)
}

/// The 16 words of block `at` of each input: word by word, that of lane 0 first.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn words(inputs: &[&[Block]; LANES], at: usize) -> Option<[Words; 16]> {
    let mut rows = [_mm512_set1_epi32(0); LANES];
    for (row, input) in rows.iter_mut().zip(inputs) {
        *row = load(input.get(at)?);
    }
    // A square of 16 by 16 is turned: within squares of 4 by 4 first, then those.
    let mut turned = rows;
    for (from, to) in rows.as_chunks().0.iter().zip(turned.as_chunks_mut().0) {
        let [a, b, c, d] = *from;
        let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        *to = [
            _mm512_unpacklo_epi64(ab, cd),
            _mm512_unpackhi_epi64(ab, cd),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ];
    }
    let mut words = rows;
    for column in 0..4 {
        let [a, b, c, d]: [Words; 4] = std::array::from_fn(|row| turned[4 * row + column]);
        let (even, odd) = (
            _mm512_shuffle_i32x4::<0x88>(a, b),
            _mm512_shuffle_i32x4::<0xdd>(a, b),
        );
        let (even_below, odd_below) = (
            _mm512_shuffle_i32x4::<0x88>(c, d),
            _mm512_shuffle_i32x4::<0xdd>(c, d),
        );
        words[column] = _mm512_shuffle_i32x4::<0x88>(even, even_below);
        words[column + 4] = _mm512_shuffle_i32x4::<0x88>(odd, odd_below);
        words[column + 8] = _mm512_shuffle_i32x4::<0xdd>(even, even_below);
        words[column + 12] = _mm512_shuffle_i32x4::<0xdd>(odd, odd_below);
    }
    Some(words)
}

/// A block as 16 words, whose bytes come with the highest first.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn load(block: &Block) -> Words {
    let mut parts = [0; 8];
    for (part, bytes) in parts.iter_mut().zip(block.as_chunks().0) {
        *part = i64::from_le_bytes(*bytes);
    }
    let [a, b, c, d, e, f, g, h] = parts;
    let swap = _mm512_set4_epi32(0x0c0d_0e0f, 0x0809_0a0b, 0x0405_0607, 0x0001_0203);
    _mm512_shuffle_epi8(_mm512_set_epi64(h, g, f, e, d, c, b, a), swap)
}

/// Variable by variable, of all lanes.
#[target_feature(enable = "avx512f")]
#[inline]
fn pack(states: &[State; LANES]) -> [Words; 8] {
    std::array::from_fn(|variable| {
        let of = |lane: usize| states[lane][variable].cast_signed();
        _mm512_set_epi32(
            of(15),
            of(14),
            of(13),
            of(12),
            of(11),
            of(10),
            of(9),
            of(8), //
            of(7),
            of(6),
            of(5),
            of(4),
            of(3),
            of(2),
            of(1),
            of(0),
        )
    })
}

/// Lane by lane, all its variables.
#[target_feature(enable = "avx512f")]
#[inline]
fn unpack(state: [Words; 8]) -> [State; LANES] {
    let mut states = [START; LANES];
    for (variable, words) in state.into_iter().enumerate() {
        let quarters = [
            _mm512_extracti32x4_epi32::<0>(words),
            _mm512_extracti32x4_epi32::<1>(words),
            _mm512_extracti32x4_epi32::<2>(words),
            _mm512_extracti32x4_epi32::<3>(words),
        ];
        for (lanes, quarter) in states.as_chunks_mut::<4>().0.iter_mut().zip(quarters) {
            let words = [
                _mm_extract_epi32::<0>(quarter),
                _mm_extract_epi32::<1>(quarter),
                _mm_extract_epi32::<2>(quarter),
                _mm_extract_epi32::<3>(quarter),
            ];
            for (lane, word) in lanes.iter_mut().zip(words) {
                lane[variable] = word.cast_unsigned();
            }
        }
    }
    states
}
