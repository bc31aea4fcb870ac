//! Compiles the protocol files with a compiler written in Rust, so that building needs no protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILES: [&str; 4] =
        ["mesh/v1/membership.proto", "mesh/v1/cluster.proto", "mesh/v1/admin.proto", "mesh/v1/local.proto"];
    println!("cargo:rerun-if-changed=mesh");
    let descriptors = protox::compile(FILES, ["."])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
