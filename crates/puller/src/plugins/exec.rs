//! Running a plugin: a question on its standard input, an answer on its standard output.

use std::{collections::BTreeMap, process::Stdio, time::Duration};

use anyhow::{Context as _, bail, ensure};
use kubefledged_api_types::{GoDuration, one_line};
use kubefledged_image::ImageRef;
use kubefledged_proto::puller::Credential;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
};

use super::{Logins, cache::KeyType, config::Provider, program};

/// The kubelet's own limit.
const LIMIT: Duration = Duration::from_secs(60);
/// An answer holds a few passwords; what is longer is none.
const MOST_ANSWER: u64 = 1 << 20;
/// Of what a plugin says on its standard error, the end is quoted.
const MOST_COMPLAINT: u64 = 16 << 10;
const QUOTED: usize = 300;
/// For what a plugin said before it ended to arrive.
const REMAINDER: Duration = Duration::from_secs(1);

/// What a plugin answered.
pub struct Answer {
    /// For which other images it holds too.
    pub key_type: KeyType,
    /// How long. None: it does not say.
    pub cache_duration: Option<Duration>,
    /// By registry key.
    pub logins: Logins,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    api_version: &'a str,
    kind: &'static str,
    image: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    api_version: String,
    kind: String,
    cache_key_type: KeyType,
    #[serde(default)]
    cache_duration: Option<GoDuration>,
    #[serde(default)]
    auth: Option<BTreeMap<String, Option<Login>>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Login {
    username: Option<String>,
    password: Option<String>,
}

/// The plugin, and whatever it started, ends when this is dropped.
struct Group {
    child: Child,
    /// That of its process group too. What the plugin started may outlive it.
    id: Option<Pid>,
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            // All of them may have ended by themselves.
            let _ = kill_process_group(id, Signal::KILL);
        }
    }
}

fn start(provider: &Provider) -> anyhow::Result<Group> {
    let program = &provider.program;
    let child = Command::new(program)
        .args(&provider.args)
        .envs(provider.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    match child {
        Ok(child) => {
            let id = child
                .id()
                .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
            Ok(Group { child, id })
        }
        // The kernel does not say what it was that is not there.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            program::check(program)?;
            Err(error).with_context(|| format!("cannot run {}", program.display()))
        }
        Err(error) => Err(error).with_context(|| format!("cannot run {}", program.display())),
    }
}

/// Asks a plugin.
///
/// # Errors
/// It cannot run, takes more than a minute, fails, or answers something else; what it wrote to its
/// standard error is quoted, what it answered is not.
pub async fn ask(provider: &Provider, image: &ImageRef) -> anyhow::Result<Answer> {
    let question = serde_json::to_vec(&Request {
        api_version: &provider.api_version,
        kind: "CredentialProviderRequest",
        image: format!("{}/{}", image.registry(), image.repository()),
    })?;
    let mut group = start(provider)?;
    let spoken = tokio::time::timeout(LIMIT, talk(&mut group.child, &question)).await;
    let (answer, complaint, status) = spoken.context("no answer within 1 min")??;
    if !status.success() {
        bail!("it failed ({status}): {}", tail(&complaint));
    }
    understand(&answer, &provider.api_version)
}

async fn talk(
    child: &mut Child,
    question: &[u8],
) -> anyhow::Result<(Vec<u8>, Vec<u8>, std::process::ExitStatus)> {
    let mut stdin = child.stdin.take().context("no standard input")?;
    let stdout = child.stdout.take().context("no standard output")?;
    let stderr = child.stderr.take().context("no standard error")?;
    let write = async {
        // It may answer without reading.
        let _ = stdin.write_all(question).await;
        drop(stdin);
    };
    let (mut answer, mut complaint) = (Vec::new(), Vec::new());
    let spoken = async {
        tokio::join!(
            write,
            read(stdout, MOST_ANSWER, &mut answer),
            read(stderr, MOST_COMPLAINT, &mut complaint)
        )
    };
    // What it started may hold its output open when it has ended: that is not waited for.
    let ended = async {
        let status = child.wait().await;
        tokio::time::sleep(REMAINDER).await;
        status
    };
    let status = tokio::select! {
        ((), answer, complaint) = spoken => {
            answer?;
            complaint?;
            None
        }
        status = ended => Some(status?),
    };
    let status = match status {
        Some(status) => status,
        None => child.wait().await?,
    };
    ensure!(
        (answer.len() as u64) < MOST_ANSWER,
        "the answer is longer than 1 MiB"
    );
    Ok((answer, complaint, status))
}

