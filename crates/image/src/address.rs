//! Where a key of a docker config or a pattern of a credential provider points: host and path of a
//! URL, read by the rules of Go's `net/url` (1.26), because the kubelet reads them with it. What
//! that package refuses is no address, and no credential is sent because of it. The crate `url`
//! follows the WHATWG's rules, which accept and rewrite more.

use std::net::Ipv6Addr;

/// Host and path of a URL without its scheme. Bytes, because percent escapes may stand for any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Host and port, decoded: `r.test:5000`, `[fd00::1]`.
    pub host: Vec<u8>,
    /// The path with its first slash, decoded; empty where none was written.
    pub path: Vec<u8>,
}

impl Address {
    /// Reads what follows `https://` in a URL. None: Go would refuse it.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (text, fragment) = cut(text, b'#');
        unescape(fragment.unwrap_or_default(), Part::Other)?;
        if text.iter().any(|byte| *byte < b' ' || *byte == 0x7f) {
            return None;
        }
        let (text, _) = cut(text, b'?');
        let slash = text.iter().position(|byte| *byte == b'/');
        let (authority, path) = text.split_at(slash.unwrap_or(text.len()));
        let host = match authority.iter().rposition(|byte| *byte == b'@') {
            Some(at) => {
                let user = &authority[..at];
                if !user.iter().all(|byte| may_be_in_user(*byte)) {
                    return None;
                }
                unescape(user, Part::Other)?;
                &authority[at + 1..]
            }
            None => authority,
        };
        Some(Self {
            host: host_and_port(host)?,
            path: unescape(path, Part::Other)?,
        })
    }

    /// The labels of the host between its dots, and the port, empty where none was written. An
    /// address in brackets loses them where a port follows, as in Go's `net.SplitHostPort`.
    pub fn labels_and_port(&self) -> (Vec<&[u8]>, &[u8]) {
        let (host, port) = split_port(&self.host);
        (host.split(|byte| *byte == b'.').collect(), port)
    }
}

/// Host and port; the host as it is where no port can be told.
fn split_port(host: &[u8]) -> (&[u8], &[u8]) {
    let Some(colon) = host.iter().rposition(|byte| *byte == b':') else {
        return (host, b"");
    };
    let (name, port) = (&host[..colon], &host[colon + 1..]);
    if let Some(address) = name.strip_prefix(b"[") {
        return match address.strip_suffix(b"]") {
            Some(address) => (address, port),
            None => (host, b""),
        };
    }
    if name.contains(&b':') || host.contains(&b'[') || host.contains(&b']') {
        return (host, b"");
    }
    (name, port)
}

fn host_and_port(host: &[u8]) -> Option<Vec<u8>> {
    let Some(bracket) = host.iter().rposition(|byte| *byte == b'[') else {
        if let Some(colon) = host.iter().position(|byte| *byte == b':')
            && !is_port(&host[colon..])
        {
            return None;
        }
        return unescape(host, Part::Host);
    };
    let close = host.iter().rposition(|byte| *byte == b']')?;
    if bracket > 0 || !is_port(&host[close + 1..]) {
        return None;
    }
    let literal = &host[1..close];
    let zone = literal.windows(3).position(|three| three == b"%25");
    let (address, zone) = literal.split_at(zone.unwrap_or(literal.len()));
    let (address, zone) = (unescape(address, Part::Host)?, unescape(zone, Part::Zone)?);
    let number = std::str::from_utf8(&address).ok()?;
    number.parse::<Ipv6Addr>().ok()?;
    // A zone of nothing but its percent sign names none.
    if zone.len() == 1 {
        return None;
    }
    Some([b"[", &*address, &zone, b"]", &host[close + 1..]].concat())
}

/// Nothing, or a colon and any number of digits, also none.
fn is_port(text: &[u8]) -> bool {
    match text.split_first() {
        None => true,
        Some((b':', digits)) => digits.iter().all(u8::is_ascii_digit),
        Some(_) => false,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Host,
    /// Of an address in brackets, from its percent sign.
    Zone,
    /// User, path and fragment: every byte may be escaped, and stand there as it is.
    Other,
}

fn unescape(text: &[u8], part: Part) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        if *first != b'%' {
            if part != Part::Other && *first < 0x80 && !may_be_in_host(*first) {
                return None;
            }
            plain.push(*first);
            rest = after;
            continue;
        }
        let [high, low, after @ ..] = after else {
            return None;
        };
        let byte = hex(*high)? << 4 | hex(*low)?;
        let allowed = match part {
            _ if byte == b'%' => true,
            Part::Host => byte >= 0x80,
            Part::Zone => byte == b' ' || may_be_in_host(byte),
            Part::Other => true,
        };
        if !allowed {
            return None;
        }
        plain.push(byte);
        rest = after;
    }
    Some(plain)
}

fn hex(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}

fn may_be_in_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:[]<>\"".contains(&byte)
}

fn may_be_in_user(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&byte)
}

/// The text before the first separator, and what follows it.
fn cut(text: &[u8], at: u8) -> (&[u8], Option<&[u8]>) {
    match text.iter().position(|byte| *byte == at) {
        Some(found) => (&text[..found], Some(&text[found + 1..])),
        None => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<(String, String)> {
        let address = Address::parse(text.as_bytes())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Some((text(&address.host), text(&address.path)))
    }

    #[test]
    fn host_and_path_are_decoded_as_in_go() {
        for (text, host, path) in [
            ("r.test", "r.test", ""),
            ("r.test:5000/team", "r.test:5000", "/team"),
            ("r.test:/team", "r.test:", "/team"),
            ("me:secret@r.test/a?b#c", "r.test", "/a"),
            ("r.test?x/y", "r.test", ""),
            ("r.test/%74eam", "r.test", "/team"),
            ("r.test/a b", "r.test", "/a b"),
            ("[fd00::1]:5000/a", "[fd00::1]:5000", "/a"),
            ("[fe80::1%25eth0]", "[fe80::1%eth0]", ""),
            ("*.r.test", "*.r.test", ""),
            ("", "", ""),
        ] {
            let expected = Some((host.to_owned(), path.to_owned()));
            assert_eq!(parsed(text), expected, "{text}");
        }
    }

    #[test]
    fn what_go_refuses_is_no_address() {
        for text in [
            "r.t[e]st",
            "r.te?st\u{1}",
            "r\\.test",
            "r.test:port",
            "r.test:1:2",
            "r test",
            "r.test/%zz",
            "r.test/%4",
            "r.te%73t",
            "r.test#%",
            "m^e@r.test",
            "[fd00::g]",
            "[127.0.0.1]",
            "[fd00::1",
            "[fd00::1]x",
            "r.test/a\u{7f}",
        ] {
            assert_eq!(parsed(text), None, "{text:?}");
        }
    }
}
