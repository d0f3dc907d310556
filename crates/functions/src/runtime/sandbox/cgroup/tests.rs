use super::*;

#[test]
fn memberships_of_both_versions_are_read() {
    let text = "8:pids:/a\n4:memory:/b:c\n2:cpu,cpuacct:/\n0::/d\nnonsense\n";
    let wanted = vec![
        (vec!["pids"], "/a"),
        (vec!["memory"], "/b:c"),
        (vec!["cpu", "cpuacct"], "/"),
        (vec![], "/d"),
    ];
    assert_eq!(memberships(text), wanted);
}

/// A directory tree stands for the kernel's: what is written where is what counts.
#[test]
fn a_group_of_version_2_is_made_beside_the_workers_where_its_own_may_have_no_children() {
    let root = tempfile::tempdir().expect("temporary");
    let slice = root.path().join("user.slice/app.slice");
    fs::create_dir_all(slice.join("me.scope")).expect("made");
    for (file, text) in [
        ("cgroup.controllers", "cpu memory pids"),
        ("me.scope/cgroup.controllers", "cpu memory pids"),
        ("me.scope/cgroup.type", "domain\n"),
        ("me.scope/cgroup.procs", "1\n2\n"),
    ] {
        fs::write(slice.join(file), text).expect("written");
    }
    fs::write(slice.join("cgroup.subtree_control"), "memory pids cpu io\n").expect("written");
    let cgroups = Cgroups::below(root.path(), "0::/user.slice/app.slice/me.scope\n");
    assert_eq!(cgroups.parents(), std::slice::from_ref(&slice));
    assert!(cgroups.has("memory") && cgroups.has("cpu") && !cgroups.has("io"));
    let share = Share {
        cpu: Some(1.5),
        memory_bytes: Some(4096),
        disk_bytes: None,
    };
    let group = cgroups.group("g", &share, Some(7)).expect("made");
    let read = |file: &str| fs::read_to_string(slice.join("g").join(file)).expect(file);
    assert_eq!(read("memory.max"), "4096");
    assert_eq!(read("pids.max"), "7");
    assert_eq!(read("cpu.max"), "150000 100000");
    assert_eq!(read("cpu.weight"), "33");
    assert_eq!((group.holds(), group.by_thread()), ((true, true), false));
    assert!(!group.enter(77), "no kernel made this group");
    fs::write(slice.join("g/cgroup.procs"), "").expect("written");
    assert!(group.enter(77));
    assert_eq!(read("cgroup.procs"), "77");
    assert_eq!(read("memory.oom.group"), "1");
    group.apart();
    assert_eq!(read("memory.oom.group"), "0");
    // Nobody has the number 77 there, so that nobody is killed when the group goes.
    fs::write(slice.join("g/cgroup.procs"), "").expect("written");
}

/// The kernel gives `cpu` and `pids` to a group with processes, and then lets no process into its children.
#[test]
fn a_group_with_processes_is_asked_for_nothing() {
    let root = tempfile::tempdir().expect("temporary");
    let own = root.path().join("system.slice/geminga.service");
    fs::create_dir_all(&own).expect("made");
    for (file, text) in [
        ("cgroup.controllers", "cpu memory pids"),
        ("cgroup.subtree_control", ""),
        ("cgroup.type", "domain\n"),
        ("cgroup.procs", "77\n"),
    ] {
        fs::write(own.join(file), text).expect("written");
    }
    let cgroups = Cgroups::below(root.path(), "0::/system.slice/geminga.service\n");
    assert!(cgroups.parents().is_empty(), "{cgroups:?}");
    let given = fs::read_to_string(own.join("cgroup.subtree_control")).expect("read");
    assert_eq!(given, "");
}

#[test]
fn a_limit_is_told_of_those_in_whose_time_it_was_met() {
    let place = tempfile::tempdir().expect("temporary");
    let mut group = Group::default();
    group.unified = Some(place.path().to_path_buf());
    (group.memory, group.processes) = (Some(4096), Some(7));
    let group = Arc::new(group);
    let count = |file: &str, text: &str| {
        fs::write(place.path().join(file), text).expect("written");
    };
    let first = Stay::begin(&group);
    assert_eq!(first.met(), None);
    count("memory.events", "oom 1\noom_kill 1\n");
    let met = first.met().expect("met");
    assert!(met.why.contains("4096 bytes") && met.its_own, "{met:?}");
    assert_eq!(first.met(), Some(met), "as often as it is asked");
    drop(first);
    // Whoever comes later has nothing to do with it.
    let second = Stay::begin(&group);
    assert_eq!(second.met(), None);
    let third = Stay::begin(&group);
    count("pids.events", "max 2\n");
    for stay in [&second, &third] {
        let met = stay.met().expect("met");
        assert!(
            met.why.contains("limits.processes") && !met.its_own,
            "{met:?}"
        );
    }
    drop((second, third));
    // One that does not start was there as well: its own try may be what was refused.
    let fourth = Stay::begin(&group);
    drop(Stay::begin(&group));
    count("pids.events", "max 3\n");
    assert!(!fourth.met().expect("met").its_own);
}

#[test]
fn a_group_of_version_1_is_one_for_each_controller_that_is_needed() {
    let root = tempfile::tempdir().expect("temporary");
    for name in ["memory/a", "cpu", "pids"] {
        fs::create_dir_all(root.path().join(name)).expect("made");
    }
    let cgroups = Cgroups::below(
        root.path(),
        "4:memory:/a\n2:cpu,cpuacct:/gone\n8:pids:/\n0::/\n",
    );
    let group = cgroups.group("g", &Share::default(), None).expect("made");
    let read = |file: &str| fs::read_to_string(root.path().join(file)).ok();
    assert_eq!(
        read("memory/a/g/memory.limit_in_bytes"),
        Some(Share::default().memory().to_string())
    );
    assert_eq!(read("pids/g/pids.max"), Some(PROCESSES.to_string()));
    assert!(!root.path().join("cpu/g").exists());
    assert_eq!((group.holds(), group.by_thread()), ((true, true), true));
    assert!(group.enter_thread());
    assert_eq!(read("memory/a/g/tasks").as_deref(), Some("0"));
    let none = Cgroups::below(Path::new("/nowhere"), "4:memory:/a\n0::/\n");
    assert!(none.group("g", &Share::default(), None).is_none());
}

#[test]
fn counters_are_found_by_name() {
    let text = "low 0\noom 3\noom_kill 2\n";
    assert_eq!(counter(text, "oom_kill"), 2);
    assert_eq!(counter(text, "max"), 0);
}
