//! How the program is linked: with the setup of its allocator, and with packed relocations.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/allocator.c");
    // As an object by itself: out of an archive the linker would take nothing, as jemalloc has a weak
    // symbol of that name already.
    for object in cc::Build::new().file("src/allocator.c").compile_intermediates() {
        println!("cargo:rustc-link-arg-bins={}", object.display());
    }
    pack_relocations();
}

/// Relative relocations spelled out are some 700 KiB, which are read at each start and stay mapped. glibc
/// reads packed ones since 2.36, and one that does not would not start the program; a program is built for
/// the machine it is built on, as a rule.
fn pack_relocations() {
    let gnu = std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "gnu");
    let native = std::env::var("HOST").ok() == std::env::var("TARGET").ok();
    if gnu && native && glibc().is_some_and(|version| version >= (2, 36)) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

fn glibc() -> Option<(u32, u32)> {
    let said = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let said = String::from_utf8(said.stdout).ok()?;
    let (major, minor) = said.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
