//! Secrets are taken out of events before anything is stored or sent.
//!
//! A secret becomes a mark: `[redacted:<what>:<digest>]`, where the digest is a BLAKE3 hash keyed with a key of this host. The same
//! secret has the same mark on this host, so that its use can be followed, and the mark cannot be turned back or
//! guessed by whoever lacks the key. What is looked for is documented in docs/redaction.md, which a test compares with
//! [`KNOWN`]. Redaction knows forms, not meanings: a secret that looks like any word is found only by its context.

use std::borrow::Cow;

use regex::{Captures, Regex, RegexSet};
use serde::Deserialize;

use super::model::{Event, Kind, Lifecycle, PolicyRecord};
use crate::approval::model::Request;

/// A pattern of the administrator's.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Custom {
    /// What stands in the mark: lower-case letters, digits and `-`.
    pub name: String,
    /// Regular expression; what its group `secret` matches is the secret, or the whole where there is none.
    pub regex: String,
}

/// What is found by its form, wherever it stands. The group `secret` is the secret, or the whole where there is none.
pub const KNOWN: [(&str, &str); 34] = [
    (
        "private-key",
        r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----|\z)",
    ),
    (
        "github",
        r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255})",
    ),
    (
        "gitlab",
        r"\bgl(?:pat|ptt|dt|rt|cbt|ft|soat|oas)-[A-Za-z0-9_-]{20,}",
    ),
    ("anthropic", r"\bsk-ant-[A-Za-z0-9_-]{20,}"),
    (
        "openai",
        r"\bsk-(?:proj-|svcacct-|admin-|None-)?[A-Za-z0-9_-]{20,}",
    ),
    ("aws-key-id", r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b"),
    (
        "aws-secret",
        r#"(?i)aws_?(?:secret)?_?(?:access)?_?key["'\s:=]{1,5}(?P<secret>[A-Za-z0-9/+]{40})"#,
    ),
    (
        "slack",
        r"\b(?:xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-[0-9]-[A-Za-z0-9-]{10,})",
    ),
    (
        "slack-webhook",
        r"hooks\.slack\.com/(?:services|workflows|triggers)/(?P<secret>[A-Za-z0-9+/]{20,})",
    ),
    (
        "discord-webhook",
        r"discord(?:app)?\.com/api/webhooks/(?P<secret>[0-9]{15,}/[A-Za-z0-9_-]{30,})",
    ),
    ("gcp-api-key", r"\bAIza[0-9A-Za-z_-]{35}"),
    (
        "gcp-oauth",
        r"\b(?:ya29\.[0-9A-Za-z_-]{20,}|GOCSPX-[A-Za-z0-9_-]{28})",
    ),
    (
        "jwt",
        r"\beyJ[A-Za-z0-9_-]{5,}\.eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]*",
    ),
    (
        "stripe",
        r"\b(?:[sr]k_(?:live|test|prod)_[A-Za-z0-9]{10,}|whsec_[A-Za-z0-9+/=]{24,})",
    ),
    ("npm", r"\bnpm_[A-Za-z0-9]{36}"),
    ("pypi", r"\bpypi-[A-Za-z0-9_-]{50,}"),
    ("crates-io", r"\bcio[A-Za-z0-9]{32}\b"),
    ("huggingface", r"\b(?:hf_|api_org_)[A-Za-z0-9]{30,}"),
    ("sendgrid", r"\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{30,}"),
    ("twilio", r"\bSK[0-9a-f]{32}\b"),
    ("digitalocean", r"\bdo[por]_v1_[a-f0-9]{64}"),
    ("docker", r"\bdckr_(?:pat|oat)_[A-Za-z0-9_-]{24,}"),
    ("vault", r"\bhv[sbr]\.[A-Za-z0-9_-]{24,}"),
    ("telegram", r"\b[0-9]{8,10}:AA[A-Za-z0-9_-]{33}\b"),
    ("age", r"\bAGE-SECRET-KEY-1[0-9A-Z]{58}"),
    ("groq", r"\bgsk_[A-Za-z0-9]{40,}"),
    ("xai", r"\bxai-[A-Za-z0-9]{40,}"),
    (
        "azure",
        r"(?i)(?:AccountKey|SharedAccessKey)=(?P<secret>[A-Za-z0-9+/=]{20,})",
    ),
    ("databricks", r"\bdapi[a-f0-9]{32}"),
    ("linear", r"\blin_(?:api|oauth)_[A-Za-z0-9]{32,}"),
    (
        "url",
        r#"[A-Za-z][A-Za-z0-9+.-]*://(?:[^/\s:@'"]*:(?P<secret>[^/\s'"]+)|(?P<user>[^/\s:@'"]{16,}))@"#,
    ),
    (
        "url-parameter",
        r#"(?i)[?&;](?:access_token|refresh_token|id_token|token|api[_-]?key|key|secret|client_secret|password|passwd|auth|sig|signature|x-amz-signature|x-amz-security-token|x-goog-signature)=(?P<secret>[^&#;\s'"]+)"#,
    ),
    (
        "header",
        r#"(?i)\b(?:(?:proxy-)?authorization|x-[a-z-]*(?:key|token|secret)|api-key|apikey|private-token|job-token|cookie|set-cookie)['"]?\s*:\s*['"]?(?:(?:bearer|basic|token|digest|negotiate|aws4-hmac-sha256)\s+)?(?P<secret>[^\s'"][^'"\r\n]*)"#,
    ),
    (
        "bearer",
        r"(?i)\bbearer\s+(?P<secret>[A-Za-z0-9._~+/=-]{8,})",
    ),
];

