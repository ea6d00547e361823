//! A Bloom filter: tells without disk access that a run does not hold a key. All bits of one key are in one cache line.

use super::hash;

/// Bits for each key. About one absent key in a thousand is a false positive.
const BITS_PER_KEY: u64 = 16;
/// The number of bits that are set for a key.
const PROBES: usize = 6;
/// The number of words in a cache line.
const LINE: usize = 8;

/// A large filter has a multiple of this many lines, so that it can be halved.
const LINES: u64 = 64;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter(Vec<u64>);

/// The hash of a key, and the bits that it selects. Computed once for a lookup in many filters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    /// Its upper bits select the line in a filter.
    hash: u64,
    /// The positions of the key's bits in that line.
    bits: [u16; PROBES],
}

impl Probe {
    pub(crate) fn of(key: &[u8]) -> Self {
        let hash = hash(key);
        // The upper bits of the hash are the same for all keys of a line, so the bits in it are selected by a product,
        // on which the lower bits of the hash have an influence too.
        let mut rest = hash.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let bits = [(); PROBES].map(|()| {
            let bit = rest >> 55;
            rest <<= 9;
            u16::try_from(bit).unwrap_or(0)
        });
        Self { hash, bits }
    }
}

impl Filter {
    /// Creates a filter for this many keys.
    pub(crate) fn new(keys: u64) -> Self {
        let lines = lines(keys);
        let lines = if lines > LINES { lines.next_multiple_of(LINES) } else { lines.next_power_of_two() };
        Self(vec![0; usize::try_from(lines).unwrap_or(usize::MAX / LINE).saturating_mul(LINE)])
    }

    pub(crate) fn insert(&mut self, probe: &Probe) {
        let line = self.line(probe);
        for bit in probe.bits {
            if let Some(word) = self.0.get_mut(line + usize::from(bit / 64)) {
                *word |= 1 << (bit % 64);
            }
        }
    }

    /// Halves the filter as long as the result is large enough for this many keys, which must be all that were
    /// inserted. The line of a key in a filter of half the size is half the number of its line, rounded down.
    pub(crate) fn shrink(&mut self, keys: u64) {
        while (self.0.len() / LINE) % 2 == 0 && (self.0.len() / LINE / 2) as u64 >= lines(keys) {
            let both = |pair: &[u64]| (0..LINE).map(|at| word(pair, at) | word(pair, at + LINE)).collect::<Vec<_>>();
            self.0 = self.0.chunks_exact(2 * LINE).flat_map(both).collect();
        }
    }

    /// Returns false if the key is certainly absent.
    pub(crate) fn may_contain(&self, probe: &Probe) -> bool {
        let line = self.line(probe);
        let is_set = |bit: &u16| word(&self.0, line + usize::from(bit / 64)) >> (bit % 64) & 1 == 1;
        probe.bits.iter().all(is_set)
    }

    /// Returns the index of the first word of the key's line.
    fn line(&self, probe: &Probe) -> usize {
        let lines = (self.0.len() / LINE) as u64;
        usize::try_from((u128::from(probe.hash) * u128::from(lines)) >> 64).unwrap_or(0) * LINE
    }

    pub(crate) fn words(&self) -> &[u64] {
        &self.0
    }

    /// Creates a filter from the result of [`words`](Self::words).
    pub(crate) fn from_words(words: Vec<u64>) -> Option<Self> {
        (!words.is_empty() && words.len() % LINE == 0).then_some(Self(words))
    }
}

/// Returns the number of lines that this many keys need.
fn lines(keys: u64) -> u64 {
    keys.saturating_mul(BITS_PER_KEY).div_ceil(64 * LINE as u64).max(1)
}

fn word(words: &[u64], at: usize) -> u64 {
    words.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bits() {
        let mut filter = Filter::new(1);
        filter.insert(&Probe::of(b"rm\0key"));
        assert_eq!(filter.words().iter().map(|word| word.count_ones()).sum::<u32>(), 6);
        assert_eq!(filter.words(), [0, 0, 1 << 41, 3 << 19, 1 << 11, 0, 1 << 4, 1 << 3]);
        assert_eq!(hash(b""), 0xE220_A839_7B1D_CDAF);
    }

    #[test]
    fn a_filter_that_is_too_large_shrinks_and_keeps_its_keys() {
        for (made_for, keys, lines) in [(100_000, 5_000, 196), (70_000, 20_000, 1_120), (64, 1, 1), (10, 10, 1)] {
            let mut filter = Filter::new(made_for);
            (0..keys).for_each(|key: u32| filter.insert(&Probe::of(&key.to_be_bytes())));
            filter.shrink(u64::from(keys));
            assert_eq!(filter.words().len(), lines * LINE, "{made_for} {keys}");
            assert!((0..keys).all(|key| filter.may_contain(&Probe::of(&key.to_be_bytes()))));
            let wrong = (keys..keys + 100_000).filter(|key| filter.may_contain(&Probe::of(&key.to_be_bytes()))).count();
            assert!(wrong < 1_500, "{wrong} of 100,000");
        }
    }

    #[test]
    fn there_are_no_false_negatives_and_few_false_positives() {
        let mut filter = Filter::new(10_000);
        for key in 0..10_000_u32 {
            filter.insert(&Probe::of(&key.to_be_bytes()));
        }
        assert!((0..10_000_u32).all(|key| filter.may_contain(&Probe::of(&key.to_be_bytes()))));
        let wrong = (10_000..110_000_u32).filter(|key| filter.may_contain(&Probe::of(&key.to_be_bytes()))).count();
        assert!(wrong < 1_000, "{wrong} of 100,000");
        assert_eq!(Filter::from_words(filter.words().to_vec()), Some(filter));
        assert_eq!((Filter::from_words(Vec::new()), Filter::from_words(vec![0; 7])), (None, None));
    }
}
