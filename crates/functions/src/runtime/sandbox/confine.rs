//! Walls that a thread puts up around itself, and that what it starts can not take down: Landlock for files,
//! seccomp for sockets.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope, path_beneath_rules,
};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

use rustix::thread::{CapabilitySet, CapabilitySets};

use super::{Files, Landlock, Network, Walls};

/// What a program needs to be a program.
const SYSTEM: &[&str] = &[
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/opt",
    "/nix",
    // Of another process it has what anybody may see: its memory and environment are for those who may trace it.
    "/proc",
    "/sys/devices/system/cpu",
    "/sys/fs/cgroup",
    // Not all of `/etc`: it has secrets too, and the worker's user may be root.
    "/etc/alternatives",
    "/etc/bash.bashrc",
    "/etc/ca-certificates",
    "/etc/ca-certificates.conf",
    "/etc/crypto-policies",
    "/etc/default/locale",
    "/etc/fonts",
    "/etc/gai.conf",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/inputrc",
    "/etc/java",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ld.so.preload",
    "/etc/locale.alias",
    "/etc/localtime",
    "/etc/magic",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/passwd",
    "/etc/pki/java",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust",
    "/etc/profile",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/timezone",
];
/// Folders whose name has a version: all in `/etc` that begins like this.
const VERSIONED: &[&str] = &["java-", "python", "perl"];
/// Devices that hold nothing.
const DEVICES: &[&str] = &[
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
];
/// The newest interface whose rights are asked for; older kernels give what they have.
const NEWEST: ABI = ABI::V6;

#[cfg(target_arch = "x86_64")]
const SOCKET: i64 = 41;
#[cfg(not(target_arch = "x86_64"))]
const SOCKET: i64 = 198;
#[cfg(target_arch = "x86_64")]
const SOCKET_PAIR: i64 = 53;
#[cfg(not(target_arch = "x86_64"))]
const SOCKET_PAIR: i64 = 199;
/// The family of pairs, and those of its kinds that are connected for good.
const UNIX: u64 = 1;
const CONNECTED: [u64; 2] = [1, 5];
/// Of the second argument of both calls this is the kind; beside it are flags.
const KIND: u64 = 0xf;
/// It makes sockets too, and its calls can not be looked at.
const IO_URING_SETUP: i64 = 425;
/// The same call by the other way in that x86-64 has.
const X32: i64 = 0x4000_0000;

/// What this kernel's Landlock holds: it is tried.
pub(super) fn landlock() -> Landlock {
    let strict = || Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let files = |abi| strict().handle_access(AccessFs::from_all(abi));
    let made = |ruleset: Result<Ruleset, _>| ruleset.and_then(Ruleset::create).is_ok();
    let signals = files(NEWEST).and_then(|ruleset| ruleset.scope(Scope::from_all(NEWEST)));
    if made(signals) {
        Landlock::Signals
    } else if made(files(ABI::V3)) {
        Landlock::Truncation
    } else if made(files(ABI::V1)) {
        Landlock::Files
    } else {
        Landlock::Nothing
    }
}

pub(super) fn has_seccomp() -> bool {
    filter().is_ok()
}

