//! What rules mean together, case by case.

use std::path::Path;

use crate::{
    event::model::Layer,
    policy::{
        explain::{decide_file, decide_net},
        load,
        model::{
            Access, Compiled, Context, DEFAULT_RULES, Effect, MAX_PORT_RULES, NetOp, RuleIndex,
            UnixTarget,
        },
    },
};

fn context() -> Context {
    Context::of_tests("/w")
}

fn compiled(text: &str) -> Compiled {
    load("p.toml", text.as_bytes(), &context()).unwrap_or_else(|error| panic!("{error}"))
}

/// The three rights at a path, as `r`, `w`, `x` or `-`, each with the rule that decides.
fn rights(compiled: &Compiled, path: &str) -> String {
    let right = |access, letter| {
        let decision = decide_file(compiled, access, Path::new(path));
        let sign = if decision.effect == Effect::Allow {
            letter
        } else {
            "-"
        };
        format!("{sign} {}", compiled.rules[decision.rule as usize].id)
    };
    [
        right(Access::Read, "r"),
        right(Access::Write, "w"),
        right(Access::Exec, "x"),
    ]
    .join(", ")
}

#[test]
fn the_nearest_place_decides_and_states_everything() {
    let policy = compiled(
        r#"
        [files]
        read = ["/usr", "/w/ro", "/w/both"]
        write = ["/w", "/w/both", "/w/secret/open"]
        exec = ["/usr", "/w/tools", "/only", "/w/secret/run"]
        deny = ["/w/secret", "/w/tools/evil"]
        [exec]
        deny = ["/usr/bin/curl", "/w/tools/evil", "/w/tools/off"]
        "#,
    );
    for (path, expected) in [
        ("/", "- files.default, - files.default, - files.default"),
        (
            "/etc/passwd",
            "- files.default, - files.default, - files.default",
        ),
        ("/w", "r files.write[0], w files.write[0], - files.write[0]"),
        (
            "/w/src/a",
            "r files.write[0], w files.write[0], - files.write[0]",
        ),
        ("/ww", "- files.default, - files.default, - files.default"),
        (
            "/w/ro/x",
            "r files.read[1], - files.read[1], - files.read[1]",
        ),
        (
            "/w/both",
            "r files.read[2], w files.write[1], - files.read[2]",
        ),
        (
            "/w/secret/x",
            "- files.deny[0], - files.deny[0], - files.deny[0]",
        ),
        (
            "/w/secret/open",
            "r files.write[2], w files.write[2], - files.write[2]",
        ),
        (
            "/w/secret/run/y",
            "- files.deny[0], - files.deny[0], x files.exec[3]",
        ),
        // A place that only speaks of executing inherits the rest.
        (
            "/w/tools/t",
            "r files.write[0], w files.write[0], x files.exec[1]",
        ),
        (
            "/w/tools/evil",
            "- files.deny[1], - files.deny[1], - files.deny[1]",
        ),
        (
            "/w/tools/off",
            "r files.write[0], w files.write[0], - exec.deny[2]",
        ),
        (
            "/only/x",
            "- files.default, - files.default, x files.exec[2]",
        ),
        (
            "/usr/bin/env",
            "r files.read[0], - files.read[0], x files.exec[0]",
        ),
        (
            "/usr/bin/curl",
            "r files.read[0], - files.read[0], - exec.deny[0]",
        ),
        // What is not absolute and clean is denied.
        ("w/src", "- files.default, - files.default, - files.default"),
        (
            "/w/../etc",
            "- files.default, - files.default, - files.default",
        ),
        ("", "- files.default, - files.default, - files.default"),
    ] {
        assert_eq!(rights(&policy, path), expected, "{path}");
    }
}

