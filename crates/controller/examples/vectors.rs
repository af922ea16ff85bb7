//! Answers questions about references, pull secrets and image patterns, one JSON object a line, for
//! `make test-vectors`, which compares the answers with those of the kubelet's own code.

use std::io::{BufRead as _, Write as _};

use anyhow::Context as _;
use kubefledged_controller::effects::dockercfg::PullSecret;
use kubefledged_image::{ImageRef, Keyring, Pattern};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
enum Question {
    Reference {
        text: String,
    },
    /// Each secret as the API server would answer with it.
    Logins {
        secrets: Vec<serde_json::Value>,
        image: String,
    },
    Pattern {
        pattern: String,
        image: String,
    },
}

#[derive(Default, Serialize)]
struct Answer {
    ok: bool,
    repository: String,
    tag: String,
    digest: String,
    runtime_name: String,
    logins: Vec<[String; 2]>,
    /// Secrets that cannot be read.
    malformed: usize,
    /// Secrets of which an entry was passed over.
    passed_over: Vec<String>,
    matches: bool,
}

fn main() -> anyhow::Result<()> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for line in std::io::stdin().lock().lines() {
        let question = serde_json::from_str(&line?).context("this is no question")?;
        serde_json::to_writer(&mut out, &answer(question)?)?;
        writeln!(out)?;
    }
    Ok(out.flush()?)
}

fn answer(question: Question) -> anyhow::Result<Answer> {
    Ok(match question {
        Question::Reference { text } => reference(&text),
        Question::Logins { secrets, image } => logins(secrets, &image)?,
        Question::Pattern { pattern, image } => {
            let pattern = Pattern::parse(&pattern);
            let image = ImageRef::parse(&image).ok();
            Answer {
                ok: pattern.is_some(),
                matches: pattern
                    .zip(image)
                    .is_some_and(|(pattern, image)| pattern.matches(&image)),
                ..Answer::default()
            }
        }
    })
}

fn reference(text: &str) -> Answer {
    let Ok(image) = ImageRef::parse(text) else {
        return Answer::default();
    };
    let latest = match image.digest() {
        Some(_) => "",
        None => "latest",
    };
    Answer {
        ok: true,
        repository: format!("{}/{}", image.registry(), image.repository()),
        tag: image.tag().unwrap_or(latest).to_owned(),
        digest: image.digest().unwrap_or_default().to_owned(),
        runtime_name: image.runtime_name(),
        ..Answer::default()
    }
}

fn logins(secrets: Vec<serde_json::Value>, image: &str) -> anyhow::Result<Answer> {
    let mut keyring = Keyring::default();
    let mut answer = Answer::default();
    for secret in secrets {
        let secret: PullSecret = serde_json::from_value(secret).context("this is no Secret")?;
        match secret.add_to(&mut keyring) {
            Ok(reasons) => answer
                .passed_over
                .extend(reasons.into_iter().map(str::to_owned)),
            Err(_) => answer.malformed += 1,
        }
    }
    if let Ok(image) = ImageRef::parse(image) {
        answer.ok = true;
        let found = keyring.matching(&image).into_iter();
        answer.logins = found
            .map(|login| [login.username.clone(), login.password.clone()])
            .collect();
    }
    Ok(answer)
}
