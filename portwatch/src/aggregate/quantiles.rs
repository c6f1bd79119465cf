//! Quantiles of durations in bounded memory, with a stated error.

use sketches_ddsketch::{Config, DDSketch};

/// A quantile is at most this share off the true one.
pub const ERROR: f64 = 0.01;

/// 1024 bins of 2 % cover nine orders of magnitude, and only those in use are kept.
const BINS_MAX: u32 = 1024;

#[derive(Clone)]
pub struct Quantiles(DDSketch);

impl Default for Quantiles {
    fn default() -> Self {
        // Below a microsecond all durations are alike.
        Quantiles(DDSketch::new(Config::new(ERROR, BINS_MAX, 1_000.0)))
    }
}

impl std::fmt::Debug for Quantiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Quantiles({})", self.0.count())
    }
}

impl Quantiles {
    pub fn add(&mut self, value: u64) {
        self.0.add(value as f64);
    }

    pub fn count(&self) -> u64 {
        self.0.count() as u64
    }

    /// The value at or below which `share` of all values are.
    pub fn at(&self, share: f64) -> Option<u64> {
        let value = self.0.quantile(share).ok().flatten()?;
        Some(value.round() as u64)
    }

    pub fn mean(&self) -> Option<f64> {
        (self.0.count() > 0).then(|| self.0.sum().unwrap_or(0.0) / self.0.count() as f64)
    }

    pub fn merge(&mut self, other: &Quantiles) {
        self.0.merge(&other.0).expect("all sketches have the same configuration");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_the_stated_error() {
        let mut quantiles = Quantiles::default();
        let mut values: Vec<u64> = (1..=10_000).map(|n: u64| n * n * 1_000).collect();
        for &value in &values {
            quantiles.add(value);
        }
        values.sort_unstable();
        for share in [0.01, 0.5, 0.9, 0.99, 1.0] {
            let truth = values[((values.len() - 1) as f64 * share) as usize] as f64;
            let got = quantiles.at(share).unwrap() as f64;
            assert!((got - truth).abs() <= truth * 1.01 * ERROR + 1.0, "{share}: {got} instead of {truth}");
        }
    }
}
