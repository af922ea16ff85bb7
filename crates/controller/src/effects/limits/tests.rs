use kubefledged_proto::puller::{Credential, ImagePull};

use super::*;

fn request(images: usize, logins: usize, length: usize) -> PullImagesRequest {
    let image = |i: usize| ImagePull {
        reference: format!("r.test/i{i}:1"),
        credentials: (0..logins)
            .map(|login| u32::try_from(i * logins + login).unwrap())
            .collect(),
        ..ImagePull::default()
    };
    let login = |i| Credential::login(&format!("u{i}"), &"p".repeat(length));
    PullImagesRequest {
        images: (0..images).map(image).collect(),
        credentials: (0..images * logins).map(login).collect(),
        ..PullImagesRequest::default()
    }
}

#[test]
fn what_credentials_are_too_many_is_said_before_a_node_is_asked() {
    assert_eq!(too_large(&request(512, 2, 4 << 10)), None);
    let why = too_large(&request(3, 9, 10 << 10)).unwrap();
    assert!(
        why.contains("more than 64 KiB of logins for r.test/i0:1"),
        "{why}"
    );
    let why = too_large(&request(200, 1, 60 << 10)).unwrap();
    assert!(why.contains("larger than 8 MiB"), "{why}");
}
