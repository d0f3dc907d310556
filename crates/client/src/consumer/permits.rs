//! How many messages a topic's broker may send ahead: a count, and no more than weighs so many bytes.
//!
//! Permits are counts of messages, and a broker that has them sends whatever is next. So their number follows what
//! came: before the first message as many are given as fit at the largest size, each small message that comes adds
//! two, up to the count, and large ones are not replaced until so many of their size fit. One fits always. What was
//! permitted while messages were small still comes when they grow, at most the count.
//!
//! The budget: a consumer that has its whole count, which small messages give it at once, pays three additions an
//! entry, under the lock that the entry is opened with anyway, and nothing when it arrives.

/// The permits of one topic's link.
#[derive(Debug)]
pub(super) struct Permits {
    count_max: u32,
    /// `None` where what has no permit is lost: there the count alone bounds.
    bytes_max: Option<u64>,
    /// At the broker, with messages that wait here, or free.
    pool: u32,
    /// To be given.
    free: u32,
    /// Those of them that are more than there were.
    grown: u32,
    /// What a message weighs, about: soon more, later less. `None` before the first.
    weight: Option<u64>,
}

impl Permits {
    /// For so many messages, one at least, of so many bytes together.
    pub(super) fn new(count_max: u32, bytes_max: Option<u64>) -> Self {
        Self {
            count_max: count_max.max(1),
            bytes_max,
            pool: 0,
            free: 0,
            grown: 0,
            weight: None,
        }
    }

    /// A link is open, and nothing was sent by it. A message has at most `message_max` bytes.
    pub(super) fn renew(&mut self, message_max: usize) {
        let fits = self.fits(self.weight.unwrap_or(message_max as u64));
        self.pool = match self.weight {
            Some(_) => self.pool.clamp(1, fits),
            None => fits,
        };
        (self.free, self.grown) = (self.pool, 0);
    }

    /// Whether messages have to be weighed when they arrive: later is soon enough once all permits are out.
    pub(super) fn is_growing(&self) -> bool {
        self.pool < self.count_max
    }

    /// An entry arrived that costs so many permits.
    pub(super) fn arrived(&mut self, permits: u32, bytes: usize) {
        let fits = self.weigh(permits, bytes);
        // Two for each: with one, no more would be on their way than at first.
        let more = fits
            .saturating_sub(self.pool)
            .min(permits.saturating_mul(2));
        self.pool += more;
        self.grown += more;
        self.free = self.free.saturating_add(more);
    }

    /// An entry was taken: its permits are free again.
    pub(super) fn taken(&mut self, permits: u32, bytes: usize) {
        self.returned(permits);
        let fits = self.weigh(permits, bytes);
        let less = self.pool.saturating_sub(fits).min(self.free);
        self.pool -= less;
        self.free -= less;
        self.grown = self.grown.saturating_sub(less);
    }

    /// The permits of what was thrown away are free again.
    pub(super) fn returned(&mut self, permits: u32) {
        self.free = self.free.saturating_add(permits);
    }

    /// Whether it is time to give what is free: once that is half, or makes them half as many again as they were.
    pub(super) fn are_due(&self) -> bool {
        let has_grown = self.grown >= self.pool.div_ceil(3) || !self.is_growing();
        self.free >= self.pool.div_ceil(2) || self.grown > 0 && has_grown
    }

    /// What is to be given now.
    pub(super) fn give(&mut self) -> u32 {
        self.grown = 0;
        std::mem::take(&mut self.free)
    }

    /// Notes the weight of some messages. Gives how many of the weight fit.
    fn weigh(&mut self, permits: u32, bytes: usize) -> u32 {
        if self.bytes_max.is_none() || permits == 0 {
            return self.count_max;
        }
        let its = bytes as u64 / u64::from(permits);
        let weight = match self.weight {
            None => its,
            Some(weight) if its > weight => weight + (its - weight).div_ceil(2),
            Some(weight) => weight - (weight - its) / 8,
        };
        self.weight = Some(weight);
        self.fits(weight)
    }

