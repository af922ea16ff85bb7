//! What an API server asks of the webhook, and what the right answer is.

use serde_json::{Value, json};

const LISTS: usize = 20;
const IMAGES_OF_A_LIST: usize = 5;
/// In objects that are wrong: the list, and the image in it.
const WRONG: (usize, usize) = (7, 2);
/// Stands in a review until it is sent.
const UID: &str = "00000000-0000-4000-8000-000000000000";

/// A review without its uid.
pub struct Review {
    before: String,
    after: String,
    valid: bool,
}

impl Review {
    /// Creates, and edits of one image in each list. Every fourth one is wrong.
    pub fn all() -> Vec<Self> {
        let (old, new) = (object("1.0", true), object("1.1", true));
        let create = || Self::new("CREATE", &object("1.0", true), &Value::Null, true);
        let update = || Self::new("UPDATE", &new, &old, true);
        let wrong = object("1.1", false);
        vec![
            create(),
            update(),
            create(),
            Self::new("CREATE", &wrong, &Value::Null, false),
            update(),
            create(),
            update(),
            Self::new("UPDATE", &wrong, &old, false),
        ]
    }

    fn new(operation: &str, object: &Value, old: &Value, valid: bool) -> Self {
        let kind = json!({"group": "kubefledged.io", "version": "v1alpha2", "kind": "ImageCache"});
        let resource =
            json!({"group": "kubefledged.io", "version": "v1alpha2", "resource": "imagecaches"});
        let options = if old.is_null() {
            "CreateOptions"
        } else {
            "UpdateOptions"
        };
        let review = json!({
            "kind": "AdmissionReview",
            "apiVersion": "admission.k8s.io/v1",
            "request": {
                "uid": UID, "kind": kind, "requestKind": kind,
                "resource": resource, "requestResource": resource,
                "name": "web", "namespace": "shop", "operation": operation,
                "userInfo": {"username": "someone", "groups": ["developers", "system:authenticated"]},
                "object": object, "oldObject": old, "dryRun": false,
                "options": {"kind": options, "apiVersion": "meta.k8s.io/v1", "fieldManager": "kubectl"},
            },
        })
        .to_string();
        let (before, after) = review.split_once(UID).unwrap_or_default();
        Self {
            before: before.to_owned(),
            after: after.to_owned(),
            valid,
        }
    }

    /// With this uid, as JSON.
    pub fn body(&self, uid: &str) -> String {
        [&self.before, uid, &self.after].concat()
    }

    /// What is wrong with an answer. `None`: it is right.
    pub fn mistake(&self, uid: &str, answer: &[u8]) -> Option<String> {
        let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
        let response = &answer["response"];
        let allowed = response["allowed"].as_bool();
        let said = response["status"]["message"].as_str().unwrap_or_default();
        let (list, image) = WRONG;
        let named = said.starts_with(&format!("spec.cacheSpec[{list}].images[{image}]"));
        let right = response["uid"] == uid && allowed == Some(self.valid) && named != self.valid;
        (!right).then(|| answer.to_string())
    }
}

/// A hundred images, as `kubectl apply` sends them; `kubectl apply` writes the spec once more into an annotation.
fn object(version: &str, valid: bool) -> Value {
    let lists: Vec<Value> = (0..LISTS)
        .map(|list| {
            let name = |image| name(list, image, version, valid || (list, image) != WRONG);
            let images: Vec<String> = (0..IMAGES_OF_A_LIST).map(name).collect();
            json!({"images": images, "nodeSelector": {"tier": format!("tier-{list}")}})
        })
        .collect();
    let spec = json!({"cacheSpec": lists});
    let applied: Vec<Value> = (0..LISTS * IMAGES_OF_A_LIST)
        .map(|at| json!({"name": name(at / IMAGES_OF_A_LIST, at % IMAGES_OF_A_LIST, "1.0", true)}))
        .collect();
    json!({
        "apiVersion": "kubefledged.io/v1alpha2",
        "kind": "ImageCache",
        "metadata": {
            "name": "web", "namespace": "shop", "uid": "6b1f5d0e-7f1f-4a35-9a1c-6d2b0c7f7a11", "generation": 3,
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": json!({"spec": spec}).to_string()},
        },
        "spec": spec,
        "status": {"status": "Succeeded", "appliedImages": applied},
    })
}

fn name(list: usize, image: usize, version: &str, valid: bool) -> String {
    let team = if valid { "team" } else { "no such team" };
    let version = if image == 0 { version } else { "1.0" };
    format!("registry.example.com/{team}-{list}/application-{image}:{version}")
}
