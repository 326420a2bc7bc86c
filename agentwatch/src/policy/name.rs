//! Rules on names: what a file is called, wherever it stands, and what such rules take away from a path. Only what the
//! kernel can look up exactly is a pattern here: a whole name, or its beginning or its end. It must never be used to say
//! what is allowed, because a session can give any file any name.

use std::path::Path;

use super::{
    diagnostic::quote,
    model::{Access, Decision, Effect, MAX_NAME_PATTERN, Name, NamePattern},
    path::Fault,
};

/// Characters that make a path a pattern.
pub const PATTERN: [char; 3] = ['*', '?', '['];

/// Whether a rule's text is a pattern, and not a path.
pub fn is_pattern(text: &str) -> bool {
    text.contains(PATTERN)
}

/// Reads a pattern: `**/NAME`, `*END`, `**/*END`, `BEGINNING*`, `**/BEGINNING*`.
pub fn parse(text: &str) -> Result<NamePattern, Fault> {
    let name = text.strip_prefix("**/").unwrap_or(text);
    if let Some(character) = name
        .chars()
        .find(|character| matches!(character, '?' | '['))
    {
        return Err(Fault::new(
            format!("the name holds the pattern character `{character}`"),
            "the kernel looks names up by their beginning or their end: write one `*` at one of the two, such as `**/*.pem`",
        ));
    }
    if name.contains('/') {
        return Err(Fault::new(
            format!("{} is a pattern over several names of a path", quote(text)),
            "a pattern is about one name, wherever it stands, such as `**/.env` or `**/*.pem`; \
             what is in a directory is closed by the directory's path",
        ));
    }
    let (kind, part): (fn(String) -> NamePattern, &str) =
        match (name.strip_prefix('*'), name.strip_suffix('*')) {
            (Some(end), _) if !end.contains('*') => (NamePattern::Suffix, end),
            (_, Some(beginning)) if !beginning.contains('*') => (NamePattern::Prefix, beginning),
            (None, None) if !name.contains('*') => (NamePattern::Exact, name),
            _ => {
                return Err(Fault::new(
                    format!(
                        "{} does not have its one `*` at the beginning or the end of the name",
                        quote(text)
                    ),
                    "write `**/*END` or `**/BEGINNING*`, each as a rule",
                ));
            }
        };
    if part.is_empty()
        || matches!(part, "." | "..") && kind(String::new()) == NamePattern::Exact(String::new())
    {
        return Err(Fault::new(
            format!("{} names everything or nothing", quote(text)),
            "what no rule allows is denied anyway: take it out, or write a part of the name",
        ));
    }
    if part.contains('\0') {
        return Err(Fault::new(
            "the name holds a NUL character",
            "no file can have such a name: take it out",
        ));
    }
    if part.len() > MAX_NAME_PATTERN {
        return Err(Fault::new(
            format!(
                "the pattern has {} bytes, more than the {MAX_NAME_PATTERN} that the kernel compares",
                part.len()
            ),
            "write a shorter part of the name",
        ));
    }
    Ok(kind(part.to_owned()))
}

/// Whether a name is one that the pattern means.
pub fn matches(pattern: &NamePattern, name: &[u8]) -> bool {
    match pattern {
        NamePattern::Exact(whole) => name == whole.as_bytes(),
        NamePattern::Suffix(end) => name.ends_with(end.as_bytes()),
        NamePattern::Prefix(beginning) => name.starts_with(beginning.as_bytes()),
    }
}

/// Whether one pattern is looked up by the same end of a name as another, and matches all that the other does.
pub fn covers(pattern: &NamePattern, other: &NamePattern) -> bool {
    match (pattern, other) {
        (NamePattern::Exact(_), _) => pattern == other,
        (NamePattern::Suffix(end), NamePattern::Exact(other) | NamePattern::Suffix(other)) => {
            other.ends_with(end.as_str())
        }
        (NamePattern::Prefix(beginning), NamePattern::Prefix(other)) => {
            other.starts_with(beginning.as_str())
        }
        _ => false,
    }
}

