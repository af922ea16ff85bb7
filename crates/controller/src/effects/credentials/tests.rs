use std::sync::atomic::{AtomicUsize, Ordering};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kubefledged_image::ImageRef;
use serde_json::{Value, json};

use super::*;

/// An API server: what it answers by path, and how often it was asked.
#[derive(Clone, Default)]
struct Server {
    answers: Arc<Mutex<BTreeMap<String, (u16, Value)>>>,
    asked: Arc<AtomicUsize>,
    /// Before it answers.
    takes: Duration,
}

const SECRETS: &str = "/api/v1/namespaces/ns/secrets/";
const ACCOUNTS: &str = "/api/v1/namespaces/ns/serviceaccounts/";

impl Server {
    fn answers(&self, path: &str, code: u16, body: Value) {
        let mut answers = self.answers.lock().unwrap();
        answers.insert(path.to_owned(), (code, body));
    }

    fn has_secret(&self, name: &str, registry: &str, user: &str) {
        let config = json!({"auths": {registry: {"username": user, "password": "s3cret"}}});
        let body = json!({
            "type": "kubernetes.io/dockerconfigjson",
            "data": {".dockerconfigjson": STANDARD.encode(config.to_string())},
        });
        self.answers(&format!("{SECRETS}{name}"), 200, body);
    }

    fn credentials(&self, service_account: Option<&str>) -> Credentials {
        let server = self.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let server = server.clone();
            async move {
                server.asked.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(server.takes).await;
                let path = request.uri().path();
                let known = server.answers.lock().unwrap().get(path).cloned();
                let (code, body) = known.unwrap_or_else(|| {
                    (404, json!({"kind": "Status", "status": "Failure", "code": 404, "message": "not found", "reason": "NotFound"}))
                });
                Ok::<_, std::convert::Infallible>(
                    http::Response::builder()
                        .status(code)
                        .body(kube::client::Body::from(body.to_string().into_bytes()))
                        .unwrap(),
                )
            }
        });
        Credentials::new(Client::new(service, "ns"), service_account.map(Arc::from))
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn scope(secrets: &[&str], service_account: Option<&str>) -> CredentialScope {
    CredentialScope {
        namespace: "ns".into(),
        secrets: secrets.iter().map(ToString::to_string).collect(),
        service_account: service_account.map(Arc::from),
        of_pods: false,
    }
}

