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

fn why(refused: &[(usize, String)]) -> &str {
    &refused[0].1
}

#[test]
fn what_credentials_are_too_many_is_said_before_a_node_is_asked() {
    assert_eq!(too_large(&request(512, 2, 4 << 10)), []);
    let refused = too_large(&request(3, 9, 10 << 10));
    assert_eq!(refused.len(), 3);
    let expected = "more than 64 KiB of logins for r.test/i0:1";
    assert!(why(&refused).contains(expected), "{refused:?}");
}

#[test]
fn an_image_with_too_many_logins_keeps_no_other_from_being_asked_for() {
    let mut both = request(2, 9, 10 << 10);
    both.images[1].credentials.truncate(1);
    let refused = too_large(&both);
    assert_eq!((refused.len(), refused[0].0), (1, 0));
}

#[test]
fn as_many_images_as_fit_into_a_message_are_asked_for() {
    let mut whole = request(200, 1, 60 << 10);
    let refused = too_large(&whole);
    assert!(why(&refused).contains("larger than 8 MiB"), "{refused:?}");
    let first = refused[0].0;
    assert_eq!(refused.len(), 200 - first, "the last ones wait");
    whole.images.truncate(first);
    whole.credentials.truncate(first);
    let fits = whole.encoded_len();
    assert!(fits <= MESSAGE_LIMIT && fits + (61 << 10) > MESSAGE_LIMIT);
    // One login for all is sent once.
    for image in &mut whole.images {
        image.credentials = vec![0];
    }
    assert_eq!(too_large(&whole), []);
}
