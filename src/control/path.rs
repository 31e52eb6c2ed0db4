//! Where the control socket is when nobody says.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// `$XDG_RUNTIME_DIR/sockhop.sock`, or `/run/sockhop.sock` where that variable is not set, as for system services.
pub fn default_path() -> PathBuf {
    path_in(std::env::var_os("XDG_RUNTIME_DIR"))
}

/// The XDG Base Directory Specification wants paths that are not absolute to be ignored.
fn path_in(runtime_dir: Option<OsString>) -> PathBuf {
    runtime_dir
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute())
        .unwrap_or_else(|| Path::new("/run").to_owned())
        .join("sockhop.sock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtime_dir_is_used_when_it_is_absolute() {
        for (dir, path) in [
            (Some("/run/user/7"), "/run/user/7/sockhop.sock"),
            (Some(""), "/run/sockhop.sock"),
            (Some("tmp"), "/run/sockhop.sock"),
            (None, "/run/sockhop.sock"),
        ] {
            assert_eq!(path_in(dir.map(OsString::from)), Path::new(path));
        }
    }
}