fn users(resolved: &Resolved) -> Vec<&str> {
    let image = ImageRef::parse("r.test/a:1").unwrap();
    let matching = resolved.keyring.matching(&image);
    matching.into_iter().map(|c| c.username.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_thousand_batches_ask_once_and_again_after_a_minute() {
    let server = Server {
        takes: Duration::from_secs(1),
        ..Server::default()
    };
    server.has_secret("s", "r.test", "u");
    let credentials = server.credentials(None);
    let asking = (0..1000).map(|_| async { credentials.resolve(&scope(&["s"], None)).await });
    for resolved in futures::future::join_all(asking).await {
        assert_eq!(users(&resolved.unwrap()), ["u"]);
    }
    assert_eq!(server.asked(), 1);
    tokio::time::advance(Duration::from_secs(57)).await;
    credentials.resolve(&scope(&["s"], None)).await.unwrap();
    assert_eq!(server.asked(), 1);
    tokio::time::advance(Duration::from_secs(3)).await;
    server.has_secret("s", "r.test", "rotated");
    let resolved = credentials.resolve(&scope(&["s"], None)).await.unwrap();
    assert_eq!((server.asked(), users(&resolved)), (2, vec!["rotated"]));
}

#[tokio::test(start_paused = true)]
async fn passwords_are_forgotten_after_a_minute() {
    let server = Server::default();
    server.has_secret("s", "r.test", "u");
    let credentials = server.credentials(None);
    let resolved = credentials.resolve(&scope(&["s"], None)).await.unwrap();
    let held = Arc::downgrade(&resolved);
    drop(resolved);
    assert!(held.upgrade().is_some());
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert!(held.upgrade().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_slow_scope_does_not_hold_up_another() {
    let slow = Server {
        takes: Duration::from_secs(9),
        ..Server::default()
    };
    let credentials = slow.credentials(None);
    let (one, two) = (scope(&["a"], None), scope(&["b"], None));
    let begun = Instant::now();
    let (one, two) = tokio::join!(credentials.resolve(&one), credentials.resolve(&two));
    assert!(one.is_ok() && two.is_ok());
    assert_eq!(begun.elapsed(), Duration::from_secs(9));
}

#[tokio::test(start_paused = true)]
async fn silence_is_a_failure_of_the_look_up_and_the_next_one_asks_anew() {
    let server = Server {
        takes: Duration::from_secs(3600),
        ..Server::default()
    };
    let credentials = server.credentials(None);
    for asked in 1..=2 {
        let why = credentials.resolve(&scope(&["s"], None)).await.unwrap_err();
        assert!(
            why.contains("did not answer for the pull secrets of namespace ns within 10s"),
            "{why}"
        );
        assert_eq!(server.asked(), asked);
    }
}

#[tokio::test]
async fn what_is_forbidden_is_a_failure_that_names_the_secret() {
    let server = Server::default();
    let status = json!({"kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden", "message": "secrets is forbidden"});
    server.answers(&format!("{SECRETS}s"), 403, status);
    let credentials = server.credentials(None);
    let why = credentials.resolve(&scope(&["s"], None)).await.unwrap_err();
    assert_eq!(&*why, "cannot get Secret ns/s: secrets is forbidden");
}

#[tokio::test]
async fn missing_and_malformed_secrets_are_named_and_the_others_used() {
    let server = Server::default();
    server.has_secret("good", "r.test", "u");
    server.answers(
        &format!("{SECRETS}bad"),
        200,
        json!({"type": "kubernetes.io/dockercfg", "data": {".dockercfg": STANDARD.encode("s3cret")}}),
    );
    let credentials = server.credentials(None);
    let scope = scope(&["gone", "bad", "good", ""], None);
    let resolved = credentials.resolve(&scope).await.unwrap();
    assert_eq!(users(&resolved), ["u"]);
    assert_eq!(resolved.missing, ["gone"]);
    let why = "key .dockercfg is no docker config".to_owned();
    assert_eq!(resolved.unusable, [("bad".to_owned(), why)]);
    assert!(!format!("{resolved:?}").contains("s3cret"));
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_is_not_quoted() {
    let server = Server::default();
    server.answers(&format!("{SECRETS}s"), 200, json!({"data": "s3cret"}));
    let credentials = server.credentials(None);
    let why = credentials.resolve(&scope(&["s"], None)).await.unwrap_err();
    assert_eq!(
        &*why,
        "cannot get Secret ns/s: the API server's answer cannot be read"
    );
}

#[tokio::test]
async fn secrets_of_the_service_account_come_after_those_of_the_object_and_none_twice() {
    let server = Server::default();
    server.has_secret("own", "r.test", "own");
    server.has_secret("shared", "r.test", "shared");
    server.has_secret("theirs", "r.test", "theirs");
    let account = json!({"imagePullSecrets": [{"name": "theirs"}, {"name": "own"}, {}]});
    server.answers(&format!("{ACCOUNTS}puller"), 200, account);
    let credentials = server.credentials(None);
    let scope = scope(&["own", "shared"], Some("puller"));
    let resolved = credentials.resolve(&scope).await.unwrap();
    assert_eq!(users(&resolved), ["own", "shared", "theirs"]);
    assert_eq!(server.asked(), 4);
}

#[tokio::test]
async fn the_flag_s_service_account_is_for_objects_that_name_none() {
    let server = Server::default();
    server.has_secret("default", "r.test", "default");
    let account = json!({"imagePullSecrets": [{"name": "default"}]});
    server.answers(&format!("{ACCOUNTS}flag"), 200, account);
    let credentials = server.credentials(Some("flag"));
    let resolved = credentials.resolve(&scope(&[], None)).await.unwrap();
    assert_eq!(users(&resolved), ["default"]);
    let resolved = credentials.resolve(&scope(&[], Some("own"))).await.unwrap();
    assert!(users(&resolved).is_empty());
    let named = (
        "those of ServiceAccount own".to_owned(),
        "not found".to_owned(),
    );
    assert_eq!(resolved.unusable, [named]);
}

#[tokio::test]
async fn without_secrets_nothing_is_asked() {
    let server = Server::default();
    let resolved = server
        .credentials(None)
        .resolve(&scope(&[], None))
        .await
        .unwrap();
    assert!(users(&resolved).is_empty() && resolved.missing.is_empty());
    assert_eq!(server.asked(), 0);
}

#[tokio::test]
async fn a_name_that_leads_elsewhere_is_never_asked_for() {
    let server = Server::default();
    server.has_secret("x", "r.test", "stranger");
    let credentials = server.credentials(None);
    for name in [
        "../secrets/x",
        "..",
        "x?watch=1",
        "x/",
        "X",
        "-x",
        &"x".repeat(254),
    ] {
        let resolved = credentials.resolve(&scope(&[name], None)).await.unwrap();
        assert_eq!(resolved.unusable[0].0, name);
        assert!(users(&resolved).is_empty());
    }
    assert_eq!(server.asked(), 0);
    assert!(is_name("a.b-c.0"));
}
