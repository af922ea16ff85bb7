//! Who may take what from a node.

use kubefledged_process::tls::names;
use kubefledged_proto::{
    peer::{GetBlobRequest, GetManifestRequest, peer_service_client::PeerServiceClient},
    puller::{
        GetInfoRequest, SetPeerIdentityRequest, Ticket, puller_service_client::PullerServiceClient,
    },
};
use kubefledged_testkit::{Ca, Leaf, Published, Usage};
use tonic::{Code, Status, transport::Channel};

use crate::{
    common::{NAMESPACE, Puller, dial},
    world::{World, published, signing},
};

/// A node that has the image, and a stranger's leaf for this node's name.
async fn source(world: &World, image: &Published) -> Puller {
    let mut puller = world.node("n1", image, &[]).await;
    let alone = world.request("n1", &image.digest, &[]);
    world.pull(&mut puller, alone).await;
    puller
}

fn leaf(world: &World, node: &str) -> Leaf {
    world
        .ca
        .issue(&[&names::peer(NAMESPACE, node)], Usage::Client)
}

async fn client(puller: &Puller, leaf: &Leaf) -> PeerServiceClient<Channel> {
    let channel = dial(puller.grpc, leaf, &puller.certificates.ca)
        .await
        .unwrap();
    PeerServiceClient::new(channel)
}

/// The codes of both calls.
async fn ask(
    client: &mut PeerServiceClient<Channel>,
    (ticket, signer): (Option<Ticket>, Vec<Vec<u8>>),
    digest: &str,
) -> (Code, Code) {
    let manifest = client.get_manifest(GetManifestRequest {
        node_name: "n1".to_owned(),
        ticket: ticket.clone(),
        ticket_signer: signer.clone(),
    });
    let manifest = code(manifest.await.map(drop));
    let blob = client.get_blob(GetBlobRequest {
        node_name: "n1".to_owned(),
        ticket,
        ticket_signer: signer,
        digest: digest.to_owned(),
        ..GetBlobRequest::default()
    });
    (manifest, code(blob.await.map(drop)))
}

fn code(result: Result<(), Status>) -> Code {
    result.err().map_or(Code::Ok, |status| status.code())
}

#[tokio::test]
async fn a_ticket_of_the_controller_for_the_node_that_asks_is_needed_and_each_part_of_it_counts() {
    let (world, image) = (World::default(), published(1000));
    let puller = source(&world, &image).await;
    let mut asks = client(&puller, &leaf(&world, "n2")).await;
    let layer = image.layers[0].0.clone();
    let signer = world.signing.chain().to_vec();
    let good = world.ticket("n2", &image.digest);
    let with = |ticket: Ticket| (Some(ticket), signer.clone());
    let allowed = ask(&mut asks, with(good.clone()), &layer).await;
    assert_eq!(allowed, (Code::Ok, Code::Ok));

    let refused = (Code::PermissionDenied, Code::PermissionDenied);
    let other = world.ticket("n3", &image.digest);
    let mut mixed = good.clone();
    mixed.claims.clone_from(&other.claims);
    let ended = std::time::Duration::from_secs(1_000_000_000);
    let ended = kubefledged_contract::tickets::claims("n2", &image.digest, ended);
    let ended = Ticket {
        signature: world.signing.sign(&ended).unwrap(),
        claims: ended,
    };
    let no_signature = Ticket {
        signature: Vec::new(),
        ..good.clone()
    };
    for (what, ticket) in [
        ("another node's", other),
        ("claims of another ticket", mixed),
        ("ended", ended),
        ("no signature", no_signature),
        ("empty", Ticket::default()),
    ] {
        assert_eq!(
            ask(&mut asks, with(ticket), &layer).await,
            refused,
            "{what}"
        );
    }
    assert_eq!(
        ask(&mut asks, (None, signer.clone()), &layer).await,
        refused
    );
    let unsigned = (Some(good.clone()), Vec::new());
    assert_eq!(ask(&mut asks, unsigned, &layer).await, refused);

    // Signed by whoever has another certificate of this CA, and by another CA.
    let stranger = Ca::default();
    let by_peer = {
        let leaf = leaf(&world, "n2");
        let (certificate, key) = (leaf.certificate.as_bytes(), leaf.key.as_bytes());
        let identity = kubefledged_process::tls::Identity::from_pem(certificate, key, b"");
        kubefledged_process::tls::Signing::new(&identity.unwrap()).unwrap()
    };
    for signing in [by_peer, signing(&stranger)] {
        let ticket = Ticket {
            signature: signing.sign(&good.claims).unwrap(),
            claims: good.claims.clone(),
        };
        let forged = (Some(ticket), signing.chain().to_vec());
        assert_eq!(ask(&mut asks, forged, &layer).await, refused);
    }
}

