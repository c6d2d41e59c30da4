//! Generates the agent's ttrpc API from `proto/agent.proto` with the pure-Rust parser: no `protoc` needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/agent.proto");
    #[cfg(feature = "agent")]
    {
        let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("agent_api");
        std::fs::create_dir_all(&out)?;
        ttrpc_codegen::Codegen::new()
            .out_dir(&out)
            .include("proto")
            .input("proto/agent.proto")
            .rust_protobuf()
            .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().gen_mod_rs(false))
            .customize(ttrpc_codegen::Customize { async_all: true, ..ttrpc_codegen::Customize::default() })
            .run()?;
        // The generator's own mod.rs begins with an inner attribute, which `include!` does not take.
        std::fs::write(out.join("api.rs"), "pub mod agent;\npub mod agent_ttrpc;\n")?;
    }
    Ok(())
}
