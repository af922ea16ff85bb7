//! Compiles `proto/` with protox: no protoc is needed.

use std::path::PathBuf;

use prost::Message as _;

const FILES: [&str; 4] = [
    "kubefledged/puller/v1/puller.proto",
    "runtime/v1/api.proto",
    "containerd/images.proto",
    "containerd/content.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(FILES, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // For gRPC reflection.
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_transport(false)
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
