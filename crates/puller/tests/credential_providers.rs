//! Credential providers: real programs, run as the kubelet runs them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "only tests are here")]

mod common;

use std::{os::unix::fs::PermissionsExt as _, path::PathBuf};

use common::{Puller, credential, image, request};
use kubefledged_proto::puller::{ImagePull, PullImagesRequest, PullResult};
use kubefledged_testkit::{FakeRuntime, Login, Removal, eventually};

const A: &str = "registry.test/team/a:1";
const API: &str = "credentialprovider.kubelet.k8s.io/v1";

/// A directory with plugins and their configuration.
struct Plugins(PathBuf);

impl Plugins {
    fn new(runtime: &FakeRuntime) -> Self {
        let directory = runtime.directory().join("plugins");
        std::fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }

    /// A shell script that notes each run.
    fn add(&self, name: &str, script: &str) {
        let path = self.0.join(name);
        let runs = self.0.join("runs");
        let text = format!("#!/bin/sh\necho \"$1\" $$ >>{}\n{script}\n", runs.display());
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Process ids of the runs with that argument, so without the try at the start.
    fn runs(&self, argument: &str) -> Vec<String> {
        let runs = std::fs::read_to_string(self.0.join("runs")).unwrap_or_default();
        let runs = runs.lines().filter_map(|line| line.strip_prefix(argument));
        runs.map(|pid| pid.trim().to_owned()).collect()
    }

    fn answer(&self, kind: &str, duration: &str, user: &str) -> String {
        format!(
            "cat >{}/question; cat <<E\n{{\"apiVersion\":\"{API}\",\"kind\":\"CredentialProviderResponse\",\
             \"cacheKeyType\":\"{kind}\",\"cacheDuration\":\"{duration}\",\"auth\":{{\"registry.test\":\
             {{\"username\":\"{user}\",\"password\":\"right\"}}}}}}\nE",
            self.0.display()
        )
    }

    /// Flags for these plugins, each asked for everything of registry.test.
    async fn start(&self, runtime: FakeRuntime, names: &[&str]) -> Puller {
        let providers = names.iter().map(|name| {
            format!(
                "- {{name: {name}, matchImages: ['*.test'], defaultCacheDuration: 1h, apiVersion: {API}, \
                 args: [get-credentials], env: [{{name: WHO, value: node}}]}}\n"
            )
        });
        let text = format!(
            "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n{}",
            providers.collect::<String>()
        );
        let config = self.0.join("config.yaml");
        std::fs::write(&config, text).unwrap();
        let socket = runtime.socket();
        let flags = [
            "--cri-socket-path",
            socket.to_str().unwrap(),
            "--credential-provider-config",
            config.to_str().unwrap(),
            "--credential-provider-bin-dir",
            self.0.to_str().unwrap(),
        ];
        Puller::beside(runtime, &flags).await
    }
}

fn private(names: &[&str]) -> FakeRuntime {
    let runtime = FakeRuntime::start(Removal::Whole).unwrap();
    for name in names {
        let (username, password) = ("node".to_owned(), "right".to_owned());
        runtime.demand(name, Login { username, password });
    }
    runtime
}

#[tokio::test]
async fn a_private_image_is_pulled_with_what_the_node_knows_and_the_plugin_is_asked_once() {
    let (b, other) = ("registry.test/team/b:1", "registry.test/team/a:2");
    let runtime = private(&[A, b, other]);
    let plugins = Plugins::new(&runtime);
    plugins.add("cloud", &plugins.answer("Registry", "1h", "$WHO"));
    let mut puller = plugins.start(runtime, &["cloud"]).await;
    let images = vec![image(A), image(b), image(other)];
    let outcomes = puller.pull(1, images).await.outcomes().await;
    for outcome in outcomes {
        assert_eq!(outcome.result(), PullResult::Pulled, "{}", outcome.message);
        assert_eq!(outcome.attempts, 1);
    }
    assert_eq!(plugins.runs("get-credentials").len(), 1);
    let question = std::fs::read_to_string(plugins.0.join("question")).unwrap();
    assert!(
        question.contains("\"kind\":\"CredentialProviderRequest\""),
        "{question}"
    );
    assert!(
        question.contains("\"image\":\"registry.test/team/"),
        "{question}"
    );
    assert!(
        !question.contains(":1\""),
        "the kubelet asks without a tag: {question}"
    );
}

#[tokio::test]
async fn credentials_of_the_request_go_first_and_the_plugin_is_the_last_resort() {
    let runtime = private(&[A]);
    let plugins = Plugins::new(&runtime);
    plugins.add("cloud", &plugins.answer("Image", "0s", "node"));
    let mut puller = plugins.start(runtime, &["cloud"]).await;
    let with = |user: &str, seq| PullImagesRequest {
        credentials: vec![credential(user, "right")],
        ..request(
            seq,
            vec![ImagePull {
                credentials: vec![0],
                ..image(A)
            }],
        )
    };
    let outcomes = puller.pull_with(with("node", 1)).await.outcomes().await;
    assert_eq!(
        (outcomes[0].result(), outcomes[0].attempts),
        (PullResult::Pulled, 1)
    );
    assert!(plugins.runs("get-credentials").is_empty());

    puller.remove(2, &[A]).await;
    let outcomes = puller.pull_with(with("stranger", 3)).await.outcomes().await;
    assert_eq!(
        (outcomes[0].result(), outcomes[0].attempts),
        (PullResult::Pulled, 2)
    );
    assert_eq!(plugins.runs("get-credentials").len(), 1);
}

#[tokio::test]
async fn a_plugin_that_fails_or_cannot_run_is_named_with_the_refusal_and_the_others_are_asked() {
    let runtime = private(&[A, "registry.test/team/b:1"]);
    let plugins = Plugins::new(&runtime);
    plugins.add("failing", "echo no metadata service >&2; exit 3");
    let script = plugins.0.join("loaderless");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let names = ["failing", "loaderless", "absent"];
    let mut puller = plugins.start(runtime, &names).await;
    let outcomes = puller.pull(1, vec![image(A)]).await.outcomes().await;
    assert_eq!(outcomes[0].reason, "Unauthorized");
    for told in [
        "credential provider failing: it failed (exit status: 3): no metadata service",
        "credential provider loaderless",
        "statically linked",
        "credential provider absent: cannot run",
    ] {
        assert!(
            outcomes[0].message.contains(told),
            "{told}: {}",
            outcomes[0].message
        );
    }
    assert_eq!(outcomes[0].attempts, 1, "then anonymously");
}

#[tokio::test]
async fn with_the_pull_that_waited_for_it_a_plugin_ends_with_all_that_it_started() {
    let runtime = private(&[A]);
    let plugins = Plugins::new(&runtime);
    let child = plugins.0.join("child");
    let script = format!("sleep 600 &\necho $! >{}\nwait", child.display());
    plugins.add("hanging", &script);
    let mut puller = plugins.start(runtime, &["hanging"]).await;
    let mut pulling = puller.pull(1, vec![image(A)]).await;
    pulling.accepted().await;
    let pid = eventually("the plugin runs", async || {
        let pid = std::fs::read_to_string(&child).ok()?;
        (!plugins.runs("get-credentials").is_empty() && pid.ends_with('\n')).then_some(pid)
    })
    .await;
    puller.cancel(2, 1).await;
    // Ended, or waiting for an init to look at it.
    let stat = PathBuf::from(format!("/proc/{}/stat", pid.trim()));
    eventually("its child has ended", async || {
        let stat = std::fs::read_to_string(&stat).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    })
    .await;
}
