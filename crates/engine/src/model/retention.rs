//! Which image names stay after no workload names them any more, and which ones have room.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kubefledged_api_types::{
    Timestamp, validation::MOST_NAME_BYTES, workloads::MOST_WORKLOAD_IMAGES,
};
use kubefledged_image::ImageRef;

/// How long names stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// `keepPrevious`
    pub previous: usize,
    /// `retainFor`, in seconds.
    pub seconds: i64,
}

impl Rule {
    /// The longer of two.
    pub fn join(self, other: Self) -> Self {
        Self {
            previous: self.previous.max(other.previous),
            seconds: self.seconds.max(other.seconds),
        }
    }

    /// The shorter of two.
    pub fn meet(self, other: Self) -> Self {
        Self {
            previous: self.previous.min(other.previous),
            seconds: self.seconds.min(other.seconds),
        }
    }
}

/// One name that a workload names or has named.
#[derive(Clone, Debug)]
struct Track {
    /// Its name without tag and digest.
    repository: Arc<str>,
    /// Since when it is named. What was there when workloads were read first is older than everything else: 1 if it
    /// was listed before a restart, or 0.
    since: Timestamp,
    /// Some workload that is known names it.
    named: bool,
    /// Since when no workload names it; `None`: one does, or not all workloads are read.
    unnamed: Option<Timestamp>,
    /// The rule of the list that named it last; `None`: it is from before a restart.
    rule: Option<Rule>,
}

impl Track {
    /// How long the name stays: as the list said that named it last, but not longer than any list says today.
    fn rule(&self, rules: Rule) -> Rule {
        self.rule.map_or(rules, |own| own.meet(rules))
    }
}

/// All names that workloads name, or named not long ago.
#[derive(Debug, Default)]
pub struct Retention {
    tracks: BTreeMap<Arc<str>, Track>,
    /// All workloads were read once.
    begun: bool,
}

/// What is desired and what stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Names that workloads name.
    pub named: BTreeSet<Arc<str>>,
    /// Names that stay, and since when nobody names them.
    pub kept: BTreeMap<Arc<str>, Option<Timestamp>>,
    /// How many names that workloads name have no room.
    pub beyond: usize,
}

impl Retention {
    /// Takes over a name that the status listed before a restart. It stays until all workloads are read.
    pub fn adopt(&mut self, name: &str, unnamed: Option<Timestamp>) {
        let track = Track {
            repository: repository(name),
            since: Timestamp(1),
            named: false,
            unnamed,
            rule: None,
        };
        self.tracks.entry(name.into()).or_insert(track);
    }

    /// Does some workload name it now?
    pub fn is_named(&self, name: &str) -> bool {
        self.tracks.get(name).is_some_and(|track| track.named)
    }

    /// Drops every name that is not named: the images are purged.
    pub fn forget_unnamed(&mut self) {
        self.tracks.retain(|_, track| track.named);
    }

    /// Notes what workloads name, with the rule of the list. `complete`: all of them are read. `rules`: the longest
    /// rule of all lists.
    pub fn update(
        &mut self,
        named: &BTreeMap<Arc<str>, Rule>,
        complete: bool,
        rules: Rule,
        now: Timestamp,
    ) {
        let since = if self.begun { now } else { Timestamp(0) };
        for (name, track) in &mut self.tracks {
            track.named = named.contains_key(name);
        }
        for (name, rule) in named {
            let track = self.tracks.entry(name.clone()).or_insert_with(|| Track {
                repository: repository(name),
                since,
                named: true,
                unnamed: None,
                rule: None,
            });
            if track.unnamed.take().is_some() {
                track.since = now;
            }
            track.rule = Some(*rule);
        }
        if !complete {
            return;
        }
        self.begun = true;
        for track in self.tracks.values_mut().filter(|track| !track.named) {
            track.unnamed.get_or_insert(now);
        }
        self.expire(rules, now);
    }

    fn expire(&mut self, rules: Rule, now: Timestamp) {
        let previous = self.previous(rules);
        self.tracks.retain(|name, track| {
            let Some(unnamed) = track.unnamed else {
                return true;
            };
            now.0 - unnamed.0 < track.rule(rules).seconds || previous.contains(name)
        });
    }

