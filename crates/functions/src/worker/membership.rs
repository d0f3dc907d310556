//! Who lives, who leads, and whether this worker may run what it was given. Pure: time comes in.
//!
//! Every worker sends a beat; the leader's beat says which beats it has heard. What must hold: a
//! worker's own lease ends before the leader gives its units to others. A worker counts from when it
//! *sent* the last beat that the leader heard, the leader from when it *heard* it, and waits longer.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// What a worker says of itself, again and again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Beat {
    pub(crate) identity: String,
    pub(crate) worker_id: String,
    pub(crate) url: String,
    /// When it began, in milliseconds.
    pub(crate) since: u64,
    pub(crate) seq: u64,
    /// Its term, when it leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) term: Option<u64>,
    /// Of a leader: the last beat heard of each worker.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) heard: BTreeMap<String, u64>,
    /// Units that it has let go of and that the catalogue still calls its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) released: Vec<String>,
    /// How new versions did that are undone when they do not start.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) judged: Vec<Judged>,
    /// It stops: nobody need wait for its lease.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) leaves: bool,
}

/// Whether a version of a component started on a worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Judged {
    pub(crate) id: String,
    pub(crate) version: u64,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<String>,
}

/// Another worker, or this one.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) beat: Beat,
    pub(crate) heard_at: Instant,
}

/// What is known of all workers.
#[derive(Debug)]
pub(crate) struct Members {
    own: String,
    lease: Duration,
    members: BTreeMap<String, Member>,
    /// The newest leader's term, and when its last beat was heard.
    leader: Option<(String, u64, Instant)>,
    /// Own beats: number, and when each was sent.
    sent: VecDeque<(u64, Instant)>,
    /// The last own beat that the leader is known to have heard.
    renewed: Option<Instant>,
    since: Instant,
    /// Workers that left, and since when they had been there.
    gone: VecDeque<(String, u64)>,
    /// When an own beat came back last.
    heard_self: Option<Instant>,
}

/// Own beats remembered: more than a lease of them.
const SENT_MAX: usize = 64;
/// Workers that left which are remembered.
const GONE_MAX: usize = 64;

impl Members {
    pub(crate) fn new(own: String, lease: Duration, now: Instant) -> Self {
        Self {
            own,
            lease,
            members: BTreeMap::new(),
            leader: None,
            sent: VecDeque::new(),
            renewed: None,
            since: now,
            gone: VecDeque::new(),
            heard_self: None,
        }
    }

    /// An own beat came back. After a time in which none did, everybody gets a lease to speak up:
    /// that nothing was heard of them says nothing.
    pub(crate) fn heard_self(&mut self, now: Instant) {
        if self.is_deaf(now) {
            self.begin_term(now);
            if let Some((_, _, at)) = &mut self.leader {
                *at = now;
            }
        }
        self.heard_self = Some(now);
    }

    /// Whether this worker, which heard itself before, does not any more: it is cut off from the
    /// broker, or the broker is away.
    pub(crate) fn is_deaf(&self, now: Instant) -> bool {
        self.heard_self
            .is_some_and(|at| now.duration_since(at) >= self.lease / 2)
    }

    pub(crate) fn sent(&mut self, seq: u64, now: Instant) {
        if self.sent.len() == SENT_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((seq, now));
    }

    /// Takes a beat in. True when it changes who there is.
    pub(crate) fn heard(&mut self, beat: Beat, now: Instant) -> bool {
        let life = (beat.identity.clone(), beat.since);
        if self.gone.contains(&life) {
            // Said before it left, and late.
            return false;
        }
        if let Some(term) = beat.term {
            let newest = self
                .leader
                .as_ref()
                .is_none_or(|(_, known, _)| term >= *known);
            if newest {
                self.leader = Some((beat.identity.clone(), term, now));
                let echoed = beat.heard.get(&self.own);
                let renewed = echoed.and_then(|seq| self.sent.iter().find(|(s, _)| s == seq));
                if let Some((_, at)) = renewed {
                    self.renewed = self.renewed.max(Some(*at));
                }
            }
        }
        if beat.leaves {
            if self.gone.len() == GONE_MAX {
                self.gone.pop_front();
            }
            self.gone.push_back(life);
            if self
                .leader
                .as_ref()
                .is_some_and(|(leader, ..)| *leader == beat.identity)
            {
                self.leader = None;
            }
            return self.members.remove(&beat.identity).is_some();
        }
        let known = self.members.get(&beat.identity).map(|member| &member.beat);
        let is_news = known.is_none_or(|known| {
            known.since != beat.since || known.released != beat.released || known.url != beat.url
        });
        // One that began later under the same name has taken its place.
        if known.is_some_and(|known| known.since > beat.since) {
            return false;
        }
        let heard_at = now;
        self.members
            .insert(beat.identity.clone(), Member { beat, heard_at });
        is_news
    }

