//! What a failed call said, taken apart. Runtimes put one error around another as `what: why`, so
//! that a message is a row of segments. Only the runtime and the registry write segments: a name
//! has no blank, so that it can be one but never make one, and what stands in quotes or in a URL is
//! no segment either.

use kubefledged_image::ImageRef;

/// A URL in a segment, and one that asks for a blob.
pub const URL: &str = "<url>";
pub const BLOB_URL: &str = "<blob-url>";
/// The reference of the pull in a segment, however the runtime writes it.
const IMAGE: &str = "<image>";

/// The segments of a message, in lower case.
pub struct Text {
    segments: Vec<String>,
    /// The last HTTP status that is quoted.
    status: Option<u16>,
}

impl Text {
    /// Takes apart what a call said about a name.
    pub fn new(message: &str, name: &str) -> Self {
        let text = without_names(&message.to_lowercase());
        let text = after_mirrors(&text);
        let forms = forms(&name.to_lowercase());
        let segments: Vec<String> = text
            .lines()
            .flat_map(|line| line.split(": "))
            .map(|segment| without_image(segment.trim().trim_end_matches(':'), &forms))
            .collect();
        let status = segments
            .iter()
            .enumerate()
            .filter_map(|(i, segment)| status(segment, i.checked_sub(1).map(|i| &*segments[i])))
            .next_back();
        Self { segments, status }
    }

    /// Whether a segment is as asked.
    pub fn any(&self, matches: impl Fn(&str) -> bool) -> bool {
        self.segments.iter().any(|segment| matches(segment))
    }

    /// Whether a segment is as asked that follows one that is as asked.
    pub fn follows(&self, before: impl Fn(&str) -> bool, matches: impl Fn(&str) -> bool) -> bool {
        self.segments
            .windows(2)
            .any(|two| before(&two[0]) && matches(&two[1]))
    }

    /// The HTTP status that it quotes.
    pub fn status(&self) -> Option<u16> {
        self.status
    }
}

/// What stands in quotes is dropped, and URLs become a word.
fn without_names(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('"') {
        let (before, quoted) = rest.split_at(open);
        let Some(length) = quoted_length(quoted) else {
            break;
        };
        plain.push_str(&without_urls(before));
        plain.push_str("\"\"");
        rest = &quoted[length..];
    }
    plain.push_str(&without_urls(rest));
    plain
}

/// From a quotation mark up to and with the next one that no backslash stands before.
fn quoted_length(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, letter) in text.char_indices().skip(1) {
        match letter {
            '"' if !escaped => return Some(at + 1),
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    None
}

fn without_urls(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for word in text.split_inclusive(char::is_whitespace) {
        let Some(at) = word.find("://") else {
            plain.push_str(word);
            continue;
        };
        let begin = word[..at].rfind(|c: char| !c.is_ascii_alphabetic());
        let begin = begin.map_or(0, |before| before + 1);
        let end = word
            .trim_end()
            .trim_end_matches([':', ',', ')', ']', '.'])
            .len();
        let url = &word[begin..end.max(begin)];
        // A repository has no colon: it cannot be taken for the blob of a digest.
        let kind = if url.contains("/blobs/sha") {
            BLOB_URL
        } else {
            URL
        };
        plain.push_str(&word[..begin]);
        plain.push_str(kind);
        plain.push_str(&word[end.max(begin)..]);
    }
    plain
}

/// CRI-O first reports what every mirror answered; the registry's own answer follows.
fn after_mirrors(text: &str) -> &str {
    if !text.contains("(mirrors also failed: [") {
        return text;
    }
    text.rsplit_once("]): ").map_or(text, |(_, own)| own)
}

/// All texts by which a runtime may call the image.
struct Forms {
    /// With a separator in them: they are nothing else wherever they stand.
    whole: Vec<String>,
    /// A bare word, which may be an English one.
    word: Option<String>,
    /// Tag and digest.
    parts: Vec<String>,
}

fn forms(name: &str) -> Forms {
    let mut all = vec![name.to_owned()];
    let mut parts = Vec::new();
    if let Ok(image) = ImageRef::parse(name) {
        let repository = format!("{}/{}", image.registry(), image.repository());
        let familiar = image.repository();
        let familiar = familiar.strip_prefix("library/").unwrap_or(familiar);
        parts.extend(image.tag().map(str::to_owned));
        parts.extend(image.digest().map(str::to_owned));
        parts.push("latest".to_owned());
        for short in [&*repository, familiar, image.repository()] {
            all.extend(
                parts
                    .iter()
                    .flat_map(|part| [format!("{short}:{part}"), format!("{short}@{part}")]),
            );
            all.push(short.to_owned());
        }
        all.push(image.runtime_name());
        all.push(image.normalized());
    }
    let bare = |text: &String| !text.contains(['/', ':', '@']);
    Forms {
        word: all.iter().find(|text| bare(text)).cloned(),
        whole: all.into_iter().filter(|text| !bare(text)).collect(),
        parts,
    }
}

/// A segment in which the image, its tag and its digest are one word. A tag counts only in `manifest TAG in
/// REPOSITORY` and `[manifests TAG]`, and a bare name only behind `for`: "not", "found" and "unknown" are
/// possible names.
fn without_image(segment: &str, forms: &Forms) -> String {
    let mut words: Vec<&str> = Vec::new();
    let mut following = segment.split(' ').skip(1);
    for word in segment.split(' ') {
        let next = following.next();
        let inner = word.trim_matches(|c: char| ",()[]'".contains(c));
        let before = words.last().copied().unwrap_or_default();
        let named = forms.whole.iter().any(|form| form == inner)
            || before == "for" && forms.word.as_deref() == Some(inner)
            || (before == "[manifests" || before == "manifest" && next == Some("in"))
                && forms.parts.iter().any(|part| part == inner);
        words.push(if named { IMAGE } else { word });
    }
    words.join(" ")
}

/// The number of an HTTP status that a segment begins with, or speaks of. Digits alone are none:
/// ports and tags have them too.
fn status(segment: &str, before: Option<&str>) -> Option<u16> {
    let number = |text: &str| {
        let digits = text.get(..3)?;
        let ends = text[3..].starts_with([' ', ',', '(']) || text.len() == 3;
        let number = digits.parse().ok().filter(|_| ends);
        number.filter(|number| (100..600).contains(number))
    };
    for phrase in [
        "status code from registry ",
        "error parsing http ",
        "http status ",
    ] {
        if let Some((_, after)) = segment.split_once(phrase) {
            return number(after);
        }
    }
    let usual = USUAL.iter().any(|status| segment.starts_with(status));
    let said = before.is_some_and(|before| before.contains("status"));
    number(segment).filter(|_| said || usual)
}

/// Statuses with their usual phrase, which need no introduction.
const USUAL: [&str; 8] = [
    "401 unauthorized",
    "403 forbidden",
    "404 not found",
    "429 too many requests",
    "500 internal server error",
    "502 bad gateway",
    "503 service unavailable",
    "504 gateway timeout",
];
