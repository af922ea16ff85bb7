//! Compiles `proto/` with protox: no protoc is needed.

use std::path::PathBuf;

use prost::Message as _;

const FILES: [&str; 8] = [
    "kubefledged/puller/v1/puller.proto",
    "kubefledged/peer/v1/peer.proto",
    "kubefledged/debug/v1/controller.proto",
    "kubefledged/debug/v1/puller.proto",
    "runtime/v1/api.proto",
    "containerd/images.proto",
    "containerd/content.proto",
    "containerd/leases.proto",
];
/// What gRPC reflection tells of, by process: the runtimes' interfaces are not ours to describe.
const REFLECTED: [(&str, &[&str]); 2] = [
    ("controller", &["kubefledged/debug/v1/controller.proto"]),
    (
        "puller",
        &[
            "kubefledged/puller/v1/puller.proto",
            "kubefledged/peer/v1/peer.proto",
            "kubefledged/debug/v1/puller.proto",
        ],
    ),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(FILES, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    for (name, files) in REFLECTED {
        let reflected = protox::compile(files, [&root])?;
        let path = out.join(format!("{name}.descriptors"));
        std::fs::write(path, reflected.encode_to_vec())?;
    }
    tonic_prost_build::configure()
        .build_transport(false)
        .codec_path("crate::bounded::Bounded")
        // Layers: a part of one is passed on without a copy.
        .bytes(".containerd.services.content.v1")
        .bytes(".kubefledged.peer.v1.GetBlobResponse")
        // Secrets: their Debug is written by hand in lib.rs.
        .skip_debug([
            "kubefledged.puller.v1.Credential",
            "kubefledged.puller.v1.PullImagesRequest",
            "runtime.v1.AuthConfig",
            "runtime.v1.PullImageRequest",
        ])
        .compile_fds(descriptors)?;
    Ok(())
}
