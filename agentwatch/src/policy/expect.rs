//! Questions to a policy, and the answers that its author expects: `[[expect]]`. Pure, as everything here: a question names an
//! action by its words, and nothing is looked up.

use std::{net::SocketAddr, ops::Range, path::PathBuf};

use toml::Spanned;

use super::{
    command,
    diagnostic::{Diagnostic, Report, quote},
    explain::{self, Answer, UnixPeer},
    file::{ExecEntry, ExpectTable},
    model::{Access, Compiled, Context, Effect, NetOp, UnixTarget},
    path::{self, Fault},
    suggest::suggestion,
    surface,
};

/// One action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    File(Access, PathBuf),
    /// Executing a program with arguments, its name not among them.
    Command(PathBuf, Vec<String>),
    Net(NetOp, SocketAddr),
    /// Connecting to a socket by its path.
    Unix(PathBuf),
    /// Connecting to a socket by its abstract name.
    Abstract(String),
}

impl Question {
    /// Reads whom a program connects to: `IP:PORT`, `unix:PATH`, `unix:@NAME`.
    pub fn connect(text: &str, context: &Context) -> Result<Self, Fault> {
        let Some(socket) = text.strip_prefix("unix:") else {
            return address(text).map(|address| Self::Net(NetOp::Connect, address));
        };
        match surface::parse_unix(socket, context)? {
            UnixTarget::Path(path) => Ok(Self::Unix(path)),
            UnixTarget::Abstract(name) => Ok(Self::Abstract(name)),
            UnixTarget::AbstractPrefix(_) => Err(Fault::new(
                format!("{} names many sockets", quote(text)),
                "ask about one, such as `unix:@NAME`",
            )),
        }
    }

    /// Reads what a program binds.
    pub fn listen(text: &str) -> Result<Self, Fault> {
        address(text).map(|address| Self::Net(NetOp::Listen, address))
    }

    pub fn answer<'a>(&self, compiled: &'a Compiled) -> Answer<'a> {
        match self {
            Self::File(access, path) => explain::explain_file(compiled, *access, path),
            Self::Command(path, arguments) => explain::explain_command(compiled, path, arguments),
            Self::Net(op, address) => {
                explain::explain_net(compiled, *op, address.ip(), address.port())
            }
            Self::Unix(path) => explain::explain_unix(compiled, UnixPeer::Path(path)),
            Self::Abstract(name) => {
                explain::explain_unix(compiled, UnixPeer::Abstract(name.as_bytes()))
            }
        }
    }

    /// What is done, in a word.
    pub fn action(&self) -> &'static str {
        match self {
            Self::File(Access::Read, _) => "read",
            Self::File(Access::Write, _) => "write",
            Self::File(Access::Exec, _) | Self::Command(..) => "exec",
            Self::Net(NetOp::Listen, _) => "listen",
            Self::Net(NetOp::Connect, _) | Self::Unix(_) | Self::Abstract(_) => "connect",
        }
    }

    /// What it is done to.
    pub fn object(&self) -> String {
        match self {
            Self::File(_, path) => path.display().to_string(),
            Self::Command(path, arguments) => {
                let mut words = vec![path.display().to_string()];
                words.extend(arguments.iter().cloned());
                command::text(&words)
            }
            Self::Net(_, address) => address.to_string(),
            Self::Unix(path) => format!("unix:{}", path.display()),
            Self::Abstract(name) => format!("unix:@{name}"),
        }
    }
}

fn address(text: &str) -> Result<SocketAddr, Fault> {
    text.parse().map_err(|_| {
        Fault::new(
            format!("{} is not an address and a port", quote(text)),
            "write an IP address and a port, such as `127.0.0.1:8080` or `[::1]:443`; \
             `unix:/PATH` or `unix:@NAME` for a socket that is connected to",
        )
    })
}

/// A question with the answer that is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation {
    pub span: Range<usize>,
    pub question: Question,
    pub effect: Effect,
    /// Id of the rule that is to decide.
    pub rule: Option<String>,
}

