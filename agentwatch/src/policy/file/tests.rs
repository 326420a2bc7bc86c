use super::{keys::*, *};

fn faults(text: &str) -> String {
    let mut report = Report::new("p.toml", text);
    read(text, Layer::Task, 0, &mut report);
    report.render(false)
}

#[test]
fn everything_is_read() {
    let text = "name = \"n\"\nmode = \"monitor\"\n[files]\nread = [\"/r\"]\n[network]\nlisten = [\"*\"]\n[exec]\ndeny = [\"/x\"]";
    let mut report = Report::new("p.toml", text);
    let file = read(text, Layer::Task, 0, &mut report);
    assert_eq!(report.render(false), "");
    assert_eq!(file.mode.map(Spanned::into_inner), Some(Mode::Monitor));
    assert_eq!(
        file.name.as_ref().map(|name| name.get_ref().as_str()),
        Some("n")
    );
    assert_eq!(file.files.read[0].get_ref(), "/r");
    assert_eq!(&text[file.files.read[0].span()], "\"/r\"");
    assert_eq!(file.network.listen[0].get_ref(), "*");
    assert!(matches!(&file.exec.deny[0], ExecEntry::Program(path) if path.get_ref() == "/x"));
}

#[test]
fn unknown_keys_are_all_found_and_get_a_suggestion() {
    assert_eq!(
            faults("mdoe = \"enforce\"\n[files]\nwrit = []\n[network]\nfoo = []\n"),
            "\
error: there is no key `mdoe`
 --> p.toml:1:1
  |
1 | mdoe = \"enforce\"
  | ^^^^
  |
  = help: did you mean `mode`?

error: there is no key `files.writ`
 --> p.toml:3:1
  |
3 | writ = []
  | ^^^^
  |
  = help: did you mean `write`?

error: there is no key `network.foo`
 --> p.toml:5:1
  |
5 | foo = []
  | ^^^
  |
  = help: the keys of [network] are `allow`, `deny`, `approve`, `unknown`, `listen`, `unix`, `families`"
        );
}

#[test]
fn planned_and_misplaced_keys_say_so() {
    let planned = faults("[network]\ndomains = []\n[redact]\n");
    assert!(
        planned.contains("`network.domains` is not yet supported"),
        "{planned}"
    );
    assert!(
        planned.contains("`redact` is not yet supported"),
        "{planned}"
    );
    assert!(faults("read = []").contains("`read` stands below a line `[files]`"));
}

#[test]
fn wrong_kinds_are_named() {
    let text = faults(
        "name = 1\nmode = \"enforced\"\nnetwork = []\n[files]\nread = \"/usr\"\nwrite = [\"/a\", 2, {}]\n",
    );
    for expected in [
        "`name` must be a string, and this is an integer",
        "there is no mode `enforced`",
        "did you mean `enforce`?",
        "`network` must be a table, and this is a list",
        "put it in brackets: read = [\"/usr\"]",
        "`files.write` holds strings, and this is an integer",
        "`files.write` holds strings, and this is a table",
    ] {
        assert!(text.contains(expected), "{expected} is missing in\n{text}");
    }
}

#[test]
fn entries_have_more_than_one_form() {
    let text = "[files]\napprove = [\"/a\", { path = \"/b\", access = [\"write\"] }]\n[exec]\napprove = [\"/usr/bin/x\", [\"git\", \"push\"]]\n";
    let mut report = Report::new("p.toml", text);
    let file = read(text, Layer::Task, 0, &mut report);
    assert_eq!(report.render(false), "");
    assert_eq!(file.files.approve[0].path.get_ref(), "/a");
    let access = file.files.approve[1].access.as_ref().unwrap();
    assert_eq!(access.get_ref()[0].get_ref(), "write");
    let ExecEntry::Command(words) = &file.exec.approve[1] else {
        panic!("{:?}", file.exec.approve);
    };
    assert_eq!(&text[words.span()], "[\"git\", \"push\"]");
    let wrong = faults(
        "[files]\napprove = [1, { access = [] }, { path = \"/a\", acces = [] }]\n[exec]\napprove = [1, [\"git\", 2]]\nallow = \"x\"\n[approvals]\ntimeout = 1\nmax_pending = \"x\"\n",
    );
    for expected in [
        "`files.approve` holds strings and tables with `path` and `access`, and this is an integer",
        "the entry has no path",
        "there is no key `files.approve.acces`",
        "did you mean `access`?",
        "`exec.approve` holds strings and lists of strings, and this is an integer",
        "`exec.approve` holds strings, and this is an integer",
        "put it in brackets: allow = [\"x\"]",
        "`approvals.timeout` must be a string, and this is an integer",
        "`approvals.max_pending` must be a whole number, and this is a string",
    ] {
        assert!(
            wrong.contains(expected),
            "{expected} is missing in\n{wrong}"
        );
    }
}

