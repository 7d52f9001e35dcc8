//! Fewest in flight: of all (exact), or of two random ones.

use fastrand::Rng;

/// Endpoint with the fewest in flight for its weight, of all that `usable` takes. Among equals, one at random by weight.
/// `weights`, `in_flight`: one for each endpoint.
pub fn least(
    weights: &[u32],
    in_flight: impl Fn(usize) -> u32,
    usable: impl Fn(usize) -> bool,
    rng: &mut Rng,
) -> Option<usize> {
    let mut best: Option<Load> = None;
    let mut tied: u64 = 0;
    for (index, &weight) in weights.iter().enumerate().filter(|&(index, _)| usable(index)) {
        let load = Load { index, in_flight: in_flight(index), weight };
        match best.map(|best| load.compare(&best)) {
            None | Some(std::cmp::Ordering::Less) => {
                best = Some(load);
                tied = u64::from(weight);
            }
            Some(std::cmp::Ordering::Equal) => {
                tied += u64::from(weight);
                if rng.u64(..tied) < u64::from(weight) {
                    best = Some(load);
                }
            }
            Some(std::cmp::Ordering::Greater) => {}
        }
    }
    best.map(|best| best.index)
}

/// Draws endpoints by weight.
#[derive(Debug)]
pub struct Lottery {
    /// Running sum of the weights. `None`: all are equal.
    sums: Option<Box<[u64]>>,
    count: usize,
}

impl Lottery {
    /// `weights`: at least 1 each.
    pub fn new(weights: &[u32]) -> Self {
        let equal = weights.windows(2).all(|pair| pair[0] == pair[1]);
        let sums = (!equal).then(|| {
            let running = weights.iter().scan(0, |sum, &weight| {
                *sum += u64::from(weight);
                Some(*sum)
            });
            running.collect()
        });
        Self { sums, count: weights.len() }
    }

    /// One by weight; there must be at least one.
    fn draw(&self, rng: &mut Rng) -> usize {
        match &self.sums {
            None => rng.usize(..self.count),
            Some(sums) => {
                let ticket = rng.u64(..sums[sums.len() - 1]);
                sums.partition_point(|&sum| sum <= ticket)
            }
        }
    }

    /// One that `usable` takes: by drawing, and if luck fails by going through all.
    pub fn one(&self, weights: &[u32], usable: impl Fn(usize) -> bool, rng: &mut Rng) -> Option<usize> {
        if self.count <= 1 {
            return (0..self.count).find(|&only| usable(only));
        }
        let drawn = (0..DRAWS).map(|_| self.draw(rng)).find(|&index| usable(index));
        drawn.or_else(|| least(weights, |_| 0, usable, rng))
    }

    /// Of two different ones drawn by weight, the one with fewer in flight for its weight.
    /// Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.
    pub fn better_of_two(
        &self,
        weights: &[u32],
        in_flight: impl Fn(usize) -> u32,
        usable: impl Fn(usize) -> bool,
        rng: &mut Rng,
    ) -> Option<usize> {
        let first = self.one(weights, &usable, rng)?;
        if self.count == 1 {
            return Some(first);
        }
        let Some(second) = self.one(weights, |index| index != first && usable(index), rng) else { return Some(first) };
        let load = |index: usize| Load { index, in_flight: in_flight(index), weight: weights[index] };
        // On a tie the first: it was drawn by weight alone.
        Some(if load(second).compare(&load(first)).is_lt() { second } else { first })
    }
}

/// Draws before going through all endpoints.
const DRAWS: usize = 8;

#[derive(Clone, Copy)]
struct Load {
    index: usize,
    in_flight: u32,
    weight: u32,
}

impl Load {
    /// In flight per weight, without dividing.
    fn compare(&self, other: &Self) -> std::cmp::Ordering {
        let own = u64::from(self.in_flight) * u64::from(other.weight);
        own.cmp(&(u64::from(other.in_flight) * u64::from(self.weight)))
    }
}
