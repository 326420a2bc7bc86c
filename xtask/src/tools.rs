//! A disk for VMs with what real work is done with: Debian packages of this machine's release and all that they depend on, unpacked
//! into an ext4 image that is the VM's root. It is made once for a list of packages, and kept in the cache.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{
    apt::Apt,
    initramfs::{CONFORMANCE, PROGRAMS, SCENARIOS},
    paths, process,
};

/// What is unpacked. `sh` and the small tools first, because nothing is taken for installed.
const PACKAGES: [&str; 18] = [
    "bash",
    "cargo",
    "coreutils",
    "dash",
    "diffutils",
    "findutils",
    "gcc",
    "git",
    "golang-go",
    "grep",
    "libc6-dev",
    "make",
    "nodejs",
    "npm",
    "procps",
    "python3",
    "python3-venv",
    "sed",
];

/// Room on the image beyond what is unpacked, in KiB.
const ROOM: u64 = 1 << 20;

/// The image, made where it is missing.
pub fn disk() -> Result<PathBuf> {
    let dir = paths::cache("tools")?;
    let list = dir.join("packages");
    let image = dir.join("disk");
    let wanted = PACKAGES.join("\n");
    if image.is_file() && fs::read_to_string(&list).is_ok_and(|had| had == wanted) {
        return Ok(image);
    }
    let apt = Apt::prepare()?;
    println!(
        "tools: downloading {} with what they need ({}), about 300 MiB, and unpacking them into a disk for VMs",
        PACKAGES.join(", "),
        apt.trust
    );
    let archives = apt.download_all(&PACKAGES)?;
    let root = dir.join("root");
    let made = make(&archives, &root, &dir.join("disk.part"));
    // Its files are root's.
    process::run(process::as_root("rm")?.arg("-rf").arg(&root))?;
    made?;
    fs::rename(dir.join("disk.part"), &image)?;
    fs::write(list, wanted)?;
    Ok(image)
}

fn make(archives: &[PathBuf], root: &Path, image: &Path) -> Result<()> {
    let run = |program: &str, arguments: &[&str]| {
        process::run(process::as_root(program)?.args(arguments).current_dir(root))
    };
    process::run(process::as_root("rm")?.arg("-rf").arg(root))?;
    process::run(
        process::as_root("mkdir")?
            .args(["-p", "-m", "755"])
            .arg(root),
    )?;
    // A package of before the merge of /usr finds its directories as links to the ones that hold.
    run(
        "mkdir",
        &["-p", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64"],
    )?;
    for name in ["bin", "sbin", "lib", "lib64"] {
        run("ln", &["-s", &format!("usr/{name}"), name])?;
    }
    for archive in archives {
        unpack(archive, root)?;
    }
    // What packages leave to their scripts.
    run("ln", &["-sf", "gcc", "usr/bin/cc"])?;
    run("ldconfig", &["-r", "."])?;
    // What a host has besides packages, and where the initramfs comes to lie.
    let fixed = paths::repository().join("tests/fixtures/vm/etc");
    run("cp", &["-rT", &fixed.to_string_lossy(), "etc"])?;
    run("chmod", &["600", "etc/shadow"])?;
    for place in [
        "proc",
        "sys",
        "dev",
        "run",
        "mnt",
        "root",
        "srv",
        "home/user",
        "var/lib",
        "var/tmp",
        "tmp",
    ]
    .into_iter()
    .chain([PROGRAMS, SCENARIOS, CONFORMANCE].map(|path| &path[1..]))
    {
        run("mkdir", &["-p", place])?;
    }
    run("chmod", &["1777", "tmp", "var/tmp"])?;
    run("chmod", &["700", "root"])?;
    run("chown", &["1000:1000", "home/user"])?;
    run("touch", &["usr/bin/agentwatch"])?;
    let used = process::output(
        process::as_root("du")?
            .args(["-sk", "--apparent-size"])
            .arg(root),
    )?;
    let used: u64 = used
        .split_whitespace()
        .next()
        .and_then(|number| number.parse().ok())
        .context("the size of what was unpacked")?;
    fs::File::create(image)?;
    process::run(
        process::as_root("mke2fs")?
            .args(["-q", "-F", "-t", "ext4", "-L", "tools", "-d"])
            .arg(root)
            .arg(image)
            .arg(format!("{}k", used + used / 4 + ROOM)),
    )
}

/// Unpacks a package through the links that stand for its directories.
fn unpack(archive: &Path, root: &Path) -> Result<()> {
    let mut reader = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(archive)
        .stdout(Stdio::piped())
        .spawn()
        .context("run dpkg-deb")?;
    let bytes = reader.stdout.take().context("standard output is piped")?;
    process::run(
        process::as_root("tar")?
            .args(["-x", "--keep-directory-symlink", "-C"])
            .arg(root)
            .stdin(bytes),
    )
    .with_context(|| format!("unpack {}", archive.display()))?;
    let status = reader.wait()?;
    ensure!(
        status.success(),
        "dpkg-deb ended with {status} on {}",
        archive.display()
    );
    Ok(())
}
