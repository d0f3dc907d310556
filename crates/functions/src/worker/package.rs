//! Code that was uploaded: files in the worker's folder, named by what they hold.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::Upload;
use crate::component::Component;
use crate::error::WorkerError;
use crate::runtime::toolchain::content_key;

/// Largest upload.
const BYTES_MAX: usize = 512 * 1024 * 1024;

/// Keeps an upload and gives its name in the folder: `hash/file`. The same bytes are kept once.
pub(crate) fn store(folder: &Path, upload: &Upload) -> Result<String, WorkerError> {
    let name = Path::new(&upload.file_name)
        .file_name()
        .and_then(|name| name.to_str())
        .filter(|name| !name.starts_with('.') && !name.contains('\0'))
        .ok_or_else(|| {
            WorkerError::Invalid(vec![format!("`{}` is no file name", upload.file_name)])
        })?;
    if upload.bytes.len() > BYTES_MAX {
        return Err(WorkerError::Invalid(vec![format!(
            "the package has {} bytes, more than {BYTES_MAX}",
            upload.bytes.len()
        )]));
    }
    let hash = format!("{:032x}", content_key([&upload.bytes[..]]));
    let directory = folder.join(&hash);
    let path = directory.join(name);
    let failed = |error| WorkerError::io(format!("keeping `{}`", path.display()))(error);
    if !path.exists() {
        std::fs::create_dir_all(&directory).map_err(failed)?;
        let next = directory.join(format!(".{name}.next"));
        let write = || -> std::io::Result<()> {
            use std::os::unix::fs::PermissionsExt;
            let mut file = File::create(&next)?;
            file.write_all(&upload.bytes)?;
            // An executable is uploaded without its bit.
            file.set_permissions(std::fs::Permissions::from_mode(0o755))?;
            file.sync_all()?;
            std::fs::rename(&next, &path)?;
            File::open(&directory)?.sync_all()
        };
        write().map_err(failed)?;
    }
    Ok(format!("{hash}/{name}"))
}

/// A local path of code as an absolute one, so that it means the same after a restart elsewhere.
pub(crate) fn with_absolute_code(component: Component) -> Component {
    let Component::Function(mut config) = component else {
        return component;
    };
    let absolute = |path: &mut Option<String>| {
        let Some(text) = path else { return };
        let plain = text.strip_prefix("file://").unwrap_or(text);
        if !plain.contains("://")
            && let Ok(found) = std::fs::canonicalize(PathBuf::from(plain))
        {
            *text = super::shown(&found);
        }
    };
    absolute(&mut config.sh);
    absolute(&mut config.py);
    absolute(&mut config.exec);
    absolute(&mut config.go);
    absolute(&mut config.jar);
    Component::Function(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_are_kept_once_and_names_can_not_escape() {
        let folder = tempfile::tempdir().expect("temporary");
        let upload = |name: &str| Upload {
            file_name: name.into(),
            bytes: "text".into(),
        };
        let first = store(folder.path(), &upload("f.sh")).expect("kept");
        assert_eq!(store(folder.path(), &upload("f.sh")).expect("kept"), first);
        let outside = store(folder.path(), &upload("../../etc/f.sh")).expect("kept");
        assert_eq!(outside, first);
        assert!(store(folder.path(), &upload("..")).is_err());
        assert_eq!(
            std::fs::read(folder.path().join(first)).expect("there"),
            b"text"
        );
        // Of the first half of SHA-256: nobody can make another package of the same name.
        assert_eq!(
            content_key([&b""[..]]),
            0xe3b0_c442_98fc_1c14_9afb_f4c8_996f_b924
        );
    }
}