/// What is found by the name that stands before it; not in paths, where such names are ordinary.
const NAMED: (&str, &str) = (
    "value",
    r#"(?i)(?:^|[^A-Za-z0-9])(?:[A-Za-z0-9_.-]*(?:password|passwd|passphrase|passcode|secret|token|api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key|credentials?)|(?:[A-Za-z0-9_.-]*[_.-])?pwd)['"]?(?:\s*=\s*['"]?:*|\s*:\s*['"]?|\s+['"]?)(?P<secret>[^\s'"&;,|<>():][^\s'"&;,|<>()]*)"#,
);

/// Options whose value, the next argument, is a secret.
const OPTION: &str = r"(?i)^--?(?:[a-z0-9_.-]*(?:password|passwd|passphrase|secret|token|api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key|credentials?|oauth2-bearer)|(?:[a-z0-9_.-]*[_.-])?(?:pwd|pass))$";

/// An argument that is all a name and its value: whatever stands in the value is part of the secret.
const ASSIGNED: &str = r"(?i)^(?:--?(?:[a-z0-9_.-]*(?:password|passwd|passphrase|passcode|secret|token|api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key|credentials?)|(?:[a-z0-9_.-]*[_.-])?pwd)=:*(?P<secret>[^:](?s:.*))|(?:[a-z0-9_.-]*(?:password|passwd|passphrase|passcode|secret|token|api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key|credentials?)|(?:[a-z0-9_.-]*[_.-])?pwd)=:*(?P<user>[^:\s]\S*))";

/// Shells, which take a whole command as one argument.
const SHELLS: [&str; 8] = ["sh", "bash", "dash", "zsh", "ksh", "fish", "ash", "su"];

/// Programs that take a name and a password for whom they ask.
const FETCHERS: [&str; 5] = ["curl", "wget", "http", "https", "xh"];
/// Programs whose `-p` is followed by a password.
const DATABASES: [&str; 6] = [
    "mysql",
    "mysqldump",
    "mysqladmin",
    "mariadb",
    "mariadb-dump",
    "sshpass",
];

/// Takes secrets out.
pub struct Redactor {
    key: [u8; 32],
    set: RegexSet,
    patterns: Vec<(String, Regex)>,
    named: Regex,
    option: Regex,
    assigned: Regex,
}

impl Redactor {
    /// With the host's key and the administrator's patterns, which come first.
    ///
    /// # Errors
    /// When a pattern of the administrator's is no regular expression, or has a name that cannot stand in a mark.
    pub fn new(key: [u8; 32], custom: &[Custom]) -> Result<Self, String> {
        let mut patterns = Vec::new();
        for Custom { name, regex } in custom {
            let fits =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            if name.is_empty() || name.len() > 32 || !name.bytes().all(fits) {
                return Err(format!(
                    "redact: {name:?} cannot be the name of a pattern: up to 32 lower-case letters, digits and `-`"
                ));
            }
            let regex =
                Regex::new(regex).map_err(|error| format!("redact: pattern {name:?}: {error}"))?;
            if regex.is_match("") {
                return Err(format!(
                    "redact: pattern {name:?} matches the empty text, so it would match everywhere"
                ));
            }
            patterns.push((name.clone(), regex));
        }
        let built = |(name, regex): &(&str, &str)| {
            let regex = Regex::new(regex).map_err(|error| format!("redact: {name}: {error}"))?;
            Ok::<_, String>(((*name).to_owned(), regex))
        };
        for known in &KNOWN {
            patterns.push(built(known)?);
        }
        let set = RegexSet::new(patterns.iter().map(|(_, regex)| regex.as_str()))
            .map_err(|error| format!("redact: {error}"))?;
        let option = Regex::new(OPTION).map_err(|error| format!("redact: {error}"))?;
        let assigned = Regex::new(ASSIGNED).map_err(|error| format!("redact: {error}"))?;
        Ok(Self {
            key,
            set,
            patterns,
            named: built(&NAMED)?.1,
            option,
            assigned,
        })
    }