#[test]
fn a_managed_file_has_keys_of_its_own() {
    let managed = |text: &str| {
        let mut report = Report::new("10.toml", text);
        read(text, Layer::Managed, 0, &mut report);
        report.render(false)
    };
    assert_eq!(
        managed(
            "mode = \"enforce\"\naccept_degraded = false\n[sessions]\nusers = []\nmax_per_user = 3\n[guard]\ndeny = []\n"
        ),
        ""
    );
    let faults_of = managed("[files]\nread = []\n[limits]\n[session]\n");
    for expected in [
        "a managed file may not say `files.read`",
        "a managed file may not say `limits`",
        "did you mean `sessions`?",
    ] {
        assert!(
            faults_of.contains(expected),
            "{expected} is missing in\n{faults_of}"
        );
    }
    assert!(
        faults("accept_degraded = true").contains("only a managed file may say `accept_degraded`")
    );
}

#[test]
fn values_are_read_by_kind() {
    let text = "extends = [\"preset:base\"]\n[task]\ngoal = \"g\"\nacceptance = [\"make test\"]\n[limits]\npids = 0x10\ncpu = 2\nmemory = \"1GiB\"\n[[expect]]\nread = \"/x\"\nverdict = \"denied\"\n";
    let mut report = Report::new("p.toml", text);
    let file = read(text, Layer::Task, 0, &mut report);
    assert_eq!(report.render(false), "");
    assert_eq!(extends(text), ["preset:base"]);
    assert_eq!(file.limits.pids.map(Spanned::into_inner), Some(16));
    assert_eq!(file.limits.cpu.map(Spanned::into_inner), Some(2.0));
    assert_eq!(file.expect.len(), 1);
    let wrong = faults("expect = 1\n[limits]\npids = \"many\"\ncpu = true\n");
    for expected in [
        "`expect` must be a list of tables",
        "`limits.pids` must be a whole number, and this is a string",
        "`limits.cpu` must be a number, and this is a boolean",
    ] {
        assert!(
            wrong.contains(expected),
            "{expected} is missing in\n{wrong}"
        );
    }
}

#[test]
fn broken_toml_points_at_the_place() {
    let text = faults("[files\nread = [\"/usr\"\n");
    assert!(text.starts_with("error: not valid TOML: "), "{text}");
    assert!(text.contains("p.toml:1:"), "{text}");
}

#[test]
fn deep_nesting_is_refused_and_not_followed() {
    for text in [
        "x=".to_owned() + &"[".repeat(200_000),
        "x=".to_owned() + &"{a=".repeat(100_000),
        "a.".repeat(200_000),
    ] {
        assert!(faults(&text).contains("not valid TOML"));
    }
}

#[test]
fn the_schema_has_the_keys_that_are_read() {
    let schema = serde_json::to_value(schema()).unwrap();
    let keys = |pointer: &str| -> Vec<String> {
        let mut keys: Vec<String> = schema
            .pointer(pointer)
            .unwrap()
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect();
        keys.sort();
        keys
    };
    for (pointer, table) in [
        ("/properties", &TOP),
        ("/$defs/FilesTable/properties", &FILES),
        ("/$defs/NetworkTable/properties", &NETWORK),
        ("/$defs/ExecTable/properties", &EXEC),
        ("/$defs/GuardTable/properties", &GUARD),
        ("/$defs/ApprovalsTable/properties", &APPROVALS),
        ("/$defs/TaskTable/properties", &TASK),
        ("/$defs/LimitsTable/properties", &LIMITS),
        ("/$defs/EnvTable/properties", &ENV),
        ("/$defs/TraceTable/properties", &TRACE),
        ("/$defs/ExpectTable/properties", &EXPECT),
    ] {
        let mut known = table.known.to_vec();
        known.sort_unstable();
        assert_eq!(keys(pointer), known);
    }
    assert_eq!(
        schema.pointer("/additionalProperties"),
        Some(&serde_json::Value::Bool(false))
    );
}
