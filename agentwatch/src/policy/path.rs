//! What a path in a policy names: absolute, and lexically clean. It must never look at a file system; symlinks are
//! followed by whoever binds the path to an inode.

use std::{
    borrow::Cow,
    path::{Component, Path, PathBuf},
};

use super::{diagnostic::quote, model::Context, suggest::suggestion};

/// PATH_MAX of include/uapi/linux/limits.h, without the final NUL.
pub const LONGEST_PATH: usize = 4095;
/// NAME_MAX of include/uapi/linux/limits.h.
pub const LONGEST_NAME: usize = 255;

/// Why an entry can't be used, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub message: String,
    pub help: String,
}

impl Fault {
    pub fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: help.into(),
        }
    }
}

/// Reads the text of a path rule.
pub fn parse(text: &str, context: &Context) -> Result<PathBuf, Fault> {
    if text.is_empty() {
        return Err(Fault::new(
            "the path is empty",
            "write `.` for the working directory",
        ));
    }
    if text.contains('\0') {
        return Err(Fault::new(
            "the path holds a NUL character",
            "no file can have such a name: take it out",
        ));
    }
    if let Some(glob) = text
        .chars()
        .find(|character| matches!(character, '*' | '?' | '['))
    {
        return Err(Fault::new(
            format!("the path holds the pattern character `{glob}`"),
            "a rule binds to the file that its path names, and a pattern names none: \
             write the directory, and list what differs inside it as rules of their own",
        ));
    }
    if text.starts_with('$') && !text.starts_with("${") {
        return Err(Fault::new(
            format!(
                "variables of the environment are not expanded: {}",
                quote(text)
            ),
            "write `${home}`, `${workspace}`, `${tmp}` or `${uid}`; a name that begins with `$` is written `./$…`",
        ));
    }
    let expanded = expand(text, context)?;
    let text = expanded.as_ref();
    let (base, rest) = match text.strip_prefix('~') {
        Some("") => (Some(("home directory", &context.home)), ""),
        Some(rest) if rest.starts_with('/') => (
            Some(("home directory", &context.home)),
            rest.trim_start_matches('/'),
        ),
        Some(_) => {
            return Err(Fault::new(
                format!(
                    "only one's own home directory can be written with `~`: {}",
                    quote(text)
                ),
                "write the other user's home as an absolute path; a name that begins with `~` is written `./~…`",
            ));
        }
        None if text.starts_with('/') => (None, text),
        None => (Some(("working directory", &context.cwd)), text),
    };
    let whole = match base {
        Some((what, base)) if !base.is_absolute() || base.to_str().is_none() => {
            return Err(Fault::new(
                format!("the {what} that the path starts from is not a usable path"),
                "write an absolute path",
            ));
        }
        Some((_, base)) => base.join(rest),
        None => PathBuf::from(rest),
    };
    let path = clean(&whole);
    let length = path.as_os_str().len();
    if length > LONGEST_PATH {
        return Err(Fault::new(
            format!("the path has {length} bytes, more than the {LONGEST_PATH} that Linux takes"),
            "name a directory further up",
        ));
    }
    if path
        .components()
        .any(|component| component.as_os_str().len() > LONGEST_NAME)
    {
        return Err(Fault::new(
            format!("a name in the path has more than the {LONGEST_NAME} bytes that Linux takes"),
            "no file can have such a name: correct it",
        ));
    }
    Ok(path)
}

/// The names of variables.
pub const VARIABLES: [&str; 4] = ["workspace", "home", "tmp", "uid"];

