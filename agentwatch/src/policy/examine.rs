//! A policy from its text to what is enforced, in one step: read with all that it builds on, checked, compiled, linted and
//! given its digest. What is wrong is found by those steps; this only takes them in their order.

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{
    compile::compile,
    default,
    diagnostic::{Diagnostic, PolicyError, Report, Severity},
    expect::{self, Expectation},
    file::MAX_TEXT,
    lint,
    model::{
        Approvals, CommandRule, Compiled, Context, Environment, FamilyRule, GuardRule, Limits,
        Name, Opens, Place, Prefix, UnixRule,
    },
    sources::{self, Sources},
};
use crate::event::model::{Layer, Mode};

/// All that can be said about a policy's text.
#[derive(Clone, Debug)]
pub struct Examined {
    /// The name that the policy gives itself.
    pub name: Option<String>,
    /// Absent where the report holds errors.
    pub compiled: Option<Compiled>,
    /// What the policy is to be held to.
    pub expect: Vec<Expectation>,
    pub report: Report,
}

/// Reads, checks and compiles a policy. `file_name` is for messages and for the rules' sources. The built-in default
/// policy is loaded with an empty name.
pub fn load(file_name: &str, text: &[u8], context: &Context) -> Result<Compiled, PolicyError> {
    let Examined {
        compiled, report, ..
    } = examine(file_name, text, context);
    compiled.ok_or_else(|| PolicyError::new(report))
}

/// As [`load`], and keeps the diagnostics as data.
pub fn examine(file_name: &str, text: &[u8], context: &Context) -> Examined {
    examine_all(&Sources::alone(file_name, text, context))
}

/// As [`examine`], with what the policy extends and what the host's administrator adds.
pub fn examine_all(sources: &Sources<'_>) -> Examined {
    let built_in = sources.file.is_empty() && sources.text == default::TEXT.as_bytes();
    let file_name = if built_in {
        default::NAME
    } else {
        sources.file
    };
    let mut report = match decode(file_name, sources.text) {
        Ok(report) => report,
        Err(report) => {
            return Examined {
                name: None,
                compiled: None,
                expect: Vec::new(),
                report,
            };
        }
    };
    let mut rules = sources::read(sources, &mut report);
    let expect = std::mem::take(&mut rules.expect);
    let expect = expect::read(expect, sources.context, &mut report);
    let mut compiled = compile(&rules, &mut report);
    if report.errors() == 0 {
        lint::lint(&rules, &compiled, &mut report);
        match digest(&compiled) {
            Ok(digest) => compiled.digest = digest,
            Err(error) => report.push(Diagnostic::error(
                format!("the compiled policy has no canonical form: {error}"),
                None,
            )),
        }
    }
    if built_in {
        // Its rules are written for every working directory; some of them are idle in most.
        report = report.without_warnings();
    }
    compiled.warnings = report.render_each(Severity::Warning, false);
    Examined {
        name: rules.name,
        compiled: (report.errors() == 0).then_some(compiled),
        expect,
        report,
    }
}

/// The text, ready to be pointed into; an error where there is none.
fn decode(file_name: &str, text: &[u8]) -> Result<Report, Report> {
    if text.len() > MAX_TEXT {
        let mut report = Report::new(file_name, "");
        report.push(
            Diagnostic::error(format!("the policy is longer than {MAX_TEXT} bytes"), None)
                .help("name directories instead of the files in them"),
        );
        return Err(report);
    }
    match std::str::from_utf8(text) {
        Ok(text) => Ok(Report::new(file_name, text)),
        Err(error) => {
            // Up to the fault both texts are the same, so its place is right in what is shown.
            let mut report = Report::new(file_name, String::from_utf8_lossy(text));
            let at = error.valid_up_to();
            report.push(
                Diagnostic::error(
                    "the policy is not UTF-8",
                    at..at + char::REPLACEMENT_CHARACTER.len_utf8(),
                )
                .help("save the file as UTF-8 text"),
            );
            Err(report)
        }
    }
}