#[tokio::test]
async fn a_ticket_is_for_the_layers_of_its_image_alone() {
    let (world, image) = (World::default(), published(1000));
    let puller = source(&world, &image).await;
    let mut asks = client(&puller, &leaf(&world, "n2")).await;
    let signer = world.signing.chain().to_vec();
    let with = |digest: &str| (Some(world.ticket("n2", digest)), signer.clone());
    // Config and manifest are blobs too; and a layer of an image that is not here.
    let config = puller.runtime.hold_blob(b"of another image");
    let answer = ask(&mut asks, with(&image.digest), &config).await;
    assert_eq!(answer, (Code::Ok, Code::PermissionDenied));
    let elsewhere = published(77);
    let answer = ask(&mut asks, with(&elsewhere.digest), &elsewhere.layers[0].0).await;
    assert_eq!(answer, (Code::NotFound, Code::NotFound));
}

#[tokio::test]
async fn whoever_is_no_puller_of_the_installation_is_refused_whatever_ticket_it_has() {
    let (world, image) = (World::default(), published(1000));
    let puller = source(&world, &image).await;
    let refused = (Code::PermissionDenied, Code::PermissionDenied);
    for names in [
        &[&*names::debug(NAMESPACE)][..],
        &[&*names::controller(NAMESPACE)],
        &[&*names::puller(NAMESPACE)],
        &[&*names::peer("other", "n2")],
    ] {
        let leaf = world.ca.issue(names, Usage::Client);
        let mut asks = client(&puller, &leaf).await;
        let ticket = (
            Some(world.ticket("n2", &image.digest)),
            world.signing.chain().to_vec(),
        );
        let answer = ask(&mut asks, ticket, &image.layers[0].0).await;
        assert_eq!(answer, refused, "{names:?}");
    }
}

#[tokio::test]
async fn another_puller_may_ask_for_layers_and_for_nothing_else() {
    let (world, image) = (World::default(), published(1000));
    let puller = source(&world, &image).await;
    let leaf = leaf(&world, "n2");
    let channel = dial(puller.grpc, &leaf, &puller.certificates.ca)
        .await
        .unwrap();
    let mut client = PullerServiceClient::new(channel);
    let node_name = "n1".to_owned();
    let info = client.get_info(GetInfoRequest { node_name }).await;
    assert_eq!(code(info.map(drop)), Code::PermissionDenied);
    let request = world.request("n1", &image.digest, &[]);
    let pull = client.pull_images(request).await;
    assert_eq!(code(pull.map(drop)), Code::PermissionDenied);
}

#[tokio::test]
async fn a_certificate_for_another_name_key_or_ca_is_not_installed() {
    let (world, image) = (World::default(), published(1000));
    let mut puller = world.stranger("n1", &image, &[]).await;
    let node_name = "n1".to_owned();
    let request = GetInfoRequest { node_name };
    let info = puller.client.get_info(request.clone()).await.unwrap();
    let csr = info.into_inner().peer_certificate_request;
    let own = names::peer(NAMESPACE, "n1");
    let stranger = Ca::default();
    let foreign_key = leaf(&world, "n1").certificate;
    let foreign_key = pem_to_der(&foreign_key);
    for certificates in [
        vec![],
        vec![vec![1, 2, 3]],
        vec![
            world
                .ca
                .certify(&csr, &[&names::peer(NAMESPACE, "n2")], Usage::Client),
        ],
        vec![world.ca.certify(&csr, &[&own, "more.test"], Usage::Client)],
        vec![world.ca.certify(&csr, &[&own], Usage::Server)],
        vec![stranger.certify(&csr, &[&own], Usage::Client)],
        vec![foreign_key],
    ] {
        let request = SetPeerIdentityRequest {
            node_name: "n1".to_owned(),
            certificates,
        };
        let refused = puller.client.set_peer_identity(request).await;
        assert_eq!(code(refused.map(drop)), Code::InvalidArgument);
    }
    world.introduce("n1", &mut puller).await;
    let info = puller.client.get_info(request).await.unwrap().into_inner();
    assert!(!info.peer_serial.is_empty());
}

fn pem_to_der(pem: &str) -> Vec<u8> {
    let certificates = kubefledged_process::tls::identity::certificates(pem.as_bytes(), "leaf");
    certificates.unwrap()[0].to_vec()
}

#[tokio::test]
async fn a_node_hands_on_as_many_layers_at_a_time_as_its_flag_says() {
    let (world, image) = (World::default(), published(3 << 20));
    let flags = [
        "--max-peer-uploads",
        "1",
        "--max-peer-upload-rate",
        "100000",
    ];
    let mut puller = world.node("n1", &image, &flags).await;
    let alone = world.request("n1", &image.digest, &[]);
    world.pull(&mut puller, alone).await;
    let mut asks = client(&puller, &leaf(&world, "n2")).await;
    let request = |layer: usize| GetBlobRequest {
        node_name: "n1".to_owned(),
        ticket: Some(world.ticket("n2", &image.digest)),
        ticket_signer: world.signing.chain().to_vec(),
        digest: image.layers[layer].0.clone(),
        ..GetBlobRequest::default()
    };
    let mut first = asks.get_blob(request(0)).await.unwrap().into_inner();
    assert!(first.message().await.unwrap().is_some());
    let refused = asks.get_blob(request(1)).await;
    assert_eq!(code(refused.map(drop)), Code::ResourceExhausted);
    drop(first);
    kubefledged_testkit::eventually("the place is free again", async || {
        asks.get_blob(request(1)).await.ok()
    })
    .await;
}
