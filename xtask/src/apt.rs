//! apt with a state directory and a source list of our own, made from the mirrors that the machine already uses and the
//! suites that hold the kernels. The machine's own sources and package lists are only read; the archive's signatures
//! are checked with the keyring that the machine's own source names.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, bail};

use crate::{paths, process};

/// Suites that hold a series' kernels, and those of the security mirror.
const SUITES: [&str; 3] = ["bookworm", "bookworm-updates", "forky"];
const SECURITY_SUITES: [&str; 1] = ["bookworm-security"];

/// apt with directories and sources of our own.
pub struct Apt {
    root: PathBuf,
    /// In words: how the packages are authenticated.
    pub trust: String,
    /// The machine's own release.
    release: String,
}

impl Apt {
    /// Writes the sources and brings the package lists up to date, at most once an hour.
    pub fn prepare() -> Result<Apt> {
        let root = paths::cache("apt")?;
        for dir in ["state/lists/partial", "cache/archives/partial", "download"] {
            fs::create_dir_all(root.join(dir))?;
        }
        let release = release();
        let stanzas = debian_stanzas(&release)?;
        let (sources, trust) = our_sources(&stanzas, &release);
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
        let apt = Apt {
            root,
            trust,
            release,
        };
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

    /// Downloads packages of the machine's own release with everything that they depend on, as if nothing were installed, and
    /// gives the archives' paths. They are there until the next call.
    pub fn download_all(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        process::output(self.command("apt-get").arg("clean"))?;
        process::output(
            self.command("apt-get")
                .args(["install", "-qq", "-y", "--download-only"])
                .args(["--no-install-recommends", "-t", &self.release])
                .args(packages),
        )?;
        let mut archives: Vec<PathBuf> = fs::read_dir(self.root.join("cache/archives"))?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        archives.retain(|path| path.extension().is_some_and(|ending| ending == "deb"));
        archives.sort();
        Ok(archives)
    }

    /// Names of all packages that begin so.
    pub fn names(&self, start: &str) -> Result<Vec<String>> {
        let names = process::output(self.command("apt-cache").args(["pkgnames", start]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// A field of a package's newest version.
    pub fn field(&self, package: &str, field: &str) -> Result<Option<String>> {
        let shown = process::output(self.command("apt-cache").args([
            "show",
            "--no-all-versions",
            package,
        ]))?;
        Ok(shown.lines().find_map(|line| {
            Some(
                line.strip_prefix(field)?
                    .strip_prefix(": ")?
                    .trim()
                    .to_owned(),
            )
        }))
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

/// A source of packages that the machine uses.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stanza {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    /// Path of a keyring, or empty.
    signed_by: String,
}

/// The code name of the release that runs here.
fn release() -> String {
    fs::read_to_string("/etc/os-release")
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .unwrap_or("stable")
        .trim_matches('"')
        .to_owned()
}

/// The machine's own sources that are Debian's: those whose suites are the release that runs here.
fn debian_stanzas(codename: &str) -> Result<Vec<Stanza>> {
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
fn our_sources(stanzas: &[Stanza], release: &str) -> (String, String) {
    let mut suites = SUITES.to_vec();
    if !suites.contains(&release) {
        suites.push(release);
    }
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
            &suites
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
