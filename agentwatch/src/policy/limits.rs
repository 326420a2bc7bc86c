//! What a policy says about a session apart from its rules: the task, limits, the environment, the record. Texts to
//! values only; whoever starts the session applies them.

use std::time::Duration;

use toml::Spanned;

use super::{
    diagnostic::{Diagnostic, Report, quote},
    file::{Entries, EnvTable, LimitsTable, TaskTable},
    model::{Environment, Limits, NamePattern, Opens, Task},
    name,
    suggest::suggestion,
};

/// The longest text in `[task]`, in characters.
pub const LONGEST_TEXT: usize = 4096;
/// The most acceptance commands.
pub const MAX_ACCEPTANCE: usize = 64;

/// Names of environment variables that hold secrets, by usage: what is dropped unless `env.pass` names it. A name that is
/// asked for by many tools and holds a credential, or reaches an agent that does, belongs here.
pub const SECRETS: [&str; 41] = [
    // By what they are called.
    "*_TOKEN",
    "*_SECRET",
    "*_SECRETS",
    "*_PASSWORD",
    "*_PASSWD",
    "*_PASSPHRASE",
    "*_API_KEY",
    "*_APIKEY",
    "*_PRIVATE_KEY",
    "*_ACCESS_KEY",
    "*_SECRET_KEY",
    "*_CREDENTIALS",
    "*_CREDENTIAL",
    "TOKEN",
    "SECRET",
    "PASSWORD",
    "API_KEY",
    // Clouds.
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_*",
    "AWS_SESSION_*",
    "AWS_SECURITY_*",
    "AWS_CONTAINER_*",
    "AWS_WEB_IDENTITY_*",
    "AZURE_CLIENT_*",
    "ARM_CLIENT_*",
    "GOOGLE_APPLICATION_*",
    "CLOUDSDK_AUTH_*",
    "DIGITALOCEAN_*",
    "KUBECONFIG",
    // Data bases.
    "PGPASSWORD",
    "PGPASSFILE",
    "MYSQL_PWD",
    "REDISCLI_AUTH",
    "DATABASE_URL",
    "*_DATABASE_URL",
    // Agents and sockets that sign or decrypt.
    "SSH_AUTH_SOCK",
    "SSH_AGENT_PID",
    "GPG_AGENT_INFO",
    "DOCKER_HOST",
    "DOCKER_AUTH_CONFIG",
    "DBUS_SESSION_BUS_ADDRESS",
];

/// Reads `[task]`: what is there already stays.
pub fn task(table: TaskTable, report: &mut Report, task: &mut Task) {
    for (slot, text) in [
        (&mut task.goal, table.goal),
        (&mut task.owner, table.owner),
        (&mut task.ticket, table.ticket),
    ] {
        let text = text.and_then(|text| readable(text, report));
        if slot.is_none() {
            *slot = text;
        }
    }
    if let Some(beyond) = table.acceptance.get(MAX_ACCEPTANCE) {
        report.push(
            Diagnostic::error(
                format!("there are more than {MAX_ACCEPTANCE} acceptance commands"),
                beyond.span(),
            )
            .help("put them into a script, and name that"),
        );
        return;
    }
    let commands: Vec<String> = table
        .acceptance
        .into_iter()
        .filter_map(|command| readable(command, report))
        .collect();
    if task.acceptance.is_empty() {
        task.acceptance = commands;
    }
}

fn readable(text: Spanned<String>, report: &mut Report) -> Option<String> {
    let usable = text.get_ref().chars().count() <= LONGEST_TEXT
        && !text
            .get_ref()
            .chars()
            .any(|character| character.is_control() && character != '\n' && character != '\t');
    if !usable {
        report.push(
            Diagnostic::error(
                "the text is too long, or holds control characters",
                text.span(),
            )
            .help(format!("write at most {LONGEST_TEXT} characters")),
        );
        return None;
    }
    Some(text.into_inner())
}