    fn fits(&self, weight: u64) -> u32 {
        let Some(bytes_max) = self.bytes_max else {
            return self.count_max;
        };
        let fits = bytes_max / weight.max(1);
        u32::try_from(fits)
            .unwrap_or(u32::MAX)
            .clamp(1, self.count_max)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const MIB: usize = 1024 * 1024;

    /// A broker with endless messages of the size that it is told, and a consumer that takes them one by one.
    struct Link {
        permits: Permits,
        at_broker: u32,
        here: VecDeque<usize>,
    }

    impl Link {
        fn open(count_max: u32, bytes_max: usize) -> Self {
            let mut permits = Permits::new(count_max, Some(bytes_max as u64));
            permits.renew(5 * MIB);
            Self {
                at_broker: permits.give(),
                permits,
                here: VecDeque::new(),
            }
        }

        fn give(&mut self) {
            if self.permits.are_due() {
                self.at_broker += self.permits.give();
            }
        }

        fn send(&mut self, bytes: usize) -> bool {
            if self.at_broker == 0 {
                return false;
            }
            self.at_broker -= 1;
            if self.permits.is_growing() {
                self.permits.arrived(1, bytes);
            }
            self.here.push_back(bytes);
            self.give();
            true
        }

        fn take(&mut self) -> bool {
            let Some(bytes) = self.here.pop_front() else {
                return false;
            };
            self.permits.taken(1, bytes);
            self.give();
            true
        }

        fn held(&self) -> usize {
            self.here.iter().sum()
        }
    }

    #[test]
    fn large_messages_are_bounded_by_bytes_and_small_ones_by_count() {
        for (bytes, most) in [(5 * MIB, 64 * MIB), (MIB, 64 * MIB), (100, 100 * 1000)] {
            let mut link = Link::open(1000, 64 * MIB);
            for _ in 0..5000 {
                while link.send(bytes) {
                    assert!(link.held() <= most, "{} bytes of {bytes}", link.held());
                }
                assert!(link.held() > most / 3, "{} bytes of {bytes}", link.held());
                assert!(link.take());
            }
        }
    }

    #[test]
    fn what_grows_is_not_replaced_until_it_fits() {
        let mut link = Link::open(1000, 64 * MIB);
        while link.send(100) {}
        assert_eq!(link.here.len(), 1000);
        // Permitted before: it comes.
        for _ in 0..1000 {
            link.take();
        }
        while link.send(MIB) {}
        assert!(link.here.len() <= 1000);
        while link.held() > 64 * MIB {
            link.take();
        }
        for _ in 0..1000 {
            while link.send(MIB) {}
            assert!(link.held() <= 64 * MIB, "{}", link.held());
            assert!(link.take());
        }
        // And back.
        for _ in 0..5000 {
            link.send(100);
            link.take();
        }
        while link.send(100) {}
        assert!(link.here.len() > 500, "{} wait", link.here.len());
    }

    #[test]
    fn what_is_lost_without_a_permit_has_all_permits() {
        let mut permits = Permits::new(1000, None);
        permits.renew(5 * MIB);
        assert_eq!(permits.give(), 1000);
        assert!(!permits.is_growing());
        permits.taken(1, 5 * MIB);
        assert_eq!(permits.give(), 1);
    }

    proptest! {
        /// Whatever comes, in whatever batches: the broker has a permit when nothing is here.
        #[test]
        fn it_goes_on(entries in prop::collection::vec((1..2000_u32, 0..6 * MIB), 1..200), count in 1..2000_u32) {
            let mut permits = Permits::new(count, Some((8 * MIB) as u64));
            permits.renew(5 * MIB);
            let mut at_broker = i64::from(permits.give());
            let mut here = VecDeque::new();
            for (messages, bytes) in entries {
                while at_broker <= 0 {
                    let (messages, bytes) = here.pop_front().expect("a permit, or something here");
                    permits.taken(messages, bytes);
                    if permits.are_due() {
                        at_broker += i64::from(permits.give());
                    }
                }
                at_broker -= i64::from(messages);
                if permits.is_growing() {
                    permits.arrived(messages, bytes);
                    if permits.are_due() {
                        at_broker += i64::from(permits.give());
                    }
                }
                here.push_back((messages, bytes));
                prop_assert!(permits.pool <= count && permits.pool >= 1);
            }
        }
    }
}
