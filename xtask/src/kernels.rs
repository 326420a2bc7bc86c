//! Stock Debian kernels for the VMs: finds the newest of a series on the machine's own mirror, unpacks it into the
//! cache, installs nothing. Exact versions vanish from mirrors, so what was unpacked stays usable without the network.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};

use crate::{apt::Apt, paths, process};

/// What the tests run on.
pub const SERIES: [&str; 3] = ["6.1", "6.12", "7.2"];

/// Modules that the VM loads, as file names without their ending, each behind those that it needs. What a series has built in, or
/// not at all, is left out.
pub const MODULES: [&str; 22] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "overlay",
    "tun",
    "vsock",
    "af_alg",
    "algif_hash",
    "libcrc32c",
    "udp_tunnel",
    "ip6_udp_tunnel",
    "sctp",
    "loop",
    "xor",
    "raid6_pq",
    "zstd_compress",
    "libblake2b",
    "xxhash_generic",
    "btrfs",
];

/// Modules that lie in the VM and are not loaded: conformance cases try to.
const NOT_LOADED: [&str; 1] = ["dummy"];

/// The file that says which modules were looked for when a kernel was unpacked.
const LOOKED_FOR: &str = "modules";

/// How long a kernel is taken for the newest of its series.
const FRESH: Duration = Duration::from_secs(7 * 24 * 3600);

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Package name and version.
    pub version: String,
    pub image: PathBuf,
    /// Uncompressed `.ko` files.
    pub modules: Vec<PathBuf>,
}

/// The newest kernel of a series, from the cache where that is fresh enough or the network fails.
pub fn fetch(series: &str) -> Result<Kernel> {
    let root = paths::cache("kernels")?;
    let marker = root.join(format!("{series}.newest"));
    let cached = fs::read_to_string(&marker)
        .ok()
        .and_then(|name| open(&root.join(name.trim())).ok());
    let age = fs::metadata(&marker)
        .and_then(|entry| entry.modified())
        .ok()
        .and_then(|time| SystemTime::now().duration_since(time).ok());
    if let Some(kernel) = &cached
        && age.is_some_and(|age| age < FRESH)
    {
        return Ok(kernel.clone());
    }
    match (download(series, &root), cached) {
        (Ok(kernel), _) => {
            fs::write(&marker, &kernel.version)?;
            Ok(kernel)
        }
        (Err(error), Some(kernel)) => {
            println!(
                "kernel {series}: using {} from the cache; looking for a newer one failed: {error:#}",
                kernel.version
            );
            Ok(kernel)
        }
        (Err(error), None) => Err(error).with_context(|| format!("fetch a {series} kernel")),
    }
}

fn download(series: &str, root: &Path) -> Result<Kernel> {
    let apt = Apt::prepare()?;
    let package = newest_kernel(&apt, series)?;
    let version = format!(
        "{}_{}",
        package,
        apt.field(&package, "Version")?
            .context("apt-cache shows no version")?
    );
    let dir = root.join(&version);
    if let Ok(kernel) = open(&dir) {
        return Ok(kernel);
    }
    println!(
        "kernel {series}: downloading {package} ({}) and unpacking it into the cache; it is not installed",
        apt.trust
    );
    let fresh = root.join(format!("{version}.part"));
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    let scratch = tempfile::tempdir()?;
    for part in std::iter::once(package.clone()).chain(parts(&apt, &package)?) {
        let archive = apt.download(&part)?;
        process::run(
            Command::new("dpkg-deb")
                .arg("-x")
                .arg(&archive)
                .arg(scratch.path()),
        )?;
        fs::remove_file(&archive)?;
    }
    gather(scratch.path(), &fresh)?;
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::rename(&fresh, &dir)?;
    open(&dir)
}

/// A kernel that was unpacked before.
fn open(dir: &Path) -> Result<Kernel> {
    let image = dir.join("vmlinuz");
    if !image.is_file() {
        bail!("{} is not there", image.display());
    }
    let looked_for = fs::read_to_string(dir.join(LOOKED_FOR)).unwrap_or_default();
    if looked_for != wanted().join("\n") {
        bail!("{} was unpacked for other modules", dir.display());
    }
    let modules = wanted()
        .iter()
        .map(|name| dir.join(format!("{name}.ko")))
        .filter(|path| path.is_file())
        .collect();
    let version = dir
        .file_name()
        .context("a kernel has a name")?
        .to_string_lossy()
        .into_owned();
    Ok(Kernel {
        version,
        image,
        modules,
    })
}

