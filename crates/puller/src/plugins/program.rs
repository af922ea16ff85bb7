//! Whether a program can run in this container, found out without running it: our image holds
//! nothing but our own binary, and a plugin may need a loader or a shell.

use std::{
    fs::File,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};

/// Headers lie at the beginning of a program.
const HEAD: u64 = 64 << 10;

/// Says why not.
pub fn check(program: &Path) -> anyhow::Result<()> {
    let cannot = || format!("cannot run {}", program.display());
    let meta = program.metadata().with_context(cannot)?;
    ensure!(
        meta.is_file() && meta.permissions().mode() & 0o111 != 0,
        "{}: it is no executable file",
        cannot()
    );
    let mut head = Vec::new();
    let file = File::open(program).with_context(cannot)?;
    file.take(HEAD)
        .read_to_end(&mut head)
        .with_context(cannot)?;
    if let Some(needed) = interpreter(&head).filter(|needed| !needed.exists()) {
        bail!(
            "{}: it needs {}, which is not in this container; plugins must be statically linked programs",
            cannot(),
            needed.display()
        );
    }
    Ok(())
}

/// What the kernel starts in its place: the loader of a dynamically linked program, the
/// interpreter of a script.
fn interpreter(head: &[u8]) -> Option<PathBuf> {
    if let Some(script) = head.strip_prefix(b"#!") {
        let line = script.split(|byte| *byte == b'\n').next()?;
        let line = std::str::from_utf8(line).ok()?;
        return line.split_whitespace().next().map(PathBuf::from);
    }
    loader(head)
}

/// The segment `PT_INTERP` of a 64-bit little-endian ELF file, which is what nodes run.
fn loader(head: &[u8]) -> Option<PathBuf> {
    const PT_INTERP: u64 = 3;

    let number = |at: usize, size: usize| {
        let bytes = head.get(at..at.checked_add(size)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)),
        )
    };
    let place = |at, size| usize::try_from(number(at, size)?).ok();
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, size, count) = (place(0x20, 8)?, place(0x36, 2)?, place(0x38, 2)?);
    let segments = (0..count).filter_map(|i| table.checked_add(i * size));
    let segment = segments
        .into_iter()
        .find(|at| number(*at, 4) == Some(PT_INTERP))?;
    let (from, size) = (place(segment + 0x08, 8)?, place(segment + 0x20, 8)?);
    let path = head.get(from..from.checked_add(size)?)?;
    let path = path.split(|byte| *byte == 0).next()?;
    Some(PathBuf::from(std::str::from_utf8(path).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_of_a_program_and_the_interpreter_of_a_script_are_found() {
        let shell = std::fs::read("/bin/sh").unwrap();
        let loader = interpreter(&shell).unwrap();
        assert!(
            loader.starts_with("/lib64") || loader.starts_with("/lib"),
            "{loader:?}"
        );
        assert_eq!(interpreter(b"#! /bin/sh -e\nexit"), Some("/bin/sh".into()));
        // The tests themselves are static, as our binaries are.
        let ours = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(interpreter(&ours), None);
        for broken in [&b""[..], b"#!", b"\x7fELF\x02\x01", &shell[..70]] {
            assert_eq!(interpreter(broken), None);
        }
    }

    #[test]
    fn what_cannot_run_is_told_with_the_reason() {
        let refusal = |path: &str| format!("{:#}", check(Path::new(path)).unwrap_err());
        assert!(refusal("/no/such/plugin").contains("No such file"));
        assert!(refusal("/proc/version").contains("no executable file"));
        assert!(refusal("/bin").contains("no executable file"));
        check(Path::new("/bin/sh")).unwrap();
    }
}
