//! Compiles the .proto files without protoc.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILES: [&str; 3] =
        ["hallmark/issuer/v1/issuer.proto", "hallmark/agent/v1/agent.proto", "hallmark/admin/v1/admin.proto"];
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    for file in FILES {
        println!("cargo:rerun-if-changed={}", root.join(file).display());
    }
    let descriptors = protox::compile(FILES, [&root])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
