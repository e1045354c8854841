//! Tells turnstone-duck where its libduckdb is when it runs, and who builds it without one what to do; nothing else.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-env-changed=DUCKDB_LIB_DIR");
    let wanted = std::env::var_os("CARGO_FEATURE_DUCK").is_some();
    if let Some(directory) = std::env::var_os("DUCKDB_LIB_DIR").filter(|_| wanted) {
        let library = Path::new(&directory).join("libduckdb.so");
        println!("cargo:rerun-if-changed={}", library.display());
        if !library.exists() {
            println!("cargo::error=turnstone-duck needs {}: run tools/fetch-duckdb first", library.display());
        }
        // Beside the program, or where it was built.
        println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../duckdb:{}", directory.display());
    }
}
