//! What several texts mean together: a policy, what it extends, and the administrator's floor.

use std::path::{Path, PathBuf};

use super::{
    examine::{Examined, examine_all},
    explain::{UnixPeer, decide_file, decide_guard, decide_net, decide_unix},
    model::{Access, Compiled, Context, Decision, Effect, NetOp},
    sources::{Managed, Sources, gather},
};
use crate::event::model::{Layer, Mode};

fn context() -> Context {
    Context::of_tests("/w")
}

/// A policy in /p/task.toml, with files that it may extend and those of the administrator.
fn examined(text: &str, files: &[(&str, &str)], managed: &[&str]) -> Examined {
    let context = context();
    let directory = Path::new("/p");
    let included = gather(text, directory, &context, |path| {
        files
            .iter()
            .find(|(name, _)| Path::new(name) == path)
            .map(|(_, text)| (*text).to_owned())
            .ok_or_else(|| "No such file or directory".to_owned())
    });
    let managed: Vec<Managed> = managed
        .iter()
        .enumerate()
        .map(|(number, text)| Managed {
            path: PathBuf::from(format!("/etc/agentwatch/managed.d/{number}.toml")),
            text: (*text).to_owned(),
        })
        .collect();
    let managed_context = Context {
        cwd: PathBuf::new(),
        ..context.clone()
    };
    examine_all(&Sources {
        file: "task.toml",
        text: text.as_bytes(),
        directory,
        included: &included,
        context: &context,
        managed: &managed,
        managed_context: &managed_context,
    })
}

fn compiled(text: &str, files: &[(&str, &str)], managed: &[&str]) -> Compiled {
    let examined = examined(text, files, managed);
    examined
        .compiled
        .unwrap_or_else(|| panic!("{}", examined.report.render(false)))
}

fn said(compiled: &Compiled, decision: Decision) -> String {
    let rule = &compiled.rules[decision.rule as usize];
    format!(
        "{:?} {:?} {} {}",
        decision.effect, rule.layer, rule.id, rule.source
    )
}

fn file(compiled: &Compiled, access: Access, path: &str) -> String {
    said(compiled, decide_file(compiled, access, Path::new(path)))
}

#[test]
fn a_policy_builds_on_others() {
    let policy = compiled(
        "extends = [\"a.toml\", \"sub/b.toml\"]\nname = \"main\"\n[files]\nwrite = [\"${workspace}\"]\n[limits]\npids = 5\n",
        &[
            (
                "/p/a.toml",
                "name = \"a\"\nmode = \"monitor\"\n[files]\nread = [\"/usr\"]\ndeny = [\"/w/no\"]\n[limits]\npids = 9\nmemory = \"1GiB\"\n",
            ),
            // Relative to its own directory; reached on two ways.
            (
                "/p/sub/b.toml",
                "extends = [\"../a.toml\"]\nmode = \"enforce\"\n[files]\nread = [\".\"]\n",
            ),
        ],
        &[],
    );
    assert_eq!(policy.mode, Mode::Monitor, "the first that says it");
    assert_eq!(policy.limits.pids, Some(5));
    assert_eq!(policy.limits.memory, Some(1 << 30));
    assert_eq!(
        file(&policy, Access::Read, "/usr/x"),
        "Allow Task files.read[0] /p/a.toml:4"
    );
    assert_eq!(
        file(&policy, Access::Write, "/w/x"),
        "Allow Task files.write[0] task.toml:4"
    );
    assert_eq!(
        file(&policy, Access::Write, "/w/no"),
        "Deny Task files.deny[0] /p/a.toml:5"
    );
    // `.` is the workspace in every file.
    assert_eq!(
        policy
            .rules
            .iter()
            .filter(|rule| rule.source.starts_with("/p/a.toml"))
            .count(),
        2
    );
}

