//! Builds the kernel programs and puts the object where `kernel::load` includes it from.
//!
//! aya-build does the like, but leaves no way to name the processor: the programs use atomic operations that
//! give back a value (BPF v3, in every kernel since 5.12).

use std::{
    env,
    fmt::Display,
    path::{Path, PathBuf},
    process::Command,
};

use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
    write::StreamingBuffer,
};

/// LLVM of this nightly and of the pinned bpf-linker are of one version; xtask installs both.
const TOOLCHAIN: &str = "nightly-2026-05-20";
const TARGET: &str = "bpfel-unknown-none";

fn main() {
    let root = PathBuf::from(var("CARGO_MANIFEST_DIR")).join("..");
    let out = PathBuf::from(var("OUT_DIR"));
    for dir in ["agentwatch-ebpf", "agentwatch-common"] {
        println!("cargo:rerun-if-changed={}", root.join(dir).display());
    }
    println!("cargo:rerun-if-changed=build.rs");

    let arch = var("CARGO_CFG_TARGET_ARCH");
    let flags = [
        &format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2",
        "-Ctarget-cpu=v3",
        "-Clink-arg=--btf",
    ]
    .join("\x1f");
    let target_dir = out.join("ebpf");
    let status = Command::new("rustup")
        .args([
            "run",
            TOOLCHAIN,
            "cargo",
            "build",
            "--release",
            "--package",
            "agentwatch-ebpf",
        ])
        .args(["-Zbuild-std=core", "--target", TARGET, "--locked"])
        .arg("--target-dir")
        .arg(&target_dir)
        .current_dir(&root)
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        // Cargo sets these for the outer build; the inner one is another toolchain's.
        .env_remove("RUSTC")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTUP_TOOLCHAIN")
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!(
            "the kernel programs do not build ({status}); hint: `cargo xtask setup` installs {TOOLCHAIN} with rust-src, and bpf-linker"
        ),
        Err(error) => panic!(
            "cannot run rustup: {error}; hint: install it from https://rustup.rs; `cargo xtask build` installs the rest"
        ),
    }
    let object = target_dir.join(TARGET).join("release/agentwatch-ebpf");
    put(&without_dwarf(&object), &out.join("agentwatch-ebpf.o"));
}

/// An object without DWARF, which BTF was made of and nothing reads: it is most of what the linker writes.
fn without_dwarf(path: &Path) -> Vec<u8> {
    let failed = |error: &dyn Display| -> ! {
        panic!("cannot take DWARF out of {}: {error}", path.display())
    };
    let bytes = std::fs::read(path).unwrap_or_else(|error| failed(&error));
    let mut object = Builder::read(bytes.as_slice()).unwrap_or_else(|error| failed(&error));
    for section in &mut object.sections {
        let name = section.name.as_slice();
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    // LLVM keeps names of sections and symbols in one table, which the crate does not write.
    let names = object.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    object
        .write(&mut StreamingBuffer::new(&mut stripped))
        .unwrap_or_else(|error| failed(&error));
    stripped
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}

fn put(bytes: &[u8], to: &Path) {
    // A target directory may be another one's copy by hard links: what stands there is not written into.
    let _ = std::fs::remove_file(to);
    if let Err(error) = std::fs::write(to, bytes) {
        panic!("cannot write {}: {error}", to.display());
    }
}