#[test]
fn settings_of_the_kernel_are_written_by_who_names_them() {
    let around = compiled("[files]\nwrite = ['/', '/proc', '/sys/fs/cgroup/mine']\n");
    let named = compiled(
        "[files]\nwrite = ['/sys', '/proc/sys/kernel/domainname']\nread = ['/proc/sys']\n",
    );
    for (policy, path, expected) in [
        (
            &around,
            "/proc/1/comm",
            "r files.write[1], w files.write[1], - files.write[1]",
        ),
        (
            &around,
            "/proc/sys/kernel/core_pattern",
            "r files.write[1], - host.settings, - files.write[1]",
        ),
        (
            &around,
            "/proc/sysrq-trigger",
            "r files.write[1], - host.settings, - files.write[1]",
        ),
        (
            &around,
            "/sys/power/state",
            "r files.write[0], - host.settings, - files.write[0]",
        ),
        (
            &around,
            "/sys/fs/cgroup/cgroup.procs",
            "r files.write[0], - host.settings, - files.write[0]",
        ),
        (
            &around,
            "/sys/fs/cgroup/mine/cgroup.procs",
            "r files.write[2], w files.write[2], - files.write[2]",
        ),
        (
            &named,
            "/sys/power/state",
            "r files.write[0], w files.write[0], - files.write[0]",
        ),
        (
            &named,
            "/sys/kernel/uevent_helper",
            "r files.write[0], - host.settings, - files.write[0]",
        ),
        (
            &named,
            "/proc/sys/kernel/core_pattern",
            "r files.read[0], - files.read[0], - files.read[0]",
        ),
        (
            &named,
            "/proc/sys/kernel/domainname",
            "r files.write[1], w files.write[1], - files.write[1]",
        ),
    ] {
        assert_eq!(rights(policy, path), expected, "{path}");
    }
    // A policy that reaches none of them has no places more than it names.
    assert_eq!(
        compiled("[files]\nread = ['/']\nwrite = ['/w']\n")
            .places
            .len(),
        2
    );
}

#[test]
fn a_name_wins_over_the_places_around_it_and_not_over_its_own() {
    let policy = compiled(
        r#"
        [files]
        read = ["/usr", "/w/x/.env", "/w/keys.d/open"]
        write = ["/w"]
        exec = ["/w", "/w/y/.env", "/w/z.d/tools"]
        deny = ["**/.env", "*.d", "**/id_*", "**/id_rsa"]
        [exec]
        deny = ["/w/y/id_ed"]
        "#,
    );
    for (path, expected) in [
        (
            "/w/env",
            "r files.write[0], w files.write[0], x files.exec[0]",
        ),
        (
            "/w/.env",
            "- files.deny[0], - files.deny[0], - files.deny[0]",
        ),
        (
            "/w/.env/below/it",
            "- files.deny[0], - files.deny[0], - files.deny[0]",
        ),
        (
            "/usr/.env",
            "- files.deny[0], - files.deny[0], - files.deny[0]",
        ),
        (
            "/elsewhere/.env",
            "- files.deny[0], - files.deny[0], - files.deny[0]",
        ),
        // A place that names the very file decides, but only what it states.
        (
            "/w/x/.env",
            "r files.read[1], - files.read[1], - files.read[1]",
        ),
        (
            "/w/y/.env",
            "- files.deny[0], - files.deny[0], x files.exec[1]",
        ),
        (
            "/w/z.d/tools/t",
            "- files.deny[1], - files.deny[1], x files.exec[2]",
        ),
        (
            "/w/y/id_ed",
            "- files.deny[2], - files.deny[2], - exec.deny[0]",
        ),
        // The nearest name or place wins.
        (
            "/w/keys.d/shut",
            "- files.deny[1], - files.deny[1], - files.deny[1]",
        ),
        (
            "/w/keys.d/open/f",
            "r files.read[2], - files.read[2], - files.read[2]",
        ),
        (
            "/w/keys.d/open/id_x",
            "- files.deny[2], - files.deny[2], - files.deny[2]",
        ),
        (
            "/w/id_rsa",
            "- files.deny[3], - files.deny[3], - files.deny[3]",
        ),
        (
            "/w/id_rsa.pub",
            "- files.deny[2], - files.deny[2], - files.deny[2]",
        ),
        // By its end before by its beginning.
        (
            "/w/id_rsa.d",
            "- files.deny[1], - files.deny[1], - files.deny[1]",
        ),
        // What is not absolute and clean.
        (".env", "- files.default, - files.default, - files.default"),
    ] {
        assert_eq!(rights(&policy, path), expected, "{path}");
    }
    assert_eq!(policy.names.len(), 4);
}