/// What a policy is, without where it was written: two files that mean the same rule by rule have the same digest.
#[derive(Serialize)]
struct Canonical<'a> {
    mode: Mode,
    rules: Vec<(&'a str, &'a str, Layer)>,
    places: &'a [Place],
    prefixes: &'a [Prefix],
    names: &'a [Name],
    commands: &'a [CommandRule],
    unix: &'a [UnixRule],
    families: &'a [FamilyRule],
    guards: &'a [GuardRule],
    limits: &'a Limits,
    approvals: &'a Approvals,
    environment: &'a Environment,
    opens: Opens,
}

fn digest(compiled: &Compiled) -> Result<String, serde_json::Error> {
    let canonical = Canonical {
        mode: compiled.mode,
        rules: compiled
            .rules
            .iter()
            .map(|rule| (rule.id.as_str(), rule.text.as_str(), rule.layer))
            .collect(),
        places: &compiled.places,
        prefixes: &compiled.prefixes,
        names: &compiled.names,
        commands: &compiled.commands,
        unix: &compiled.unix,
        families: &compiled.families,
        guards: &compiled.guards,
        limits: &compiled.limits,
        approvals: &compiled.approvals,
        environment: &compiled.environment,
        opens: compiled.opens,
    };
    Ok(format!(
        "sha256:{}",
        hex::encode(Sha256::digest(serde_json::to_vec(&canonical)?))
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> Context {
        Context::of_tests("/w")
    }

    #[test]
    fn the_digest_is_of_the_meaning() {
        let digest =
            |file: &str, text: &str| load(file, text.as_bytes(), &context()).unwrap().digest;
        let base = digest("p.toml", "[files]\nread = [\"/usr\"]\n");
        assert!(
            base.strip_prefix("sha256:")
                .is_some_and(|hex| hex.len() == 64)
        );
        assert_eq!(
            base,
            digest(
                "other.toml",
                "# moved\n\nname = \"x\"\n[files]\n\nread = ['/usr',]\n"
            )
        );
        for other in [
            "[files]\nread = [\"/usr/lib\"]\n",
            "[files]\nread = [\"/usr/\"]\n",
            "[files]\nwrite = [\"/usr\"]\n",
            "mode = \"monitor\"\n[files]\nread = [\"/usr\"]\n",
            "[files]\nread = [\"/usr\"]\n[network]\nallow = [\"*\"]\n",
            "[files]\nread = [\"/usr\"]\ndeny = [\"**/.env\"]\n",
            "[files]\nread = [\"/usr\"]\n[network]\nunix = [\"@x\"]\n",
            "[files]\nread = [\"/usr\"]\n[network]\nfamilies = [\"raw\"]\n",
            "[files]\nread = [\"/usr\"]\n[guard]\nallow = [\"bpf\"]\n",
        ] {
            assert_ne!(base, digest("p.toml", other), "{other}");
        }
        let elsewhere = Context {
            cwd: "/v".into(),
            home: "/home/u".into(),
            ..Default::default()
        };
        let relative = b"[files]\nread = [\".\"]\n";
        assert_ne!(
            load("p", relative, &context()).unwrap().digest,
            load("p", relative, &elsewhere).unwrap().digest
        );
    }

    #[test]
    fn what_is_no_text_is_refused() {
        let error = load("p.toml", b"name = \"\xff\"\n", &context())
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "error: the policy is not UTF-8\n --> p.toml:1:9\n  |\n1 | name = \"\u{fffd}\"\n  |         ^\n  |\n  = help: save the file as UTF-8 text"
        );
        let error = load("p.toml", &vec![b'#'; MAX_TEXT + 1], &context())
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "error: the policy is longer than 1048576 bytes\n--> p.toml\n = help: name directories instead of the files in them"
        );
        assert!(load("p.toml", &vec![b'#'; MAX_TEXT], &context()).is_ok());
        assert!(
            load(
                "p.toml",
                b"\xef\xbb\xbf[files]\r\nread = [\"/usr\"]\r\n",
                &context()
            )
            .is_ok()
        );
    }
}
