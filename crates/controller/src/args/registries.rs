//! `--max-registry-pulls-by-host`

use std::{collections::BTreeMap, str::FromStr};

use kubefledged_image::ImageRef;

/// Most pulls from one registry at a time that a flag can allow.
const MOST: u32 = 65_536;

/// Ceilings of single registries, by `ImageRef::registry_key`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullsByHost(pub BTreeMap<String, u32>);

impl FromStr for PullsByHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        for entry in text.split(',').filter(|_| !text.is_empty()) {
            let (host, pulls) = entry.split_once('=').ok_or_else(|| {
                format!("{entry:?}: it must be HOST=PULLS, such as docker.io=10, with commas between several")
            })?;
            let pulls: Option<u32> = pulls.parse().ok();
            let pulls = pulls.filter(|pulls| (1..=MOST).contains(pulls));
            let pulls =
                pulls.ok_or_else(|| format!("{entry:?}: the pulls must be from 1 to {MOST}"))?;
            let key = registry_key(host).map_err(|error| format!("{entry:?}: {error}"))?;
            if all.insert(key.clone(), pulls).is_some() {
                return Err(format!(
                    "{entry:?}: {key} stands there twice, perhaps in another spelling: remove one entry"
                ));
            }
        }
        Ok(Self(all))
    }
}

/// The text that all spellings of a host share, as image names are counted by registry.
fn registry_key(host: &str) -> Result<String, String> {
    const IMAGE: &str = "image";
    let parsed = ImageRef::parse(&format!("{host}/{IMAGE}"));
    let image = parsed.map_err(|error| error.to_string())?;
    let alone = image.repository().trim_start_matches("library/") == IMAGE;
    if image.registry() != host && !alone || host.contains('/') {
        return Err(format!(
            "{host:?} is no registry host: write it as the image names begin, like docker.io, registry.example.com or registry.example.com:5000"
        ));
    }
    Ok(image.registry_key())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_kept_by_the_name_that_all_spellings_of_a_host_share() {
        let text = "index.docker.io=10,Registry.Corp:443=3,localhost:5000=65536,[fd00::1]:5000=1";
        let parsed: PullsByHost = text.parse().unwrap();
        let wanted = [
            ("docker.io", 10),
            ("registry.corp", 3),
            ("localhost:5000", 65_536),
            ("[fd00::1]:5000", 1),
        ];
        let wanted = wanted.map(|(host, pulls)| (host.to_owned(), pulls));
        assert_eq!(parsed.0, wanted.into());
        assert_eq!("".parse(), Ok(PullsByHost::default()));
    }

    #[test]
    fn a_wrong_entry_is_refused_with_what_to_write() {
        for (text, said) in [
            ("docker.io", "it must be HOST=PULLS"),
            ("docker.io=10,", "it must be HOST=PULLS"),
            ("docker.io=0", "from 1 to 65536"),
            ("docker.io=many", "from 1 to 65536"),
            ("docker.io=65537", "from 1 to 65536"),
            ("team=5", "no registry host"),
            ("docker.io/team=5", "no registry host"),
            ("=5", "must"),
            (
                "https://docker.io=5",
                "remove everything up to and with ://",
            ),
            ("docker.io=5,index.docker.io=6", "stands there twice"),
            ("r.corp=5,R.corp:443=6", "stands there twice"),
        ] {
            let error = text.parse::<PullsByHost>().unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
