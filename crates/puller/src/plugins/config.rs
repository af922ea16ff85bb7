//! The kubelet's configuration of its credential providers: a file, or a directory of files. What is
//! wrong with one provider or one file costs that one only; the kubelet would not start.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use kubefledged_api_types::GoDuration;
use kubefledged_image::{ImageRef, Pattern};
use serde::Deserialize;

/// Versions of the configuration that have the same fields, newest first.
const VERSIONS: [&str; 3] = [
    "kubelet.config.k8s.io/v1",
    "kubelet.config.k8s.io/v1beta1",
    "kubelet.config.k8s.io/v1alpha1",
];
/// Versions in which a provider is asked.
const SPOKEN: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];

/// One provider.
#[derive(Clone, Debug)]
pub struct Provider {
    /// Its name, and that of its program.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Version in which it is asked, and answers.
    pub api_version: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment, on top of ours.
    pub env: Vec<(OsString, OsString)>,
    /// How long its answer holds, if it does not say.
    pub default_cache_duration: Option<Duration>,
    /// Which images it is asked for.
    pub images: Vec<Pattern>,
}

/// A provider, or a file of them, that is not used.
#[derive(Clone, Debug)]
pub struct Skipped {
    /// Which one, why, and what to do.
    pub why: String,
    /// The images that it was meant for; none: that is not known.
    images: Vec<Pattern>,
}

impl Skipped {
    fn all(why: String) -> Self {
        Self {
            why,
            images: Vec::new(),
        }
    }

    /// Whether it might have had credentials for this image.
    pub fn concerns(&self, image: &ImageRef) -> bool {
        self.images.is_empty() || fit(&self.images, image)
    }
}

/// Whether one of the patterns matches.
pub fn fit(patterns: &[Pattern], image: &ImageRef) -> bool {
    patterns.iter().any(|pattern| pattern.matches(image))
}

/// All that could be read, and what could not.
#[derive(Debug, Default)]
pub struct Providers {
    pub used: Vec<Provider>,
    pub skipped: Vec<Skipped>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    api_version: String,
    kind: String,
    #[serde(default)]
    providers: Option<Vec<serde_json::Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    name: String,
    #[serde(default)]
    match_images: Option<Vec<String>>,
    default_cache_duration: Option<GoDuration>,
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<Variable>>,
    #[serde(default)]
    token_attributes: Option<TokenAttributes>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenAttributes {
    require_service_account: Option<bool>,
}

#[derive(Deserialize)]
struct Variable {
    name: String,
    #[serde(default)]
    value: String,
}

/// Reads a file, or the files `*.json`, `*.yaml` and `*.yml` of a directory in the order of their
/// names, as the kubelet does since 1.34.
pub fn load(path: &Path, directory: &Path) -> Providers {
    let mut providers = Providers::default();
    let files = match files(path) {
        Ok(files) => files,
        Err(error) => {
            let why = format!("cannot read {}: {error:#}", path.display());
            providers.skipped.push(Skipped::all(why));
            return providers;
        }
    };
    for file in files {
        let text = std::fs::read_to_string(&file).context("cannot read it");
        if let Err(error) = text.and_then(|text| providers.add(&text, directory)) {
            let why = format!("{}: {error:#}", file.display());
            providers.skipped.push(Skipped::all(why));
        }
    }
    providers
}

fn files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.metadata()?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in path.read_dir()? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let known = [".json", ".yaml", ".yml"]
            .iter()
            .any(|end| name.ends_with(end));
        if known && !entry.file_type()?.is_dir() {
            files.push(entry.path());
        }
    }
    files.sort();
    ensure!(
        !files.is_empty(),
        "there is no file *.json, *.yaml or *.yml in this directory: does this node have credential providers?"
    );
    Ok(files)
}

impl Providers {
    /// Adds what a file holds, YAML or JSON.
    fn add(&mut self, text: &str, directory: &Path) -> anyhow::Result<()> {
        let document: Document =
            serde_saphyr::from_str(text).context("this is no CredentialProviderConfig")?;
        ensure!(
            document.kind == "CredentialProviderConfig"
                && VERSIONS.contains(&&*document.api_version),
            "kind {} of {} is unknown: CredentialProviderConfig of {} is expected",
            document.kind,
            document.api_version,
            VERSIONS[0]
        );
        let entries = document.providers.unwrap_or_default();
        ensure!(!entries.is_empty(), "providers is empty");
        let mut names: BTreeSet<String> = self.used.iter().map(|p| p.name.clone()).collect();
        for entry in entries {
            let shown = entry.get("name").and_then(|name| name.as_str());
            let shown = shown.unwrap_or_default().to_owned();
            let images = patterns(&entry);
            let provider = serde_json::from_value(entry)
                .map_err(anyhow::Error::from)
                .and_then(|entry| provider(entry, directory));
            let provider = provider.and_then(|provider| {
                let new = names.insert(provider.name.clone());
                ensure!(new, "another provider has this name");
                Ok(provider)
            });
            match provider {
                Ok(provider) => self.used.push(provider),
                Err(error) => self.skipped.push(Skipped {
                    why: format!("credential provider {shown:?} is not used: {error:#}"),
                    images,
                }),
            }
        }
        Ok(())
    }
}

