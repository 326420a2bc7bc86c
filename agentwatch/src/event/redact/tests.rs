//! Secrets of every known form are found, and what is none stays.

use super::*;
use crate::event::{Kind, samples::sample};

fn redactor() -> Redactor {
    Redactor::new([7; 32], &[]).expect("the built-in patterns")
}

fn argv(arguments: &[&str]) -> Vec<String> {
    let mut argv: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
    redactor().arguments(&mut argv);
    argv
}

/// Token formats as their makers document them, put together here so that no scanner takes this file for a leak.
fn tokens() -> Vec<(&'static str, String)> {
    let of = |length: usize, alphabet: &str| -> String {
        alphabet
            .chars()
            .cycle()
            .skip(3)
            .step_by(7)
            .take(length)
            .collect()
    };
    let mixed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    let digits = "0123456789abcdef";
    let upper = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut all: Vec<(&str, String)> = Vec::new();
    for prefix in ["ghp_", "gho_", "ghu_", "ghs_", "ghr_"] {
        all.push(("github", prefix.to_owned() + &of(36, mixed)));
    }
    let [pat, glpat] = ["github_pat_", "glpat-"];
    all.push((
        "github",
        format!("{pat}{}_{}", of(22, mixed), of(59, mixed)),
    ));
    all.push(("gitlab", glpat.to_owned() + &of(20, mixed)));
    for prefix in ["AKIA", "ASIA"] {
        all.push(("aws-key-id", prefix.to_owned() + &of(16, upper)));
    }
    for prefix in ["xoxb-", "xoxp-", "xoxe-"] {
        all.push((
            "slack",
            format!("{prefix}{}-{}", of(12, "1234567890"), of(24, mixed)),
        ));
    }
    all.push((
        "slack",
        format!("xapp-1-A{}-{}", of(10, upper), of(40, digits)),
    ));
    all.push(("anthropic", format!("sk-ant-api03-{}-AA", of(93, mixed))));
    for prefix in ["sk-", "sk-proj-", "sk-svcacct-"] {
        all.push(("openai", prefix.to_owned() + &of(48, mixed)));
    }
    all.push(("gcp-api-key", "AIza".to_owned() + &of(35, mixed)));
    all.push(("gcp-oauth", "ya29.".to_owned() + &of(60, mixed)));
    all.push(("gcp-oauth", "GOCSPX-".to_owned() + &of(28, mixed)));
    all.push((
        "jwt",
        format!(
            "eyJ{}.eyJ{}.{}",
            of(20, mixed),
            of(40, mixed),
            of(43, mixed)
        ),
    ));
    for prefix in ["sk_live_", "rk_test_"] {
        all.push(("stripe", prefix.to_owned() + &of(24, mixed)));
    }
    all.push(("npm", "npm_".to_owned() + &of(36, mixed)));
    all.push(("pypi", "pypi-AgEIcHlwaS5vcmc".to_owned() + &of(60, mixed)));
    all.push(("crates-io", "cio".to_owned() + &of(32, mixed)));
    all.push(("huggingface", "hf_".to_owned() + &of(34, mixed)));
    all.push((
        "sendgrid",
        format!("SG.{}.{}", of(22, mixed), of(43, mixed)),
    ));
    all.push(("twilio", "SK".to_owned() + &of(32, digits)));
    all.push(("digitalocean", "dop_v1_".to_owned() + &of(64, digits)));
    all.push(("docker", "dckr_pat_".to_owned() + &of(27, mixed)));
    all.push(("vault", "hvs.".to_owned() + &of(90, mixed)));
    all.push((
        "telegram",
        format!("{}:AA{}", of(10, "1234567890"), of(33, mixed)),
    ));
    all.push(("age", "AGE-SECRET-KEY-1".to_owned() + &of(58, upper)));
    all.push(("groq", "gsk_".to_owned() + &of(52, mixed)));
    all.push(("xai", "xai-".to_owned() + &of(80, mixed)));
    all.push(("databricks", "dapi".to_owned() + &of(32, digits)));
    all.push(("linear", "lin_api_".to_owned() + &of(40, mixed)));
    all
}

