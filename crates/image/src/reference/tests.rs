//! Spellings, their parts, and what is refused with which error.

use super::*;

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn parsed(text: &str) -> ImageRef {
    ImageRef::parse(text).unwrap()
}

fn accepts(text: &str) -> bool {
    ImageRef::parse(text).is_ok()
}

#[test]
fn spellings_are_brought_to_one_form() {
    for (written, normalized) in [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.27", "docker.io/library/nginx:1.27"),
        ("library/nginx", "docker.io/library/nginx:latest"),
        ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ("docker.io/library/nginx", "docker.io/library/nginx:latest"),
        ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
        ("index.docker.io/team/app:1", "docker.io/team/app:1"),
        ("team/app", "docker.io/team/app:latest"),
        ("team/a/b", "docker.io/team/a/b:latest"),
        ("docker.io:443/nginx", "docker.io:443/nginx:latest"),
        ("localhost/app:a", "localhost/app:a"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        (
            "registry.test:5000/demo/web:1.0",
            "registry.test:5000/demo/web:1.0",
        ),
        ("registry.test/nginx", "registry.test/nginx:latest"),
        ("127.0.0.1:5000/app:1", "127.0.0.1:5000/app:1"),
        ("[fd00::1]:5000/app:1", "[fd00::1]:5000/app:1"),
        ("[fd00::1]/app", "[fd00::1]/app:latest"),
        ("HOST:5000/app", "HOST:5000/app:latest"),
        ("Registry.Test/app", "Registry.Test/app:latest"),
    ] {
        assert_eq!(parsed(written).normalized(), normalized, "{written}");
    }
}

#[test]
fn a_digest_makes_the_tag_meaningless_and_drops_it() {
    let normalized = format!("docker.io/library/nginx@sha256:{HEX}");
    for written in [
        format!("nginx@sha256:{HEX}"),
        format!("nginx:1@sha256:{HEX}"),
    ] {
        assert_eq!(parsed(&written).normalized(), normalized, "{written}");
    }
}

#[test]
fn every_part_can_be_asked_for() {
    let digest = format!("sha256:{HEX}");
    let image = parsed(&format!("registry.test:5000/a/b:1@{digest}"));
    assert_eq!(image.registry(), "registry.test:5000");
    assert_eq!(image.repository(), "a/b");
    assert_eq!(image.tag(), Some("1"));
    assert_eq!(image.digest(), Some(digest.as_str()));
    let bare = parsed("nginx");
    assert_eq!(bare.registry(), "docker.io");
    assert_eq!(bare.repository(), "library/nginx");
    assert_eq!((bare.tag(), bare.digest()), (None, None));
}

#[test]
fn each_broken_part_is_named() {
    use ImageRefError as E;
    for (written, error) in [
        ("", E::Empty),
        (" nginx", E::WhiteSpace),
        ("nginx\n", E::WhiteSpace),
        ("a b", E::WhiteSpace),
        ("https://registry.test/app", E::Scheme),
        ("Nginx", E::UpperCase),
        ("Team/app", E::UpperCase),
        ("Upper:tag", E::UpperCase),
        ("registry.test/UPPER/case:x", E::UpperCase),
        ("lower/UPPER", E::UpperCase),
        (":tag", E::Repository),
        ("@sha256:0", E::Digest),
        ("a..b", E::Repository),
        ("a._b", E::Repository),
        ("a___b", E::Repository),
        ("-a", E::Repository),
        ("a-", E::Repository),
        ("a/", E::Repository),
        ("/a", E::Repository),
        ("a//b", E::Repository),
        ("a/-foo/b", E::Repository),
        ("h\u{e9}llo", E::Repository),
        ("a$b", E::Repository),
        ("registry.test:5000/", E::Repository),
        ("a:", E::Tag),
        ("a:.b", E::Tag),
        ("a:-b", E::Tag),
        ("a:b:c", E::Tag),
        ("a:b\u{e9}", E::Tag),
        ("a@", E::Digest),
        ("a@sha256", E::Digest),
        ("a@sha256:12", E::Digest),
        ("a@sha256:0123456789abcdef0123456789abcdef", E::Digest),
        ("a@-x:0123456789abcdef0123456789abcdef", E::Digest),
        ("a@x+:0123456789abcdef0123456789abcdef", E::Digest),
        ("a@x:0123456789abcdef0123456789abcde", E::Digest),
        ("ho_st.test:1/a", E::Registry),
        (".test/a", E::Registry),
        ("host.test./a", E::Registry),
        ("-host.test/a", E::Registry),
        ("host-.test/a", E::Registry),
        ("host.test:/a", E::Registry),
        ("host.test:port/a", E::Registry),
        ("host.test:1:2/a", E::Registry),
        (":5000/a", E::Registry),
        ("[fd00::g]/a", E::Registry),
        ("[fd00::1/a", E::Registry),
        ("fd00::1]:5000/a", E::Registry),
        ("[]:5000/a", E::Registry),
        ("[fd00::1]5000/a", E::Registry),
        ("[fd00::1]:/a", E::Registry),
        ("fd00::1/a", E::Registry),
        (HEX, E::ImageId),
    ] {
        assert_eq!(ImageRef::parse(written), Err(error), "{written:?}");
    }
}

#[test]
fn path_components_take_dots_underscores_and_any_number_of_dashes() {
    assert!(accepts("a/b/c/d_e__f-g--h.i---j:T_1"));
    assert!(accepts("registry.test/xn--n3h/app"));
}

#[test]
fn sixty_four_digits_are_refused_only_where_they_could_be_an_id() {
    assert!(accepts(&format!("docker.io/{HEX}")));
    assert!(accepts(&format!("{HEX}:1")));
    assert!(accepts(&HEX[1..]));
}

#[test]
fn a_known_digest_algorithm_has_its_exact_length_in_lower_case() {
    assert!(accepts(&format!("a@sha256:{HEX}")));
    assert!(accepts(&format!("a@sha512:{HEX}{HEX}")));
    assert!(!accepts(&format!("a@sha256:{HEX}0")));
    assert!(!accepts(&format!("a@sha512:{HEX}")));
    assert!(!accepts(&format!("a@sha256:{}", HEX.to_uppercase())));
}

#[test]
fn a_digest_of_another_algorithm_is_refused_as_by_the_kubelet() {
    for digest in [
        format!("blake3:{HEX}"),
        format!("tarsum.v1+sha256:{HEX}"),
        format!("SHA256:{HEX}"),
        format!("md5:{}", &HEX[..32]),
    ] {
        let error = ImageRef::parse(&format!("a@{digest}"));
        assert_eq!(error, Err(ImageRefError::Digest), "{digest}");
    }
}

#[test]
fn a_host_may_have_underscores_where_a_path_component_may() {
    let image = parsed("my_registry.local/team/app:1");
    assert_eq!(image.registry(), "my_registry.local");
    assert_eq!(image.repository(), "team/app");
    assert_eq!(image.normalized(), "my_registry.local/team/app:1");
    assert!(accepts("my__registry.local/app"));
    for refused in [
        "my_registry.local:5000/app",
        "my___registry.local/app",
        "My_registry.local/app",
        "_registry.local/app",
    ] {
        assert!(!accepts(refused), "{refused}");
    }
    let with_path = |length: usize| accepts(&format!("a_b.c/{}", "x".repeat(length)));
    assert!(with_path(255 - "a_b.c/".len()));
    assert!(!with_path(256 - "a_b.c/".len()));
}

#[test]
fn spellings_of_one_registry_share_one_key() {
    for (image, key) in [
        ("nginx", "docker.io"),
        ("docker.io:443/nginx", "docker.io"),
        ("Registry.Corp/app", "registry.corp"),
        ("registry.corp:443/app", "registry.corp"),
        ("registry.corp:80/app", "registry.corp:80"),
        ("registry.corp:0443/app", "registry.corp"),
        ("registry.corp:5000/app", "registry.corp:5000"),
        ("[FD00::1]:443/app", "[fd00::1]"),
        ("[fd00::443]/app", "[fd00::443]"),
        ("registry-1.docker.io/team/app", "docker.io"),
    ] {
        assert_eq!(parsed(image).registry_key(), key, "{image}");
    }
}

#[test]
fn the_longest_of_each_part_is_accepted_and_one_more_is_not() {
    use ImageRefError as E;
    let repository = |length| ImageRef::parse(&format!("r.test/{}", "a".repeat(length)));
    assert!(repository(255).is_ok());
    assert_eq!(repository(256), Err(E::RepositoryTooLong));
    let implied = |length| ImageRef::parse(&"a".repeat(length));
    assert!(implied(255 - "library/".len()).is_ok());
    assert_eq!(implied(256 - "library/".len()), Err(E::RepositoryTooLong));
    let tag = |length| ImageRef::parse(&format!("a:{}", "t".repeat(length)));
    assert!(tag(128).is_ok());
    assert_eq!(tag(129), Err(E::Tag));
    let host = |length: usize| ImageRef::parse(&format!("{}.b/a", "h".repeat(length - 2)));
    assert!(host(255).is_ok());
    assert_eq!(host(256), Err(E::RegistryTooLong));
}

#[test]
fn the_runtime_gets_what_was_written_and_latest_where_nothing_was_said() {
    let pinned = format!("nginx:1@sha256:{HEX}");
    for (written, name) in [
        ("nginx", "nginx:latest"),
        ("nginx:1", "nginx:1"),
        ("docker.io/nginx", "docker.io/nginx:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        (pinned.as_str(), pinned.as_str()),
    ] {
        assert_eq!(parsed(written).runtime_name(), name);
    }
}

#[test]
fn floating_is_what_may_mean_something_else_tomorrow() {
    assert!(parsed("nginx").is_floating());
    assert!(parsed("nginx:latest").is_floating());
    assert!(!parsed("nginx:1").is_floating());
    assert!(!parsed(&format!("nginx@sha256:{HEX}")).is_floating());
    assert!(!parsed(&format!("nginx:latest@sha256:{HEX}")).is_floating());
}

#[test]
fn a_reference_prints_as_it_was_written() {
    assert_eq!(parsed("nginx").to_string(), "nginx");
}

#[test]
fn what_is_normalized_parses_to_itself() {
    for written in ["nginx", "team/app:2", "[fd00::1]:5000/app", "HOST:1/app"] {
        let once = parsed(written).normalized();
        assert_eq!(parsed(&once).normalized(), once);
    }
}
