//! Installs what the build and the tests lack: each thing only when it is missing, each announced with its reason.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{apt::Apt, kernels, paths, process};

/// The compiler of the kernel programs. Its LLVM must be the one that [`BPF_LINKER`] links with.
pub const NIGHTLY: &str = "nightly-2026-05-20";

/// The version of bpf-linker that goes with [`NIGHTLY`].
pub const BPF_LINKER: &str = "0.10.3";

/// What tests have read and receive, from PyPI: the history's segments, OpenTelemetry's messages, and the dashboard.
const READERS: [&str; 6] = [
    "duckdb",
    "chdb",
    "pyiceberg[sql-sqlite,pyarrow]",
    "opentelemetry-proto",
    "grpcio",
    "grafana-foundation-sdk",
];

/// Everything that building needs, and with `tests` what testing needs.
pub fn all(tests: bool) -> Result<()> {
    for_building()?;
    if tests {
        for_testing()?;
        for series in kernels::SERIES {
            kernels::fetch(series)?;
        }
    }
    println!("set-up is complete");
    Ok(())
}

/// The pinned nightly with its sources, bpf-linker, and a C compiler for what links with it.
pub fn for_building() -> Result<()> {
    apt(&[
        ("cc", "gcc", "links the binaries"),
        ("", "libc6-dev", "links the binaries"),
    ])?;
    nightly()?;
    bpf_linker()
}

/// Tools that the VMs need. Kernels are fetched by whoever boots one.
pub fn for_testing() -> Result<()> {
    component("rustfmt")?;
    component("clippy")?;
    apt(&[
        (
            "qemu-system-x86_64",
            "qemu-system-x86",
            "boots the kernels that the tests run on",
        ),
        ("xz", "xz-utils", "unpacks kernel modules"),
        ("zstd", "zstd", "unpacks kernel modules"),
        ("strip", "binutils", "makes the binaries for the VM smaller"),
        (
            "bwrap",
            "bubblewrap",
            "the sandbox of agents, which is tried inside sessions",
        ),
        ("make", "make", "a build that is tried inside sessions"),
        ("git", "git", "work that is tried under a preset"),
        ("go", "golang-go", "work that is tried under a preset"),
        (
            "mkfs.btrfs",
            "btrfs-progs",
            "makes a file system with subvolumes in the VM",
        ),
        (
            "tcc",
            "tcc",
            "a compiler that is small enough to be tried in a VM",
        ),
        ("chromium", "chromium", "opens reports"),
        ("rsyslogd", "rsyslog", "receives events"),
        ("", "rsyslog-gnutls", "receives events over TLS"),
        (
            "prometheus",
            "prometheus",
            "scrapes metrics, and checks their rules",
        ),
        ("openssl", "openssl", "makes certificates for receivers"),
        (
            "python3",
            "python3",
            "runs receivers and the validator of OCSF",
        ),
        (
            "",
            "python3-venv",
            "keeps what other readers of the history need apart",
        ),
    ])?;
    readers();
    Ok(())
}

/// A Python of our own with what others read the history's segments with, what OpenTelemetry's receiver is made of, and Grafana's kit for
/// dashboards. Tests that need it say so where it is missing.
fn readers() {
    // Where the tests look for it.
    let directory = paths::repository().join("target/readers");
    let python = directory.join("bin/python");
    let has = |python: &Path| {
        let imports =
            "import duckdb, chdb, pyiceberg, grpc, opentelemetry.proto, grafana_foundation_sdk";
        Command::new(python)
            .args(["-c", imports])
            .output()
            .is_ok_and(|output| output.status.success())
    };
    if has(&python) {
        return;
    }
    println!(
        "set-up: installing {READERS:?} from PyPI into {}",
        directory.display()
    );
    let install = || -> Result<()> {
        process::run(Command::new("python3").args(["-m", "venv"]).arg(&directory))?;
        process::run(
            Command::new(&python)
                .args(["-m", "pip", "install", "--quiet"])
                .args(READERS),
        )
    };
    if let Err(error) = install() {
        println!("set-up: {error:#}; tests with these are skipped");
    }
}

