//! Thousands of random clusters, each run until nothing changes any more.

use super::*;
use crate::component::Kind;
use geminga_stdx::Random;

fn unit(n: u64) -> Unit {
    Unit {
        id: ComponentId::new(Kind::Function, "t", "n", format!("f{n:03}")),
        instance: None,
    }
}

fn living(names: &[&str], drained: &[&str]) -> Vec<Living> {
    let one = |name: &&str| Living {
        name: (*name).to_owned(),
        accepts: !drained.contains(name),
    };
    names.iter().map(one).collect()
}

/// Does the steps, as a cluster does: a move ends when the giver has let go.
fn apply(standing: &mut [Standing], steps: &[Step]) {
    for step in steps {
        let (Step::Place { unit, .. } | Step::Move { unit, .. }) = step;
        let at = standing
            .iter_mut()
            .find(|s| s.unit == *unit)
            .expect("known");
        match step {
            Step::Place { worker, .. } => (at.owner, at.to) = (Some(worker.clone()), None),
            Step::Move { to, from, .. } => {
                assert_eq!(at.owner.as_ref(), Some(from));
                assert_ne!(from, to);
                at.to = Some(to.clone());
            }
        }
    }
}

fn let_go(standing: &mut [Standing]) {
    for unit in standing {
        if let Some(to) = unit.to.take() {
            unit.owner = Some(to);
        }
    }
}

fn loads(standing: &[Standing], names: &[&str]) -> Vec<u64> {
    let of = |name: &&str| {
        let own = standing
            .iter()
            .filter(|s| s.owner.as_deref() == Some(*name));
        own.map(|s| u64::from(s.weight)).sum()
    };
    names.iter().map(of).collect()
}

#[test]
fn random_clusters_become_even_and_stay_so() {
    let seed = std::env::var("GEMINGA_SEED")
        .ok()
        .and_then(|s| s.parse().ok());
    let seed = seed.unwrap_or_else(|| Random::from_entropy().next_u64());
    println!("GEMINGA_SEED={seed}");
    let mut random = Random::new(seed);
    let all = ["a", "b", "c", "d", "e", "f"];
    for case in 0..4000 {
        let count = 1 + random.below(all.len() as u64) as usize;
        let names = &all[..count];
        let drained: Vec<&str> = names
            .iter()
            .filter(|_| random.below(5) == 0)
            .copied()
            .collect();
        let workers = living(names, &drained);
        let heaviest = 1 + random.below(6);
        let moves_max = 1 + random.below(4) as usize;
        let mut standing: Vec<Standing> = (0..random.below(40))
            .map(|n| Standing {
                unit: unit(n),
                weight: 1 + random.below(heaviest) as u32,
                // Some nowhere, some with a worker that is gone, some on their way to one.
                owner: match random.below(4) {
                    0 => None,
                    1 => Some("gone".to_owned()),
                    _ => Some(names[random.below(count as u64) as usize].to_owned()),
                },
                to: (random.below(8) == 0).then(|| "gone".to_owned()),
                rests: false,
                pinned: false,
            })
            .collect();
        let before = standing.clone();
        let mut rounds = 0;
        loop {
            let steps = decide(&standing, &workers, moves_max);
            assert_eq!(
                steps,
                decide(&standing, &workers, moves_max),
                "case {case}: not stable"
            );
            let moves = steps
                .iter()
                .filter(|step| matches!(step, Step::Move { .. }));
            assert!(
                moves.count() <= moves_max,
                "case {case}: too many moves at once"
            );
            for step in &steps {
                let (Step::Place { worker: to, .. } | Step::Move { to, .. }) = step;
                assert!(names.contains(&to.as_str()) && !drained.contains(&to.as_str()));
            }
            // Whom it was meant for is gone: it stays with its owner (`end_moves`).
            let mut recalled = false;
            for unit in &mut standing {
                recalled |= unit.to.take_if(|to| to.as_str() == "gone").is_some();
            }
            if steps.is_empty() && !recalled {
                break;
            }
            apply(&mut standing, &steps);
            // Nothing moves of what is on its way, while the giver has not let go.
            let again = decide(&standing, &workers, moves_max);
            let under_way = standing
                .iter()
                .filter(|s| s.to.as_ref().is_some_and(|to| names.contains(&to.as_str())));
            let moves = again
                .iter()
                .filter(|step| matches!(step, Step::Move { .. }))
                .count();
            assert!(under_way.count() + moves <= moves_max.max(1), "case {case}");
            let_go(&mut standing);
            rounds += 1;
            assert!(rounds < 200, "case {case}: it never ends");
        }
        let accepting: Vec<&str> = names
            .iter()
            .filter(|name| !drained.contains(name))
            .copied()
            .collect();
        if accepting.is_empty() {
            continue;
        }
        for unit in &standing {
            let owner = unit.owner.as_deref().unwrap_or("nobody");
            assert!(accepting.contains(&owner), "case {case}: {unit:?}");
        }
        let loads = loads(&standing, &accepting);
        let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
        assert!(most - least <= heaviest, "case {case}: {loads:?}");
        // What was well where it was has not moved without need.
        if drained.is_empty() && rounds <= 1 {
            let stayed = before.iter().zip(&standing).all(|(before, after)| {
                let was_well = before.owner.as_deref().is_some_and(|o| names.contains(&o));
                !was_well || before.to.is_some() || before.owner == after.owner || rounds > 0
            });
            assert!(stayed, "case {case}");
        }
    }
}