#[test]
fn sockets_families_and_operations_are_compiled() {
    let policy = compiled(
        r#"
        [files]
        read = ["/run"]
        deny = ["/run/docker.sock"]
        [network]
        unix = ["/run/x.sock", "@app", "@app-*", "/run/docker.sock", "/run/./x.sock"]
        families = ["raw", "packet"]
        [guard]
        allow = ["ptrace", "signal"]
        "#,
    );
    let id = |rule: RuleIndex| policy.rules[rule as usize].id.as_str();
    let unix: Vec<_> = policy
        .unix
        .iter()
        .map(|rule| (&rule.target, id(rule.decision.rule)))
        .collect();
    assert_eq!(
        unix,
        [
            (&UnixTarget::Path("/run/x.sock".into()), "network.unix[0]"),
            (&UnixTarget::Abstract("app".into()), "network.unix[1]"),
            (
                &UnixTarget::AbstractPrefix("app-".into()),
                "network.unix[2]"
            ),
        ]
    );
    let families: Vec<_> = policy
        .families
        .iter()
        .map(|rule| (rule.bit, id(rule.rule)))
        .collect();
    assert_eq!(
        families,
        [(63, "network.families[0]"), (17, "network.families[1]")]
    );
    let guards: Vec<_> = policy
        .guards
        .iter()
        .map(|rule| (rule.operation, id(rule.rule)))
        .collect();
    assert_eq!(guards, [(1, "guard.allow[0]"), (2, "guard.allow[1]")]);
    let warnings = policy.warnings.join("\n");
    assert!(
        warnings.contains("`/run/docker.sock` in `network.unix` changes nothing"),
        "{warnings}"
    );
    assert!(
        warnings.contains("`/run/./x.sock` is listed twice in `network.unix`"),
        "{warnings}"
    );
}