#[test]
fn what_cannot_be_built_on_is_said_at_its_place() {
    for (text, files, expected) in [
        (
            "extends = [\"preset:bse\"]",
            &[][..],
            "error: there is no preset `bse`\n --> task.toml:1:12\n  |\n1 | extends = [\"preset:bse\"]\n  |            ^^^^^^^^^^^^\n  |\n  = help: did you mean `base`?",
        ),
        (
            "extends = [\"base\"]",
            &[],
            "write `preset:base`, or `./base` for a file",
        ),
        (
            "extends = [\"none.toml\"]",
            &[],
            "`/p/none.toml` cannot be read: No such file or directory\n --> task.toml:1:12",
        ),
        (
            "extends = [\"a.toml\"]",
            &[
                ("/p/a.toml", "extends = [\"b.toml\"]"),
                ("/p/b.toml", "extends = [\"a.toml\"]"),
            ],
            "`/p/a.toml` extends itself: `/p/a.toml → /p/b.toml → /p/a.toml`\n --> /p/b.toml:1:12",
        ),
        (
            "extends = [\"a.toml\"]",
            &[("/p/a.toml", "[files]\nraed = []\n")],
            "there is no key `files.raed`\n --> /p/a.toml:2:1",
        ),
    ] {
        let examined = examined(text, files, &[]);
        assert!(examined.compiled.is_none(), "{text}");
        let shown = examined.report.render(false);
        assert!(shown.contains(expected), "{text}:\n{shown}");
    }
}

#[test]
fn a_policy_that_extends_its_own_file_is_no_circle_without_end() {
    let examined = examined(
        "extends = [\"task.toml\"]",
        &[("/p/task.toml", "extends = [\"task.toml\"]")],
        &[],
    );
    assert!(examined.report.render(false).contains("extends itself"));
}

#[test]
fn warnings_speak_of_the_policy_and_not_of_what_it_builds_on() {
    let policy = compiled(
        "extends = [\"a.toml\"]\n[files]\nread = [\"/usr\"]\nwrite = [\"/secret\"]\n",
        &[(
            "/p/a.toml",
            "[files]\nread = [\"/usr\"]\ndeny = [\"/secret\", \"/idle\"]\n",
        )],
        &[],
    );
    let warnings = policy.warnings.join("\n");
    assert_eq!(policy.warnings.len(), 1, "{warnings}");
    assert!(
        warnings.contains("`/secret` in `files.write` changes nothing: it is also in `files.deny`"),
        "{warnings}"
    );
    assert!(warnings.contains("/p/a.toml:3"), "{warnings}");
}

