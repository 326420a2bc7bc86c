//! Stock Debian kernels for the VMs: finds the newest of a series on the machine's own mirror, unpacks it into the cache, installs nothing.
//!
//! apt runs with a state directory and a source list of our own, made from the mirrors that the machine already uses
//! and the suites that hold the kernels. The archive's signatures are checked with the keyring that the machine's own
//! source names; exact versions vanish from mirrors, so what was unpacked stays usable without the network.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};

use crate::{paths, process};

/// What the tests run on.
pub const SERIES: [&str; 3] = ["6.1", "6.12", "7.2"];

/// Modules that the VM may load, as file names without their ending.
const MODULES: [&str; 3] = ["overlay", "tun", "vsock"];

/// How long a kernel is taken for the newest of its series.
const FRESH: Duration = Duration::from_secs(7 * 24 * 3600);

/// Suites that hold a series' kernels, and those of the security mirror.
const SUITES: [&str; 3] = ["bookworm", "bookworm-updates", "forky"];
const SECURITY_SUITES: [&str; 1] = ["bookworm-security"];

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
    let package = apt.newest_kernel(series)?;
    let version = format!("{}_{}", package, apt.version(&package)?);
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
    for part in std::iter::once(package.clone()).chain(apt.parts(&package)?) {
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
    let modules = MODULES
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

/// Takes the image and the few modules out of unpacked packages.
fn gather(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
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
        if MODULES.contains(&stem) && path.components().any(|part| part.as_os_str() == "kernel") {
            unpack_module(path, ending, &to.join(format!("{stem}.ko")))?;
        }
        Ok(())
    })?;
    fs::copy(
        image.context("the package has no vmlinuz")?,
        to.join("vmlinuz"),
    )?;
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

/// apt with directories and sources of our own.
pub struct Apt {
    root: PathBuf,
    /// In words: how the packages are authenticated.
    trust: String,
}

impl Apt {
    /// Writes the sources and brings the package lists up to date, at most once an hour.
    pub fn prepare() -> Result<Apt> {
        let root = paths::cache("apt")?;
        for dir in ["state/lists/partial", "cache/archives/partial", "download"] {
            fs::create_dir_all(root.join(dir))?;
        }
        let stanzas = debian_stanzas()?;
        let (sources, trust) = our_sources(&stanzas);
        let list = root.join("agentwatch.sources");
        let stamp = root.join("updated");
        let unchanged = fs::read_to_string(&list).is_ok_and(|old| old == sources);
        let recent = fs::metadata(&stamp)
            .and_then(|entry| entry.modified())
            .is_ok_and(|time| {
                time.elapsed()
                    .is_ok_and(|age| age < Duration::from_secs(3600))
            });
        fs::write(&list, sources)?;
        let apt = Apt { root, trust };
        if !(unchanged && recent) {
            println!(
                "kernels: reading the package lists of the machine's Debian mirror into the cache"
            );
            process::output(apt.command("apt-get").args(["update", "-qq"]))
                .context("update the package lists")?;
            fs::write(stamp, "")?;
        }
        Ok(apt)
    }

    /// Downloads a package and gives the archive's path.
    pub fn download(&self, package: &str) -> Result<PathBuf> {
        let dir = self.root.join("download");
        for old in fs::read_dir(&dir)? {
            fs::remove_file(old?.path())?;
        }
        process::output(
            self.command("apt-get")
                .current_dir(&dir)
                .args(["download", "-qq", package]),
        )?;
        let archive = fs::read_dir(&dir)?
            .next()
            .context("apt-get downloaded nothing")??;
        Ok(archive.path())
    }

    /// The package of the newest kernel of a series. Where the mirror has moved on to a later minor version, the newest
    /// of the same major version stands in, and that is said.
    fn newest_kernel(&self, series: &str) -> Result<String> {
        let names = process::output(self.command("apt-cache").args(["pkgnames", "linux-image-"]))?;
        if let Some(name) = newest(names.lines(), series) {
            return Ok(name.to_owned());
        }
        let major = series.split('.').next().unwrap_or(series);
        let later = newest(names.lines(), major).with_context(|| {
            format!("the mirror has no {series} cloud kernel for amd64, and no other {major}.x")
        })?;
        println!("kernel {series}: the mirror no longer has one; {later} stands in for it");
        Ok(later.to_owned())
    }

    /// The packages that a kernel's package only points to: newer ones keep the image and the modules apart.
    fn parts(&self, package: &str) -> Result<Vec<String>> {
        let shown = process::output(self.command("apt-cache").args([
            "show",
            "--no-all-versions",
            package,
        ]))?;
        let depends = shown
            .lines()
            .find_map(|line| line.strip_prefix("Depends: "))
            .unwrap_or_default();
        let names = depends
            .split([',', '|'])
            .filter_map(|entry| entry.split_whitespace().next());
        let wanted = names
            .filter(|name| name.starts_with("linux-binary-") || name.starts_with("linux-modules-"));
        Ok(wanted.map(str::to_owned).collect())
    }

    fn version(&self, package: &str) -> Result<String> {
        let shown = process::output(self.command("apt-cache").args([
            "show",
            "--no-all-versions",
            package,
        ]))?;
        let version = shown
            .lines()
            .find_map(|line| line.strip_prefix("Version: "))
            .context("apt-cache shows no version")?;
        Ok(version.trim().to_owned())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let at = |name: &str| self.root.join(name).display().to_string();
        for setting in [
            format!("Dir::Etc::sourcelist={}", at("agentwatch.sources")),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::State={}", at("state")),
            // What is installed here must not decide what may be downloaded.
            "Dir::State::status=/dev/null".to_owned(),
            format!("Dir::Cache={}", at("cache")),
            "Acquire::Languages=none".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            // Running as root, apt would drop to a user that cannot write into the cache.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.arg("-o").arg(setting);
        }
        command
    }
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

/// A source of packages that the machine uses.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stanza {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    /// Path of a keyring, or empty.
    signed_by: String,
}

