//! `warm`: makes or updates an `ImageCache` and waits for it, for CI. The rights of a tenant are enough.

use indicatif::{ProgressBar, ProgressStyle};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use kubefledged_api_types::{CacheSpecEntry, ImageCache, ImageCacheSpec};
use serde_json::json;

use super::wait::{self, Stage, stage};
use crate::{
    access::{Access, StoredCache},
    args::Warm,
    exit::{Exit, Failure},
    manifests::{self, Wanted},
    output::{Format, Out, note, text},
};

/// Owner of the fields that `warm` sets.
const MANAGER: &str = "kubectl-fledged";

/// Applies the `ImageCache`, and waits and deletes it if told to.
pub async fn run(access: &Access, out: Out, args: Warm) -> Result<Exit, Failure> {
    let (name, wanted) = wanted(&args)?;
    let mut access = access.clone();
    if let Some(namespace) = &wanted.namespace {
        access.namespace.clone_from(namespace);
    }
    apply(&access, &name, &wanted.spec).await?;
    let full = format!("imagecache.kubefledged.io/{name}");
    if out.format == Format::Table {
        text(&format!("{full} applied\n"))?;
    }
    if !args.wait {
        return Ok(Exit::Good);
    }
    let exit = waiting(&access, out, &name, &args).await;
    if args.rm {
        remove(&access, &name).await?;
    }
    let exit = exit?;
    let ready = exit == Exit::Good;
    let word = if ready { "ready" } else { "not ready" };
    let value = json!({"namespace": access.namespace, "name": name, "ready": ready});
    out.one(
        &value,
        &full,
        &format!("{}/{name} is {word}\n", access.namespace),
    )?;
    Ok(exit)
}

/// Name and content of the `ImageCache`.
fn wanted(args: &Warm) -> Result<(String, Wanted), Failure> {
    let mut wanted = match &args.filename {
        Some(path) => manifests::parse(&manifests::read(path)?)?,
        None => Wanted {
            spec: ImageCacheSpec {
                cache_spec: vec![CacheSpecEntry {
                    images: args.image.clone(),
                    ..CacheSpecEntry::default()
                }],
                ..ImageCacheSpec::default()
            },
            ..Wanted::default()
        },
    };
    for label in &args.selector {
        let (key, value) = label
            .split_once('=')
            .ok_or_else(|| Failure::Usage(format!("--selector {label}: write key=value")))?;
        for list in &mut wanted.spec.cache_spec {
            list.node_selector.insert(key.to_owned(), value.to_owned());
        }
    }
    for secret in &args.pull_secret {
        wanted.add_secret(secret);
    }
    let name = args.name.clone().or_else(|| wanted.name.clone());
    let name =
        name.ok_or_else(|| Failure::Usage("the file names nothing: write --name".to_owned()));
    Ok((name?, wanted))
}

/// Makes or updates it. Fields that somebody else owns are not taken away.
async fn apply(access: &Access, name: &str, spec: &ImageCacheSpec) -> Result<(), Failure> {
    let object = json!({
        "apiVersion": "kubefledged.io/v1alpha2",
        "kind": "ImageCache",
        "metadata": {"name": name},
        "spec": spec,
    });
    let api: Api<ImageCache> = Api::namespaced(access.client.clone(), &access.namespace);
    let applied = api
        .patch(name, &PatchParams::apply(MANAGER), &Patch::Apply(object))
        .await;
    let applied = applied.map(drop);
    applied.map_err(|error| Failure::of_kube("cannot apply the ImageCache", &error))
}

async fn remove(access: &Access, name: &str) -> Result<(), Failure> {
    let deleted = access.caches().delete(name, &DeleteParams::default()).await;
    let deleted = deleted.map(drop);
    deleted.map_err(|error| Failure::of_kube("cannot delete the ImageCache", &error))
}

async fn waiting(access: &Access, out: Out, name: &str, args: &Warm) -> Result<Exit, Failure> {
    let bar = if out.is_terminal() && out.format == Format::Table {
        bar()
    } else {
        ProgressBar::hidden()
    };
    let mut last = String::new();
    let seen = |cache: &StoredCache| {
        let progress = progress(cache);
        bar.set_length(progress.1);
        bar.set_position(progress.0);
        let line = format!("{}/{} images", progress.0, progress.1);
        if bar.is_hidden() && line != last && progress.1 > 0 {
            note(&line);
            last = line;
        }
        match stage(cache) {
            Stage::Done => Some(Exit::Good),
            Stage::Hopeless => Some(Exit::NotReady),
            Stage::Working => None,
        }
    };
    let exit = wait::until(access, name, Some(args.timeout.0), seen).await;
    bar.finish_and_clear();
    if matches!(exit, Ok(Exit::NotReady)) {
        let cache = access.cache(name).await?;
        let message = cache
            .condition("Stalled")
            .map(|stalled| stalled.message.clone());
        note(&message.unwrap_or_default());
        if !args.rm {
            note(&format!(
                "kubectl fledged status {name} -n {}",
                access.namespace
            ));
        }
    }
    exit
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    match ProgressStyle::with_template("images {bar:40} {pos}/{len} {elapsed}") {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

/// Images that are ready, of all.
fn progress(cache: &StoredCache) -> (u64, u64) {
    let images = cache.status.images.clone().unwrap_or_default();
    let number = |count: i64| u64::try_from(count).unwrap_or(0);
    (number(images.ready), number(images.desired))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(line: &[&str]) -> Warm {
        let line = ["kubectl-fledged", "warm"].iter().chain(line);
        match Cli::try_parse_from(line).expect("it parses").command {
            Command::Warm(args) => args,
            _ => unreachable!("it is warm"),
        }
    }

    #[test]
    fn images_selectors_and_secrets_become_one_list() {
        let args = args(&[
            "--image",
            "a:1",
            "--image",
            "b:1",
            "--name",
            "ci",
            "-l",
            "tier=web,zone=a",
            "--pull-secret",
            "key",
        ]);
        let (name, wanted) = wanted(&args).expect("an ImageCache");
        assert_eq!(name, "ci");
        let [list] = &wanted.spec.cache_spec[..] else {
            unreachable!("one list");
        };
        assert_eq!(list.images, ["a:1", "b:1"]);
        assert_eq!(
            (&*list.node_selector["tier"], &*list.node_selector["zone"]),
            ("web", "a")
        );
        assert_eq!(wanted.spec.image_pull_secrets.len(), 1);
    }

    #[test]
    fn without_file_and_image_or_with_rm_alone_it_is_an_error_of_usage() {
        for line in [
            &["--name", "ci"][..],
            &["--image", "a:1"],
            &["--image", "a:1", "--name", "x", "--rm"],
        ] {
            let line = ["kubectl-fledged", "warm"].iter().chain(line);
            assert!(Cli::try_parse_from(line).is_err());
        }
        let wrong = args(&["--image", "a:1", "--name", "ci", "-l", "tier"]);
        assert!(matches!(wanted(&wrong), Err(Failure::Usage(_))));
    }
}
