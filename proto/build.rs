//! Compiles the contract with protox, so that no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=distributary");
    let files = protox::compile(["distributary/v1/distribution.proto"], ["."])?;
    tonic_prost_build::configure()
        .bytes(".")
        .skip_debug([".distributary.v1.Credential"])
        .compile_fds(files)?;
    Ok(())
}
