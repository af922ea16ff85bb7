//! The keeper against an API server in memory and a clock that is set.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{Method, Request, Response};
use kube::client::Body;
use kubefledged_process::tls::{Failures, keys};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};

use super::*;
use crate::certificates::secrets;

const NOW: i64 = 1_700_000_000;
const DAY: i64 = 24 * 3600;
const SECRETS: &str = "/api/v1/namespaces/ns/secrets";
const CONFIGURATION: &str =
    "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/guard";

/// Objects by path. No puller answers, since there is none.
#[derive(Default)]
struct Server {
    objects: Mutex<BTreeMap<String, Value>>,
    events: Mutex<Vec<Value>>,
    writes: AtomicUsize,
}

impl Server {
    fn answer(&self, method: &Method, path: &str, body: &[u8]) -> (u16, Value) {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        // A repetition within minutes, which days are here, is a patch of the first.
        if path.contains("/events") {
            self.events.lock().unwrap().push(body.clone());
            return (201, body);
        }
        if path.ends_with("/endpointslices") {
            return (200, json!({"metadata": {}, "items": []}));
        }
        let mut objects = self.objects.lock().unwrap();
        if *method == Method::GET {
            let found = objects.get(path).cloned();
            return found.map_or_else(|| (404, refusal(404)), |found| (200, found));
        }
        let version = self.writes.fetch_add(1, Ordering::SeqCst).to_string();
        let (path, mut written) = match *method {
            Method::POST => {
                let name = body["metadata"]["name"].as_str().unwrap();
                (format!("{path}/{name}"), body)
            }
            Method::PUT => {
                let known = &objects[path]["metadata"]["resourceVersion"];
                if *known != body["metadata"]["resourceVersion"] {
                    return (409, refusal(409));
                }
                (path.to_owned(), body)
            }
            // Server-side apply of caBundle, the only patch there is.
            _ => {
                let mut merged = objects[path].clone();
                let bundle = &body["webhooks"][0]["clientConfig"]["caBundle"];
                merged["webhooks"][0]["clientConfig"]["caBundle"] = bundle.clone();
                (path.to_owned(), merged)
            }
        };
        written["metadata"]["resourceVersion"] = json!(version);
        objects.insert(path, written.clone());
        (200, written)
    }
}

fn refusal(code: u16) -> Value {
    let reason = if code == 404 { "NotFound" } else { "Conflict" };
    json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": "no"})
}

struct World {
    server: Arc<Server>,
    clock: Arc<AtomicI64>,
    keeper: Keeper,
    identity: watch::Receiver<Option<Arc<ClientConfig>>>,
    registry: Registry,
}