/// Which of two patterns that match one name is asked first, the greater: by what ends it before what begins it, as the
/// kernel looks them up, and the longer one of each; a whole name is longer than all its ends.
pub fn rank(pattern: &NamePattern) -> (bool, usize) {
    match pattern {
        NamePattern::Exact(whole) => (true, whole.len() + 1),
        NamePattern::Suffix(end) => (true, end.len()),
        NamePattern::Prefix(beginning) => (false, beginning.len()),
    }
}

/// What rules on names leave of what is decided around them. A name is nearer: of two that say the same it is the one to tell.
pub(super) fn under_names(names: Option<Decision>, around: Decision) -> Decision {
    names
        .filter(|name| name.effect >= around.effect)
        .unwrap_or(around)
}

/// What the rules on names at and above a path, below `above`, take away: right by right the strictest, and of those the nearest.
pub(super) fn names_over(
    names: &[Name],
    path: &Path,
    above: Option<&Path>,
) -> [Option<Decision>; 3] {
    let mut over = [None; 3];
    for (_, decisions) in each_name(names, path, above) {
        for (own, further) in over.iter_mut().zip(decisions) {
            if further.effect > own.map_or(Effect::Allow, |own: Decision| own.effect) {
                *own = Some(further);
            }
        }
        if over
            .iter()
            .all(|own| own.is_some_and(|own| own.effect == Effect::Deny))
        {
            break;
        }
    }
    over
}

/// The names at and above a path, below `above`, that rules are about, the nearest first: the path up to there, and what they say.
pub(super) fn each_name<'p>(
    names: &[Name],
    path: &'p Path,
    above: Option<&Path>,
) -> impl Iterator<Item = (&'p Path, [Decision; 3])> {
    let ancestors = path
        .ancestors()
        .take(if names.is_empty() { 0 } else { usize::MAX });
    ancestors
        .take_while(move |part| Some(*part) != above)
        .filter_map(|part| Some((part, at_name(names, part.file_name()?.as_encoded_bytes())?)))
}

/// What the rules on one name say: the longest that fits its end and the longest that fits its beginning, and of these two the
/// stricter, right by right.
fn at_name(names: &[Name], text: &[u8]) -> Option<[Decision; 3]> {
    let longest = |ends: bool| {
        names
            .iter()
            .filter(|rule| rank(&rule.pattern).0 == ends && matches(&rule.pattern, text))
            .max_by_key(|rule| rank(&rule.pattern))
            .map(|rule| rule.decisions)
    };
    match (longest(true), longest(false)) {
        (Some(end), Some(beginning)) => Some(Access::ALL.map(|access| {
            let (end, beginning) = (end[access as usize], beginning[access as usize]);
            if beginning.effect > end.effect {
                beginning
            } else {
                end
            }
        })),
        (end, beginning) => end.or(beginning),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_read() {
        use NamePattern::{Exact, Prefix, Suffix};
        for (text, expected) in [
            ("**/.env", Exact(".env".into())),
            ("*.pem", Suffix(".pem".into())),
            ("**/*.pem", Suffix(".pem".into())),
            ("id_*", Prefix("id_".into())),
            ("**/.env.*", Prefix(".env.".into())),
            ("**/é", Exact("é".into())),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_looked_up_is_refused() {
        let long = format!("*{}", "n".repeat(MAX_NAME_PATTERN + 1));
        for (text, message) in [
            ("*", "everything or nothing"),
            ("**", "does not have its one"),
            ("**/", "everything or nothing"),
            ("**/..", "everything or nothing"),
            ("**/*", "everything or nothing"),
            ("a*b", "does not have its one"),
            ("*a*", "does not have its one"),
            ("**a", "does not have its one"),
            ("src/*.rs", "several names"),
            ("/etc/*", "several names"),
            ("**/.ssh/*", "several names"),
            ("~/**/x", "several names"),
            ("**/x?", "`?`"),
            ("*.[ch]", "`[`"),
            (&long, "119"),
        ] {
            let fault = parse(text).expect_err(text);
            assert!(fault.message.contains(message), "{text}: {}", fault.message);
            assert!(!fault.help.is_empty());
        }
    }

    #[test]
    fn the_longer_match_comes_first() {
        let read = |text: &str| parse(text).unwrap();
        assert!(rank(&read("**/.env")) > rank(&read("*.env")));
        assert!(rank(&read("*a.pem")) > rank(&read("*.pem")));
        assert!(rank(&read("*m")) > rank(&read("id_rsa*")));
    }
}