/// Installs packages; an entry is the program that shows that it is there (empty: ask dpkg), the package, the reason.
pub fn apt(wanted: &[(&str, &str, &str)]) -> Result<()> {
    let lacking: Vec<_> = wanted
        .iter()
        .filter(|(program, package, _)| {
            if program.is_empty() {
                !is_installed(package)
            } else {
                process::find(program).is_none()
            }
        })
        .collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = lacking.iter().map(|(_, package, _)| *package).collect();
    for (_, package, reason) in &lacking {
        println!("set-up: installing {package} with apt-get: {reason}");
    }
    let by_hand = format!(
        "apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    );
    let install = || -> Result<()> {
        let mut command = process::as_root("apt-get")?;
        command.env("DEBIAN_FRONTEND", "noninteractive").args([
            "install",
            "-y",
            "--no-install-recommends",
            "-qq",
        ]);
        process::run(command.args(&packages))
    };
    if install().is_err() {
        // The lists of a fresh machine may be missing or stale.
        println!(
            "set-up: updating apt's package lists: the packages were not found with those of this machine"
        );
        let updated = process::as_root("apt-get")
            .and_then(|mut command| process::run(command.args(["update", "-qq"])));
        updated
            .and_then(|()| install())
            .with_context(|| format!("run this by hand, as root: {by_hand}"))?;
    }
    Ok(())
}

/// A static busybox: the machine's own where it is one, else one unpacked from its package.
pub fn busybox() -> Result<PathBuf> {
    unpacked("busybox-static", "bin/busybox", "the VM's shell and tools")
}

/// A program out of a package that is unpacked into the cache and not installed.
fn unpacked(package: &str, program: &str, reason: &str) -> Result<PathBuf> {
    let dir = paths::cache("packages")?.join(package);
    let candidates = [dir.join(program), dir.join("usr").join(program)];
    if let Some(there) = candidates.iter().find(|path| path.is_file()) {
        return Ok(there.clone());
    }
    println!("set-up: unpacking {package} into the cache: {reason}");
    let archive = Apt::prepare()?.download(package)?;
    process::run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&dir))?;
    std::fs::remove_file(&archive)?;
    candidates
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("{package} has no {program}"))
}

fn is_installed(package: &str) -> bool {
    let asked =
        process::output(Command::new("dpkg-query").args(["-W", "-f", "${Status}", package]));
    asked.is_ok_and(|status| status.contains("install ok installed"))
}

fn nightly() -> Result<()> {
    let rustup = process::find("rustup")
        .context("rustup is missing: install it, with its stable toolchain")?;
    let list = process::output(Command::new(&rustup).args([
        "component",
        "list",
        "--toolchain",
        NIGHTLY,
        "--installed",
    ]));
    if list.is_ok_and(|installed| installed.lines().any(|name| name.starts_with("rust-src"))) {
        return Ok(());
    }
    println!(
        "set-up: installing {NIGHTLY} with rust-src: compiles the kernel programs; the default toolchain stays"
    );
    process::run(Command::new(rustup).args([
        "toolchain",
        "install",
        NIGHTLY,
        "--profile",
        "minimal",
        "-c",
        "rust-src",
    ]))
}

fn component(name: &str) -> Result<()> {
    let present = process::output(
        process::cargo(paths::repository())
            .args([if name == "rustfmt" { "fmt" } else { name }, "--version"]),
    );
    if present.is_ok() {
        return Ok(());
    }
    println!("set-up: installing the component {name}: cargo xtask test checks with it");
    process::run(
        Command::new("rustup")
            .args(["component", "add", name])
            .current_dir(paths::repository()),
    )
}

fn bpf_linker() -> Result<()> {
    let version = process::output(Command::new("bpf-linker").arg("--version")).unwrap_or_default();
    if version.split_whitespace().any(|word| word == BPF_LINKER) {
        return Ok(());
    }
    let found = if version.is_empty() {
        "there is none".to_owned()
    } else {
        format!("found {}", version.trim())
    };
    println!("set-up: installing bpf-linker {BPF_LINKER}: links the kernel programs ({found})");
    // From elsewhere, so that this workspace's own settings do not reach into the installation.
    let mut command = process::cargo(&std::env::temp_dir());
    command.args([
        "install",
        "--locked",
        "bpf-linker",
        "--version",
        BPF_LINKER,
        "--force",
    ]);
    process::run(&mut command)?;
    let now = process::output(Command::new("bpf-linker").arg("--version"))
        .context("bpf-linker was installed but is not on PATH: add cargo's bin directory to it")?;
    if !now.contains(BPF_LINKER) {
        bail!("another bpf-linker comes first on PATH: {}", now.trim());
    }
    Ok(())
}
