//! Compiles the .proto files without protoc.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILES: [&str; 2] = ["hallmark/issuer/v1/issuer.proto", "hallmark/admin/v1/admin.proto"];
    // Streams by the hundred, each with a message every few minutes.
    const LEAN: [&str; 1] = ["hallmark/agent/v1/agent.proto"];
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    for file in FILES.into_iter().chain(LEAN) {
        println!("cargo:rerun-if-changed={}", root.join(file).display());
    }
    let compile = |files: &[&str]| protox::compile(files, [&root]);
    tonic_prost_build::configure().bytes(".").compile_fds(compile(&FILES)?)?;
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::codec::LeanCodec")
        .compile_fds(compile(&LEAN)?)?;
    Ok(())
}
