//! Reads pull secrets when a batch needs them. Only credentials that match an image are sent to its node.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures::{
    FutureExt as _, StreamExt as _, TryStreamExt as _,
    future::{BoxFuture, Shared},
    stream,
};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::{
    Client, Resource,
    api::{GetParams, Request},
};
use kubefledged_engine::CredentialScope;
use kubefledged_image::credentials::Keyring;
use kubefledged_proto::puller::Credential;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use zeroize::Zeroizing;

use super::dockercfg::PullSecret;

/// Time for which the result of a look-up is used, from its begin. Then it is forgotten.
const FRESH: Duration = Duration::from_secs(60);
/// Time limit of one look-up with all its secrets.
const LIMIT: Duration = Duration::from_secs(10);
/// A look-up that failed is not repeated earlier.
const AGAIN: Duration = Duration::from_secs(2);
/// Maximum number of secrets that are read at the same time, of all namespaces together.
const AT_A_TIME: usize = 8;

/// The content of the secrets of a scope.
#[derive(Debug, Default)]
pub struct Resolved {
    /// Credentials by registry.
    pub keyring: Keyring<Credential>,
    /// Secrets that do not exist.
    pub missing: Vec<String>,
    /// Other secrets that cannot be used, and why.
    pub unusable: Vec<(String, String)>,
}

/// Why a look-up failed: the error of the API server, or that it did not answer.
pub type Failed = Arc<str>;

type Lookup = Shared<BoxFuture<'static, Result<Arc<Resolved>, Failed>>>;

/// Look-ups of pull secrets.
pub struct Credentials {
    reader: Reader,
    /// `ServiceAccount` for scopes of `ImageCaches` that name none.
    service_account: Option<Arc<str>>,
    lookups: Arc<Mutex<Lookups>>,
}

/// At most one look-up per scope, in flight or done, because thousands of nodes need the same few secrets.
#[derive(Default)]
struct Lookups(BTreeMap<CredentialScope, (Instant, Lookup)>);

impl Lookups {
    fn forget_old(&mut self) {
        self.0.retain(|_, (begun, _)| begun.elapsed() < FRESH);
    }
}

impl Credentials {
    /// Reads with this client. `service_account` is used for scopes of `ImageCaches` that name none.
    pub fn new(client: Client, service_account: Option<Arc<str>>) -> Self {
        Self {
            reader: Reader {
                client,
                reads: Arc::new(Semaphore::new(AT_A_TIME)),
            },
            service_account,
            lookups: Arc::default(),
        }
    }

    /// Returns the credentials of a scope.
    ///
    /// # Errors
    /// The API server did not answer, or refused. A secret that does not exist is not an error.
    pub async fn resolve(&self, scope: &CredentialScope) -> Result<Arc<Resolved>, Failed> {
        let mut scope = scope.clone();
        if !scope.of_pods {
            scope.service_account = scope.service_account.or(self.service_account.clone());
        }
        if scope.secrets.is_empty() && scope.service_account.is_none() {
            return Ok(Arc::default());
        }
        self.lookup(scope).await
    }

    fn lookup(&self, scope: CredentialScope) -> Lookup {
        let mut lookups = lock(&self.lookups);
        lookups.forget_old();
        if let Some((begun, lookup)) = lookups.0.get(&scope)
            && (!matches!(lookup.peek(), Some(Err(_))) || begun.elapsed() < AGAIN)
        {
            return lookup.clone();
        }
        let reader = self.reader.clone();
        let asked = scope.clone();
        // In its own task, so that it finishes even if nobody waits for it any more.
        let reading = tokio::spawn(async move {
            match timeout(LIMIT, reader.read(&asked)).await {
                Ok(resolved) => resolved.map(Arc::new),
                Err(_) => Err(format!(
                    "the API server did not answer for the pull secrets of namespace {} within {LIMIT:?}",
                    asked.namespace
                )
                .into()),
            }
        });
        let lookup = async {
            reading
                .await
                .unwrap_or_else(|_| Err("the look-up was cut short".into()))
        };
        let lookup = lookup.boxed().shared();
        lookups.0.insert(scope, (Instant::now(), lookup.clone()));
        tokio::spawn(forget(Arc::downgrade(&self.lookups)));
        lookup
    }
}

fn lock(lookups: &Mutex<Lookups>) -> MutexGuard<'_, Lookups> {
    lookups.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets passwords as soon as the result of the look-up is too old.
