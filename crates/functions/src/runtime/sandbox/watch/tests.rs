use super::*;

#[test]
fn a_stat_line_is_read_whatever_the_process_is_called() {
    let stat = "12 (a) b (c) S 1 77 77 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 99 1000 321 18446744073709551615";
    let wanted = Stat {
        group: 77,
        started_ticks: 99,
        pages: 321,
    };
    assert_eq!(Stat::of(stat), Some(wanted));
    assert_eq!(Stat::of("12 (a"), None);
}

fn watched(mark: &str) -> Watched {
    Watched {
        private: PathBuf::new(),
        mark: Mark::of(mark),
        host: Mark::of("a.0."),
        memory: Some(100),
        processes: Some(3),
        disk: Some(10),
        verdict: Verdict::default(),
        full: Arc::default(),
    }
}

#[test]
fn the_limit_that_is_passed_is_named() {
    let alone = watched("a.0.0.");
    let of = |memory, processes, disk| {
        let ends = beyond(&[(5, &alone, Used { memory, processes })], disk);
        let why: Vec<String> = ends.into_iter().map(|(_, _, why)| why).collect();
        why.join("; ")
    };
    assert_eq!(of(100, 3, 10), "");
    let memory = of(101, 3, 10);
    assert!(memory.contains("resources.ram") && !memory.contains("other messages"));
    assert!(of(1, 4, 10).contains("limits.processes"));
    assert!(of(101, 4, 11).contains("resources.disk"));
    let all = HashMap::from([(5, alone)]);
    for (environment, wanted) in [
        (&b"A=1\0GMG_SCOPE=a.0.0.\0"[..], Whose::Group(5)),
        (b"GMG_SCOPE=a.0.1.\0", Whose::Host(Mark::of("a.0."))),
        (b"GMG_SCOPE=a.01.1.\0", Whose::Nobody),
        (b"", Whose::Nobody),
    ] {
        assert_eq!(by_mark(environment, &all), wanted);
    }
}

#[test]
fn a_limit_is_for_all_of_a_host_and_those_who_use_most_end() {
    let all: Vec<Watched> = (0..3).map(|n| watched(&format!("a.0.{n}."))).collect();
    let of = |uses: [(u64, u64); 3], disk| {
        let with = uses.iter().zip(&all).zip(1..);
        let members: Vec<Member<'_>> = with
            .map(|((&(memory, processes), watched), group)| {
                (group, watched, Used { memory, processes })
            })
            .collect();
        let mut ends: Vec<i32> = beyond(&members, disk).iter().map(|end| end.0).collect();
        ends.sort_unstable();
        ends.dedup();
        ends
    };
    for (uses, disk, wanted) in [
        ([(30, 1), (30, 1), (40, 1)], 10, vec![]),
        ([(30, 1), (31, 1), (40, 1)], 10, vec![3]),
        ([(90, 1), (5, 1), (80, 1)], 10, vec![1]),
        ([(101, 1), (102, 1), (103, 1)], 10, vec![1, 2, 3]),
        ([(1, 1), (1, 2), (1, 1)], 10, vec![2]),
        ([(99, 1), (1, 3), (1, 1)], 10, vec![1, 2]),
        ([(1, 1), (1, 1), (1, 1)], 11, vec![1, 2, 3]),
    ] {
        assert_eq!(of(uses, disk), wanted, "{uses:?} {disk}");
    }
}

#[test]
fn what_is_left_counts_beside_those_at_work() {
    let at_work = watched("a.0.0.");
    let of = |memory, processes, left: &[(u64, u64)]| {
        let pid = Pid::from_raw(7).expect("a number");
        let left: Vec<_> = left
            .iter()
            .map(|&(memory, processes)| (pid, Used { memory, processes }))
            .collect();
        too_much(&[(5, &at_work, Used { memory, processes })], &left)
    };
    assert!(!of(200, 9, &[]), "nothing to end");
    assert!(!of(50, 1, &[(25, 1), (25, 1)]));
    assert!(of(50, 1, &[(25, 1), (26, 1)]));
    assert!(of(1, 2, &[(1, 1), (1, 1)]));
}

#[test]
fn files_are_summed_and_links_not_followed() {
    let directory = tempfile::tempdir().expect("temporary");
    let inside = directory.path().join("a/b");
    std::fs::create_dir_all(&inside).expect("made");
    std::fs::write(inside.join("f"), vec![1; 100_000]).expect("written");
    std::os::unix::fs::symlink("/usr", inside.join("link")).expect("linked");
    let total = size(directory.path());
    assert!((90_000..1_000_000).contains(&total), "{total}");
}
