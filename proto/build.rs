//! Compiles the protocol files with a compiler written in Rust, so that building needs no protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILES: [&str; 4] =
        ["mesh/v1/membership.proto", "mesh/v1/cluster.proto", "mesh/v1/admin.proto", "mesh/v1/local.proto"];
    println!("cargo:rerun-if-changed=mesh");
    let descriptors = protox::compile(FILES, ["."])?;
    // These hold tokens, keys and passphrases: src/redacted.rs prints them without.
    const SECRET: [&str; 6] = [
        "mesh.v1.JoinRequest",
        "mesh.v1.JoinClusterRequest",
        "mesh.v1.JoinClusterReply",
        "mesh.v1.CreateTokenReply",
        "mesh.v1.BackupRequest",
        "mesh.v1.LocalJoinRequest",
    ];
    tonic_prost_build::configure().bytes(".").skip_debug(SECRET).compile_fds(descriptors)?;
    Ok(())
}
