//! Tells turnstone-duck where its libduckdb is when it runs; nothing else.

fn main() {
    println!("cargo:rerun-if-env-changed=DUCKDB_LIB_DIR");
    let wanted = std::env::var_os("CARGO_FEATURE_DUCK").is_some();
    if let Some(directory) = std::env::var_os("DUCKDB_LIB_DIR").filter(|_| wanted) {
        // Beside the program, or where it was built.
        println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../duckdb:{}", directory.display());
    }
}
