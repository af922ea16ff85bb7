//! Patterns as Go's `path.Match` reads them, for a label of a host or a whole name: `*`, `?`, `[a-z]`, `[^a-z]` and a
//! backslash before a character that stands for itself.

/// A pattern that does not parse matches nothing.
pub fn matches(pattern: &str, text: &str) -> bool {
    let Some(pieces) = parse(pattern) else {
        return false;
    };
    let text: Vec<char> = text.chars().collect();
    // Whoever writes a Secret writes the pattern: going back to the last star only keeps this at
    // pattern times text, where trying every star would be exponential.
    let (mut piece, mut at) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while at < text.len() {
        match pieces.get(piece) {
            Some(Piece::Star) => {
                retry = Some((piece, at));
                piece += 1;
            }
            Some(Piece::One(set)) if set.contains(text[at]) => {
                piece += 1;
                at += 1;
            }
            _ => {
                let Some((star, from)) = retry else {
                    return false;
                };
                retry = Some((star, from + 1));
                (piece, at) = (star + 1, from + 1);
            }
        }
    }
    pieces[piece..]
        .iter()
        .all(|piece| matches!(piece, Piece::Star))
}

enum Piece {
    Star,
    One(Set),
}

struct Set {
    ranges: Vec<(char, char)>,
    negated: bool,
}

impl Set {
    fn contains(&self, c: char) -> bool {
        let Self { ranges, negated } = self;
        ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
    }
}

fn parse(pattern: &str) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut rest = pattern.chars();
    while let Some(c) = rest.next() {
        pieces.push(match c {
            '*' => Piece::Star,
            '?' => Piece::One(Set {
                ranges: Vec::new(),
                negated: true,
            }),
            '[' => Piece::One(parse_set(&mut rest)?),
            _ => {
                let c = if c == '\\' { rest.next()? } else { c };
                Piece::One(Set {
                    ranges: vec![(c, c)],
                    negated: false,
                })
            }
        });
    }
    Some(pieces)
}

/// What follows an opening bracket, up to and with the closing one. It must not be empty.
fn parse_set(rest: &mut std::str::Chars<'_>) -> Option<Set> {
    let negated = rest.as_str().starts_with('^');
    if negated {
        rest.next();
    }
    let mut ranges = Vec::new();
    loop {
        if rest.as_str().starts_with(']') && !ranges.is_empty() {
            rest.next();
            return Some(Set { ranges, negated });
        }
        let low = parse_member(rest)?;
        let high = if rest.as_str().starts_with('-') {
            rest.next();
            parse_member(rest)?
        } else {
            low
        };
        ranges.push((low, high));
    }
}

fn parse_member(rest: &mut std::str::Chars<'_>) -> Option<char> {
    match rest.next()? {
        '-' | ']' => None,
        '\\' => rest.next(),
        c => Some(c),
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_match_as_in_gos_path_match() {
        for (pattern, text, expected) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*", "", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "ba", false),
            ("a*b*c*d*e*", "axbxcxdxe", true),
            ("a*b*c*d*e*", "axbxcxdx", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a?b", "aéb", true),
            ("a[^a]b", "aéb", true),
            ("a???b", "aéb", false),
            ("[a-ζ]*", "α", true),
            (r"a\*b", "a*b", true),
            (r"a\*b", "ab", false),
            (r"[\]a]", "]", true),
            (r"[\-x]", "-", true),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_pattern_that_does_not_parse_matches_nothing() {
        for pattern in [
            "[]a]", "[-]", "[x-]", "[-x]", "[", "[^", "[^bc", "a[", "\\", "[a-b-d]",
        ] {
            for text in ["a", "]", "-", "x", "["] {
                assert!(!matches(pattern, text), "{pattern} {text}");
            }
        }
    }

    #[test]
    fn a_pattern_of_many_stars_takes_no_exponential_time() {
        assert!(!matches(
            &format!("{}b", "a*".repeat(100)),
            &"a".repeat(250)
        ));
    }
}