#[test]
fn tokens_of_known_forms_are_found_wherever_they_stand() {
    let redactor = redactor();
    for (what, token) in tokens() {
        for place in [
            token.clone(),
            format!("run {token} now"),
            format!("sh -c 'echo \"{token}\" | x'"),
            format!("/home/dev/{token}/notes"),
            format!("K={token}"),
        ] {
            let text = redactor.text(&place, true);
            assert!(!text.contains(&token), "{what}: {text}");
            assert!(
                text.contains(&format!("[redacted:{what}:")),
                "{what}: {text}"
            );
            // Looking twice changes nothing.
            assert_eq!(redactor.text(&text, true), text);
        }
    }
}

#[test]
fn secrets_are_found_by_what_stands_around_them() {
    for (arguments, shown) in [
        (
            &["mysql", "--password=hunter2", "db"][..],
            &["--password=["][..],
        ),
        (
            &["tool", "--password", "hunter2"],
            &["--password", "[redacted:value:"],
        ),
        (&["tool", "--db-password", "hunter2", "rest"], &["rest"]),
        (&["tool", "--api-key=hunter2"], &["--api-key=["]),
        (
            &["env", "DB_PASSWORD=hunter2", "tool"],
            &["DB_PASSWORD=[", "tool"],
        ),
        (
            &["sh", "-c", "export TOKEN=hunter2; tool --secret hunter2"],
            &["export TOKEN=[", "tool --secret ["],
        ),
        (
            &["curl", "-H", "Authorization: Bearer hunter2hunter2"],
            &["Authorization: Bearer ["],
        ),
        (
            &[
                "curl",
                "-H",
                "Authorization: Basic aHVudGVyMjpodW50ZXIy hunter2",
            ],
            &["Authorization: Basic ["],
        ),
        (&["tool", "password=::hunter2"], &["password=::["]),
        (&["curl", "-H", "X-Api-Key: hunter2"], &["X-Api-Key: ["]),
        (
            &["curl", "-H", "PRIVATE-TOKEN: hunter2"],
            &["PRIVATE-TOKEN: ["],
        ),
        (
            &["curl", "-b", "x", "-H", "Cookie: session=hunter2; a=b"],
            &["Cookie: ["],
        ),
        (
            &["curl", "-u", "me:hunter2", "https://example.org"],
            &["me:[", "https://example.org"],
        ),
        (&["curl", "-ume:hunter2"], &["-ume:["]),
        (
            &["sshpass", "-p", "hunter2", "ssh", "host"],
            &["-p", "ssh", "host"],
        ),
        (&["sshpass", "-phunter2", "ssh"], &["-p["]),
        (&["mysqldump", "-phunter2", "db"], &["-p[", "db"]),
        (
            &["git", "clone", "https://me:hunter2@example.org/x.git"],
            &["https://me:[", "@example.org/x.git"],
        ),
        (
            &[
                "git",
                "clone",
                "https://hunter2hunter2hunter2@example.org/x.git",
            ],
            &["https://[", "@example.org/x.git"],
        ),
        (
            &["psql", "postgres://u:hunter2@db:5432/x"],
            &["postgres://u:[", "@db:5432/x"],
        ),
        (
            &["curl", "https://example.org/?access_token=hunter2&page=2"],
            &["?access_token=[", "&page=2"],
        ),
        (
            &["curl", "https://s3.example.org/o?X-Amz-Signature=hunter2"],
            &["X-Amz-Signature=["],
        ),
        (
            &[
                "tool",
                "AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYhunter2KEYx",
            ],
            &["AWS_SECRET_ACCESS_KEY=["],
        ),
        (
            &["tool", "{\"password\": \"hunter2\"}"],
            &["{\"password\": \"[", "\"}"],
        ),
        (
            &[
                "tool",
                "-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2\n-----END OPENSSH PRIVATE KEY-----",
            ],
            &["[redacted:private-key:"],
        ),
        (
            &["tool", "-----BEGIN RSA PRIVATE KEY-----\nhunter2 cut off"],
            &["[redacted:private-key:"],
        ),
        (
            &[
                "tool",
                "-----BEGIN PGP PRIVATE KEY BLOCK-----\nhunter2\n-----END PGP PRIVATE KEY BLOCK-----",
            ],
            &["[redacted:private-key:"],
        ),
        (
            &["env", "PGPASSWORD=hunter2", "psql"],
            &["PGPASSWORD=[", "psql"],
        ),
        (&["tool", "dbPassword=hunter2"], &["dbPassword=["]),
        (
            &["tool", "{\"accessToken\":\"hunter2\"}"],
            &["{\"accessToken\":\"[", "\"}"],
        ),
        (
            &[
                "npm",
                "config",
                "set",
                "//registry.example.org/:_authToken=hunter2",
            ],
            &["_authToken=["],
        ),
        (
            &["tool", "--authtoken", "hunter2", "go"],
            &["--authtoken [", "go"],
        ),
        (
            &["env", "DB_PASSWORD=x9;hunter2", "go"],
            &["DB_PASSWORD=[", "go"],
        ),
        (
            &["tool", "--password=correct hunter2 staple", "go"],
            &["--password=[", "go"],
        ),
        (&["tool", "--password=&hunter2"], &["--password=["]),
        (
            &[
                "bash",
                "-c",
                "cd /x && curl -u me:hunter2 https://example.org",
            ],
            &["curl -u me:[", "https://example.org"],
        ),
        (
            &["sh", "-ec", "login --pass hunter2 --user me"],
            &["--pass [", "--user me"],
        ),
        (
            &["bash", "-lc", "PASSWORD=hunter2; ls /x"],
            &["PASSWORD=[", "ls /x"],
        ),
        (
            &[
                "bash",
                "-euo",
                "pipefail",
                "-c",
                "curl -u me:hunter2 https://example.org",
            ],
            &["curl -u me:["],
        ),
        (
            &["su", "user", "-c", "curl -u me:hunter2 https://example.org"],
            &["curl -u me:["],
        ),
        (
            &["sudo", "mysql", "-phunter2", "-e", "SELECT 1"],
            &["-p[", "SELECT 1"],
        ),
        (
            &["timeout", "5", "/usr/bin/mysqldump", "-phunter2"],
            &["-p["],
        ),
        (
            &["curl", "-sSu", "me:hunter2", "https://example.org"],
            &["me:["],
        ),
        (
            &["git", "clone", "https://me:p@hunter2@example.org/x"],
            &["https://me:[", "@example.org/x"],
        ),
    ] {
        let argv = argv(arguments);
        let line = argv.join(" ");
        assert!(!line.contains("hunter2"), "{line}");
        for part in shown {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
}

#[test]
fn ordinary_arguments_stay_as_they_are() {
    for arguments in [
        &["git", "log", "--author=me", "--since=yesterday"][..],
        &["cargo", "test", "--", "--nocapture", "token::tests"],
        &["tool", "secret::", "password:"],
        &["python", "train.py", "--tokenizer=bert", "--max-tokens=100"],
        &[
            "tool",
            "--token-file=/run/secrets/token",
            "--password-stdin",
        ],
        &["curl", "https://example.org:8443/a/b?page=2&sort=key"],
        &["ssh", "-p", "22", "git@example.org"],
        &["git", "clone", "ssh://git@example.org/x.git"],
        &[
            "tool",
            "sha256:5d41402abc4b2a76b9719d911017c5925d41402abc4b2a76b9719d911017c592",
        ],
        &["cat", "/etc/passwd", "/home/dev/.config/credentials"],
        &["mkdir", "-p", "/work/x"],
        &["tool", "skeleton-key-of-the-kingdom-and-more", "ask-proj"],
    ] {
        assert_eq!(argv(arguments), arguments, "{arguments:?}");
    }
    let redactor = redactor();
    for path in [
        "/work/secret: plan.txt",
        "/etc/ssl/private/token=1",
        "/usr/share/password.txt",
    ] {
        assert!(
            matches!(redactor.text(path, false), Cow::Borrowed(_)),
            "{path}"
        );
    }
}

#[test]
fn the_same_secret_has_the_same_mark_on_one_host_and_another_elsewhere() {
    let first = argv(&["tool", "--password=hunter2"]);
    let second = argv(&["other", "--secret", "hunter2"]);
    let mark = |argv: &[String]| -> String {
        let line = argv.join(" ");
        line.split("[redacted:value:")
            .nth(1)
            .expect("a mark")
            .to_owned()
    };
    assert_eq!(mark(&first), mark(&second));
    let mut elsewhere = vec!["tool".to_owned(), "--password=hunter2".to_owned()];
    Redactor::new([8; 32], &[])
        .expect("patterns")
        .arguments(&mut elsewhere);
    assert_ne!(mark(&first), mark(&elsewhere));
}

#[test]
fn every_part_of_an_event_that_can_hold_one_is_looked_at() {
    let (_, token) = tokens().remove(0);
    let redactor = redactor();
    for kind in Kind::ALL {
        let mut event = sample(kind);
        if let Some(process) = &mut event.process {
            process.argv.push(token.clone());
            process.cwd = format!("/w/{token}");
            process.exe = format!("/w/{token}/x");
        }
        for file in [&mut event.file, &mut event.target].into_iter().flatten() {
            file.path = format!("/w/{token}");
        }
        if let Some(net) = &mut event.net {
            net.path = Some(format!("/run/{token}.sock"));
            net.domain = Some(format!("{token}.example.org"));
        }
        event.session.name = format!("task with {token}");
        if let Some(guard) = &mut event.guard {
            guard.detail = Some(token.clone());
        }
        if let Some(Lifecycle::Started {
            command, policy, ..
        }) = &mut event.lifecycle
        {
            command.push(token.clone());
            let record = policy.as_mut().expect("the sample has a policy");
            record.task.goal = Some(format!("use {token}"));
            record.task.ticket = Some(format!("https://example.org/?token={token}"));
            record.task.acceptance = vec![format!("TOKEN={token} make check")];
            for rule in &mut record.rules {
                rule.text = format!("/w/{token}");
            }
        }
        redactor.event(&mut event);
        let json = serde_json::to_string(&event).expect("JSON");
        assert!(!json.contains(&token), "{json}");
    }
}

#[test]
fn patterns_of_the_administrators_are_used_and_checked() {
    let custom = |name: &str, regex: &str| Custom {
        name: name.to_owned(),
        regex: regex.to_owned(),
    };
    let redactor =
        Redactor::new([7; 32], &[custom("corp", r"corp-(?P<secret>[0-9]{6})")]).expect("a pattern");
    let text = redactor.text("use corp-123456", true);
    assert!(text.starts_with("use corp-[redacted:corp:"), "{text}");
    for (name, regex) in [
        ("Corp", "x"),
        ("", "x"),
        ("a]b", "x"),
        ("corp", "("),
        ("corp", "x*"),
    ] {
        assert!(
            Redactor::new([7; 32], &[custom(name, regex)]).is_err(),
            "{name} {regex}"
        );
    }
}

#[test]
fn the_page_names_every_form() {
    let page = include_str!("../../../../docs/redaction.md");
    for (name, _) in KNOWN {
        assert!(page.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn long_and_odd_texts_end_in_time() {
    let redactor = redactor();
    let begun = std::time::Instant::now();
    for text in [
        "a".repeat(8192),
        "password=".repeat(900),
        "://a:".repeat(1600),
        "-----BEGIN PRIVATE KEY-----".repeat(300),
    ] {
        let _ = redactor.text(&text, true);
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(5));
}
