//! Rules on commands: a program and the first of its arguments, such as `["git", "push"]`. They say less than they seem to
//! where a program has options before its subcommand (`git -C x push`), or stands under another name; what must not run at
//! all is said by its place.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    diagnostic::quote,
    model::{
        CommandRule, Compiled, Context, Decision, Effect, MAX_ARGUMENTS, Program, Rule, RuleIndex,
    },
    path::{self, Fault},
};
use crate::event::model::Layer;

/// Where a program that is named without its path is looked for.
pub const USUAL_DIRECTORIES: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// A program and the first of its arguments, as a rule names them.
pub type Command = (Program, Vec<String>);

/// A command as people write it: words that would be read otherwise stand in quotes.
pub fn text<S: AsRef<str>>(words: &[S]) -> String {
    let quoted = words.iter().map(|word| {
        let word = word.as_ref();
        let plain = |letter: char| !letter.is_whitespace() && !matches!(letter, '"' | '\\');
        if word.is_empty() || !word.chars().all(plain) {
            format!("{word:?}")
        } else {
            word.to_owned()
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// Reads the words of a rule on commands.
pub fn parse(words: &[&str], context: &Context) -> Result<Command, Fault> {
    let Some((program, arguments)) = words.split_first() else {
        return Err(Fault::new(
            "the command is empty",
            "write the program and the first of its arguments, such as `[\"git\", \"push\"]`",
        ));
    };
    let program = parse_program(program, context)?;
    let mut bytes = 0;
    for argument in arguments {
        if argument.is_empty() {
            return Err(Fault::new(
                "an argument is empty",
                "take it out, and what follows it",
            ));
        }
        if argument.contains('\0') {
            return Err(Fault::new(
                "an argument holds a NUL character",
                "no program can be given such an argument: take it out",
            ));
        }
        bytes += argument.len() + 1;
    }
    if bytes > MAX_ARGUMENTS {
        return Err(Fault::new(
            format!(
                "the arguments have {bytes} bytes, one for the end of each included, more than the {MAX_ARGUMENTS} that the kernel compares"
            ),
            "write fewer arguments: a rule is about the first ones",
        ));
    }
    let arguments = arguments.iter().map(|argument| (*argument).to_owned());
    Ok((program, arguments.collect()))
}

fn parse_program(text: &str, context: &Context) -> Result<Program, Fault> {
    if text.contains('/') || matches!(text, "~" | "." | "..") || text.starts_with("${") {
        return path::parse(text, context).map(Program::Path);
    }
    if text.is_empty() {
        return Err(Fault::new(
            "the program is empty",
            "write its path, or its name alone, such as `git`",
        ));
    }
    if text.contains(['*', '?', '[', '\0']) || text.starts_with('~') {
        return Err(Fault::new(
            format!("{} is not the name of a program", quote(text)),
            "write its path, or its name alone, such as `git`",
        ));
    }
    if text.len() > path::LONGEST_NAME {
        return Err(Fault::new(
            format!(
                "the program's name has more than the {} bytes that Linux takes",
                path::LONGEST_NAME
            ),
            "no file can have such a name: correct it",
        ));
    }
    Ok(Program::Name(text.to_owned()))
}

impl Program {
    /// Whether a path is this program's, by its words: links are not followed.
    pub fn is(&self, path: &Path) -> bool {
        match self {
            Program::Path(own) => own == path,
            Program::Name(name) => path.file_name().is_some_and(|last| last == name.as_str()),
        }
    }

    /// The paths where it is looked for.
    pub fn paths(&self) -> Vec<PathBuf> {
        match self {
            Program::Path(path) => vec![path.clone()],
            Program::Name(name) => USUAL_DIRECTORIES
                .iter()
                .map(|directory| Path::new(directory).join(name))
                .collect(),
        }
    }
}

/// What the rules on commands say of a program, by whether a rule's program is that one, and its arguments without its
/// name. None where none matches. Of the rules that match, one with more arguments wins over one with fewer, and the
/// stricter one of two that have as many; but what the administrator says is not loosened by a longer one.
///
/// A rule's own arguments are asked for like any others, which settles what several rules mean together.
pub fn decide<S: AsRef<str>>(
    compiled: &Compiled,
    is: impl Fn(&Program) -> bool,
    arguments: &[S],
) -> Option<Decision> {
    let matching = compiled.commands.iter().filter(|rule| {
        rule.arguments.len() <= arguments.len()
            && (rule.arguments.iter().zip(arguments)).all(|(own, word)| own == word.as_ref())
            && is(&rule.program)
    });
    let managed = |rule: RuleIndex| is_managed(&compiled.rules, rule);
    let mut nearest: Option<&CommandRule> = None;
    let mut floor: Option<Decision> = None;
    for rule in matching {
        let key = |rule: &CommandRule| (rule.arguments.len(), rule.decision.effect);
        if nearest.is_none_or(|nearest| key(rule) > key(nearest)) {
            nearest = Some(rule);
        }
        if managed(rule.decision.rule)
            && rule.decision.effect > Effect::Allow
            && floor.is_none_or(|floor| rule.decision.effect > floor.effect)
        {
            floor = Some(rule.decision);
        }
    }
    let own = nearest?.decision;
    Some(
        floor
            .filter(|floor| floor.effect >= own.effect)
            .unwrap_or(own),
    )
}

/// What a program's place and a rule on its command mean together. A command's rule opens no program, and what the
/// administrator says of the place is not loosened by it.
pub fn settle(compiled: &Compiled, place: Decision, command: Option<Decision>) -> Decision {
    match command {
        Some(command)
            if place.effect != Effect::Deny
                && (command.effect >= place.effect || !is_managed(&compiled.rules, place.rule)) =>
        {
            command
        }
        _ => place,
    }
}

fn is_managed(rules: &[Rule], rule: RuleIndex) -> bool {
    rules
        .get(rule as usize)
        .is_some_and(|rule| rule.layer == Layer::Managed)
}

/// The rules, each command once: of equal ones the strictest, and of those the administrator's.
pub(super) fn merge(rules: impl Iterator<Item = (Command, Decision, Layer)>) -> Vec<CommandRule> {
    let mut merged: BTreeMap<Command, (Decision, Layer)> = BTreeMap::new();
    for (command, decision, layer) in rules {
        merged
            .entry(command)
            .and_modify(|(known, of)| {
                let stricter = decision.effect > known.effect
                    || decision.effect == known.effect
                        && layer == Layer::Managed
                        && *of != Layer::Managed;
                if stricter {
                    (*known, *of) = (decision, layer);
                }
            })
            .or_insert((decision, layer));
    }
    merged
        .into_iter()
        .map(|((program, arguments), (decision, _))| CommandRule {
            program,
            arguments,
            decision,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Sources, examine_all, explain::decide_command, load, sources::Managed};

    fn context() -> Context {
        Context::of_tests("/w")
    }

    #[test]
    fn commands_are_read() {
        let name = |text: &str| Program::Name(text.to_owned());
        for (words, expected) in [
            (&["git", "push"][..], (name("git"), vec!["push".to_owned()])),
            (&["make"], (name("make"), vec![])),
            (
                &["/usr/bin/../bin/git"],
                (Program::Path("/usr/bin/git".into()), vec![]),
            ),
            (&["./x"], (Program::Path("/w/x".into()), vec![])),
            (
                &["~/bin/x"],
                (Program::Path("/home/u/bin/x".into()), vec![]),
            ),
        ] {
            assert_eq!(parse(words, &context()), Ok(expected), "{words:?}");
        }
        let (whole, long) = ("a".repeat(MAX_ARGUMENTS - 1), "a".repeat(MAX_ARGUMENTS));
        assert!(parse(&["x", &whole], &context()).is_ok());
        for (words, message) in [
            (&[][..], "the command is empty"),
            (&[""], "the program is empty"),
            (&["g*t"], "is not the name of a program"),
            (&["~bob"], "is not the name of a program"),
            (&["/usr/bin/*"], "pattern character"),
            (&["git", ""], "an argument is empty"),
            (&["git", "a\0b"], "NUL"),
            (&["git", &long], "112 bytes"),
            (&["git", &whole, "b"], "113 bytes"),
        ] {
            let fault = parse(words, &context()).expect_err(message);
            assert!(
                fault.message.contains(message),
                "{words:?}: {}",
                fault.message
            );
        }
    }

    fn asked(compiled: &Compiled, words: &[&str]) -> String {
        let decision = decide_command(compiled, Path::new(words[0]), &words[1..]);
        let rule = &compiled.rules[decision.rule as usize].id;
        format!("{:?} {rule}", decision.effect)
    }

    #[test]
    fn the_longest_command_decides_where_the_place_does_not_deny() {
        let policy = load(
            "p.toml",
            br#"
            [files]
            read = ["/usr"]
            [exec]
            allow = ["/usr", ["git", "push", "--dry-run"], ["git", "status"], ["/opt/x", "a"], ["gh", "pr"]]
            approve = [["git", "push"], "/usr/bin/gh", ["git", "status"], ["/usr/bin/npm", "publish"]]
            deny = [["git", "push", "--force"], ["git", "push", "--force"], "/usr/bin/curl", ["dd"]]
            "#,
            &context(),
        )
        .unwrap_or_else(|error| panic!("{error}"));
        for (words, expected) in [
            (&["/usr/bin/git"][..], "Allow exec.allow[0]"),
            (&["/usr/bin/git", "log"], "Allow exec.allow[0]"),
            (&["/usr/bin/git", "push"], "Approve exec.approve[0]"),
            (&["/usr/bin/git", "push", "x"], "Approve exec.approve[0]"),
            (&["/usr/bin/git", "-C", "x", "push"], "Allow exec.allow[0]"),
            (
                &["/usr/bin/git", "push", "--dry-run", "x"],
                "Allow exec.allow[1]",
            ),
            (&["/usr/bin/git", "push", "--force"], "Deny exec.deny[0]"),
            (&["/usr/bin/git", "pushx"], "Allow exec.allow[0]"),
            (&["/usr/local/bin/git", "status"], "Approve exec.approve[2]"),
            (&["/usr/bin/gh", "x"], "Approve exec.approve[1]"),
            (&["/usr/bin/gh", "pr"], "Allow exec.allow[4]"),
            (&["/usr/bin/npm", "publish"], "Approve exec.approve[3]"),
            (&["/usr/local/bin/npm", "publish"], "Allow exec.allow[0]"),
            (&["/usr/bin/dd", "if=x"], "Deny exec.deny[3]"),
            (&["/opt/x", "a"], "Deny files.default"),
            (&["/usr/bin/curl", "x"], "Deny exec.deny[2]"),
        ] {
            assert_eq!(asked(&policy, words), expected, "{words:?}");
        }
        assert_eq!(policy.commands.len(), 8);
        let warnings = policy.warnings.join("\n");
        assert!(
            warnings.contains("`/opt/x a` in `exec.allow` opens no program"),
            "{warnings}"
        );
        assert!(
            warnings.contains("`git push --force` is listed twice in `exec.deny`"),
            "{warnings}"
        );
        assert_eq!(policy.warnings.len(), 2, "{warnings}");
    }

    #[test]
    fn the_floor_is_not_loosened_by_longer_commands() {
        let managed = [Managed {
            path: "/etc/agentwatch/managed.d/0.toml".into(),
            text: "[exec]\napprove = [[\"git\", \"push\"], \"/usr/bin/npm\"]\ndeny = [[\"/usr/bin/git\", \"remote\"]]\n".to_owned(),
        }];
        let text = br#"
            [exec]
            allow = ["/usr", ["git", "push", "origin"], ["git", "remote", "-v"], ["npm", "test"], ["git", "push"]]
            deny = [["git", "push", "--force"], ["npm", "publish"]]
        "#;
        let context = context();
        let examined = examine_all(&Sources {
            managed: &managed,
            ..Sources::alone("p.toml", text, &context)
        });
        let policy = examined.compiled.unwrap();
        for (words, expected) in [
            (
                &["/usr/bin/git", "push", "origin"][..],
                "Approve exec.approve[0]",
            ),
            (&["/usr/bin/git", "push"], "Approve exec.approve[0]"),
            (&["/usr/bin/git", "push", "--force"], "Deny exec.deny[0]"),
            (&["/usr/bin/git", "remote", "-v"], "Deny exec.deny[0]"),
            (
                &["/usr/local/bin/git", "remote", "-v"],
                "Allow exec.allow[2]",
            ),
            (&["/usr/bin/npm", "test"], "Approve exec.approve[1]"),
            (&["/usr/bin/npm", "publish"], "Deny exec.deny[1]"),
        ] {
            assert_eq!(asked(&policy, words), expected, "{words:?}");
        }
    }
}