/// Reads `[limits]`: what is there already stays.
pub fn limits(table: &LimitsTable, report: &mut Report, limits: &mut Limits) {
    let mut fault = |message: String, span, help: &str| {
        report.push(Diagnostic::error(message, span).help(help));
    };
    if let Some(pids) = &table.pids {
        // pids.max counts threads too, and a shell with a pipe needs a few.
        match u32::try_from(*pids.get_ref()) {
            Ok(number @ 1..) => limits.pids = limits.pids.or(Some(number)),
            _ => fault(
                format!("{} is not a number of tasks", pids.get_ref()),
                pids.span(),
                "write a number from 1 on, such as 500",
            ),
        }
    }
    if let Some(memory) = &table.memory {
        match memory.get_ref().parse::<bytesize::ByteSize>() {
            Ok(size) if size.as_u64() >= 1 << 20 => {
                limits.memory = limits.memory.or(Some(size.as_u64()));
            }
            _ => fault(
                format!("{} is not a size of memory", quote(memory.get_ref())),
                memory.span(),
                "write a number and a unit, such as `512MiB` or `2GiB`; at least `1MiB`",
            ),
        }
    }
    if let Some(cpu) = &table.cpu {
        let number = *cpu.get_ref();
        if (0.01..=4096.0).contains(&number) {
            // In range, so nothing is cut off.
            limits.cpu = limits.cpu.or(Some((number * 1000.0).round() as u32));
        } else {
            fault(
                format!("{number} is not a number of processors"),
                cpu.span(),
                "write a number from 0.01 to 4096, such as 1.5",
            );
        }
    }
    if let Some(time) = &table.wall_time {
        let duration = time
            .get_ref()
            .parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|time| Duration::try_from(time).ok());
        match duration {
            Some(duration) if duration >= Duration::from_secs(1) => {
                limits.wall_time = limits.wall_time.or(Some(duration.as_secs()));
            }
            _ => fault(
                format!("{} is not a time", quote(time.get_ref())),
                time.span(),
                "write a time of a second at least, such as `45s`, `30m` or `2h 30m`",
            ),
        }
    }
}

/// Reads `[env]`: lists add up.
pub fn environment(table: EnvTable, report: &mut Report, environment: &mut Environment) {
    let mut read = |entries: Entries, patterns: &mut Vec<NamePattern>| {
        for entry in entries {
            match variable(entry.get_ref()) {
                Some(pattern) => patterns.push(pattern),
                None => report.push(
                    Diagnostic::error(
                        format!("{} is not the name of a variable", quote(entry.get_ref())),
                        entry.span(),
                    )
                    .help("write `NAME`, `BEGINNING*` or `*END`; values are not written here"),
                ),
            }
        }
    };
    read(table.pass, &mut environment.pass);
    read(table.drop, &mut environment.drop);
}

fn variable(text: &str) -> Option<NamePattern> {
    let plain = !text.contains(['/', '=', '\0', '?', '[']);
    if text == "*" || !plain {
        return None;
    }
    if !text.contains('*') {
        return (!text.is_empty()).then(|| NamePattern::Exact(text.to_owned()));
    }
    name::parse(text).ok()
}

/// Reads `trace.opens`.
pub fn opens(opens: Option<Spanned<String>>, report: &mut Report) -> Option<Opens> {
    let opens = opens?;
    match opens.get_ref().as_str() {
        "fold" => Some(Opens::Fold),
        "all" => Some(Opens::All),
        "writes" => Some(Opens::Writes),
        other => {
            report.push(
                Diagnostic::error(
                    format!("{} is not a way to record opens", quote(other)),
                    opens.span(),
                )
                .help(suggestion(
                    other,
                    &["fold", "all", "writes"],
                    "the ways are",
                )),
            );
            None
        }
    }
}