    /// Forgets who was not heard for longer than a lease, and says who. One that does not even hear
    /// itself says nothing about others.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<String> {
        if self.is_deaf(now) {
            return Vec::new();
        }
        let limit = self.lease + self.lease / 4;
        let own = self.own.clone();
        let is_lost = |member: &Member| {
            member.beat.identity != own && now.duration_since(member.heard_at) > limit
        };
        let lost: Vec<String> = self
            .members
            .values()
            .filter(|member| is_lost(member))
            .map(|member| member.beat.identity.clone())
            .collect();
        for identity in &lost {
            self.members.remove(identity);
        }
        lost
    }

    /// How long this worker may still run what is its own, when another one leads.
    pub(crate) fn lease_left(&self, now: Instant) -> Duration {
        self.left(self.renewed, now)
    }

    /// The same when it leads: for a lease after it last heard itself. Others, when there
    /// are any, wait longer before they give away what a leader ran that they do not hear.
    pub(crate) fn leadership_left(&self, now: Instant) -> Duration {
        let has_others = self.members.keys().any(|name| *name != self.own);
        match self.heard_self {
            Some(at) if has_others => self.left(Some(at), now),
            _ => self.lease,
        }
    }

    fn left(&self, since: Option<Instant>, now: Instant) -> Duration {
        since.map_or(Duration::ZERO, |at| {
            self.lease.saturating_sub(now.duration_since(at))
        })
    }

    /// A worker that leads knows of nobody yet: everybody gets a lease to speak up.
    pub(crate) fn begin_term(&mut self, now: Instant) {
        self.since = now;
        for member in self.members.values_mut() {
            member.heard_at = now;
        }
    }

    /// Whether those who never spoke in this term have had their time.
    pub(crate) fn had_time(&self, now: Instant) -> bool {
        !self.is_deaf(now) && now.duration_since(self.since) > self.lease + self.lease / 4
    }

    /// The newest leader's name and term.
    pub(crate) fn leader(&self) -> Option<(&str, u64)> {
        let leader = self.leader.as_ref();
        leader.map(|(identity, term, _)| (identity.as_str(), *term))
    }

    /// Whether the leader is silent for so long that this worker takes over. Each waits a little
    /// longer than the one before it, by name, so that they do not all do it. One that does not even
    /// hear itself says nothing about others.
    pub(crate) fn should_take_over(&self, now: Instant) -> bool {
        let hears = |at: Instant| now.duration_since(at) < self.lease / 2;
        if !self.heard_self.is_some_and(hears) {
            return false;
        }
        let last = self.leader.as_ref().map_or(self.since, |(.., at)| *at);
        let before = |name: &&String| **name < self.own;
        let rank = self.members.keys().filter(before).count() as u32;
        now.duration_since(last) > self.lease / 2 + self.lease / 8 * rank.min(8)
    }

    pub(crate) fn get(&self, identity: &str) -> Option<&Member> {
        self.members.get(identity)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// The last beat heard of each, for the leader's own beat.
    pub(crate) fn echo(&self) -> BTreeMap<String, u64> {
        let one = |(name, member): (&String, &Member)| (name.clone(), member.beat.seq);
        self.members.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_stdx::Random;

    const LEASE: Duration = Duration::from_secs(5);

    fn beat(identity: &str, seq: u64) -> Beat {
        Beat {
            identity: identity.to_owned(),
            seq,
            since: 1,
            ..Beat::default()
        }
    }

    /// Random delays and losses between a leader and a worker: never may the leader have given the
    /// worker up while the worker believes in its lease.
    #[test]
    fn a_lease_ends_before_the_leader_gives_the_worker_up() {
        let seed = std::env::var("GEMINGA_SEED")
            .ok()
            .and_then(|s| s.parse().ok());
        let seed = seed.unwrap_or_else(|| Random::from_entropy().next_u64());
        println!("GEMINGA_SEED={seed}");
        let mut random = Random::new(seed);
        let mut given_up = 0;
        for _ in 0..2000 {
            let start = Instant::now();
            let mut leader = Members::new("l".to_owned(), LEASE, start);
            let mut worker = Members::new("w".to_owned(), LEASE, start);
            // Messages on their way: when they arrive, whether to the leader, what they say.
            let mut wire: Vec<(u64, bool, Beat)> = Vec::new();
            let loss = random.below(100);
            // The leader hears nothing for a while, not even itself.
            let deaf_from = random.below(30_000);
            let deaf_until = deaf_from + random.below(20_000);
            for ms in (0..40_000u64).step_by(250) {
                let now = start + Duration::from_millis(ms);
                let (due, rest): (Vec<_>, Vec<_>) = wire.drain(..).partition(|(at, ..)| *at <= ms);
                wire = rest;
                if !(deaf_from..deaf_until).contains(&ms) {
                    leader.heard_self(now);
                }
                for (_, to_leader, beat) in due {
                    if to_leader && (deaf_from..deaf_until).contains(&ms) {
                        continue;
                    }
                    let members = if to_leader { &mut leader } else { &mut worker };
                    members.heard(beat, now);
                }
                if ms % 1000 == 0 {
                    worker.sent(ms, now);
                    let said = Beat {
                        term: Some(1),
                        heard: leader.echo(),
                        ..beat("l", ms)
                    };
                    for (to_leader, beat) in [(true, beat("w", ms)), (false, said)] {
                        if random.below(100) >= loss {
                            wire.push((ms + random.below(9000), to_leader, beat));
                        }
                    }
                }
                given_up += leader.expire(now).len();
                let is_member = leader.get("w").is_some();
                // Beats of long ago may come late, but the lease counts from when they were sent.
                assert!(is_member || worker.lease_left(now).is_zero(), "at {ms} ms");
            }
        }
        assert!(given_up > 0);
    }

    #[test]
    fn one_that_does_not_hear_itself_gives_nobody_up() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut leader = Members::new("l".to_owned(), LEASE, start);
        leader.heard_self(at(1));
        leader.heard(beat("w", 1), at(1));
        assert!(leader.expire(at(60)).is_empty() && !leader.had_time(at(60)));
        // It hears again: the other gets a lease to be heard too.
        leader.heard_self(at(60));
        for second in 60..66 {
            leader.heard_self(at(second));
            assert!(leader.expire(at(second)).is_empty());
        }
        assert_eq!(
            leader.leadership_left(at(69)),
            LEASE - Duration::from_secs(4)
        );
        assert!(leader.leadership_left(at(71)).is_zero());
        leader.heard_self(at(67));
        assert_eq!(leader.expire(at(67)), ["w"]);
        // Alone it goes on, whatever it hears.
        assert!(!leader.leadership_left(at(99)).is_zero());
        assert!(leader.had_time(at(67)));
    }

    #[test]
    fn an_old_leader_and_an_old_namesake_are_not_listened_to() {
        let now = Instant::now();
        let mut members = Members::new("w".to_owned(), LEASE, now);
        let leads = |who: &str, term| Beat {
            term: Some(term),
            ..beat(who, 1)
        };
        members.heard(leads("b", 2), now);
        members.heard(leads("a", 1), now);
        assert_eq!(members.leader(), Some(("b", 2)));
        members.heard(
            Beat {
                since: 9,
                ..beat("x", 1)
            },
            now,
        );
        members.heard(beat("x", 7), now);
        assert_eq!(members.get("x").map(|x| x.beat.since), Some(9));
        members.heard(
            Beat {
                leaves: true,
                ..beat("b", 3)
            },
            now,
        );
        assert_eq!(members.leader(), None);
        assert!(members.get("b").is_none());
        // A beat that was overtaken by the last one changes nothing.
        assert!(!members.heard(leads("b", 2), now) && members.get("b").is_none());
        assert_eq!(members.leader(), None);
        let again = Beat {
            since: 2,
            ..beat("b", 1)
        };
        assert!(members.heard(again, now));
    }

    #[test]
    fn the_first_by_name_takes_over_first() {
        let now = Instant::now();
        let mut first = Members::new("a".to_owned(), LEASE, now);
        let mut second = Members::new("b".to_owned(), LEASE, now);
        for members in [&mut first, &mut second] {
            members.heard(beat("a", 1), now);
            members.heard(beat("b", 1), now);
        }
        let at = |ms| now + Duration::from_millis(ms);
        assert!(
            !first.should_take_over(at(2600)),
            "it hears nobody, not even itself"
        );
        first.heard_self(at(2000));
        second.heard_self(at(2000));
        assert!(!first.should_take_over(at(2400)));
        assert!(first.should_take_over(at(2600)) && !second.should_take_over(at(2600)));
        assert!(second.should_take_over(at(3300)));
    }
}
