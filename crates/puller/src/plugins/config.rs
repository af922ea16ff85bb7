//! The kubelet's configuration of its credential providers.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use kubefledged_api_types::GoDuration;
use kubefledged_image::{ImageRef, Keyring};
use serde::Deserialize;

/// Versions of the configuration that have the same fields, newest first.
const VERSIONS: [&str; 3] = [
    "kubelet.config.k8s.io/v1",
    "kubelet.config.k8s.io/v1beta1",
    "kubelet.config.k8s.io/v1alpha1",
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
    /// Which images it is asked for: the rules are those of keys in a docker config.
    images: Keyring<()>,
}

impl Provider {
    /// Whether it is asked for this image.
    pub fn fits(&self, image: &ImageRef) -> bool {
        !self.images.matching(image).is_empty()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    api_version: String,
    kind: String,
    providers: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: Option<GoDuration>,
    api_version: String,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<Variable>>,
    #[serde(default)]
    token_attributes: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Variable {
    name: String,
    #[serde(default)]
    value: String,
}

/// YAML or JSON, as the kubelet takes it.
pub fn parse(text: &str, directory: &Path) -> anyhow::Result<Vec<Provider>> {
    let document: Document =
        serde_saphyr::from_str(text).context("this is no CredentialProviderConfig")?;
    ensure!(
        document.kind == "CredentialProviderConfig" && VERSIONS.contains(&&*document.api_version),
        "kind {} of {} is unknown: CredentialProviderConfig of {} is expected",
        document.kind,
        document.api_version,
        VERSIONS[0]
    );
    document
        .providers
        .into_iter()
        .map(|entry| provider(entry, directory))
        .collect()
}

fn provider(entry: Entry, directory: &Path) -> anyhow::Result<Provider> {
    let name = entry.name;
    // The kubelet's rule: the name is that of a file in the directory, not a way out of it.
    ensure!(
        !name.is_empty() && !name.contains(['/', ' ']) && name != "." && name != "..",
        "provider name {name:?} is not the name of a program"
    );
    ensure!(
        !entry.match_images.is_empty(),
        "provider {name}: matchImages is empty"
    );
    if entry.token_attributes.is_some() {
        bail!(
            "provider {name}: tokenAttributes cannot be used here: no pod asks for the image, so there \
             is no ServiceAccount token; give the image cache imagePullSecrets"
        );
    }
    let images = entry.match_images.iter().map(|key| (key, ())).collect();
    let env = entry.env.unwrap_or_default().into_iter();
    Ok(Provider {
        program: directory.join(&name),
        name,
        api_version: entry.api_version,
        args: entry.args.unwrap_or_default(),
        env: env.map(|v| (v.name.into(), v.value.into())).collect(),
        default_cache_duration: entry.default_cache_duration.map(|duration| duration.0),
        images,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> anyhow::Result<Vec<Provider>> {
        parse(text, Path::new("/plugins"))
    }

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
            let providers = parsed(text).unwrap();
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
            let fits = |name: &str| provider.fits(&ImageRef::parse(name).unwrap());
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
    fn what_is_wrong_is_named() {
        let with = |provider: &str| {
            format!(
                "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders: \
                 [{{{provider}, apiVersion: v1, matchImages: [r.test], defaultCacheDuration: 1m}}]"
            )
        };
        for (text, told) in [
            (
                "kind: Pod\napiVersion: v1\nproviders: []".to_owned(),
                "kind Pod of v1",
            ),
            (with("name: ../sh"), "\"../sh\""),
            (with("name: x, tokenAttributes: {}"), "tokenAttributes"),
            ("[]".to_owned(), "no CredentialProviderConfig"),
        ] {
            let error = format!("{:#}", parsed(&text).unwrap_err());
            assert!(error.contains(told), "{error}");
        }
    }
}