impl World {
    /// Nothing but the webhook's configuration is there.
    fn bare() -> Self {
        let server = Arc::new(Server::default());
        let webhook = json!({
            "name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": {"name": "svc", "namespace": "ns"}},
        });
        let configuration =
            json!({"metadata": {"name": "guard", "resourceVersion": "0"}, "webhooks": [webhook]});
        let mut objects = server.objects.lock().unwrap();
        objects.insert(CONFIGURATION.to_owned(), configuration);
        drop(objects);
        Self::of(server, Mode::Managed, Arc::new(AtomicI64::new(NOW)))
    }

    fn of(server: Arc<Server>, mode: Mode, clock: Arc<AtomicI64>) -> Self {
        let seen = server.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = seen.clone();
            async move {
                let (method, path) = (request.method().clone(), request.uri().path().to_owned());
                let body = request.into_body().collect_bytes().await?;
                let (code, value) = server.answer(&method, &path, &body);
                let body = Body::from(value.to_string().into_bytes());
                let response = Response::builder().status(code).body(body);
                Ok::<_, kube::Error>(response.unwrap())
            }
        });
        let settings = Settings {
            mode,
            namespace: "ns".to_owned(),
            prefix: "kf".to_owned(),
            deployment: "controller".to_owned(),
            webhook_service: "svc".to_owned(),
            webhook_configuration: "guard".to_owned(),
            puller_service: "pullers".to_owned(),
            pod_name: "me".to_owned(),
        };
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let (send, identity) = watch::channel(None);
        let connector = Connector::new(identity.clone(), "p.ns".to_owned(), Failures::default());
        let time = clock.clone();
        let keeper = Keeper::new(
            settings,
            Client::new(service, "ns"),
            metrics,
            (send, tokio::sync::watch::channel(None).0),
            connector.unwrap(),
            Arc::new(move || time.load(Ordering::SeqCst)),
        );
        Self {
            server,
            clock,
            keeper,
            identity,
            registry,
        }
    }

    async fn installed() -> Self {
        let mut world = Self::bare();
        world.look().await;
        world
    }

    /// The same objects under another mode.
    fn in_mode(&self, mode: Mode) -> Self {
        Self::of(self.server.clone(), mode, self.clock.clone())
    }

    /// How many objects one look writes.
    async fn look(&mut self) -> usize {
        let before = self.server.writes.load(Ordering::SeqCst);
        self.keeper.look().await.unwrap();
        self.server.writes.load(Ordering::SeqCst) - before
    }

    fn pass(&self, seconds: i64) {
        self.clock.fetch_add(seconds, Ordering::SeqCst);
    }

    fn text(&self, secret: &str, key: &str) -> String {
        let objects = self.server.objects.lock().unwrap();
        let data = &objects[&format!("{SECRETS}/kf-{secret}")]["data"][key];
        let bytes = BASE64_STANDARD.decode(data.as_str().unwrap());
        String::from_utf8(bytes.unwrap()).unwrap()
    }

    fn change(&self, path: &str, change: impl FnOnce(&mut Value)) {
        let mut objects = self.server.objects.lock().unwrap();
        change(objects.get_mut(path).unwrap());
    }

    fn leaves(&self) -> Vec<Certificate> {
        let secrets = Role::ALL.map(|role| role.secret(""));
        let secrets = secrets.iter().map(|name| name.trim_start_matches('-'));
        let pems = secrets.map(|name| self.text(name, keys::CERTIFICATE));
        pems.map(|pem| Certificate::parse(&pem).unwrap()).collect()
    }

    /// Whoever trusts what is published takes what is presented, now.
    fn assert_verified(&self) {
        let objects = self.server.objects.lock().unwrap();
        let published = &objects[CONFIGURATION]["webhooks"][0]["clientConfig"]["caBundle"];
        let published = BASE64_STANDARD.decode(published.as_str().unwrap()).unwrap();
        drop(objects);
        let now = self.clock.load(Ordering::SeqCst);
        let bundle = self.text("ca", keys::CA);
        assert_eq!(String::from_utf8(published).unwrap(), bundle);
        let trusted = Certificate::parse_all(&bundle).unwrap();
        for (role, leaf) in Role::ALL.into_iter().zip(self.leaves()) {
            let mut trusted = trusted.iter();
            assert!(trusted.any(|ca| ca.issued(&leaf, role, now)), "{role:?}");
            let name = role.secret("");
            assert_eq!(self.text(name.trim_start_matches('-'), keys::CA), bundle);
        }
    }

    fn events(&self) -> Vec<String> {
        let events = self.server.events.lock().unwrap();
        let notes = events.iter().map(|event| event["note"].as_str());
        notes
            .map(|note| note.unwrap_or_default().to_owned())
            .collect()
    }
}

#[tokio::test]
async fn an_installation_is_one_look_and_the_next_writes_nothing() {
    let mut world = World::bare();
    // Five Secrets and caBundle.
    assert_eq!(world.look().await, 6);
    world.assert_verified();
    assert!(world.identity.borrow().is_some());
    assert_eq!(world.look().await, 0);
}

#[tokio::test]
async fn a_clock_beyond_every_expiry_is_healed_by_one_look() {
    let mut world = World::installed().await;
    world.identity.mark_unchanged();
    world.pass(500 * DAY);
    assert_eq!(world.look().await, 6);
    world.assert_verified();
    assert!(
        world.identity.has_changed().unwrap(),
        "the pullers are dialed with it"
    );
    assert_eq!(world.look().await, 0);
}

#[tokio::test]
async fn an_expired_leaf_is_renewed_by_the_ca_that_everybody_trusts() {
    let mut world = World::installed().await;
    let (ca, old) = (world.text("ca", keys::CERTIFICATE), world.leaves());
    world.pass(31 * DAY);
    assert_eq!(world.look().await, Role::ALL.len());
    world.assert_verified();
    assert_eq!(world.text("ca", keys::CERTIFICATE), ca);
    assert!(world.leaves().iter().zip(&old).all(|(new, old)| new != old));
}

