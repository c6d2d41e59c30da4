//! Generates the messages of `proto/cri.proto` with the pure-Rust parser: no `protoc` needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/cri.proto");
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("cri_messages");
    std::fs::create_dir_all(&out)?;
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .include("proto")
        .input("proto/cri.proto")
        .rust_protobuf()
        .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().gen_mod_rs(false))
        .run()?;
    // The generator's own mod.rs begins with an inner attribute, which `include!` does not take.
    std::fs::write(out.join("messages.rs"), "pub mod cri;\n")?;
    Ok(())
}
