//! Quantiles of any numbers in little memory: how many fell into each of a bounded number of buckets, each a
//! sixteenth of a power of two wide. Pure.

/// Buckets of one metric, 2 KiB. Beyond it the lowest are thrown together: the quantiles that are asked for
/// are the upper ones.
const BUCKETS_MAX: usize = 128;

/// How many numbers were about how large.
#[derive(Debug, Clone, Default)]
pub(crate) struct Quantiles {
    /// By bucket, in the order of the numbers in them.
    buckets: Vec<(u16, u64)>,
    count: u64,
}

/// The bucket of a number: the sign, the exponent and four bits behind it, so turned that buckets are in order.
fn bucket(value: f64) -> u16 {
    let top = (value.to_bits() >> 48) as u16;
    match value.is_sign_negative() {
        true => !top,
        false => top | 1 << 15,
    }
}

/// Of the numbers in a bucket the one nearest to nothing: small whole numbers are what they were.
fn nearest(bucket: u16) -> f64 {
    let top = match bucket >> 15 {
        0 => !bucket,
        _ => bucket & !(1 << 15),
    };
    f64::from_bits(u64::from(top) << 48)
}

impl Quantiles {
    /// Counts a number that is one.
    pub(crate) fn add(&mut self, value: f64) {
        // There are two zeros.
        let bucket = bucket(if value == 0.0 { 0.0 } else { value });
        self.count += 1;
        match self.buckets.binary_search_by_key(&bucket, |(of, _)| *of) {
            Ok(at) => self.buckets[at].1 += 1,
            Err(at) => self.buckets.insert(at, (bucket, 1)),
        }
        if self.buckets.len() > BUCKETS_MAX {
            let (_, lowest) = self.buckets.remove(0);
            self.buckets[0].1 += lowest;
        }
    }

    /// About the number below which `quantile` of all lie; `None` when there are none.
    pub(crate) fn of(&self, quantile: f64) -> Option<f64> {
        let rank = ((self.count as f64) * quantile).ceil().max(1.0) as u64;
        let mut seen = 0;
        for &(bucket, count) in &self.buckets {
            seen += count;
            if seen >= rank {
                return Some(nearest(bucket));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_whole_numbers_are_what_they_were() {
        for sign in [1.0, -1.0] {
            for n in 0..=32 {
                let value = sign * f64::from(n);
                let mut quantiles = Quantiles::default();
                quantiles.add(value);
                assert_eq!(quantiles.of(0.5), Some(value));
            }
        }
        assert_eq!(Quantiles::default().of(0.99), None);
    }

    #[test]
    fn the_lowest_are_thrown_together_where_there_are_too_many() {
        let mut quantiles = Quantiles::default();
        for power in (-1000..1000).rev() {
            quantiles.add(2f64.powi(power));
        }
        assert_eq!(quantiles.buckets.len(), BUCKETS_MAX);
        assert_eq!(quantiles.of(1.0), Some(2f64.powi(999)));
        assert_eq!(quantiles.of(0.999), Some(2f64.powi(997)));
        assert_eq!(
            quantiles.of(0.5),
            Some(2f64.powi(1000 - BUCKETS_MAX as i32))
        );
    }

    proptest! {
        #[test]
        fn a_quantile_is_within_a_sixteenth(
            values in prop::collection::vec(prop_oneof![-1e3..1e3_f64, -1.0..1.0_f64], 1..100),
            quantile in prop::sample::select(vec![0.5, 0.9, 0.99, 0.999]),
        ) {
            let mut quantiles = Quantiles::default();
            for value in &values {
                quantiles.add(*value);
            }
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            let rank = (values.len() as f64 * quantile).ceil().max(1.0) as usize;
            let (got, wanted) = (quantiles.of(quantile).expect("some"), sorted[rank - 1]);
            if quantiles.buckets.len() < BUCKETS_MAX {
                prop_assert!((got - wanted).abs() <= wanted.abs() / 16.0, "{got} {wanted}");
            }
        }
    }
}