#[tokio::test]
async fn whatever_is_deleted_or_spoiled_is_put_right_by_one_look() {
    let mut world = World::installed().await;
    let ca = world.text("ca", keys::CERTIFICATE);
    for role in Role::ALL {
        let path = format!("{SECRETS}/{}", role.secret("kf"));
        world.server.objects.lock().unwrap().remove(&path);
        assert_eq!(world.look().await, 1, "{role:?} was deleted");
        let other = world.text("ca", keys::KEY);
        world.change(&path, |secret| {
            secret["data"][keys::KEY] = json!(BASE64_STANDARD.encode(other));
        });
        assert_eq!(world.look().await, 1, "{role:?} has another's key");
        world.change(&path, |secret| {
            secret["data"][keys::CA] = json!("");
        });
        assert_eq!(world.look().await, 1, "{role:?} trusts nobody");
        world.assert_verified();
    }
    for wrong in [json!(BASE64_STANDARD.encode("nonsense")), Value::Null] {
        world.change(CONFIGURATION, |configuration| {
            configuration["webhooks"][0]["clientConfig"]["caBundle"] = wrong;
        });
        assert_eq!(world.look().await, 1, "caBundle");
        world.assert_verified();
    }
    assert_eq!(world.text("ca", keys::CERTIFICATE), ca);
    assert_eq!(world.look().await, 0);
}

#[tokio::test]
async fn a_lost_ca_and_an_annotation_begin_a_rotation_that_ends_by_itself() {
    let mut world = World::installed().await;
    let path = format!("{SECRETS}/kf-ca");
    for lost in [false, true] {
        let old = world.text("ca", keys::CERTIFICATE);
        if lost {
            world.server.objects.lock().unwrap().remove(&path);
        } else {
            let annotations = json!({secrets::ROTATE: ""});
            world.change(&path, |secret| {
                secret["metadata"]["annotations"] = annotations;
            });
        }
        let mut trusted = Vec::new();
        for _ in 0..12 {
            world.look().await;
            world.assert_verified();
            let bundle = world.text("ca", keys::CA);
            trusted.push(bundle.matches("BEGIN").count());
            world.pass(FLOOR / 2);
        }
        assert_eq!((trusted[0], trusted[11]), (2, 1), "{trusted:?}");
        assert_ne!(world.text("ca", keys::CERTIFICATE), old);
        let objects = world.server.objects.lock().unwrap();
        let annotations = &objects[&path]["metadata"]["annotations"];
        assert!(annotations[secrets::ROTATE].is_null());
    }
}

#[tokio::test]
async fn what_others_make_is_followed_and_its_end_is_told_once_a_day() {
    let managed = World::installed().await;
    let mut world = managed.in_mode(Mode::Provided);
    world.look().await;
    assert!(world.identity.borrow().is_some());
    assert_eq!(world.events(), Vec::<String>::new());
    // caBundle is the leader's in this mode: it comes from the webhook's ca.crt.
    world.change(CONFIGURATION, |configuration| {
        configuration["webhooks"][0]["clientConfig"]["caBundle"] = Value::Null;
    });
    assert_eq!(world.look().await, 1);
    world.assert_verified();

    world.pass(26 * DAY);
    for _ in 0..3 {
        assert_eq!(world.look().await, 0);
    }
    let told = world.events();
    assert_eq!(told.len(), Role::ALL.len(), "{told:?}");
    assert!(
        told[0].contains("Secret kf-puller-tls expires in 96 h"),
        "{told:?}"
    );
    world.pass(DAY);
    world.look().await;
    assert_eq!(world.events().len(), 2 * Role::ALL.len());
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &world.registry).unwrap();
    let ends = NOW + 30 * DAY;
    let line =
        format!("certificate_expiration_timestamp_seconds{{certificate=\"webhook\"}} {ends}");
    assert!(text.contains(&line), "{text}");
}

#[tokio::test]
async fn nothing_is_written_where_cert_manager_does_it() {
    let managed = World::installed().await;
    let mut world = managed.in_mode(Mode::CertManager);
    world.change(CONFIGURATION, |configuration| {
        configuration["webhooks"][0]["clientConfig"]["caBundle"] = Value::Null;
    });
    world.pass(500 * DAY);
    assert_eq!(world.look().await, 0);
    assert!(world.identity.borrow().is_some());
    let path = format!("{SECRETS}/kf-controller-tls");
    world.server.objects.lock().unwrap().remove(&path);
    let error = world.keeper.look().await.unwrap_err();
    assert!(
        format!("{error:#}").contains("Secret kf-controller-tls"),
        "{error:#}"
    );
}