    /// Names that are previous versions of an image that is named.
    fn previous(&self, rules: Rule) -> BTreeSet<Arc<str>> {
        let mut versions: BTreeMap<&Arc<str>, Vec<(&Arc<str>, &Track)>> = BTreeMap::new();
        for (name, track) in &self.tracks {
            versions
                .entry(&track.repository)
                .or_default()
                .push((name, track));
        }
        let mut previous = BTreeSet::new();
        for mut versions in versions.into_values() {
            let all = versions.len();
            versions.retain(|(_, track)| track.unnamed.is_some());
            if versions.len() == all {
                continue;
            }
            versions.sort_by_key(|(name, track)| (Reverse((track.unnamed, track.since)), *name));
            let kept = versions.into_iter().enumerate();
            let kept = kept.filter(|(at, (_, track))| *at < track.rule(rules).previous);
            previous.extend(kept.map(|(_, (name, _))| name.clone()));
        }
        previous
    }

    /// The names that are desired and that stay: the newest ones, as many as an object may have. `most`: how many
    /// more names the namespace may have.
    pub fn choose(&self, most: usize) -> Chosen {
        let mut all: Vec<(&Arc<str>, &Track)> = self.tracks.iter().collect();
        // Named ones come first, then those that were named last.
        all.sort_by_key(|(name, track)| {
            let unnamed = track.unnamed.map(Reverse);
            (!track.named, unnamed, Reverse(track.since), *name)
        });
        let (mut chosen, mut room) = (Chosen::default(), MOST_WORKLOAD_IMAGES.min(most));
        let mut bytes = MOST_NAME_BYTES;
        for (name, track) in all {
            if room == 0 || bytes < name.len() {
                room = 0;
                chosen.beyond += usize::from(track.named);
                continue;
            }
            room -= 1;
            bytes -= name.len();
            if track.named {
                chosen.named.insert(name.clone());
            } else {
                chosen.kept.insert(name.clone(), track.unnamed);
            }
        }
        chosen
    }

    /// When the next name has stayed long enough.
    pub fn next(&self, rules: Rule, now: Timestamp) -> Option<Timestamp> {
        let ends = self.tracks.values().filter_map(|track| {
            let unnamed = track.unnamed?;
            Some(Timestamp(unnamed.0 + track.rule(rules).seconds))
        });
        // What is over already stays as a previous version.
        ends.filter(|end| *end > now).min()
    }
}

