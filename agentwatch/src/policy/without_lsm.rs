//! What becomes of a decision on kernels without BPF LSM, where Landlock holds files: it only grants, tree by tree, lets nothing wait
//! and knows no names. `session/landlock.rs` is what does it; here it is told, for one action, before anything runs.

use std::path::Path;

use super::{
    expect::Question,
    explain::{decide_file, find_place},
    model::{Access, Compiled, Decision, Effect, SETTINGS},
};

/// What happens there, in a sentence; `None` where it is what happens everywhere.
pub fn difference(compiled: &Compiled, question: &Question) -> Option<String> {
    match question {
        Question::File(access, path) => of_file(compiled, *access, path),
        Question::Command(path, arguments) => {
            let place = decide_file(compiled, Access::Exec, path);
            let decided = question.answer(compiled).decision;
            if decided == place {
                return of_file(compiled, Access::Exec, path);
            }
            if decided.effect == Effect::Allow {
                return None;
            }
            let name = path.file_name()?.to_string_lossy();
            let what = if arguments.is_empty() {
                format!("every command that is called {name}")
            } else {
                format!("every command that is called {name} and has these arguments")
            };
            Some(format!(
                "the same where it is a program; of a script it meets {what}, wherever it stands"
            ))
        }
        Question::Net(..) => None,
        Question::Unix(_) => (question.answer(compiled).decision.effect != Effect::Allow)
            .then(|| "not held: what the user may connect to, the session may".to_owned()),
        Question::Abstract(_) => (question.answer(compiled).decision.effect == Effect::Allow)
            .then(|| {
                "denied where the socket is not the session's own (Landlock ABI 6; not held before it)"
                    .to_owned()
            }),
    }
}

fn of_file(compiled: &Compiled, access: Access, path: &Path) -> Option<String> {
    let decided = decide_file(compiled, access, path);
    if decided.effect == Effect::Allow {
        return None;
    }
    if decided.rule == SETTINGS {
        return Some(
            "not held: what the user may change of the kernel's settings, the session may"
                .to_owned(),
        );
    }
    let rule = &compiled.rules[decided.rule as usize].id;
    let nearest = find_place(compiled, path);
    let around = nearest.map(|place| place.decisions[access as usize]);
    let degraded = "a session needs --accept-degraded, and then it is allowed";
    if around.is_some_and(|around: Decision| around != decided && around.effect != Effect::Deny) {
        return Some(format!(
            "not held: {rule} is about a name, and Landlock closes no names; {degraded}"
        ));
    }
    let writable = compiled.places.iter().find(|around| {
        around.decisions[Access::Write as usize].effect == Effect::Allow
            && path.starts_with(&around.path)
    });
    if let Some(tree) = writable
        && access != Access::Exec
    {
        return Some(format!(
            "not held: Landlock takes nothing away inside {}, which may be written; {degraded}",
            tree.path.display()
        ));
    }
    match (decided.effect, access) {
        (Effect::Approve, Access::Exec) => {
            Some("the same where it is a program; a script is denied".to_owned())
        }
        (Effect::Approve, _) => Some("denied: no file waits there for approval".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{
        examine,
        model::{Context, NetOp},
    };

    const POLICY: &str = "
[files]
read = ['/usr', '/w/kept', '/secret/open']
write = ['/w']
exec = ['/usr']
deny = ['/w/closed', '**/.env', '/usr/closed']
approve = ['/usr/asked', '/w/asked', '**/*.pem']
[exec]
approve = ['/usr/bin/gh', ['/usr/bin/tool', 'push']]
deny = [['npm', 'publish']]
[network]
approve = ['192.0.2.1:443']
unix = ['@mine', '/run/ok.sock']
";

    fn compiled() -> Compiled {
        let context = Context {
            cwd: "/w".into(),
            home: "/home/u".into(),
            ..Context::default()
        };
        let examined = examine("task.toml", POLICY.as_bytes(), &context);
        examined.compiled.expect("a policy")
    }

    #[test]
    fn it_says_what_will_happen() {
        let compiled = compiled();
        let file = |access, path: &str| Question::File(access, path.into());
        let command = |path: &str, arguments: &[&str]| {
            let arguments = arguments.iter().map(|word| (*word).to_owned());
            Question::Command(path.into(), arguments.collect())
        };
        let says = |question: Question, wanted: &str| {
            let said = difference(&compiled, &question).unwrap_or_default();
            assert!(
                if wanted.is_empty() {
                    said.is_empty()
                } else {
                    said.starts_with(wanted)
                },
                "{question:?}: {said:?} instead of {wanted:?}"
            );
        };
        use Access::{Exec, Read, Write};
        for (question, wanted) in [
            (file(Read, "/usr/a"), ""),
            (file(Write, "/usr/a"), ""),
            (file(Read, "/elsewhere"), ""),
            (file(Read, "/usr/closed/a"), ""),
            (file(Read, "/usr/asked"), "denied: "),
            (file(Write, "/w/asked"), "not held: Landlock takes"),
            (file(Read, "/w/closed"), "not held: Landlock takes"),
            (file(Write, "/w/kept"), "not held: Landlock takes"),
            (file(Read, "/w/kept"), ""),
            (
                file(Read, "/w/.env"),
                "not held: files.deny[1] is about a name",
            ),
            (
                file(Read, "/usr/a.pem"),
                "not held: files.approve[2] is about a name",
            ),
            // It is closed by more than its name.
            (file(Read, "/elsewhere/.env"), ""),
            (
                file(Exec, "/usr/bin/gh"),
                "the same where it is a program; a script is denied",
            ),
            (
                command("/usr/bin/gh", &["x"]),
                "the same where it is a program; a script is denied",
            ),
            (
                command("/usr/bin/tool", &["push", "now"]),
                "the same where it is a program; of a script it meets every command that is called tool and",
            ),
            (
                command("/usr/bin/npm", &["publish"]),
                "the same where it is a program; of a script",
            ),
            (command("/usr/bin/tool", &["pull"]), ""),
            (
                Question::Net(NetOp::Connect, ([192, 0, 2, 1], 443).into()),
                "",
            ),
            (Question::Unix("/run/other.sock".into()), "not held: "),
            (Question::Unix("/run/ok.sock".into()), ""),
            (Question::Abstract("mine".into()), "denied where"),
            (Question::Abstract("other".into()), ""),
        ] {
            says(question, wanted);
        }
    }
}