const FLOOR: &str = "\
mode = \"enforce\"
accept_degraded = false
[sessions]
users = [\"dev\"]
max_per_user = 2
[files]
deny = [\"/srv/closed\", \"**/.env\", \"~/.ssh\", \"/run/docker.sock\"]
[exec]
deny = [\"/usr/bin/curl\"]
[network]
deny = [\"10.0.66.0/24\", \"*:25\"]
[guard]
deny = [\"bpf\"]
";

#[test]
fn nothing_loosens_the_floor() {
    let policy = compiled(
        r#"
        mode = "monitor"
        [files]
        read = ["/srv", "/home/u/.ssh/config", "/w/.env"]
        write = ["/srv/closed/scratch", "/srv/closed", "/w"]
        exec = ["/srv/closed/scratch", "/usr/bin", "/usr/bin/curl"]
        [network]
        allow = ["10.0.66.7", "10.0.66.7:443", "*", "10.0.0.0/8:25"]
        unix = ["/run/docker.sock", "/srv/closed/s", "/run/fine"]
        [guard]
        allow = ["bpf", "ptrace"]
        "#,
        &[],
        &[FLOOR],
    );
    let at = |rule: &str, line: usize| {
        format!("Deny Managed {rule} /etc/agentwatch/managed.d/0.toml:{line}")
    };
    for path in ["/srv/closed", "/srv/closed/x", "/srv/closed/scratch/x"] {
        for access in Access::ALL {
            assert_eq!(
                file(&policy, access, path),
                at("files.deny[0]", 7),
                "{path}"
            );
        }
    }
    assert_eq!(
        file(&policy, Access::Read, "/w/.env"),
        at("files.deny[1]", 7)
    );
    assert_eq!(
        file(&policy, Access::Read, "/home/u/.ssh/config"),
        at("files.deny[2]", 7)
    );
    assert_eq!(
        file(&policy, Access::Exec, "/usr/bin/curl"),
        at("exec.deny[0]", 9)
    );
    assert!(file(&policy, Access::Exec, "/usr/bin/git").starts_with("Allow"));
    assert!(file(&policy, Access::Read, "/srv/open").starts_with("Allow"));
    let net = |address: &str, port| {
        said(
            &policy,
            decide_net(&policy, NetOp::Connect, address.parse().unwrap(), port),
        )
    };
    assert_eq!(net("10.0.66.7", 443), at("network.deny[0]", 11));
    assert_eq!(net("10.0.66.7", 25), at("network.deny[0]", 11));
    assert_eq!(net("10.1.0.1", 25), at("network.deny[1]", 11));
    assert_eq!(net("192.0.2.1", 25), at("network.deny[1]", 11));
    assert!(net("192.0.2.1", 80).starts_with("Allow"));
    let unix = |path: &str| decide_unix(&policy, UnixPeer::Path(Path::new(path))).effect;
    assert_eq!(unix("/run/docker.sock"), Effect::Deny);
    assert_eq!(unix("/srv/closed/s"), Effect::Deny);
    assert_eq!(unix("/run/fine"), Effect::Allow);
    use agentwatch_common::policy::guard;
    assert_eq!(decide_guard(&policy, guard::BPF).effect, Effect::Deny);
    assert_eq!(decide_guard(&policy, guard::PTRACE).effect, Effect::Allow);

    assert_eq!(policy.mode, Mode::Enforce);
    assert_eq!(
        policy.floor.refuses_degraded.as_deref(),
        Some("/etc/agentwatch/managed.d/0.toml:2")
    );
    let sessions = &policy.floor.sessions[0];
    assert_eq!(sessions.users.as_deref(), Some(&["dev".to_owned()][..]));
    assert_eq!(sessions.source, "/etc/agentwatch/managed.d/0.toml:4");
    assert_eq!(sessions.max_per_user.as_ref().map(|(max, _)| *max), Some(2));
    let warnings = policy.warnings.join("\n");
    for expected in [
        "`/srv/closed/scratch` in `files.write` changes nothing: `files.deny[0]` of /etc/agentwatch/managed.d/0.toml:7 denies it",
        "`/usr/bin/curl` in `files.exec` changes nothing: `exec.deny[0]`",
        "`bpf` in `guard.allow` changes nothing: `guard.deny[0]` of /etc/agentwatch/managed.d/0.toml:13 denies it",
        "mode `monitor` changes nothing: /etc/agentwatch/managed.d/0.toml:1 makes it `enforce`",
    ] {
        assert!(
            warnings.contains(expected),
            "{expected} is missing in\n{warnings}"
        );
    }
    assert_ne!(
        policy.digest,
        compiled("mode = \"enforce\"", &[], &[]).digest
    );
}

#[test]
fn a_floor_that_is_wrong_leaves_no_policy() {
    for (managed, expected) in [
        (
            "[files]\nread = [\"/\"]\n",
            "a managed file may not say `files.read`",
        ),
        (
            "[files]\ndeny = [\"relative\"]\n",
            "the working directory that the path starts from",
        ),
        ("[files\n", "not valid TOML"),
        ("extends = []\n", "a managed file may not say `extends`"),
        (
            "[sessions]\nmax_per_user = -1\n",
            "not a number of sessions",
        ),
    ] {
        let examined = examined("[files]\nread = [\"/usr\"]\n", &[], &[managed]);
        assert!(examined.compiled.is_none(), "{managed}");
        let shown = examined.report.render(false);
        assert!(shown.contains(expected), "{managed}: {shown}");
        assert!(shown.contains("managed.d/0.toml:"), "{shown}");
    }
}

#[test]
fn two_files_of_the_floor_add_up() {
    let policy = compiled(
        "[files]\nread = [\"/\"]\n",
        &[],
        &[
            "mode = \"monitor\"\n[files]\ndeny = [\"/a\"]\n",
            "mode = \"enforce\"\n[files]\ndeny = [\"/b\"]\n[sessions]\ngroups = []\n",
        ],
    );
    assert_eq!(policy.mode, Mode::Enforce);
    for path in ["/a", "/b"] {
        let decision = decide_file(&policy, Access::Read, Path::new(path));
        assert_eq!(policy.rules[decision.rule as usize].layer, Layer::Managed);
    }
    assert_eq!(policy.floor.sessions.len(), 1);
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    fn paths() -> impl Strategy<Value = Vec<String>> {
        let names = prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4);
        prop::collection::vec(
            names.prop_map(|names| format!("/{}", names.join("/"))),
            0..4,
        )
    }

    proptest! {
        /// Whatever a task says: what the floor denies stays denied, and by the floor; what it has approved is not allowed
        /// without; and the floor gives nothing.
        #[test]
        fn a_task_only_narrows(
            read in paths(), write in paths(), exec in paths(), deny in paths(), approve in paths(),
            floor in paths(), floor_exec in paths(), floor_approve in paths(), floor_names in 0..4_u8,
            (task_names, asked) in (0..4_u8, paths()),
        ) {
            let named = floor_names == 1;
            let mut task_approve = approve.clone();
            task_approve.extend((task_names == 1).then(|| "**/b*".to_owned()));
            task_approve.extend((task_names == 2).then(|| "**/b".to_owned()));
            let text = format!("[files]\nread = {read:?}\nwrite = {write:?}\nexec = {exec:?}\ndeny = {deny:?}\napprove = {task_approve:?}\n");
            let mut denied: Vec<String> = floor.clone();
            if named {
                denied.push("**/b".to_owned());
            }
            let mut approved = floor_approve.clone();
            approved.extend((floor_names == 2).then(|| "*b".to_owned()));
            let managed = format!("[files]\ndeny = {denied:?}\napprove = {approved:?}\n[exec]\ndeny = {floor_exec:?}\n");
            let (with, without) = (compiled(&text, &[], &[&managed]), compiled(&text, &[], &[]));
            for path in asked.iter().chain(&read).chain(&write).chain(&exec) {
                let path = Path::new(path);
                let covers = |list: &[String]| list.iter().any(|rule| path.starts_with(rule));
                let has_name = path.components().any(|name| name.as_os_str() == "b");
                let by_name = named && has_name;
                for access in Access::ALL {
                    let decision = decide_file(&with, access, path);
                    let forbidden = covers(&floor) || by_name || access == Access::Exec && covers(&floor_exec);
                    let task = decide_file(&without, access, path);
                    if forbidden {
                        prop_assert_eq!(decision.effect, Effect::Deny, "{:?} {:?}", access, path);
                    } else if access != Access::Exec && (covers(&floor_approve) || floor_names == 2 && has_name) {
                        prop_assert_eq!(decision.effect, task.effect.max(Effect::Approve), "{:?} {:?}", access, path);
                    } else {
                        prop_assert_eq!(decision.effect, task.effect, "{:?} {:?}", access, path);
                    }
                    if forbidden && task.effect == Effect::Allow {
                        prop_assert_eq!(with.rules[decision.rule as usize].layer, Layer::Managed);
                    }
                }
            }
        }
    }
}

#[test]
fn the_floor_is_found_under_a_links_target() {
    use super::explain::managed_over;
    let policy = compiled(
        "[files]\nread = [\"/srv\"]\ndeny = [\"**/x\"]\n",
        &[],
        &["[files]\ndeny = [\"/srv/closed\", \"**/.env\"]\n"],
    );
    for (path, denied) in [
        ("/srv/closed/x", true),
        ("/srv/a/.env/x", true),
        ("/srv/a/x", false),
        ("/elsewhere", false),
    ] {
        let over = managed_over(&policy, Path::new(path));
        assert_eq!(over.iter().all(Option::is_some), denied, "{path}");
        assert_eq!(over.iter().any(Option::is_some), denied, "{path}");
    }
}
