//! Whatever somebody writes into a field that has a notation of its own. `make fuzz` tries a million
//! of each.

#![allow(clippy::unwrap_used, clippy::panic, reason = "only tests are here")]

use kubefledged_api_types::{GoDuration, ImageCacheSpec, NodeShare, validation};
use proptest::prelude::*;
use serde_json::{Value, json};

const ANYTHING: &str = "[a-cA-C0-9./:@_ \t\r\n\u{0}\u{1b}\u{7f}\u{85}\u{a0}\u{2028}\u{202e}\u{feff}$`;|&<>(){}\\[\\]*?~#!%^=+,'\"\\\\äſK漢😀-]{0,30}";

/// Texts that match. A literal as a strategy would be compiled for every text anew.
fn like(regex: &str) -> BoxedStrategy<String> {
    proptest::string::string_regex(regex).unwrap().boxed()
}

fn duration() -> impl Strategy<Value = String> {
    let written = like("([0-9]{1,25}(\\.[0-9]{1,25})?(ns|us|µs|ms|s|m|h)){1,4}");
    let signed = like("[-+]?[0-9]{0,25}\\.?[0-9]{0,25}[a-z]{0,2}");
    prop_oneof![4 => written, 2 => signed, 1 => like(ANYTHING)]
}

fn text() -> impl Strategy<Value = Value> {
    prop_oneof![
        2 => like(ANYTHING).prop_map(Value::from),
        1 => any::<String>().prop_map(Value::from),
        2 => like("[a-z]{1,3}(:[0-9])?").prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => duration().prop_map(Value::from),
        1 => Just(Value::Null),
    ]
}

/// An object of these fields, some of them absent.
fn object<S: Strategy<Value = Value> + 'static>(
    fields: Vec<(&'static str, S)>,
) -> impl Strategy<Value = Value> {
    let (names, values): (Vec<_>, Vec<_>) = fields.into_iter().unzip();
    let values: Vec<_> = values
        .into_iter()
        .map(|value| proptest::option::weighted(0.7, value))
        .collect();
    values.prop_map(move |values| {
        let fields = names
            .iter()
            .zip(values)
            .filter_map(|(name, value)| Some(((*name).to_owned(), value?)));
        Value::Object(fields.collect())
    })
}

fn spec() -> impl Strategy<Value = Value> {
    let texts = || proptest::collection::vec(text(), 0..4).prop_map(Value::from);
    let need = object(vec![
        ("key", text().boxed()),
        (
            "operator",
            prop_oneof![
                text(),
                like("(In|NotIn|Exists|DoesNotExist|Gt|Lt)").prop_map(Value::from)
            ]
            .boxed(),
        ),
        ("values", texts().boxed()),
    ]);
    let term = proptest::collection::vec(need, 0..2)
        .prop_map(|needs| json!({"matchExpressions": needs, "matchFields": needs}));
    let list = object(vec![
        ("images", texts().boxed()),
        (
            "nodeSelector",
            proptest::collection::btree_map(like(ANYTHING), like(ANYTHING), 0..2)
                .prop_map(|map| json!(map))
                .boxed(),
        ),
        (
            "nodeAffinity",
            term.prop_map(|term| json!({"required": {"nodeSelectorTerms": [term]}}))
                .boxed(),
        ),
        ("imagePullPolicy", text().boxed()),
        ("pullDeadline", duration().prop_map(Value::from).boxed()),
        ("priority", any::<i32>().prop_map(Value::from).boxed()),
    ]);
    object(vec![
        (
            "cacheSpec",
            proptest::collection::vec(list, 0..3)
                .prop_map(Value::from)
                .boxed(),
        ),
        (
            "imagePullSecrets",
            text().prop_map(|name| json!([{ "name": name }])).boxed(),
        ),
        (
            "refresh",
            duration()
                .prop_map(|interval| json!({ "interval": interval }))
                .boxed(),
        ),
        ("maxConcurrentNodes", text().boxed()),
        ("minReadyNodes", text().boxed()),
        ("serviceAccountName", text().boxed()),
    ])
}

proptest! {
    /// What is printed is read as the same: the object that comes back from the API server is ours.
    #[test]
    fn a_duration_is_read_back_as_it_was_printed(text in duration()) {
        let Ok(duration) = text.parse::<GoDuration>() else { return Ok(()) };
        let printed = duration.to_string();
        prop_assert_eq!(printed.parse::<GoDuration>().ok(), Some(duration), "{} was printed as {}", text, printed);
        // It is added to clocks.
        let now = std::time::Instant::now();
        prop_assert!(now.checked_add(duration.0).is_some());
    }

    #[test]
    fn a_number_of_nodes_is_read_back_as_it_was_printed(text in prop_oneof![like("[0-9]{0,12}%?"), like(ANYTHING)], nodes: u32) {
        let Ok(share) = text.parse::<NodeShare>() else { return Ok(()) };
        prop_assert_eq!(share.to_string().parse::<NodeShare>().ok(), Some(share));
        prop_assert!(share.of(nodes.into()) <= nodes.into());
    }

    /// A spec of whatever kind is read or refused; the rules find what they find and never fall.
    #[test]
    fn a_spec_is_judged_whatever_it_holds(new in spec(), old in spec()) {
        let read = |spec: Value| serde_json::from_value::<ImageCacheSpec>(spec).ok();
        let Some(new) = read(new) else { return Ok(()) };
        let all = validation::violations(&new);
        prop_assert!(validation::new_violations(&new, &new).is_empty());
        if let Some(old) = read(old) {
            prop_assert!(validation::new_violations(&old, &new).len() <= all.len());
        }
        let again = serde_json::to_value(&new).unwrap();
        prop_assert_eq!(read(again), Some(new));
    }
}
