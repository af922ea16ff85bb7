//! Measures the image file system. CRI's `ImageFsInfo` has no capacity. The root of this container is an
//! overlay on the runtime's snapshots, so it shows the figures of their file system.

use std::path::{Path, PathBuf};

use kubefledged_queue::{CallError, Disk};

/// Types of root file systems that show the figures of the disk below them.
const TELLING: [&str; 4] = ["overlay", "btrfs", "zfs", "fuse.fuse-overlayfs"];

/// Returns the path to measure: that of the flag, else the root if it shows the figures.
pub fn path(flag: Option<&Path>) -> Option<PathBuf> {
    if let Some(path) = flag {
        return Some(path.to_owned());
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let kind = root_type(&mounts).unwrap_or("an unknown file system");
    if TELLING.contains(&kind) {
        return Some(PathBuf::from("/"));
    }
    tracing::warn!(
        file_system = kind,
        "the disk guard is off: the root of this container does not tell how full the file system of \
         the images is; mount it and set --image-fs-path"
    );
    None
}

/// Measures the file system.
pub fn usage(path: &Path) -> Result<Disk, CallError> {
    let figures = rustix::fs::statvfs(path).map_err(|error| CallError {
        code: "Internal".to_owned(),
        message: format!("cannot look at {}: {error}", path.display()),
    })?;
    Ok(Disk {
        capacity: figures.f_blocks.saturating_mul(figures.f_frsize),
        available: figures.f_bavail.saturating_mul(figures.f_frsize),
        inodes: figures.f_files,
        inodes_free: figures.f_favail,
    })
}

/// Returns the type of the last mount on `/`, which hides earlier ones.
fn root_type(mountinfo: &str) -> Option<&str> {
    let mut types = mountinfo.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        (mount.split(' ').nth(4)? == "/").then_some(kind.split(' ').next()?)
    });
    types.next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_of_the_root_is_read_whatever_optional_fields_there_are() {
        let mounts = "1 2 0:1 / /proc rw - proc proc rw\n\
            3 4 0:5 / / ro,relatime shared:7 master:1 - overlay overlay ro,lowerdir=/x\n\
            5 6 8:1 / /host/run ro master:2 - tmpfs tmpfs rw\n";
        assert_eq!(root_type(mounts), Some("overlay"));
        assert_eq!(root_type("5 6 8:1 / /x ro - tmpfs tmpfs rw\n"), None);
    }

    #[test]
    fn a_path_has_figures_and_a_missing_one_says_so() {
        let disk = usage(&std::env::temp_dir()).unwrap();
        assert!(disk.available <= disk.capacity && disk.capacity > 0);
        let error = usage(Path::new("/no/such/path")).unwrap_err();
        assert!(error.message.contains("/no/such/path"), "{error:?}");
    }
}