/// Reads the tables; what is wrong with them goes into the report.
pub(super) fn read(
    tables: Vec<ExpectTable>,
    context: &Context,
    report: &mut Report,
) -> Vec<Expectation> {
    tables
        .into_iter()
        .filter_map(|table| match read_one(table, context) {
            Ok(expectation) => Some(expectation),
            Err(diagnostic) => {
                report.push(*diagnostic);
                None
            }
        })
        .collect()
}

fn read_one(table: ExpectTable, context: &Context) -> Result<Expectation, Box<Diagnostic>> {
    let error = |message: String, span: Range<usize>, help: &str| {
        Box::new(Diagnostic::error(message, span).help(help))
    };
    let span = table.span;
    let file = |access| {
        move |text: &str| path::parse(text, context).map(|path| Question::File(access, path))
    };
    type Read<'r> = Box<dyn Fn(&str) -> Result<Question, Fault> + 'r>;
    // A command is asked about by its words; its program is named by a path.
    let (program, arguments) = match table.exec {
        None => (None, None),
        Some(ExecEntry::Program(path)) => (Some(path), None),
        Some(ExecEntry::Command(words)) => {
            let at = words.span();
            let mut words = words.into_inner().into_iter().map(Spanned::into_inner);
            let program = words.next().unwrap_or_default();
            (
                Some(Spanned::new(at, program)),
                Some(words.collect::<Vec<_>>()),
            )
        }
    };
    let exec = |text: &str| -> Result<Question, Fault> {
        let bare = !text.contains('/') && !text.is_empty() && arguments.is_some();
        if bare {
            return Err(Fault::new(
                format!(
                    "{} is a bare name, and nothing is looked up here",
                    quote(text)
                ),
                format!("write the program's path, such as `/usr/bin/{text}`"),
            ));
        }
        let path = path::parse(text, context)?;
        Ok(match &arguments {
            None => Question::File(Access::Exec, path),
            Some(arguments) => Question::Command(path, arguments.clone()),
        })
    };
    let asked: Vec<(Spanned<String>, Read<'_>)> = [
        (table.read, Box::new(file(Access::Read)) as Read<'_>),
        (table.write, Box::new(file(Access::Write))),
        (program, Box::new(exec)),
        (
            table.connect,
            Box::new(|text: &str| Question::connect(text, context)),
        ),
        (table.listen, Box::new(Question::listen)),
    ]
    .into_iter()
    .filter_map(|(text, read)| Some((text?, read)))
    .collect();
    let [(text, read)] = asked.as_slice() else {
        return Err(error(
            format!(
                "an expectation asks one question, and this asks {}",
                asked.len()
            ),
            span,
            "write one of `read`, `write`, `exec`, `connect`, `listen`; for more, begin another `[[expect]]`",
        ));
    };
    let question =
        read(text.get_ref()).map_err(|fault| error(fault.message, text.span(), &fault.help))?;
    let Some(verdict) = table.verdict else {
        return Err(error(
            "an expectation says what it expects".to_owned(),
            span,
            "add `verdict = \"allowed\"`, `verdict = \"held\"` or `verdict = \"denied\"`",
        ));
    };
    let effect = match verdict.get_ref().as_str() {
        "allowed" => Effect::Allow,
        "held" => Effect::Approve,
        "denied" => Effect::Deny,
        other => {
            return Err(error(
                format!("there is no verdict {}", quote(other)),
                verdict.span(),
                &suggestion(other, &["allowed", "held", "denied"], "the verdicts are"),
            ));
        }
    };
    Ok(Expectation {
        span,
        question,
        effect,
        rule: table.rule.map(Spanned::into_inner),
    })
}

/// Asks every question. Each answer that is not the expected one becomes an error in the report; gives back how many.
pub fn test(expectations: &[Expectation], compiled: &Compiled, report: &mut Report) -> usize {
    let mut failed = 0;
    for expectation in expectations {
        let answer = expectation.question.answer(compiled);
        let rule = &compiled.rules[answer.decision.rule as usize];
        let as_expected = answer.decision.effect == expectation.effect
            && expectation.rule.as_ref().is_none_or(|id| *id == rule.id);
        if as_expected {
            continue;
        }
        failed += 1;
        let word = |effect| match effect {
            Effect::Allow => "allowed",
            Effect::Approve => "held",
            Effect::Deny => "denied",
        };
        let by = expectation
            .rule
            .as_ref()
            .map_or(String::new(), |rule| format!(" by `{rule}`"));
        let at = if rule.source.is_empty() {
            String::new()
        } else {
            format!(" ({})", rule.source)
        };
        report.push(
            Diagnostic::error(
                format!(
                    "{} {} is {} by `{}`{at}, and is expected to be {}{by}",
                    expectation.question.action(),
                    quote(&expectation.question.object()),
                    word(answer.decision.effect),
                    rule.id,
                    word(expectation.effect),
                ),
                expectation.span.clone(),
            )
            .help("agentwatch policy explain says what comes next in line"),
        );
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::examine;

    fn examined(text: &str) -> crate::policy::Examined {
        let context = Context {
            cwd: "/w".into(),
            home: "/home/u".into(),
            ..Context::default()
        };
        examine("p.toml", text.as_bytes(), &context)
    }

    #[test]
    fn expectations_are_held_against_the_policy() {
        let mut examined = examined(
            r#"
[files]
read = ["/usr"]
write = ["${workspace}"]
deny = ["**/.env"]
[network]
allow = ["127.0.0.1:80"]

[[expect]]
read = "/usr/x"
verdict = "allowed"
rule = "files.read[0]"

[[expect]]
write = "a"
verdict = "allowed"

[[expect]]
read = ".env"
verdict = "allowed"

[[expect]]
connect = "127.0.0.1:80"
verdict = "denied"

[[expect]]
listen = "127.0.0.1:80"
verdict = "denied"
rule = "network.default"

[[expect]]
connect = "unix:@x"
verdict = "denied"
"#,
        );
        let compiled = examined.compiled.take().unwrap();
        assert_eq!(examined.expect.len(), 6);
        assert_eq!(test(&examined.expect, &compiled, &mut examined.report), 3);
        let shown = examined.report.render(false);
        for expected in [
            "read `/w/.env` is denied by `files.deny[0]` (p.toml:5), and is expected to be allowed\n  --> p.toml:18:1",
            "connect `127.0.0.1:80` is allowed by `network.allow[0]` (p.toml:7), and is expected to be denied",
            "listen `127.0.0.1:80` is denied by `network.listen.default`, and is expected to be denied by `network.default`",
        ] {
            assert!(
                shown.contains(expected),
                "{expected} is missing in\n{shown}"
            );
        }
    }

    #[test]
    fn what_is_no_expectation_says_why() {
        for (text, expected) in [
            ("read = \"/a\"", "an expectation says what it expects"),
            ("verdict = \"denied\"", "asks one question, and this asks 0"),
            (
                "read = \"/a\"\nwrite = \"/a\"\nverdict = \"denied\"",
                "and this asks 2",
            ),
            (
                "read = \"/a\"\nverdict = \"deny\"",
                "there is no verdict `deny`",
            ),
            ("read = \"/*\"\nverdict = \"denied\"", "pattern character"),
            (
                "connect = \"localhost:1\"\nverdict = \"denied\"",
                "is not an address and a port",
            ),
            (
                "connect = \"unix:@a*\"\nverdict = \"denied\"",
                "names many sockets",
            ),
            ("raed = \"/a\"", "did you mean `read`?"),
        ] {
            let examined = examined(&format!("[[expect]]\n{text}\n"));
            assert!(examined.compiled.is_none(), "{text}");
            let shown = examined.report.render(false);
            assert!(shown.contains(expected), "{text}: {shown}");
        }
    }
}