/// The machine's own sources that are Debian's: those whose suites are the release that runs here.
fn debian_stanzas() -> Result<Vec<Stanza>> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .unwrap_or("stable")
        .trim_matches('"')
        .to_owned();
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let mut stanzas = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        match file.extension().and_then(|ending| ending.to_str()) {
            Some("sources") => stanzas.extend(parse_deb822(&text)),
            Some("list") => stanzas.extend(text.lines().filter_map(parse_line)),
            _ => {}
        }
    }
    let endings = ["", "-updates", "-security", "/updates"];
    let is_debian = |suite: &String| {
        endings
            .iter()
            .any(|ending| *suite == format!("{codename}{ending}"))
    };
    stanzas.retain(|stanza| {
        stanza
            .components
            .iter()
            .any(|component| component == "main")
            && stanza.suites.iter().any(is_debian)
    });
    if stanzas.is_empty() {
        bail!(
            "no Debian source is configured below /etc/apt: the kernels come from the machine's own mirror"
        );
    }
    Ok(stanzas)
}

fn parse_deb822(text: &str) -> Vec<Stanza> {
    text.split("\n\n")
        .filter_map(|paragraph| {
            let field = |name: &str| -> Option<String> {
                let mut value: Option<String> = None;
                let mut inside = false;
                for line in paragraph.lines().filter(|line| !line.starts_with('#')) {
                    if line.starts_with([' ', '\t']) {
                        if let (true, Some(value)) = (inside, &mut value) {
                            value.push(' ');
                            value.push_str(line.trim());
                        }
                    } else if let Some((key, rest)) = line.split_once(':') {
                        inside = key.trim().eq_ignore_ascii_case(name);
                        if inside {
                            value = Some(rest.trim().to_owned());
                        }
                    }
                }
                value
            };
            let words = |name: &str| -> Vec<String> {
                field(name)
                    .unwrap_or_default()
                    .split_whitespace()
                    .map(str::to_owned)
                    .collect()
            };
            let enabled = field("Enabled").is_none_or(|value| !value.eq_ignore_ascii_case("no"));
            let binary = words("Types").iter().any(|kind| kind == "deb");
            // A key that is written into the source itself cannot be named in ours; apt's trusted keys then decide.
            let signed_by = field("Signed-By")
                .filter(|value| value.starts_with('/'))
                .unwrap_or_default();
            (enabled && binary).then(|| Stanza {
                uris: words("URIs"),
                suites: words("Suites"),
                components: words("Components"),
                signed_by,
            })
        })
        .collect()
}

fn parse_line(line: &str) -> Option<Stanza> {
    let rest = line
        .trim()
        .strip_prefix("deb")?
        .strip_prefix([' ', '\t'])?
        .trim();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest
        .split_whitespace()
        .take_while(|word| !word.starts_with('#'));
    let signed_by = options
        .split_whitespace()
        .find_map(|option| option.strip_prefix("signed-by="))
        .unwrap_or_default();
    Some(Stanza {
        uris: vec![words.next()?.to_owned()],
        suites: vec![words.next()?.to_owned()],
        components: words.map(str::to_owned).collect(),
        signed_by: signed_by.to_owned(),
    })
}

/// Our source list on the mirrors of `stanzas`, and how it is authenticated.
fn our_sources(stanzas: &[Stanza]) -> (String, String) {
    let mut text = String::new();
    let mut trust = "signed by a key that apt trusts".to_owned();
    let mut seen = Vec::new();
    for stanza in stanzas {
        let is_security = stanza
            .suites
            .iter()
            .any(|suite| suite.ends_with("-security") || suite.ends_with("/updates"));
        let suites: &[&str] = if is_security {
            &SECURITY_SUITES
        } else {
            &SUITES
        };
        for uri in &stanza.uris {
            if seen.contains(&(uri, is_security)) {
                continue;
            }
            seen.push((uri, is_security));
            text += &format!(
                "Types: deb\nURIs: {uri}\nSuites: {}\nComponents: main\n",
                suites.join(" ")
            );
            if !stanza.signed_by.is_empty() {
                text += &format!("Signed-By: {}\n", stanza.signed_by);
                trust = format!("signature checked with {}", stanza.signed_by);
            }
            text.push('\n');
        }
    }
    (text, trust)
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

    #[test]
    fn both_forms_of_sources_are_read() {
        let stanza = Stanza {
            uris: vec!["http://mirror.example/debian".into()],
            suites: vec!["bookworm".into()],
            components: vec!["main".into(), "contrib".into()],
            signed_by: "/k.gpg".into(),
        };
        let deb822 = "# a comment\nTypes: deb deb-src\n# another\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: main\n contrib\nSigned-By: /k.gpg\n";
        assert_eq!(parse_deb822(deb822), std::slice::from_ref(&stanza));
        let line = "deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib # why";
        assert_eq!(parse_line(line), Some(stanza));
        assert_eq!(
            parse_line("# deb http://mirror.example/debian bookworm main"),
            None
        );
        assert!(parse_deb822("Types: deb\nEnabled: no\nURIs: x\n").is_empty());
    }
}