#[test]
fn one_worker_more_takes_its_share_and_no_more() {
    let mut standing: Vec<Standing> = (0..30)
        .map(|n| Standing {
            unit: unit(n),
            weight: 1,
            owner: Some(if n % 2 == 0 { "a" } else { "b" }.to_owned()),
            to: None,
            rests: false,
            pinned: false,
        })
        .collect();
    let before = standing.clone();
    let workers = living(&["a", "b", "c"], &[]);
    loop {
        let steps = decide(&standing, &workers, 2);
        if steps.is_empty() {
            break;
        }
        apply(&mut standing, &steps);
        let_go(&mut standing);
    }
    assert_eq!(loads(&standing, &["a", "b", "c"]), [10, 10, 10]);
    let moved = before
        .iter()
        .zip(&standing)
        .filter(|(b, a)| b.owner != a.owner);
    assert_eq!(moved.count(), 10);
}

#[test]
fn what_rests_is_left_alone_and_the_last_worker_keeps_what_it_has() {
    let rests = Standing {
        unit: unit(1),
        weight: 1,
        owner: Some("a".to_owned()),
        to: None,
        rests: true,
        pinned: false,
    };
    let two = [
        rests.clone(),
        Standing {
            unit: unit(2),
            ..rests.clone()
        },
    ];
    assert!(decide(&two, &living(&["a", "b"], &[]), 5).is_empty());
    assert!(decide(&two, &living(&["a"], &["a"]), 5).is_empty());
    assert_eq!(decide(&two, &living(&["a", "b"], &["a"]), 5).len(), 2);
    assert!(decide(&two, &[], 5).is_empty());
}

#[test]
fn what_is_pinned_stays_with_the_one_that_has_its_files() {
    let pinned = |n, owner: Option<&str>| Standing {
        unit: unit(n),
        weight: 1,
        owner: owner.map(str::to_owned),
        to: None,
        rests: false,
        pinned: true,
    };
    // One that is gone may come back with them, and a drained one has them still.
    let all: Vec<Standing> = (0..6)
        .map(|n| pinned(n, Some(if n == 0 { "gone" } else { "a" })))
        .collect();
    assert!(decide(&all, &living(&["a", "b"], &[]), 9).is_empty());
    assert!(decide(&all, &living(&["a", "b"], &["a"]), 9).is_empty());
    assert_eq!(decide(&[pinned(9, None)], &living(&["a"], &[]), 9).len(), 1);
}
