//! Warns before the end of a certificate that was not renewed.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use super::parsed::Certificate;

const DAY: i64 = 24 * 3600;
/// A certificate is renewed after two thirds of its life; what comes near its end was not.
const LONGEST_WARNING: i64 = 14 * DAY;

/// Publishes a Warning Event once a day while a certificate is about to expire.
pub struct Expiry {
    recorder: Recorder,
    namespace: String,
    announced: BTreeMap<String, i64>,
}

impl Expiry {
    /// Publishes Events on Secrets of this namespace.
    pub fn new(client: Client, namespace: &str, pod_name: &str) -> Self {
        let reporter = Reporter {
            controller: "kubefledged-controller".to_owned(),
            instance: Some(pod_name.to_owned()),
        };
        Self {
            recorder: Recorder::new(client, reporter),
            namespace: namespace.to_owned(),
            announced: BTreeMap::new(),
        }
    }

    /// Checks a certificate that is in use.
    pub async fn look(
        &mut self,
        secret: &str,
        uid: Option<String>,
        certificate: &Certificate,
        now: i64,
    ) {
        let announced = self.announced.get(secret).copied();
        if !is_about_to_end(certificate, now)
            || announced.is_some_and(|announced| now - announced < DAY)
        {
            return;
        }
        self.announced.insert(secret.to_owned(), now);
        let hours = (certificate.not_after - now) / 3600;
        tracing::warn!(
            secret,
            hours,
            "a certificate expires soon and was not renewed"
        );
        let event = Event {
            type_: EventType::Warning,
            reason: "CertificateExpiring".to_owned(),
            action: "Renew".to_owned(),
            note: Some(format!(
                "the certificate in Secret {secret} expires in {hours} h and was not renewed"
            )),
            secondary: None,
        };
        let reference = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Secret".to_owned()),
            namespace: Some(self.namespace.clone()),
            name: Some(secret.to_owned()),
            uid,
            ..ObjectReference::default()
        };
        if let Err(error) = self.recorder.publish(&event, &reference).await {
            tracing::warn!(%error, "cannot publish an Event");
        }
    }
}

/// Returns whether a certificate is in the last sixth of its lifetime, or in its last two weeks if that is
/// shorter.
fn is_about_to_end(certificate: &Certificate, now: i64) -> bool {
    let life = certificate.not_after - certificate.not_before;
    certificate.not_after - now < (life / 6).min(LONGEST_WARNING)
}

#[cfg(test)]
mod tests {
    use super::{super::issue, *};

    #[test]
    fn warnings_begin_five_days_before_a_leafs_end_and_two_weeks_before_a_cas() {
        let now = 1_700_000_000;
        let ca = issue::ca(now).unwrap();
        let leaf = issue::leaf(
            &ca,
            super::super::roles::Role::Debug,
            &["a.b".to_owned()],
            now,
        );
        let leaf = leaf.unwrap().certificate;
        assert!(!is_about_to_end(&leaf, leaf.not_after - 6 * DAY));
        assert!(is_about_to_end(&leaf, leaf.not_after - 5 * DAY));
        assert!(is_about_to_end(&leaf, leaf.not_after + DAY));
        let ca = ca.certificate;
        assert!(!is_about_to_end(&ca, ca.not_after - 15 * DAY));
        assert!(is_about_to_end(&ca, ca.not_after - 13 * DAY));
    }
}