/// All modules that are taken out of a kernel's packages.
fn wanted() -> Vec<&'static str> {
    MODULES.into_iter().chain(NOT_LOADED).collect()
}

/// Takes the image and the few modules out of unpacked packages.
fn gather(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let wanted = wanted();
    let mut image = None;
    walk(from, &mut |path| {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name == "vmlinuz" || name.starts_with("vmlinuz-") {
            image = Some(path.to_owned());
        }
        let Some((stem, ending)) = name.split_once(".ko") else {
            return Ok(());
        };
        if wanted.contains(&stem) && path.components().any(|part| part.as_os_str() == "kernel") {
            unpack_module(path, ending, &to.join(format!("{stem}.ko")))?;
        }
        Ok(())
    })?;
    fs::copy(
        image.context("the package has no vmlinuz")?,
        to.join("vmlinuz"),
    )?;
    fs::write(to.join(LOOKED_FOR), wanted.join("\n"))?;
    Ok(())
}

fn unpack_module(path: &Path, ending: &str, to: &Path) -> Result<()> {
    let tool = match ending {
        "" => {
            fs::copy(path, to)?;
            return Ok(());
        }
        ".xz" => "xz",
        ".zst" => "zstd",
        ".gz" => "gzip",
        other => bail!(
            "{} is compressed in an unknown way ({other})",
            path.display()
        ),
    };
    process::run(
        Command::new(tool)
            .args(["-d", "-c", "-q"])
            .arg(path)
            .stdout(fs::File::create(to)?),
    )
}

fn walk(dir: &Path, visit: &mut impl FnMut(&Path) -> Result<()>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), visit)?;
        } else if entry.file_type()?.is_file() {
            visit(&entry.path())?;
        }
    }
    Ok(())
}

/// The package of the newest kernel of a series. Where the mirror has moved on to a later minor version, the newest of
/// the same major version stands in, and that is said.
fn newest_kernel(apt: &Apt, series: &str) -> Result<String> {
    let names = apt.names("linux-image-")?;
    let of = |series: &str| newest(names.iter().map(String::as_str), series).map(str::to_owned);
    if let Some(name) = of(series) {
        return Ok(name);
    }
    let major = series.split('.').next().unwrap_or(series);
    let later = of(major).with_context(|| {
        format!("the mirror has no {series} cloud kernel for amd64, and no other {major}.x")
    })?;
    println!("kernel {series}: the mirror no longer has one; {later} stands in for it");
    Ok(later)
}

/// The packages that a kernel's package only points to: newer ones keep the image and the modules apart.
fn parts(apt: &Apt, package: &str) -> Result<Vec<String>> {
    let depends = apt.field(package, "Depends")?.unwrap_or_default();
    let names = depends
        .split([',', '|'])
        .filter_map(|entry| entry.split_whitespace().next());
    let wanted = names
        .filter(|name| name.starts_with("linux-binary-") || name.starts_with("linux-modules-"));
    Ok(wanted.map(str::to_owned).collect())
}

/// The newest signed cloud kernel among package names. `series` is a prefix of the version at a dot.
fn newest<'a>(names: impl Iterator<Item = &'a str>, series: &str) -> Option<&'a str> {
    names
        .filter(|name| {
            let Some(version) = name
                .strip_prefix("linux-image-")
                .and_then(|rest| rest.strip_suffix("-cloud-amd64"))
            else {
                return false;
            };
            version
                .strip_prefix(series)
                .is_some_and(|rest| rest.starts_with('.'))
        })
        .max_by_key(|name| numbers(name))
}

/// All numbers of a name in their order: what a version is compared by.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_series_is_found() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-57-cloud-amd64-unsigned",
            "linux-image-6.12.100+deb12-cloud-amd64",
            "linux-image-6.12.99+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64-dbg",
            "linux-image-cloud-amd64",
        ];
        assert_eq!(
            newest(names.into_iter(), "6.1"),
            Some("linux-image-6.1.0-56-cloud-amd64")
        );
        assert_eq!(
            newest(names.into_iter(), "6.12"),
            Some("linux-image-6.12.100+deb12-cloud-amd64")
        );
        assert_eq!(
            newest(names.into_iter(), "6"),
            Some("linux-image-6.12.100+deb12-cloud-amd64")
        );
        assert_eq!(newest(names.into_iter(), "7.2"), None);
    }
}