    /// Takes the secrets out of everything in an event that an agent can put one into.
    pub fn event(&self, event: &mut Event) {
        if let Some(process) = &mut event.process {
            self.arguments(&mut process.argv);
            for path in [&mut process.exe, &mut process.cwd] {
                self.in_place(path, false);
            }
        }
        for file in [&mut event.file, &mut event.target].into_iter().flatten() {
            self.in_place(&mut file.path, false);
        }
        if let Some(net) = &mut event.net {
            for text in [&mut net.path, &mut net.domain].into_iter().flatten() {
                self.in_place(text, false);
            }
        }
        self.in_place(&mut event.session.name, false);
        if let Some(detail) = event.guard.as_mut().and_then(|guard| guard.detail.as_mut()) {
            self.in_place(detail, false);
        }
        match &mut event.lifecycle {
            Some(Lifecycle::Started {
                command, policy, ..
            }) => {
                self.arguments(command);
                self.record(policy.as_deref_mut());
            }
            Some(Lifecycle::Reloaded { rules, .. }) => self.record(rules.as_deref_mut()),
            _ => {}
        }
        if let Some(reason) = event
            .approval
            .as_mut()
            .and_then(|approval| approval.reason.as_mut())
        {
            self.in_place(reason, false);
        }
    }

    /// Takes the secrets out of a request, before a command that is no part of us is told of it.
    pub fn request(&self, request: &mut Request) {
        // By name, so that a new field cannot be forgotten here.
        let Request {
            id: _,
            session: _,
            session_name,
            goal,
            uid: _,
            action: _,
            file,
            target,
            net,
            rule: _,
            rule_text,
            process,
            ancestry,
            before,
            decided,
            since: _,
            deadline: _,
            on_timeout: _,
            tasks: _,
            tries: _,
            once_only: _,
            finding: _,
            review,
        } = request;
        if let Some(process) = process {
            self.arguments(&mut process.argv);
            self.in_place(&mut process.exe, false);
            self.in_place(&mut process.cwd, false);
        }
        for ancestor in ancestry {
            self.arguments(&mut ancestor.argv);
            self.in_place(&mut ancestor.exe, false);
        }
        for file in [file, target].into_iter().flatten() {
            self.in_place(&mut file.path, false);
        }
        if let Some(net) = net {
            for text in [&mut net.path, &mut net.domain].into_iter().flatten() {
                self.in_place(text, false);
            }
        }
        for text in [goal, review].into_iter().flatten() {
            self.in_place(text, false);
        }
        for text in [session_name, rule_text] {
            self.in_place(text, false);
        }
        for line in before.iter_mut().chain(decided) {
            self.line(line);
        }
    }

    /// A line of a request: what was done, which ends in the arguments where it is a command.
    fn line(&self, line: &mut String) {
        self.in_place(line, true);
        let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let exec = words.iter().position(|word| word == Kind::Exec.name());
        if let Some(arguments) = exec.and_then(|exec| words.get_mut(exec + 1..)) {
            self.arguments(arguments);
            *line = words.join(" ");
        }
    }

    /// What a policy says of its task, and its rules.
    fn record(&self, record: Option<&mut PolicyRecord>) {
        let Some(record) = record else { return };
        let task = &mut record.task;
        // In prose a word that follows `token` is no secret.
        for text in [&mut task.goal, &mut task.owner, &mut task.ticket]
            .into_iter()
            .flatten()
        {
            self.in_place(text, false);
        }
        for command in &mut task.acceptance {
            self.in_place(command, true);
        }
        for rule in &mut record.rules {
            self.in_place(&mut rule.text, false);
        }
    }

    /// Arguments of a command.
    pub fn arguments(&self, argv: &mut [String]) {
        self.words(argv, true);
    }

    /// Words of a command; `whole` where each is an argument as it was given, and not what stands between blanks.
    fn words(&self, words: &mut [String], whole: bool) {
        let (mut next_is_secret, mut is_shell, mut next_is_command) = (false, false, false);
        for word in words.iter_mut() {
            if std::mem::take(&mut next_is_command) && word.contains(' ') {
                self.in_place(word, true);
                let mut inner: Vec<String> = word.split(' ').map(str::to_owned).collect();
                self.words(&mut inner, false);
                *word = inner.join(" ");
                continue;
            }
            if next_is_secret && !word.is_empty() && !word.starts_with('-') {
                if !is_mark(word) {
                    *word = self.mark("value", word);
                }
                next_is_secret = false;
                continue;
            }
            next_is_secret = self.option.is_match(word);
            // Until its `-c`: options with values, and names of users, may stand between.
            if SHELLS.contains(&basename(word)) {
                is_shell = true;
            } else if is_shell && word.starts_with('-') && !word.starts_with("--") {
                next_is_command = word.ends_with('c');
                is_shell = !next_is_command;
            }
            if whole && self.assigned.is_match(word) {
                *word = self.replaced("value", &self.assigned, word);
            }
            self.in_place(word, true);
        }
        // Also behind what starts them: sudo, env, timeout.
        for names in [&FETCHERS[..], &DATABASES[..]] {
            let first = words
                .iter()
                .position(|word| names.contains(&basename(word)));
            if let Some(words) = first.and_then(|first| words.get_mut(first..)) {
                self.by_program(names, words);
            }
        }
    }