async fn forget(lookups: Weak<Mutex<Lookups>>) {
    tokio::time::sleep(FRESH).await;
    if let Some(lookups) = lookups.upgrade() {
        lock(&lookups).forget_old();
    }
}

#[derive(Clone)]
struct Reader {
    client: Client,
    /// Secrets that are read at the same time, of all scopes together.
    reads: Arc<Semaphore>,
}

/// The part of a `ServiceAccount` that is read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeanServiceAccount {
    #[serde(default)]
    image_pull_secrets: Vec<LocalReference>,
}

#[derive(Deserialize)]
struct LocalReference {
    #[serde(default)]
    name: String,
}

impl Reader {
    async fn read(&self, scope: &CredentialScope) -> Result<Resolved, Failed> {
        let mut resolved = Resolved::default();
        let mut names = scope.secrets.to_vec();
        if let Some(account) = &scope.service_account {
            match self.secrets_of(&scope.namespace, account).await? {
                Ok(more) => names.extend(more),
                Err(why) => resolved
                    .unusable
                    .push((format!("those of ServiceAccount {account}"), why.to_owned())),
            }
        }
        // The kubelet ignores an entry without a name.
        names.retain(|name| !name.is_empty());
        let mut seen = BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        let reads = names.into_iter().map(|name| async move {
            let _read = self.reads.acquire().await;
            let found = self
                .get::<Secret, PullSecret>(&scope.namespace, &name)
                .await?;
            Ok::<_, Failed>((name, found))
        });
        let secrets: Vec<_> = stream::iter(reads)
            .buffered(AT_A_TIME)
            .try_collect()
            .await?;
        for (name, found) in secrets {
            match found {
                Found::Object(secret) => {
                    // The kubelet would not pull at all because of one bad Secret.
                    let added = secret.add_to(&mut resolved.keyring);
                    let reasons = added.unwrap_or_else(|why| [why].into());
                    if !reasons.is_empty() {
                        let reasons: Vec<_> = reasons.into_iter().collect();
                        resolved.unusable.push((name, reasons.join("; ")));
                    }
                }
                Found::Nothing => resolved.missing.push(name),
                Found::NoName => resolved.unusable.push((name, NO_NAME.to_owned())),
            }
        }
        Ok(resolved)
    }

    /// Returns the names of a `ServiceAccount`'s imagePullSecrets, or why there are none.
    async fn secrets_of(
        &self,
        namespace: &str,
        account: &str,
    ) -> Result<Result<Vec<String>, &'static str>, Failed> {
        let found = self.get::<ServiceAccount, LeanServiceAccount>(namespace, account);
        Ok(match found.await? {
            Found::Object(account) => {
                let secrets = account.image_pull_secrets.into_iter();
                Ok(secrets.map(|reference| reference.name).collect())
            }
            Found::Nothing => Err("not found"),
            Found::NoName => Err(NO_NAME),
        })
    }

    async fn get<K, T>(&self, namespace: &str, name: &str) -> Result<Found<T>, Failed>
    where
        K: Resource<DynamicType = ()>,
        T: DeserializeOwned,
    {
        // The name becomes part of a URL path, and the author of an ImageCache chooses it.
        if !is_name(name) {
            return Ok(Found::NoName);
        }
        let about = |why: &dyn std::fmt::Display| -> Failed {
            format!("cannot get {} {namespace}/{name}: {why}", K::kind(&())).into()
        };
        let request = Request::new(K::url_path(&(), Some(namespace)));
        let request = request
            .get(name, &GetParams::default())
            .map_err(|error| about(&error))?;
        match self.client.request_text(request).await {
            Ok(text) => serde_json::from_str(&Zeroizing::new(text))
                .map(Found::Object)
                .map_err(|_| about(&"the API server's answer cannot be read")),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Found::Nothing),
            // Its own sentence; the error's would come with all of the Status.
            Err(kube::Error::Api(status)) => Err(about(&status.message)),
            Err(error) => Err(about(&error)),
        }
    }
}

enum Found<T> {
    Object(T),
    Nothing,
    /// It cannot be one's name.
    NoName,
}

const NO_NAME: &str = "it cannot be the name of one";

/// Returns whether a name is a DNS subdomain, as the API server requires for Secrets and
/// `ServiceAccounts`.
fn is_name(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= 253
        && name.split('.').all(|label| {
            let bytes = label.as_bytes();
            bytes.first().is_some_and(|byte| letter(*byte))
                && bytes.last().is_some_and(|byte| letter(*byte))
                && bytes.iter().all(|byte| letter(*byte) || *byte == b'-')
        })
}

#[cfg(test)]
mod tests;
