//! Texts of all kinds: names of images, and what is none.

use proptest::prelude::*;

pub const ANYTHING: &str =
    "[a-cA-C0-9./:@_ \t\r\n\u{0}\u{1b}\u{202e}$`;|&<>(){}\\[\\]*?~#!%^=+,'\"\\\\ä漢😀-]{0,20}";

/// Texts that match. A literal as a strategy would be compiled for every text anew.
pub fn like(regex: &str) -> BoxedStrategy<String> {
    proptest::string::string_regex(regex).unwrap().boxed()
}

/// Few names, so that requests meet; and some that are none.
pub fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        12 => like("r\\.test/[ab](:1)?"),
        2 => like("(sha256:)?[0-9a-f]{64}"),
        2 => like(ANYTHING),
        1 => any::<String>().boxed(),
        1 => (like(ANYTHING), 0_usize..100).prop_map(|(text, times)| text.repeat(times)).boxed(),
    ]
}

pub fn names() -> impl Strategy<Value = Vec<String>> {
    proptest::collection::vec(name(), 0..4)
}
