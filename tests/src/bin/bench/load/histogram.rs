//! How long things took, in buckets a 32nd of a power of two wide: any number of them in a few kilobytes.

/// Buckets for each power of two.
const STEPS: u32 = 32;

/// Times in microseconds.
#[derive(Clone, Debug)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; (u64::BITS * STEPS) as usize], count: 0 }
    }
}

impl Histogram {
    /// Adds one.
    pub fn add(&mut self, us: u64) {
        self.buckets[bucket(us)] += 1;
        self.count += 1;
    }

    /// The time in milliseconds that the given share of them did not exceed, as exact as the buckets are.
    pub fn quantile(&self, share: f64) -> f64 {
        assert!(self.count > 0, "nothing was measured");
        let goal = (self.count as f64 * share).ceil() as u64;
        let mut below = 0;
        for (bucket, n) in self.buckets.iter().enumerate() {
            below += n;
            if below >= goal {
                return end(bucket) as f64 / 1000.0;
            }
        }
        f64::INFINITY
    }
}

fn bucket(us: u64) -> usize {
    if us < u64::from(STEPS) {
        return us as usize;
    }
    let power = us.ilog2();
    let step = (us >> (power - STEPS.ilog2())) as u32 - STEPS;
    ((power - STEPS.ilog2() + 1) * STEPS + step) as usize
}

/// The greatest time in a bucket.
fn end(bucket: usize) -> u64 {
    let (power, step) = (bucket as u32 / STEPS, bucket as u32 % STEPS);
    if power == 0 { u64::from(step) } else { (u64::from(STEPS + step + 1) << (power - 1)) - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_lies_in_its_bucket_and_a_32nd_of_a_power_is_the_error() {
        for us in (0..4000).chain([1 << 20, (1 << 40) + 12345]) {
            let bucket = bucket(us);
            assert!(us <= end(bucket) && (bucket == 0 || us > end(bucket - 1)), "{us}");
            assert!(end(bucket) as f64 <= us as f64 * (1.0 + 1.0 / 32.0) + 1.0, "{us}");
        }
        let mut times = Histogram::default();
        (1..=100).for_each(|ms| times.add(ms * 1000));
        assert!((50.0..52.0).contains(&times.quantile(0.5)));
        assert!((99.0..103.0).contains(&times.quantile(0.99)));
    }
}