/// The patterns of an entry that may have other faults.
fn patterns(entry: &serde_json::Value) -> Vec<Pattern> {
    let texts = entry
        .get("matchImages")
        .and_then(|images| images.as_array());
    let texts = texts.into_iter().flatten();
    texts
        .filter_map(|text| Pattern::parse(text.as_str()?))
        .collect()
}

fn provider(entry: Entry, directory: &Path) -> anyhow::Result<Provider> {
    let name = entry.name;
    // The kubelet's rule: the name is that of a file in the directory, not a way out of it.
    ensure!(
        !name.is_empty() && !name.contains(['/', ' ']) && name != "." && name != "..",
        "its name is not the name of a program"
    );
    ensure!(
        SPOKEN.contains(&&*entry.api_version),
        "apiVersion {:?} is unknown: {} is expected",
        entry.api_version,
        SPOKEN[0]
    );
    let images = entry.match_images.unwrap_or_default();
    ensure!(!images.is_empty(), "matchImages is empty");
    let mut patterns = Vec::new();
    for image in &images {
        let pattern = Pattern::parse(image);
        patterns.push(pattern.with_context(|| {
            format!("{image:?} in matchImages is not like *.registry.example.com/team")
        })?);
    }
    match entry.token_attributes {
        None => {}
        // As the kubelet asks it for static pods, which have no ServiceAccount either.
        Some(TokenAttributes {
            require_service_account: Some(false),
        }) => tracing::info!(
            provider = name,
            "credential provider takes tokens of ServiceAccounts and is asked without one"
        ),
        Some(_) => bail!(
            "it needs the token of a pod's ServiceAccount (tokenAttributes), and no pod asks for the \
             image here; give the image cache imagePullSecrets"
        ),
    }
    let env = entry.env.unwrap_or_default().into_iter();
    Ok(Provider {
        program: directory.join(&name),
        name,
        api_version: entry.api_version,
        args: entry.args.unwrap_or_default(),
        env: env.map(|v| (v.name.into(), v.value.into())).collect(),
        default_cache_duration: entry.default_cache_duration.map(|duration| duration.0),
        images: patterns,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Providers {
        let mut providers = Providers::default();
        if let Err(error) = providers.add(text, Path::new("/plugins")) {
            providers.skipped.push(Skipped::all(format!("{error:#}")));
        }
        providers
    }

    fn names(providers: &Providers) -> Vec<&str> {
        providers.used.iter().map(|p| p.name.as_str()).collect()
    }

    fn file(providers: &str) -> String {
        format!(
            "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders: [{providers}]"
        )
    }

    const COMMON: &str =
        "apiVersion: credentialprovider.kubelet.k8s.io/v1, defaultCacheDuration: 1m";

    #[test]
    fn the_kubelets_file_is_read_as_yaml_and_as_json() {
        let yaml = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n\
            - name: ecr\n  matchImages: ['*.dkr.ecr.*.amazonaws.com', 'r.test:5000/team']\n  \
            defaultCacheDuration: 12h0m0s\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  \
            args: [get]\n  env: [{name: A, value: b}]\n";
        let json = r#"{"apiVersion":"kubelet.config.k8s.io/v1","kind":"CredentialProviderConfig",
            "providers":[{"name":"ecr","matchImages":["*.dkr.ecr.*.amazonaws.com","r.test:5000/team"],
            "defaultCacheDuration":"12h0m0s","apiVersion":"credentialprovider.kubelet.k8s.io/v1",
            "args":["get"],"env":[{"name":"A","value":"b"}]}]}"#;
        for text in [yaml, json] {
            let providers = parsed(text).used;
            let [provider] = providers.as_slice() else {
                panic!("{providers:?}");
            };
            assert_eq!(provider.program, Path::new("/plugins/ecr"));
            assert_eq!(
                provider.default_cache_duration,
                Some(Duration::from_secs(12 * 3600))
            );
            assert_eq!(provider.args, ["get"]);
            assert_eq!(provider.env, [("A".into(), "b".into())]);
            let fits = |name: &str| fit(&provider.images, &ImageRef::parse(name).unwrap());
            assert!(fits("1234.dkr.ecr.eu-west-1.amazonaws.com/app:1"));
            assert!(fits("r.test:5000/team/app:1"));
            assert!(!fits("r.test/team/app:1"), "ports must be equal");
            assert!(
                !fits("dkr.ecr.eu-west-1.amazonaws.com/app:1"),
                "as many labels"
            );
            assert!(!fits("busybox:1"));
        }
    }

    #[test]
    fn what_is_wrong_is_named_and_costs_that_provider_only() {
        let good = format!("{{name: good, matchImages: [r.test], {COMMON}}}");
        for (bad, told) in [
            (format!("{{name: ../sh, matchImages: [x.test], {COMMON}}}"), "\"../sh\""),
            (format!("{{name: x, matchImages: [], {COMMON}}}"), "matchImages is empty"),
            (format!("{{name: x, matchImages: ['x.t[e]st'], {COMMON}}}"), "x.t[e]st"),
            (format!("{{name: x, matchImages: [x.test], {COMMON}, tokenAttributes: {{requireServiceAccount: true}}}}"), "tokenAttributes"),
            (format!("{{name: x, matchImages: [x.test], {COMMON}, tokenAttributes: {{}}}}"), "tokenAttributes"),
            ("{name: x, matchImages: [x.test], apiVersion: v1}".to_owned(), "apiVersion \"v1\""),
            ("{name: x, matchImages: [x.test], defaultCacheDuration: -1s, apiVersion: credentialprovider.kubelet.k8s.io/v1}".to_owned(), "\"x\""),
            ("{name: x, matchImages: 5}".to_owned(), "\"x\""),
            ("5".to_owned(), "not used"),
            (format!("{{name: good, matchImages: [x.test], {COMMON}}}"), "another provider has this name"),
        ] {
            let providers = parsed(&file(&format!("{good}, {bad}")));
            assert_eq!(names(&providers), ["good"], "{bad}");
            let [skipped] = providers.skipped.as_slice() else {
                panic!("{bad}");
            };
            assert!(skipped.why.contains(told), "{}", skipped.why);
        }
    }

    #[test]
    fn a_skipped_provider_concerns_the_images_that_it_was_meant_for() {
        let providers = parsed(&file(&format!(
            "{{name: x, matchImages: [x.test], {COMMON}, tokenAttributes: {{requireServiceAccount: true}}}}"
        )));
        let concerns = |name: &str| providers.skipped[0].concerns(&ImageRef::parse(name).unwrap());
        assert!(concerns("x.test/a") && !concerns("r.test/a"));
    }

    #[test]
    fn a_provider_that_needs_no_token_is_asked_without_one() {
        let providers = parsed(&file(&format!(
            "{{name: x, matchImages: [x.test], {COMMON}, tokenAttributes: {{serviceAccountTokenAudience: a, \
             requireServiceAccount: false, cacheType: Token}}}}"
        )));
        assert_eq!(names(&providers), ["x"]);
    }

    #[test]
    fn a_file_that_is_none_is_named() {
        for (text, told) in [
            ("kind: Pod\napiVersion: v1\nproviders: []", "kind Pod of v1"),
            ("[]", "no CredentialProviderConfig"),
            ("\u{0}", "no CredentialProviderConfig"),
            (&file(""), "providers is empty"),
        ] {
            let providers = parsed(text);
            assert!(providers.used.is_empty());
            assert!(providers.skipped[0].why.contains(told), "{providers:?}");
        }
    }

    #[test]
    fn a_directory_is_read_in_the_order_of_its_names_and_a_bad_file_costs_nothing_else() {
        let directory = std::env::temp_dir().join(format!("providers-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("sub.yaml")).unwrap();
        let one = |name: &str| {
            file(&format!(
                "{{name: {name}, matchImages: [r.test], {COMMON}}}"
            ))
        };
        for (name, text) in [
            ("20.json", one("second")),
            ("10.yml", one("first")),
            ("15.yaml", "nothing".to_owned()),
            ("30.yaml", one("first")),
            ("40.conf", one("other")),
        ] {
            std::fs::write(directory.join(name), text).unwrap();
        }
        let providers = load(&directory, Path::new("/plugins"));
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(names(&providers), ["first", "second"]);
        assert_eq!(providers.skipped.len(), 2, "{:?}", providers.skipped);
        let nothing = load(&directory, Path::new("/plugins"));
        assert!(nothing.used.is_empty() && nothing.skipped[0].why.contains("cannot read"));
    }
}