/// Reads so much; the rest is not waited for.
async fn read(from: impl AsyncRead + Unpin, most: u64, text: &mut Vec<u8>) -> std::io::Result<()> {
    from.take(most).read_to_end(text).await?;
    Ok(())
}

fn understand(answer: &[u8], asked: &str) -> anyhow::Result<Answer> {
    // serde_json's own error would quote what it stumbled over: that may be a password. Of a field
    // that is written twice the last one counts, as for the kubelet.
    let value: serde_json::Value = serde_json::from_slice(answer).map_err(|error| {
        anyhow::anyhow!(
            "its answer is no JSON (line {}, column {})",
            error.line(),
            error.column()
        )
    })?;
    let response: Response = serde_json::from_value(value)
        .map_err(|_| anyhow::anyhow!("its answer is no CredentialProviderResponse"))?;
    ensure!(
        response.kind == "CredentialProviderResponse" && response.api_version == asked,
        "it answers with another kind or version than CredentialProviderResponse of {asked}"
    );
    let logins = response
        .auth
        .unwrap_or_default()
        .into_iter()
        .map(|(key, login)| {
            let Login { username, password } = login.unwrap_or_default();
            let text = Option::unwrap_or_default;
            (key, Credential::login(&text(username), &text(password)))
        });
    Ok(Answer {
        key_type: response.cache_key_type,
        cache_duration: response.cache_duration.map(|duration| duration.0),
        logins: logins.collect(),
    })
}

fn tail(complaint: &[u8]) -> String {
    let text = String::from_utf8_lossy(complaint);
    let text = one_line(&text, usize::MAX);
    let skip = text.chars().count().saturating_sub(QUOTED);
    text.chars().skip(skip).collect()
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "credentialprovider.kubelet.k8s.io/v1";

    #[test]
    fn an_answer_is_understood_and_another_one_is_not_quoted() {
        let good = format!(
            r#"{{"apiVersion":"{V1}","kind":"CredentialProviderResponse","cacheKeyType":"Registry",
            "cacheDuration":"5m","auth":{{"r.test":{{"username":"u","password":"p"}}}}}}"#
        );
        let answer = understand(good.as_bytes(), V1).unwrap();
        assert_eq!(answer.key_type, KeyType::Registry);
        assert_eq!(answer.cache_duration, Some(Duration::from_secs(300)));
        assert_eq!(
            (&*answer.logins[0].0, &*answer.logins[0].1.password),
            ("r.test", "p")
        );

        let none = format!(
            r#"{{"apiVersion":"{V1}","kind":"CredentialProviderResponse","cacheKeyType":"Global","auth":null}}"#
        );
        assert!(understand(none.as_bytes(), V1).unwrap().logins.is_empty());
        assert!(understand(none.as_bytes(), "v2").is_err());
        let broken = good.replace("\"Registry\"", "\"hunter2\"");
        let error = format!("{:#}", understand(broken.as_bytes(), V1).err().unwrap());
        assert!(
            !error.contains("hunter2") && error.contains("no CredentialProviderResponse"),
            "{error}"
        );
    }

    /// The child holds the plugin's output open, as a daemon does that nobody thought of.
    #[tokio::test]
    async fn what_a_plugin_leaves_behind_is_neither_waited_for_nor_left() {
        use std::os::unix::fs::PermissionsExt as _;

        let directory = std::env::temp_dir().join(format!("plugin-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let (program, child) = (directory.join("plugin"), directory.join("child"));
        let script = format!(
            "#!/bin/sh\nsleep 300 &\necho $! >{}\necho '{{\"apiVersion\":\"{V1}\",\"kind\":\"CredentialProviderResponse\",\"cacheKeyType\":\"Image\"}}'\n",
            child.display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        let provider = Provider {
            name: "plugin".to_owned(),
            program,
            api_version: V1.to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            default_cache_duration: None,
            images: Vec::new(),
        };
        let image = ImageRef::parse("r.test/a").unwrap();
        let asked = tokio::time::timeout(LIMIT / 2, ask(&provider, &image)).await;
        assert_eq!(asked.unwrap().unwrap().key_type, KeyType::Image);
        let child = std::fs::read_to_string(child).unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        // Killed; whoever is its parent now may not have asked what became of it.
        let gone = || match std::fs::read_to_string(format!("/proc/{}/stat", child.trim())) {
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        };
        for _ in 0..100 {
            if gone() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the child {child} lives on");
    }

    #[test]
    fn of_a_long_complaint_the_end_is_told() {
        assert_eq!(tail(b" cannot log in\n"), "cannot log in");
        let quoted = tail("ä".repeat(5000).as_bytes());
        assert_eq!(quoted.chars().count(), QUOTED);
    }
}