/// A name without tag and digest.
fn repository(name: &str) -> Arc<str> {
    ImageRef::parse(name).map_or_else(
        |_| name.into(),
        |parsed| format!("{}/{}", parsed.registry(), parsed.repository()).into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Rule = Rule {
        previous: 1,
        seconds: 3600,
    };

    fn named(names: &[&str]) -> BTreeMap<Arc<str>, Rule> {
        names.iter().map(|name| ((*name).into(), HOUR)).collect()
    }

    fn names<'a>(names: impl IntoIterator<Item = &'a Arc<str>>) -> Vec<&'a str> {
        names.into_iter().map(|name| &**name).collect()
    }

    /// What is named and what stays after this.
    fn step(retention: &mut Retention, names_now: &[&str], at: i64) -> Chosen {
        retention.update(&named(names_now), true, HOUR, Timestamp(at));
        retention.choose(usize::MAX)
    }

    #[test]
    fn everything_stays_for_an_hour_and_one_previous_version_as_long_as_there_is_a_newer_one() {
        let mut retention = Retention::default();
        for (at, now) in [(10, "r/a:1"), (20, "r/a:2"), (30, "r/a:3")] {
            let chosen = step(&mut retention, &[now, "r/b:1"], at);
            assert_eq!(names(&chosen.named), [now, "r/b:1"]);
        }
        let chosen = step(&mut retention, &["r/a:3", "r/b:1"], 40);
        assert_eq!(names(chosen.kept.keys()), ["r/a:1", "r/a:2"]);
        assert_eq!(retention.next(HOUR, Timestamp(40)), Some(Timestamp(3620)));
        let chosen = step(&mut retention, &["r/a:3", "r/b:1"], 9000);
        assert_eq!(names(chosen.kept.keys()), ["r/a:2"]);
        assert_eq!(retention.next(HOUR, Timestamp(9000)), None);
        // The workload is gone: nothing of it is a previous version any more.
        let chosen = step(&mut retention, &["r/b:1"], 9100);
        assert_eq!(names(chosen.kept.keys()), ["r/a:3"]);
        assert!(step(&mut retention, &["r/b:1"], 12_700).kept.is_empty());
    }

    #[test]
    fn a_shorter_rule_holds_for_what_stays_already() {
        let mut retention = Retention::default();
        step(&mut retention, &["r/a:1"], 1);
        step(&mut retention, &["r/a:2"], 2);
        let none = Rule::default();
        let now_named = BTreeMap::from([("r/a:2".into(), none)]);
        retention.update(&now_named, true, none, Timestamp(3));
        assert!(retention.choose(usize::MAX).kept.is_empty());
    }

    #[test]
    fn a_roll_back_makes_the_newer_version_the_previous_one() {
        let mut retention = Retention::default();
        step(&mut retention, &["r/a:1"], 1);
        step(&mut retention, &["r/a:2"], 2);
        let chosen = step(&mut retention, &["r/a:1"], 9000);
        assert_eq!(names(&chosen.named), ["r/a:1"]);
        assert_eq!(names(chosen.kept.keys()), ["r/a:2"]);
    }

    #[test]
    fn names_from_before_a_restart_stay_until_all_workloads_are_read() {
        let mut retention = Retention::default();
        retention.adopt("r/a:1", None);
        retention.adopt("r/a:0", Some(Timestamp(5)));
        retention.update(&named(&["r/b:1"]), false, HOUR, Timestamp(90_000));
        let chosen = retention.choose(usize::MAX);
        assert_eq!(names(chosen.kept.keys()), ["r/a:0", "r/a:1"]);
        let chosen = step(&mut retention, &["r/b:1"], 90_001);
        // Nobody names the one since then, and the other long since.
        assert_eq!(names(chosen.kept.keys()), ["r/a:1"]);
    }

    #[test]
    fn a_restart_does_not_change_which_names_have_room() {
        let mut retention = Retention::default();
        retention.adopt("r/b:1", None);
        retention.update(&named(&["r/a:1", "r/b:1"]), true, HOUR, Timestamp(9));
        assert_eq!(names(&retention.choose(1).named), ["r/b:1"]);
        retention.update(
            &named(&["r/a:1", "r/b:1", "r/c:1"]),
            true,
            HOUR,
            Timestamp(10),
        );
        assert_eq!(names(&retention.choose(1).named), ["r/c:1"]);
    }

    #[test]
    fn the_newest_names_have_room_and_named_ones_before_those_that_stay() {
        let mut retention = Retention::default();
        step(&mut retention, &["r/a:1"], 1);
        let many: Vec<String> = (0..MOST_WORKLOAD_IMAGES)
            .map(|i| format!("r/x{i}:1"))
            .collect();
        let mut many: Vec<&str> = many.iter().map(String::as_str).collect();
        let chosen = step(&mut retention, &many, 2);
        assert_eq!(
            (chosen.named.len(), chosen.kept.len(), chosen.beyond),
            (4096, 0, 0)
        );
        many.push("r/new:1");
        let chosen = step(&mut retention, &many, 3);
        assert!(chosen.named.contains("r/new:1"));
        assert_eq!((chosen.named.len(), chosen.beyond), (4096, 1));
        let long = "a".repeat(200);
        let many: Vec<String> = (0..3000).map(|i| format!("r/{long}{i}:1")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let chosen = step(&mut Retention::default(), &many, 1);
        assert!(chosen.named.iter().map(|name| name.len()).sum::<usize>() <= MOST_NAME_BYTES);
        assert_eq!(chosen.named.len() + chosen.beyond, 3000);
        assert_eq!(retention.choose(7).named.len(), 7);
    }

    #[test]
    fn a_template_that_flaps_keeps_both_names_and_one_that_always_changes_an_hour_of_them() {
        let mut retention = Retention::default();
        for (minute, name) in (0..120).zip(["r/a:1", "r/a:2"].into_iter().cycle()) {
            let chosen = step(&mut retention, &[name], minute * 60);
            let both = if minute == 0 { 1 } else { 2 };
            assert_eq!(chosen.named.len() + chosen.kept.len(), both);
        }
        let mut retention = Retention::default();
        for minute in 0..600 {
            let chosen = step(&mut retention, &[&format!("r/a:{minute}")], minute * 60);
            assert!(chosen.kept.len() <= 60, "{}", chosen.kept.len());
        }
    }
}
