//! Functions of hack/lib that need no cluster: what two builds at once do, and what a machine is told
//! that cannot have a local cluster.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output},
};

use kubefledged_chart::file;

/// A small tool, whose build says that it began and takes a second.
const SMALL_TOOL: &str = r#"
    set -euo pipefail
    HACK=$PWD/hack
    source hack/lib/process.sh
    source hack/lib/tools.sh
    build_small() {
        echo begun >>"$CACHE/begun"
        sleep 1
        echo "${SAYS:-small}" >"$1/small"
    }
"#;

/// An empty cache of built tools. It goes with this.
struct Cache(PathBuf);

impl Cache {
    fn new(name: &str) -> Self {
        let name = format!("kubefledged-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Runs shell commands after [`SMALL_TOOL`].
    fn shell(&self, commands: &str) -> Command {
        let mut shell = Command::new("bash");
        shell
            .args(["-c", &format!("{SMALL_TOOL}{commands}")])
            .current_dir(file(""))
            .env("CACHE", &self.0);
        shell
    }

    fn text(&self, path: &str) -> String {
        std::fs::read_to_string(self.0.join(path)).unwrap()
    }

    /// Directories whose build has not ended.
    fn half_built(&self) -> usize {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("building.")).count()
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a command said on standard error.
fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs these at the same time, to their ends.
fn at_once(shells: Vec<Command>) -> Vec<Output> {
    let started: Vec<_> = shells
        .into_iter()
        .map(|mut shell| {
            let piped = std::process::Stdio::piped;
            shell.stdout(piped()).stderr(piped()).spawn().unwrap()
        })
        .collect();
    let ended = started.into_iter().map(Child::wait_with_output);
    ended.map(Result::unwrap).collect()
}

#[test]
fn of_two_builds_of_a_tool_the_second_waits_and_takes_the_result_of_the_first() {
    let cache = Cache::new("two-builds");
    let build = || cache.shell(r#"build_cached "$CACHE/key/bin" build_small"#);
    let ended = at_once(vec![build(), build()]);
    let all: String = ended.iter().map(said).collect();
    assert!(ended.iter().all(|end| end.status.success()), "{all}");
    assert_eq!(cache.text("begun"), "begun\n", "one of them builds: {all}");
    assert_eq!(cache.text("key/bin/small"), "small\n");
    assert!(all.contains("another build of key is running"), "{all}");
    assert!(all.contains("the other build made"), "{all}");
    assert_eq!(cache.half_built(), 0);
}

#[test]
fn builds_of_two_tools_leave_each_other_alone() {
    let cache = Cache::new("two-tools");
    let build = |key| {
        let build = format!(r#"SAYS={key} build_cached "$CACHE/{key}/bin" build_small"#);
        cache.shell(&build)
    };
    let ended = at_once(vec![build("one"), build("two")]);
    let all: String = ended.iter().map(said).collect();
    assert!(ended.iter().all(|end| end.status.success()), "{all}");
    assert!(!all.contains("another build"), "{all}");
    assert_eq!(cache.text("one/bin/small"), "one\n");
    assert_eq!(cache.text("two/bin/small"), "two\n");
}

#[test]
fn a_build_that_failed_leaves_the_next_one_an_empty_directory() {
    let cache = Cache::new("failed-build");
    let fails = r#"fails() { echo x >"$1/rest"; exit 1; }; build_cached "$CACHE/key/bin" fails"#;
    let ended = cache.shell(fails).output().unwrap();
    assert!(!ended.status.success());
    assert_eq!(cache.half_built(), 1);
    let ended = cache
        .shell(r#"build_cached "$CACHE/key/bin" build_small"#)
        .output()
        .unwrap();
    assert!(ended.status.success(), "{}", said(&ended));
    assert!(!cache.0.join("key/bin/rest").exists());
    assert_eq!(cache.half_built(), 0);
}

/// Runs a command in mounts of its own, or where that is not allowed in those of this process.
fn own_mounts() -> Command {
    let unshare = || {
        let mut unshare = Command::new("unshare");
        unshare.args(["--map-root-user", "--mount"]);
        unshare
    };
    let allowed = unshare().arg("true").status();
    if allowed.is_ok_and(|status| status.success()) {
        unshare()
    } else {
        Command::new("env")
    }
}

/// In mounts of its own, so that nobody else's `hack/cluster up` meets this containerd.
#[test]
fn beside_another_containerd_the_demo_says_what_to_stop() {
    let cache = Cache::new("containerd");
    let program = cache.0.join("containerd");
    let sleep = Path::new("/bin/sleep").canonicalize().unwrap();
    std::fs::copy(sleep, program).unwrap();
    let script = format!(
        r#"{SMALL_TOOL}
        "$CACHE/containerd" 30 & other=$!
        trap 'kill $other' EXIT
        until [[ $(cat /proc/$other/comm) == containerd ]]; do sleep 0.1; done
        check_machine"#
    );
    let mut shell = own_mounts();
    let ended = shell
        .args(["bash", "-c", &script])
        .current_dir(file(""))
        .env("CACHE", &cache.0)
        .output()
        .unwrap();
    let said = said(&ended);
    assert!(!ended.status.success(), "{said}");
    assert!(
        said.contains("already runs on this machine and would be disturbed; stop it with: systemctl stop docker containerd kubelet"),
        "{said}"
    );
}

/// Builds of `$CACHE/NAME/bin`; `bad` fails.
const BUILDS: &str = r#"
    bin_of() { echo "$CACHE/$1/bin"; }
    build_one() { echo + >>"$CACHE/running"; sleep 0.1; echo - >>"$CACHE/running"; }
    build_two() { build_one; }
    build_three() { build_one; }
    build_bad() { echo "no compiler" >&2; exit 1; }
"#;

#[test]
fn what_is_missing_is_built_one_after_the_other() {
    let cache = Cache::new("at-once");
    let build = || cache.shell(&format!("{BUILDS}\nbuild_missing one two three"));
    let ended = build().output().unwrap();
    assert!(ended.status.success(), "{}", said(&ended));
    assert_eq!(cache.text("running"), "+\n-\n".repeat(3));
    let again = build().output().unwrap();
    assert!(again.status.success(), "{}", said(&again));
    assert_eq!(
        cache.text("running").lines().count(),
        6,
        "nothing is missing"
    );
}

#[test]
fn a_build_that_fails_is_named_and_the_next_ones_do_not_begin() {
    let cache = Cache::new("bad-build");
    let build = format!("{BUILDS}\nbuild_missing one bad two");
    let ended = cache.shell(&build).output().unwrap();
    let said = said(&ended);
    assert!(!ended.status.success(), "{said}");
    assert!(said.contains("no compiler"), "{said}");
    assert!(said.contains("building bad failed (above)"), "{said}");
    assert!(cache.0.join("one/bin").is_dir(), "{said}");
    assert!(!cache.0.join("two/bin").exists(), "{said}");
}