#[test]
fn patterns_stand_in_files_deny_alone() {
    for (text, expected) in [
        (
            "[files]\nwrite = [\"*.rs\"]",
            "a session can give any file any name",
        ),
        (
            "[files]\nread = [\"**/.env\"]",
            "a session can give any file any name",
        ),
        ("[files]\ndeny = [\"/etc/*.key\"]", "several names"),
        ("[exec]\ndeny = [\"**/curl\"]", "copied to another name"),
        ("[network]\nfamilies = [\"icmp\"]", "write `other`"),
        ("[guard]\nallow = [\"ptraec\"]", "did you mean `ptrace`?"),
    ] {
        let error = load("p.toml", text.as_bytes(), &context())
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn a_rule_names_its_line() {
    let policy = compiled("[files]\nread = [\n  \"/usr\",\n  \"~/x\",\n]\n");
    let rule = &policy.rules[DEFAULT_RULES.len() + 1];
    assert_eq!(
        (rule.id.as_str(), rule.source.as_str(), rule.text.as_str()),
        ("files.read[1]", "p.toml:4", "~/x")
    );
    assert_eq!(rule.layer, Layer::Task);
    let built_in: Vec<_> = policy.rules[..DEFAULT_RULES.len()]
        .iter()
        .map(|rule| (rule.id.as_str(), rule.layer))
        .collect();
    assert_eq!(built_in, DEFAULT_RULES.map(|id| (id, Layer::Default)));
}

fn verdict(compiled: &Compiled, op: NetOp, address: &str, port: u16) -> String {
    let decision = decide_net(compiled, op, address.parse().unwrap(), port);
    format!(
        "{:?} {}",
        decision.effect, compiled.rules[decision.rule as usize].id
    )
}

#[test]
fn the_longest_prefix_decides_and_falls_back_by_port() {
    use NetOp::{Connect, Listen};
    let policy = compiled(
        r#"
        [network]
        allow = ["*:443", "10.0.0.0/8", "10.1.0.0/16:80", "[2001:db8::/32]:22-25", "::ffff:192.0.2.7"]
        deny = ["10.1.0.0/16:22", "10.0.0.0/8:25", "10.2.0.0/16"]
        listen = ["127.0.0.1:8000-8999", "[::1]"]
        "#,
    );
    for (op, address, port, expected) in [
        (Connect, "198.51.100.1", 443, "Allow network.allow[0]"),
        (Connect, "198.51.100.1", 80, "Deny network.default"),
        (Connect, "2001:db9::1", 443, "Allow network.allow[0]"),
        (Connect, "10.3.0.1", 9, "Allow network.allow[1]"),
        (Connect, "10.3.0.1", 0, "Allow network.allow[1]"),
        (Connect, "10.3.0.1", 25, "Deny network.deny[1]"),
        (Connect, "10.1.0.1", 80, "Allow network.allow[2]"),
        (Connect, "10.1.0.1", 22, "Deny network.deny[0]"),
        (Connect, "10.1.0.1", 25, "Deny network.deny[1]"),
        (Connect, "10.1.0.1", 443, "Allow network.allow[1]"),
        (Connect, "10.2.0.1", 443, "Deny network.deny[2]"),
        (Connect, "::ffff:10.2.0.1", 443, "Deny network.deny[2]"),
        (
            Connect,
            "::ffff:198.51.100.1",
            443,
            "Allow network.allow[0]",
        ),
        (Connect, "2001:db8::1", 23, "Allow network.allow[3]"),
        (Connect, "2001:db8::1", 26, "Deny network.default"),
        (Connect, "192.0.2.7", 1, "Allow network.allow[4]"),
        // What may be connected to may not be bound, and the other way round.
        (Listen, "10.3.0.1", 9, "Deny network.listen.default"),
        (Listen, "127.0.0.1", 8080, "Allow network.listen[0]"),
        (Listen, "127.0.0.1", 0, "Deny network.listen.default"),
        (Listen, "::1", 0, "Allow network.listen[1]"),
        (Connect, "127.0.0.1", 8080, "Deny network.default"),
    ] {
        assert_eq!(
            verdict(&policy, op, address, port),
            expected,
            "{op:?} {address} {port}"
        );
    }
}

#[test]
fn port_lists_hold_what_can_be_reached_and_no_more() {
    let policy = compiled(
        "[network]\nallow = [\"*\", \"10.0.0.0/8:1-100\", \"10.0.0.0/8:50\", \"10.1.0.0/16\"]\ndeny = [\"10.0.0.0/8:7\"]\n",
    );
    let lists: Vec<String> = policy
        .prefixes
        .iter()
        .map(|prefix| {
            let ports = prefix.ports.iter().map(|port| {
                let id = &policy.rules[port.decision.rule as usize].id;
                format!(" {}-{} {id}", port.first, port.last)
            });
            format!("{}:{}", prefix.net, ports.collect::<String>())
        })
        .collect();
    assert_eq!(
        lists,
        [
            "0.0.0.0/0: 0-65535 network.allow[0]",
            "10.0.0.0/8: 7-7 network.deny[0] 1-100 network.allow[1] 0-65535 network.allow[0]",
            "10.1.0.0/16: 0-65535 network.allow[3]",
            "::/0: 0-65535 network.allow[0]",
        ]
    );
}

#[test]
fn too_many_ports_are_an_error_at_the_rule() {
    let ports = |count: usize| {
        (1..=count)
            .map(|port| format!("\"10.0.0.0/8:{port}\""))
            .collect::<Vec<_>>()
            .join(",\n")
    };
    let text = |count, more: &str| format!("[network]\nallow = [{more}\n{}]\n", ports(count));
    compiled(&text(MAX_PORT_RULES, ""));
    let error = load(
        "p.toml",
        text(MAX_PORT_RULES + 1, "").as_bytes(),
        &context(),
    )
    .unwrap_err()
    .to_string();
    assert_eq!(
        error,
        "\
error: at `10.0.0.0/8` there are more than 16 rules on ports, those around it included
  --> p.toml:19:1
   |
19 | \"10.0.0.0/8:17\"]
   | ^^^^^^^^^^^^^^^
   |
   = help: join ports into ranges such as `8000-8999`"
    );
    // Rules of enclosing prefixes count.
    let error = load(
        "p.toml",
        text(MAX_PORT_RULES, "\"10.1.0.0/16:99\",").as_bytes(),
        &context(),
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("at `10.1.0.0/16` there are more than 16"),
        "{error}"
    );
    assert_eq!(error.report().errors(), 1);
}