/// Puts the values of variables in their places. A value is a part of a path, and never a pattern.
pub(super) fn expand<'t>(text: &'t str, context: &Context) -> Result<Cow<'t, str>, Fault> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((name, after)) = after.split_once('}') else {
            return Err(Fault::new(
                format!("the brace of a variable is not closed: {}", quote(text)),
                "write `${home}`, `${workspace}`, `${tmp}` or `${uid}`",
            ));
        };
        let directory = |path: &Path, what: &str| match path.to_str() {
            Some(path_text) if path.is_absolute() => Ok(path_text.to_owned()),
            _ => Err(Fault::new(
                format!("`${{{name}}}` has no value here: the {what} is not a usable path"),
                "write an absolute path",
            )),
        };
        let value = match name {
            "workspace" => directory(&context.cwd, "working directory")?,
            "home" => directory(&context.home, "home directory")?,
            "tmp" if context.tmp.as_os_str().is_empty() => "/tmp".to_owned(),
            "tmp" => directory(&context.tmp, "directory for temporary files")?,
            "uid" => context.uid.to_string(),
            _ => {
                return Err(Fault::new(
                    format!("there is no variable {}", quote(name)),
                    suggestion(name, &VARIABLES, "the variables are"),
                ));
            }
        };
        // A directory begins the path, so that `/x${home}` does not mean something else than it seems to.
        if name != "uid" && !before.is_empty() {
            return Err(Fault::new(
                format!(
                    "`${{{name}}}` is a whole path, and something stands before it: {}",
                    quote(text)
                ),
                "let the path begin with it",
            ));
        }
        expanded.push_str(before);
        expanded.push_str(&value);
        rest = after;
    }
    if expanded.is_empty() {
        return Ok(Cow::Borrowed(text));
    }
    expanded.push_str(rest);
    Ok(Cow::Owned(expanded))
}

/// Takes `.`, `..` and repeated slashes out of an absolute path, by its text alone.
pub fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            // Above the root is the root.
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> Context {
        Context::of_tests("/w/project")
    }

    #[test]
    fn paths_become_absolute_and_clean() {
        for (text, expected) in [
            ("/", "/"),
            ("//", "/"),
            ("/usr//lib/./x/../", "/usr/lib"),
            ("/../..", "/"),
            (".", "/w/project"),
            ("..", "/w"),
            ("../../../..", "/"),
            ("src/", "/w/project/src"),
            ("~", "/home/u"),
            ("~/", "/home/u"),
            ("~//x", "/home/u/x"),
            ("~/../v", "/home/v"),
            ("./~x", "/w/project/~x"),
            ("./$x", "/w/project/$x"),
            ("a~", "/w/project/a~"),
            ("/a b", "/a b"),
            ("${workspace}/x", "/w/project/x"),
            ("${home}", "/home/u"),
            ("${home}/../v", "/home/v"),
            ("${tmp}/x", "/tmp/x"),
            ("/run/user/${uid}/bus", "/run/user/1000/bus"),
            ("x${uid}y", "/w/project/x1000y"),
        ] {
            assert_eq!(
                parse(text, &context()),
                Ok(PathBuf::from(expected)),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_path_says_why() {
        let long_name = format!("/{}", "n".repeat(LONGEST_NAME + 1));
        let long_path = "/abcdefg".repeat(LONGEST_PATH / 8 + 1);
        for (text, expected) in [
            ("", "empty"),
            ("/a\0b", "NUL"),
            ("/a/*.pem", "pattern character `*`"),
            ("/a/?", "pattern character `?`"),
            ("/a/[b]", "pattern character `[`"),
            ("~root/x", "only one's own home"),
            ("$HOME/x", "variables of the environment"),
            ("${HOME}/x", "there is no variable `HOME`"),
            ("${home", "not closed"),
            ("/x${home}", "something stands before it"),
            (&long_name, "255 bytes"),
            (&long_path, "4095"),
        ] {
            let fault = parse(text, &context()).expect_err(text);
            assert!(
                fault.message.contains(expected),
                "{text}: {}",
                fault.message
            );
            assert!(!fault.help.is_empty());
        }
        let nowhere = Context {
            cwd: "relative".into(),
            ..Context::default()
        };
        assert!(parse("x", &nowhere).is_err());
        assert!(parse("~", &nowhere).is_err());
        assert!(parse("/x", &nowhere).is_ok());
    }
}
