//! The private directory of a host: how it and what is ours in it are made.

use std::fs::File;
use std::io;
use std::path::Path;

use super::environment::variable;
use crate::runtime::HostSpec;

/// The folder of secrets in it.
pub(super) const SECRETS: &str = "secrets";

/// A new file: where there is something already, a link that leads nowhere too, it is not made.
pub(super) fn make_new(path: &Path, mode: u32) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    options.read(true).write(true).create_new(true).mode(mode);
    options.open(path)
}

/// Makes a new file that is never seen with half of its text: it is written as `aside`, on the same file system. What
/// has its name already stays.
pub(super) fn make_whole(path: &Path, text: &str, aside: &Path) -> io::Result<()> {
    use std::io::Write;
    let made = make_new(aside, 0o644)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| std::fs::hard_link(aside, path));
    let _ = std::fs::remove_file(aside);
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        known => known,
    }
}

/// Makes a host's private directory, with its secrets: each is a file of its name in `$GMG_SECRETS`, for programs that
/// know no host protocol.
pub(super) fn furnish(
    directory: &Path,
    spec: &HostSpec,
    owner: Option<(u32, u32)>,
) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::{OpenOptionsExt, chown};
    let own = |path: &Path| match owner {
        Some((user, group)) => chown(path, Some(user), Some(group)),
        None => Ok(()),
    };
    make_private(directory)?;
    // It is ours alone until all is there: whoever owns it may put links where we write.
    if !spec.secrets.is_empty() {
        let folder = directory.join(SECRETS);
        make_private(&folder)?;
        for (name, value) in spec.secrets.iter() {
            let path = folder.join(variable(name));
            let mut options = std::fs::OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            options.open(&path)?.write_all(value.as_bytes())?;
            own(&path)?;
        }
        own(&folder)?;
    }
    own(directory)
}

pub(super) fn file_name(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '-' {
                c
            } else {
                '_'
            }
        })
        .take(64)
        .collect()
}

pub(super) fn make_private(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    set_mode(path, 0o700)
}

pub(super) fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}
