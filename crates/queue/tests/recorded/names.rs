//! Names of images that read like errors change nothing.

use kubefledged_image::ImageRef;
use kubefledged_queue::{CallError, classify};
use proptest::prelude::*;

use crate::{name, recorded, text};

/// The same message about another image.
fn respelled(message: &str, old: &ImageRef, new: &ImageRef) -> String {
    let part = |image: &ImageRef| {
        let tag = image
            .digest()
            .or(image.tag())
            .unwrap_or("latest")
            .to_owned();
        (format!("{}/{}", image.registry(), image.repository()), tag)
    };
    let ((old_name, old_tag), (new_name, new_tag)) = (part(old), part(new));
    let (old_path, new_path) = (old.repository(), new.repository());
    let escaped = |path: &str| path.replace('/', "%2F");
    message
        .replace(&old.to_string(), &new.runtime_name())
        .replace(
            &format!("manifest {old_tag} in"),
            &format!("manifest {new_tag} in"),
        )
        .replace(
            &format!("[manifests {old_tag}]"),
            &format!("[manifests {new_tag}]"),
        )
        .replace(
            &format!("/manifests/{old_tag}"),
            &format!("/manifests/{new_tag}"),
        )
        .replace(&old_name, &new_name)
        .replace(&format!("/v2/{old_path}/"), &format!("/v2/{new_path}/"))
        .replace(&escaped(old_path), &escaped(new_path))
        .replace(old.registry(), new.registry())
}

/// A word of the table as a part of a name, or any.
fn word() -> BoxedStrategy<String> {
    let evil = prop::sample::select(vec![
        "toomanyrequests",
        "toomanyrequests-1",
        "unauthorized",
        "denied",
        "not",
        "found",
        "not-found",
        "unknown",
        "manifest",
        "manifest-unknown",
        "eof",
        "tls",
        "x509",
        "429",
        "503",
        "401",
        "404",
        "rate-limit",
        "for",
        "locked",
        "lease",
        "registryunavailable",
        "no-such-host",
        "status",
        "refused",
        "canceled",
        "blobs",
        "manifests",
        "latest",
        "context",
        "ref",
        "image",
        "http",
        "failed",
    ]);
    let any = proptest::string::string_regex("[a-z0-9]{1,9}").unwrap();
    prop_oneof![3 => evil.prop_map(str::to_owned), 1 => any].boxed()
}

fn reference() -> impl Strategy<Value = ImageRef> {
    let host = prop_oneof![
        Just(String::new()),
        word().prop_map(|word| format!("{word}.test/")),
        (word(), 1_u16..999).prop_map(|(word, port)| format!("{word}:{port}/")),
        word().prop_map(|word| format!("429.{word}/")),
    ];
    let end = prop_oneof![
        Just(String::new()),
        word().prop_map(|word| format!(":{word}")),
        word().prop_map(|word| format!(":{}", word.to_uppercase())),
        proptest::string::string_regex("@sha256:[0-9a-f]{64}").unwrap(),
    ];
    let path = proptest::collection::vec(word(), 1..4).prop_map(|words| words.join("/"));
    (host, path, end).prop_filter_map("is a reference", |(host, path, end)| {
        ImageRef::parse(&format!("{host}{path}{end}")).ok()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whoever may write an image cache chooses names; the budget of a registry hangs on the class.
    #[test]
    fn no_reference_changes_the_class_of_a_recorded_error(new in reference()) {
        for record in recorded() {
            let message = text(&record, "message");
            let Ok(old) = ImageRef::parse(name(message)) else { continue };
            let error = |message: &str| CallError {
                code: text(&record, "code").to_owned(),
                message: message.to_owned(),
            };
            let expected = classify(&error(message), &old.to_string());
            let other = respelled(message, &old, &new);
            prop_assert_eq!(classify(&error(&other), &new.runtime_name()), expected, "{}", other);
        }
    }
}
