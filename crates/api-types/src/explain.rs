//! Prepares the descriptions of the schema for `kubectl explain`.

use schemars::{Schema, transform::transform_subschemas};
use serde_json::Value;

/// Makes every field describe itself, in running text.
///
/// - An optional enum keeps the description of its field. schemars puts the description of the
///   enum's type into `anyOf`, and kube's rewriting to a structural schema would prefer that one.
/// - The lines of a doc comment are joined, because `kubectl explain` breaks lines itself.
pub fn descriptions(schema: &mut Schema) {
    transform_subschemas(&mut descriptions, schema);
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    let Some(Value::String(text)) = object.get_mut("description") else {
        return;
    };
    let paragraphs: Vec<_> = text
        .split("\n\n")
        .map(|paragraph| paragraph.replace('\n', " "))
        .collect();
    *text = paragraphs.join("\n\n");
    let alternatives = object.get_mut("anyOf").and_then(Value::as_array_mut);
    for alternative in alternatives.into_iter().flatten() {
        if let Some(alternative) = alternative.as_object_mut() {
            alternative.remove("description");
        }
    }
}