/// Confines the calling thread, for ever.
pub(super) fn this_thread(
    walls: &Walls,
    code: &Path,
    program: &Path,
    private: &Path,
    changes_user: bool,
) -> io::Result<()> {
    if walls.files == Files::Private {
        let enforced = files(walls, code, program, private).map_err(io::Error::other)?;
        if walls.required && enforced.ruleset != RulesetStatus::FullyEnforced {
            let missing = landlock().lets_through().join("; ");
            return Err(io::Error::other(format!(
                "`sandbox.files: private` is required, and not wholly enforced on this machine: {missing}"
            )));
        }
    }
    if walls.network == Network::None {
        match filter() {
            Ok(program) => seccompiler::apply_filter(&program).map_err(io::Error::other)?,
            Err(why) if walls.required => {
                return Err(io::Error::other(format!(
                    "`sandbox.network: none` is required: {why}"
                )));
            }
            Err(_) => {}
        }
    }
    // A capability goes around walls: one of them reads the environment of every process. Whoever runs as somebody
    // else has none after the change, and needs these two for it.
    let kept = if changes_user {
        CapabilitySet::SETUID | CapabilitySet::SETGID
    } else {
        CapabilitySet::empty()
    };
    let now = rustix::thread::capabilities(None)?;
    let sets = CapabilitySets {
        effective: now.effective & kept,
        permitted: now.permitted & kept,
        inheritable: CapabilitySet::empty(),
    };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

fn files(
    walls: &Walls,
    code: &Path,
    program: &Path,
    private: &Path,
) -> Result<RestrictionStatus, landlock::RulesetError> {
    let read = SYSTEM
        .iter()
        .map(PathBuf::from)
        .chain(versioned())
        .chain(needed(code, program))
        .chain(walls.read.iter().cloned());
    let write = DEVICES
        .iter()
        .map(PathBuf::from)
        .chain([private.to_path_buf()])
        .chain(walls.write.iter().cloned());
    Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        // Nor may it signal, or speak by an abstract socket with, what is outside.
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rules(path_beneath_rules(read, AccessFs::from_read(NEWEST)))?
        .add_rules(path_beneath_rules(write, AccessFs::from_all(NEWEST)))?
        .restrict_self()
}

fn versioned() -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir("/etc").into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            VERSIONED.iter().any(|begin| name.starts_with(begin))
        })
        .map(|entry| entry.path())
}

/// The code, the interpreter with its libraries, and where toolchains keep what they made of it.
fn needed(code: &Path, program: &Path) -> Vec<PathBuf> {
    let mut all = vec![code.to_path_buf(), program.to_path_buf()];
    if let Ok(real) = std::fs::canonicalize(program) {
        // `PREFIX/bin/python3` needs `PREFIX/lib`.
        let folder = real.parent().filter(|folder| folder.ends_with("bin"));
        let prefix = folder.and_then(Path::parent);
        const PARTS: [&str; 7] = ["lib", "lib64", "libexec", "share", "bin", "conf", "release"];
        all.extend(
            prefix
                .into_iter()
                .flat_map(|up| PARTS.map(|part| up.join(part))),
        );
        all.push(real);
    }
    all.push(crate::runtime::toolchain::cache());
    all.extend(std::env::var_os("JAVA_HOME").map(PathBuf::from));
    all
}

/// No call makes a socket; pairs of them, which reach nobody else, are another call.
fn filter() -> Result<BpfProgram, String> {
    let why = |error: BackendError| error.to_string();
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(why)?;
    let calls = [SOCKET, IO_URING_SETUP];
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = calls
        .into_iter()
        .chain(calls.map(|call| call | X32))
        .map(|call| (call, vec![]))
        .collect();
    let pairs = pairs_that_reach_others().map_err(why)?;
    rules.insert(SOCKET_PAIR | X32, pairs.clone());
    rules.insert(SOCKET_PAIR, pairs);
    // Permission denied, as a firewall of the machine would say.
    let denied = SeccompAction::Errno(rustix::io::Errno::ACCESS.raw_os_error().unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, denied, arch)
        .and_then(BpfProgram::try_from)
        .map_err(why)
}

/// One of datagrams may send to any address, the system's log for one. Rules say what is refused.
fn pairs_that_reach_others() -> Result<Vec<SeccompRule>, BackendError> {
    let rule = |argument, operator, value| {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
        SeccompRule::new(vec![condition])
    };
    let mut all = vec![rule(0, SeccompCmpOp::Ne, UNIX)?];
    for kind in (0..=KIND).filter(|kind| !CONNECTED.contains(kind)) {
        all.push(rule(1, SeccompCmpOp::MaskedEq(KIND), kind)?);
    }
    Ok(all)
}