    /// Options that say nothing of what follows them, of programs that are known.
    fn by_program(&self, names: &[&str], argv: &mut [String]) {
        match names {
            _ if *names == FETCHERS => {
                for index in 1..argv.len() {
                    let follows = argv.get(index - 1).is_some_and(|before| {
                        matches!(
                            before.as_str(),
                            "-u" | "--user" | "-U" | "--proxy-user" | "-a" | "--auth"
                        ) || is_among(before, 'u')
                    });
                    if let Some(argument) = argv.get_mut(index) {
                        let attached =
                            ["-u", "--user=", "--proxy-user="]
                                .into_iter()
                                .find(|option| {
                                    argument.starts_with(option) && argument.len() > option.len()
                                });
                        let from = if follows {
                            0
                        } else {
                            attached.map_or(usize::MAX, str::len)
                        };
                        if let Some((user, password)) = argument
                            .get(from..)
                            .and_then(|credentials| credentials.split_once(':'))
                            && !password.is_empty()
                            && !password.starts_with("//")
                            && !is_mark(password)
                        {
                            let kept = argument.get(..from).unwrap_or_default();
                            *argument = format!("{kept}{user}:{}", self.mark("value", password));
                        }
                    }
                }
            }
            _ => {
                let is_sshpass = argv
                    .first()
                    .is_some_and(|first| basename(first) == "sshpass");
                for index in 1..argv.len() {
                    let follows =
                        is_sshpass && argv.get(index - 1).is_some_and(|before| before == "-p");
                    if let Some(argument) = argv.get_mut(index)
                        && !is_mark(argument)
                    {
                        if follows {
                            *argument = self.mark("value", argument);
                        } else if let Some(secret) = argument.strip_prefix("-p")
                            && !secret.is_empty()
                            && !is_mark(secret)
                        {
                            *argument = format!("-p{}", self.mark("value", secret));
                        }
                    }
                }
            }
        }
    }

    fn in_place(&self, text: &mut String, named: bool) {
        if let Cow::Owned(redacted) = self.text(text, named) {
            *text = redacted;
        }
    }

    /// A text without the secrets in it; `named` also looks for names like `password=`.
    #[must_use]
    pub fn text<'t>(&self, text: &'t str, named: bool) -> Cow<'t, str> {
        let mut text = Cow::Borrowed(text);
        let found = self.set.matches(&text);
        if found.matched_any() {
            for index in found.iter() {
                if let Some((name, regex)) = self.patterns.get(index) {
                    text = Cow::Owned(self.replaced(name, regex, &text));
                }
            }
        }
        if named && self.named.is_match(&text) {
            text = Cow::Owned(self.replaced(NAMED.0, &self.named, &text));
        }
        text
    }

    fn replaced(&self, name: &str, regex: &Regex, text: &str) -> String {
        regex
            .replace_all(text, |captures: &Captures<'_>| {
                let Some(whole) = captures.get(0) else {
                    return String::new();
                };
                let secret = captures
                    .name("secret")
                    .or_else(|| captures.name("user"))
                    .unwrap_or(whole);
                // What another pattern has found before stays as it is.
                if is_mark(secret.as_str()) {
                    return whole.as_str().to_owned();
                }
                let text = whole.as_str();
                let (from, to) = (secret.start() - whole.start(), secret.end() - whole.start());
                format!(
                    "{}{}{}",
                    text.get(..from).unwrap_or_default(),
                    self.mark(name, secret.as_str()),
                    text.get(to..).unwrap_or_default()
                )
            })
            .into_owned()
    }

    fn mark(&self, what: &str, secret: &str) -> String {
        let digest = blake3::keyed_hash(&self.key, secret.as_bytes()).to_hex();
        format!("[redacted:{what}:{}]", digest.get(..12).unwrap_or_default())
    }
}

/// Whether a text begins with a mark, so that it was looked at before.
fn is_mark(text: &str) -> bool {
    text.starts_with("[redacted:")
}

/// Whether a word is several options of one letter each, of which the last is this one: it takes the next word.
fn is_among(word: &str, option: char) -> bool {
    word.strip_prefix('-').is_some_and(|letters| {
        letters.len() > 1
            && letters.ends_with(option)
            && letters.chars().all(|letter| letter.is_ascii_alphabetic())
    })
}

fn basename(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests;