impl Environment {
    /// Whether a variable is passed on to the command.
    pub fn passes(&self, name: &[u8]) -> bool {
        let any =
            |patterns: &[NamePattern]| patterns.iter().any(|pattern| name::matches(pattern, name));
        if any(&self.drop) {
            return false;
        }
        any(&self.pass)
            || !SECRETS
                .iter()
                .filter_map(|text| variable(text))
                .any(|pattern| name::matches(&pattern, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{examine, model::Context};

    fn examined(text: &str) -> (Option<crate::policy::model::Compiled>, String) {
        let examined = examine("p.toml", text.as_bytes(), &Context::default());
        (examined.compiled, examined.report.render(false))
    }

    #[test]
    fn limits_are_read() {
        let (compiled, _) = examined(
            "[limits]\npids = 500\nmemory = \"2GiB\"\ncpu = 1.5\nwall_time = \"1h 30m\"\n[trace]\nopens = \"fold\"\n[task]\ngoal = \"g\"\nacceptance = [\"make\"]\n",
        );
        let compiled = compiled.unwrap();
        assert_eq!(
            compiled.limits,
            Limits {
                pids: Some(500),
                memory: Some(2 << 30),
                cpu: Some(1500),
                wall_time: Some(5400)
            }
        );
        assert_eq!(compiled.opens, Opens::Fold);
        for (text, expected) in [("all", Opens::All), ("writes", Opens::Writes)] {
            let (compiled, _) = examined(&format!("[trace]\nopens = \"{text}\"\n"));
            assert_eq!(compiled.unwrap().opens, expected);
        }
        assert_eq!(compiled.task.goal.as_deref(), Some("g"));
        assert_eq!(compiled.task.acceptance, ["make"]);
    }

    #[test]
    fn what_is_no_limit_says_why() {
        for (text, expected) in [
            ("[limits]\npids = 0", "not a number of tasks"),
            ("[limits]\npids = -1", "not a number of tasks"),
            ("[limits]\nmemory = \"lots\"", "not a size of memory"),
            ("[limits]\nmemory = \"1\"", "not a size of memory"),
            ("[limits]\ncpu = 0.0", "not a number of processors"),
            ("[limits]\ncpu = nan", "not a number of processors"),
            ("[limits]\nwall_time = \"soon\"", "not a time"),
            ("[limits]\nwall_time = \"-1h\"", "not a time"),
            ("[limits]\nwall_time = \"1ms\"", "not a time"),
            ("[trace]\nopens = \"fodl\"", "did you mean `fold`?"),
            ("[env]\npass = [\"A=b\"]", "not the name of a variable"),
            ("[env]\ndrop = [\"*\"]", "not the name of a variable"),
            ("[task]\ngoal = \"\\u001b[2J\"", "control characters"),
        ] {
            let (compiled, report) = examined(text);
            assert!(compiled.is_none(), "{text}");
            assert!(report.contains(expected), "{text}: {report}");
        }
    }

    #[test]
    fn secrets_stay_unless_they_are_named() {
        for text in SECRETS {
            assert!(variable(text).is_some(), "{text}");
        }
        let environment = Environment::default();
        for (name, passes) in [
            ("PATH", true),
            ("TERM", true),
            ("GITHUB_TOKEN", false),
            ("ANTHROPIC_API_KEY", false),
            ("AWS_SECRET_ACCESS_KEY", false),
            ("SSH_AUTH_SOCK", false),
            ("AWS_REGION", true),
            ("TOKENIZERS_PARALLELISM", true),
        ] {
            assert_eq!(environment.passes(name.as_bytes()), passes, "{name}");
        }
        let environment =
            examined("[env]\npass = [\"*_API_KEY\"]\ndrop = [\"EVIL_*\", \"TERM\"]\n")
                .0
                .unwrap()
                .environment;
        for (name, passes) in [
            ("ANTHROPIC_API_KEY", true),
            ("EVIL_API_KEY", false),
            ("TERM", false),
            ("GITHUB_TOKEN", false),
        ] {
            assert_eq!(environment.passes(name.as_bytes()), passes, "{name}");
        }
    }
}
