//! Who runs what: a pure function of what there is, who lives, and how it stands.
//!
//! What must hold: what runs on a living worker stays there, but for a bounded number of moves at a
//! time that make the load more even or empty a worker that is to be drained; nothing is given to a
//! worker that is gone or drained; the same input gives the same steps.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::component::ComponentId;

/// What one worker runs as a whole: a component, or one of its instances.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Unit {
    pub(crate) id: ComponentId,
    /// `None`: all of them, since they share something in the worker's memory.
    pub(crate) instance: Option<u32>,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.instance {
            Some(instance) => write!(f, "{}:{instance}", self.id),
            None => write!(f, "{}:*", self.id),
        }
    }
}

impl FromStr for Unit {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (id, instance) = text.rsplit_once(':').ok_or(())?;
        Ok(Self {
            id: id.parse()?,
            instance: match instance {
                "*" => None,
                number => Some(number.parse().map_err(|_| ())?),
            },
        })
    }
}

/// A unit as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) unit: Unit,
    /// Its instances.
    pub(crate) weight: u32,
    pub(crate) owner: Option<String>,
    /// On its way to another.
    pub(crate) to: Option<String>,
    /// It was moved a moment ago and is left alone.
    pub(crate) rests: bool,
    /// Only its worker has what it needs: it is neither moved nor given to another.
    pub(crate) pinned: bool,
}

/// A living worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Living {
    pub(crate) name: String,
    /// False for one that is to be drained.
    pub(crate) accepts: bool,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nobody runs it: `worker` is to.
    Place { unit: Unit, worker: String },
    /// `from` is to let go of it, then `to` takes it.
    Move {
        unit: Unit,
        from: String,
        to: String,
    },
}

/// Decides the next steps. At most `moves_max` units are on their way at once.
pub(crate) fn decide(standing: &[Standing], living: &[Living], moves_max: usize) -> Vec<Step> {
    let lives = |name: &String| living.iter().any(|worker| worker.name == *name);
    let mut loads: BTreeMap<&str, u64> = living.iter().map(|w| (w.name.as_str(), 0)).collect();
    let mut steps = Vec::new();
    let mut orphans: Vec<&Standing> = Vec::new();
    let mut under_way = 0;
    for unit in standing {
        let to = unit.to.as_ref().filter(|to| lives(to));
        let owner = unit.owner.as_ref().filter(|owner| lives(owner));
        match (owner, to) {
            (_, Some(to)) => {
                under_way += 1;
                *loads.entry(to).or_default() += u64::from(unit.weight);
            }
            (Some(owner), None) => *loads.entry(owner).or_default() += u64::from(unit.weight),
            (None, None) if unit.pinned && unit.owner.is_some() => {}
            (None, None) => orphans.push(unit),
        }
    }
    let accepting: Vec<&str> = living
        .iter()
        .filter(|worker| worker.accepts)
        .map(|worker| worker.name.as_str())
        .collect();
    let lightest = |loads: &BTreeMap<&str, u64>| -> Option<String> {
        let least = accepting
            .iter()
            .min_by_key(|name| (loads[**name], **name))?;
        Some((*least).to_owned())
    };
    // The heavy ones first: the light ones even it out.
    orphans.sort_by(|a, b| (b.weight, &a.unit).cmp(&(a.weight, &b.unit)));
    for orphan in orphans {
        let Some(worker) = lightest(&loads) else {
            break;
        };
        add(&mut loads, &worker, i64::from(orphan.weight));
        steps.push(Step::Place {
            unit: orphan.unit.clone(),
            worker,
        });
    }
    let mut moves = moves_max.saturating_sub(under_way);
    let mut moved: Vec<&Unit> = Vec::new();
    let settled = |unit: &&Standing| {
        unit.to.is_none() && !unit.pinned && unit.owner.as_ref().is_some_and(lives)
    };
    for unit in standing.iter().filter(settled) {
        let owner = unit.owner.clone().unwrap_or_default();
        if moves == 0 || accepting.contains(&owner.as_str()) {
            continue;
        }
        let Some(to) = lightest(&loads) else { break };
        add(&mut loads, &owner, -i64::from(unit.weight));
        add(&mut loads, &to, i64::from(unit.weight));
        moved.push(&unit.unit);
        moves -= 1;
        steps.push(Step::Move {
            unit: unit.unit.clone(),
            from: owner,
            to,
        });
    }
    while moves > 0 {
        let most = accepting.iter().max_by_key(|name| (loads[**name], **name));
        let (Some(from), Some(to)) = (most, lightest(&loads)) else {
            break;
        };
        let (from, gap) = ((*from).to_owned(), loads[*from] - loads[to.as_str()]);
        // A move helps when the receiver ends below where the giver was.
        let best = standing
            .iter()
            .filter(settled)
            .filter(|unit| unit.owner.as_deref() == Some(from.as_str()) && !unit.rests)
            .filter(|unit| u64::from(unit.weight) < gap && !moved.contains(&&unit.unit))
            .max_by_key(|unit| (u64::from(unit.weight).min(gap / 2), &unit.unit));
        let Some(unit) = best else { break };
        add(&mut loads, &from, -i64::from(unit.weight));
        add(&mut loads, &to, i64::from(unit.weight));
        moved.push(&unit.unit);
        moves -= 1;
        steps.push(Step::Move {
            unit: unit.unit.clone(),
            from,
            to,
        });
    }
    steps
}

fn add(loads: &mut BTreeMap<&str, u64>, worker: &str, weight: i64) {
    if let Some(load) = loads.get_mut(worker) {
        *load = load.saturating_add_signed(weight);
    }
}

#[cfg(test)]
#[path = "schedule/tests.rs"]
mod tests;
